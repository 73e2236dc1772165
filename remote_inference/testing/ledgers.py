"""`VirtualLedgers`: the broker's ledgers on a virtual clock, as `messaging.ledgers` brings them from a real one."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial

from ..cluster import Transfers

__all__ = ["LedgerDesk", "VirtualLedgers"]

NOTHING_THERE = 1.0
"""Seconds after which a ledger that does not come is taken not to be there."""
LOOK_AGAIN = 0.1
"""Seconds until a ledger that may not be begun as yet is looked for again."""
NOT_READING = 20.0
"""Seconds after which the broker gives up the connection of a process that stands still, and what it had in hand."""


class LedgerDesk:
    """Where one process gets its ledgers.

    Attributes:
        alive, reachable, stopped: whether the process lives; reaches the broker; stands still. For the test to set.
    """

    def __init__(self, ledgers: VirtualLedgers, transfers: Transfers) -> None:
        self.alive = self.reachable = True
        self.stopped = False
        self._ledgers = ledgers
        self._transfers = transfers
        transfers.ask = self.ask

    def ask(self, subject: str) -> None:
        """Wait for the ledger's turn."""
        self._ledgers.later(lambda: self._queue(subject))

    def leave(self) -> None:
        """Give everything back, at once."""
        for subject in self._transfers.leave():
            queue = self._ledgers.queues.get(subject)
            if self.reachable and queue is not None and queue.body is not None and queue.holder is None:
                changed = self._transfers.read(subject, queue.body)
                if changed is not None:
                    queue.body = changed
                    self._transfers.confirmed(subject)

    def _queue(self, subject: str) -> None:
        if not self.alive:
            return
        if not self.reachable or self.stopped:
            self._transfers.failed(subject)
            return
        queue = self._ledgers.queue(subject)
        queue.waiting.append(self)
        if queue.existed:
            self._ledgers.after(NOTHING_THERE, lambda: self._nothing_came(subject))
            self._ledgers.serve(subject)
        else:
            self._nothing_came(subject)

    def _nothing_came(self, subject: str) -> None:
        queue = self._ledgers.queue(subject)
        if not self.alive or self not in queue.waiting:
            return
        queue.waiting.remove(self)
        if not self.reachable or self.stopped:
            self._transfers.failed(subject)
            return
        nobody_has_it = queue.body is None and queue.holder is None
        if self._transfers.may_begin(subject, not queue.existed) and nobody_has_it:
            queue.holder, queue.since, queue.existed = self, self._ledgers.now(), True
            self.deliver(subject, None)
        else:
            self._transfers.failed(subject)
            if queue.body is None:
                self._ledgers.after(LOOK_AGAIN, lambda: self.ask(subject))

    def deliver(self, subject: str, body: bytes | None) -> None:
        """The ledger has come."""
        ledgers = self._ledgers
        if not self.alive or not self.reachable:
            ledgers.release(subject, self)
            if self.alive:
                self._transfers.failed(subject)
            return
        if self.stopped:
            if ledgers.now() - ledgers.queue(subject).since > NOT_READING:
                ledgers.release(subject, self)
                ledgers.later(lambda: self._failed_when_it_goes_on(subject))
            else:
                ledgers.after(0.25, lambda: self.deliver(subject, body))
            return
        changed = self._transfers.read(subject, body)
        ledgers.later(lambda: self._commit(subject, changed))

    def _failed_when_it_goes_on(self, subject: str) -> None:
        if self.alive and self.stopped:
            self._ledgers.after(0.25, lambda: self._failed_when_it_goes_on(subject))
        elif self.alive:
            self._transfers.failed(subject)

    def _commit(self, subject: str, changed: bytes | None) -> None:
        """What was written before a death is on its way all the same; a connection that is lost may lose it."""
        ledgers, queue = self._ledgers, self._ledgers.queue(subject)
        arrives = self.reachable or ledgers.rng.random() < 0.5
        if queue.holder is self:
            if changed is not None and arrives:
                queue.body = changed or None
            ledgers.release(subject, self)
        if not changed or not self.alive:
            return
        if self.reachable:
            ledgers.later(lambda: self._confirm(subject))
        else:
            self._transfers.failed(subject)

    def _confirm(self, subject: str) -> None:
        if self.alive and self.stopped:
            self._ledgers.after(0.25, lambda: self._confirm(subject))
        elif self.alive and self.reachable:
            self._transfers.confirmed(subject)
        elif self.alive:
            self._transfers.failed(subject)


class _Queue:
    def __init__(self) -> None:
        self.body: bytes | None = None
        self.existed = False
        self.holder: LedgerDesk | None = None
        self.since = 0.0
        self.waiting: deque[LedgerDesk] = deque()


class VirtualLedgers:
    """One broker's.

    Args:
        now: the virtual time.
        after: does something after so many virtual seconds.
        rng: for the time that frames take.
        delay: seconds that a frame is on its way at most.
    """

    def __init__(
        self,
        now: Callable[[], float],
        after: Callable[[float, Callable[[], None]], None],
        rng: random.Random,
        *,
        delay: float = 0.002,
    ) -> None:
        self.now = now
        self.after = after
        self.rng = rng
        self.delay = delay
        self.reads = 0
        self.queues: dict[str, _Queue] = {}

    def desk(self, transfers: Transfers) -> LedgerDesk:
        """For one process."""
        return LedgerDesk(self, transfers)

    def lose(self) -> None:
        """The broker has lost its data."""
        self.queues.clear()

    def later(self, action: Callable[[], None]) -> None:
        """When a frame has arrived."""
        self.after(self.rng.uniform(0.0, self.delay), action)

    def queue(self, subject: str) -> _Queue:
        """The subject's."""
        return self.queues.setdefault(subject, _Queue())

    def serve(self, subject: str) -> None:
        """Hand the ledger to the next that waits for it."""
        queue = self.queue(subject)
        if queue.body is None or queue.holder is not None:
            return
        while queue.waiting:
            desk = queue.waiting.popleft()
            if desk.alive:
                queue.holder, queue.since = desk, self.now()
                self.reads += 1
                self.later(partial(desk.deliver, subject, queue.body))
                return

    def release(self, subject: str, desk: LedgerDesk) -> None:
        """It is in nobody's hands any more."""
        queue = self.queue(subject)
        if queue.holder is desk:
            queue.holder = None
            self.serve(subject)

    def drop(self, desk: LedgerDesk) -> None:
        """Its process was killed: what it had in hand goes back."""
        for subject, queue in list(self.queues.items()):
            if queue.holder is desk:
                self.after(0.01, lambda s=subject: self.release(s, desk))  # type: ignore[misc]
