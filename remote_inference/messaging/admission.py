"""Who gets into a queue: lower priorities are refused first, so that a flood of them keeps nobody out.

The broker's own bound (``x-max-length``) is exact, but knows no priorities. So a sender looks at the queue's depth
before it publishes, as often as needed: far from the bound once for many messages, close to it for every single one.
Several senders look at the same figure; each takes an eighth of the room at most before it looks again.
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


def threshold(capacity: int, priority: Priority) -> int:
    """How many messages may wait when one of this priority is let in; at least one."""
    return max(1, int(capacity * SHARES[priority]))


@dataclass
class _Depth:
    waiting: int = 0
    seen_at: float = float("-inf")
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Admission:
    """What this process knows of the depth of the queues."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._depths: dict[str, _Depth] = {}

    def take(self, queue: str, capacity: int, priority: Priority, wanted: int = 1) -> int | None:
        """Take room for up to ``wanted`` messages.

        Returns:
            How many may be sent now (0: the class's part is full, as last seen), or None: look at the queue first
            (`seen`).
        """
        depth = self._depths.get(queue) or self._depths.setdefault(queue, _Depth())
        with depth.lock:
            if self._clock.monotonic() - depth.seen_at > FRESH:
                return None
            room = threshold(capacity, priority) - depth.waiting
            if room <= 0:
                depth.seen_at = float("-inf")  # the next one looks again
                return 0
            granted = min(wanted, max(1, room // 8) - depth.sent)
            if granted <= 0:
                return None
            depth.sent += granted
            return granted

    def seen(self, queue: str, waiting: int) -> None:
        """The queue was looked at."""
        depth = self._depths.get(queue) or self._depths.setdefault(queue, _Depth())
        with depth.lock:
            depth.waiting, depth.seen_at, depth.sent = waiting, self._clock.monotonic(), 0

    def __repr__(self) -> str:
        return f"Admission({ {name: depth.waiting for name, depth in self._depths.items()} })"
