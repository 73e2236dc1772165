"""`Lifecycle`: from the start of a replica to its end, and when it may act on what it holds.

    WAITING ──heard itself──> LISTENING ──a second, or an answer──> ACTIVE ──not heard in time──> EXPIRED ──> WAITING
       └── no broker at all ──> ALONE ──the broker came──> WAITING

Being alive is a lease. Every message of a replica comes back to it, and this *echo* shows that the others have heard
it too. They give a replica up when they have not heard it for `LEASE` seconds; so it stops `GUARD` seconds earlier,
counted from the sending of the last message whose echo came.
"""

from __future__ import annotations

import math
import threading
from enum import Enum

__all__ = ["CONNECTED", "GUARD", "LEASE", "LISTEN", "Lifecycle", "Stage"]

LEASE = 15.0
"""Seconds for which a replica is taken to live after its last message."""
GUARD = 1.0
"""Seconds by which a replica that hears no echo of its own stops before the others take it for dead."""
LISTEN = 1.0
"""Seconds for which a newcomer only listens, unless a replica that was here before answers it."""
CONNECTED = 6.0
"""Seconds after its latest echo for which a replica takes itself to be connected: a full record's interval and some."""


class Stage(Enum):
    """Where a replica stands."""

    WAITING = "waiting"
    """It has not heard itself yet."""
    LISTENING = "listening"
    """It hears the others, who may not have told it everything yet."""
    ACTIVE = "active"
    EXPIRED = "expired"
    """Its lease is over: what it held may be somebody else's. It joins anew under another id."""
    ALONE = "alone"
    """There is no broker, and so nobody to share with."""


class Lifecycle:
    """One replica's. Not thread-safe; times are monotonic, in seconds."""

    __slots__ = ("_alone", "_listening_until", "answered", "echo", "hears_since", "lease_until", "reached")

    def __init__(self) -> None:
        self._alone = True
        self._listening_until = -math.inf
        self.lease_until = math.inf
        """Until when this replica may act on what it holds."""
        self.echo = -math.inf
        """When it sent the latest message of its own that it has heard."""
        self.hears_since = -math.inf
        """Since when it has heard the others without a break."""
        self.reached = threading.Event()
        """Set but while it waits for the broker."""
        self.reached.set()
        self.answered = threading.Event()
        """Set when a replica that was here before has told it everything; or there is nobody to do so."""
        self.answered.set()

    # -- what it asks

    def stage(self, now: float) -> Stage:
        """Where it stands at that time."""
        if self._alone:
            return Stage.ALONE
        if self._listening_until == math.inf:
            return Stage.WAITING
        if now >= self.lease_until:
            return Stage.EXPIRED
        return Stage.LISTENING if now < self._listening_until else Stage.ACTIVE

    @property
    def alone(self) -> bool:
        """Whether there is nobody to share with."""
        return self._alone

    @property
    def waiting(self) -> bool:
        """Whether it has not heard itself yet."""
        return self._listening_until == math.inf

    @property
    def listening_until(self) -> float:
        """Until when it only listens; infinite while it waits for the broker."""
        return self._listening_until

    def may_act(self, now: float) -> bool:
        """Whether it may spend what it holds.

        A newcomer that was answered by a replica that was here before knows what stops the others; what the ledger
        gives it is its own at once.
        """
        if now >= self.lease_until:
            return False
        return now >= self._listening_until or (self._listening_until < math.inf and self.answered.is_set())

    def acts_at(self, now: float) -> float:
        """When it may act: now, or when that is to be expected."""
        if self.may_act(now):
            return now
        if now < self._listening_until:
            return min(self._listening_until, now + LISTEN)
        return now + LISTEN

    def connected(self, now: float) -> bool:
        """Whether it has heard itself lately."""
        return now - self.echo < CONNECTED

    # -- what happens to it

    def wait(self) -> None:
        """Nothing is acted upon before the broker is reached, or reached anew."""
        self._alone = False
        self.lease_until = self._listening_until = math.inf
        self.echo = -math.inf
        self.reached.clear()
        self.answered.clear()

    def go_alone(self) -> None:
        """The broker cannot be reached."""
        self._alone = True
        self.lease_until, self._listening_until = math.inf, -math.inf
        self.reached.set()
        self.answered.set()

    def echoed(self, sent: float, now: float) -> bool:
        """Its own message came back, which it had sent then. Whether it begins to listen with that."""
        if now >= self.lease_until:
            return False  # it comes too late: the others have given it up, or it has said good-bye
        if not self.connected(now):
            self.hears_since = now  # what the others said meanwhile was not heard either
        self.echo = sent
        if self._alone:
            return False
        self.lease_until = sent + LEASE - GUARD
        if self._listening_until < math.inf:
            return False
        self._listening_until = now + LISTEN
        self.reached.set()
        return True

    def end(self) -> None:
        """It has said good-bye."""
        self.lease_until = -math.inf

    def __repr__(self) -> str:
        return f"Lifecycle(lease_until={self.lease_until:.1f}, listening_until={self._listening_until:.1f})"
