"""`Congestion`: how far messages lag behind, and by how much a replica therefore holds itself back."""

from __future__ import annotations

from .lifecycle import LEASE

__all__ = ["Congestion"]

LATE = 0.5
"""Seconds by which messages may be late before a replica says less: the usual time between two deltas."""
MOST = 16.0


class Congestion:
    """One replica's.

    Where messages come faster than they are read, saying more makes all of them later: then leases are lost, those who
    lost theirs join anew, all others answer them, and it goes on like this after what began it is over. So whoever
    hears late speaks seldom: what is said at leisure (deltas, answers, questions that are asked again) waits longer by
    this factor. The full record that keeps the lease is as frequent as ever, and answers all questions in time.

    What is later than a lease does not count. Who reads so late has lost its own by then, and waits before it joins
    anew; otherwise the sender's clock stood still, as that of a machine does which was suspended.
    """

    __slots__ = ("_echo", "_last")

    def __init__(self) -> None:
        self._echo = 0.0
        self._last = 0.0

    def heard(self, late: float) -> None:
        """A message came so many seconds later than the fastest of its sender."""
        self._last = late if late < LEASE else 0.0

    def echoed(self, late: float) -> None:
        """Our own came back after so many seconds."""
        self._echo = late

    @property
    def factor(self) -> float:
        """From 1 (all is well) to `MOST`."""
        return min(max(self._echo, self._last, LATE) / LATE, MOST)

    def __repr__(self) -> str:
        return f"Congestion({self.factor:.1f})"
