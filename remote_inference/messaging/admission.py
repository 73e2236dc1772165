"""Who gets into a queue: lower priorities are refused first, so that a flood of them keeps nobody out.

The broker's own bound (``x-max-length``) is exact, but knows no priorities. So a sender looks at the queue's depth
before it publishes, as often as needed: far from the bound once for many messages, close to it for every single one.
Several processes look at the same figure; each takes a sixteenth of the room at most before it looks again. What this
process's own threads have under way counts as if it were in the queue.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from ..clock import Clock
from ..types import Priority

__all__ = ["SHARES", "Admission", "threshold"]

SHARES: dict[Priority, float] = {
    Priority.BACKGROUND: 0.80,
    Priority.NORMAL: 0.90,
    Priority.HIGH: 0.95,
    Priority.CRITICAL: 1.0,
}
"""The part of the capacity that each priority may fill."""

FRESH = 1.0
"""Seconds for which a look at the queue counts."""

PART = 16
"""The part of the room that is taken on one look is one by this: so many processes at once take no more than it all."""


def threshold(capacity: int, priority: Priority) -> int:
    """How many messages may wait when one of this priority is let in; at least one."""
    return max(1, int(capacity * SHARES[priority]))


@dataclass
class _Depth:
    waiting: int = 0
    seen_at: float = float("-inf")
    used: bool = True  # whether somebody was turned away or let in by this look
    sent: int = 0  # let in by this look
    under_way: int = 0  # let in and not settled
    taken: int = 0  # let in, ever
    unseen: int = 0  # those that `waiting` may not count: under way when it was looked, or let in since
    lock: threading.Lock = field(default_factory=threading.Lock)


class Admission:
    """What this process knows of the depth of the queues."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._depths: dict[str, _Depth] = {}

    def take(self, queue: str, capacity: int, priority: Priority, wanted: int = 1) -> int | None:
        """Take room for up to ``wanted`` messages.

        Returns:
            How many may be sent now (tell their end: `settled`). 0: the class's part is full, by a look that was made
            for this. None: look at the queue first (`seen`).
        """
        depth = self._depths.get(queue) or self._depths.setdefault(queue, _Depth())
        with depth.lock:
            if self._clock.monotonic() - depth.seen_at > FRESH:
                return None
            used, depth.used = depth.used, True
            room = threshold(capacity, priority) - depth.waiting
            if room <= 0:
                return None if used else 0
            room -= depth.unseen
            granted = min(wanted, max(1, room // PART) - depth.sent) if room > 0 else 0
            if granted <= 0:
                return None
            depth.sent += granted
            depth.under_way += granted
            depth.taken += granted
            return granted

    def settled(self, queue: str, count: int = 1) -> None:
        """It is known what became of messages that were let in."""
        depth = self._depths[queue]
        with depth.lock:
            depth.under_way -= count

    def looking(self, queue: str) -> int:
        """The queue is going to be looked at; what is returned goes to `seen`."""
        depth = self._depths.get(queue) or self._depths.setdefault(queue, _Depth())
        with depth.lock:
            return depth.taken - depth.under_way

    def seen(self, queue: str, waiting: int, looking: int | None = None) -> None:
        """The queue was looked at; ``looking``: from before (None: it counts all that this process has let in)."""
        depth = self._depths.get(queue) or self._depths.setdefault(queue, _Depth())
        with depth.lock:
            depth.waiting, depth.seen_at, depth.sent = waiting, self._clock.monotonic(), 0
            depth.unseen, depth.used = 0 if looking is None else depth.taken - looking, False

    def __repr__(self) -> str:
        return f"Admission({ {name: depth.waiting for name, depth in self._depths.items()} })"
