"""`ClusterTime`: a clock that all replicas share, for times that outlive the process which wrote them.

Each replica keeps an estimate: its own monotonic clock and an offset. Messages and ledgers carry their writer's
estimate; whoever reads a later time than its own takes it over (the rule of Lamport's clocks, 1978, on clocks that run
by themselves). So no estimate is ahead of the first one, each is behind by no more than the quickest message took, and
wall clocks do not matter: what a replica takes to come free comes free late rather than early.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["ClusterTime", "Stamp"]

WALL_MARGIN = 35.0
"""Seconds by which a host's wall clock may be stepped before its monotonic clock is not believed to be the same."""
_LARGEST = 1e12


@dataclass(frozen=True)
class Stamp:
    """A cluster time, and what the writer's clocks showed then: for readers who were not there.

    Attributes:
        time: seconds of the cluster's clock.
        host: the writer's boot and name spaces, "" where they are not known: processes of one host share a monotonic
            clock.
        monotonic, wall: the writer's clocks.
    """

    time: float
    host: str
    monotonic: float
    wall: float

    def to_wire(self) -> list[Any]:
        """What `from_wire` reads."""
        return [round(self.time, 3), self.host, round(self.monotonic, 3), round(self.wall, 3)]

    @classmethod
    def from_wire(cls, value: Any) -> Stamp:
        """Raises ValueError: it is no stamp."""
        try:
            time, host, monotonic, wall = value[:4]
        except (TypeError, ValueError):
            raise ValueError("not a stamp") from None
        if type(host) is not str or len(host) > 64:
            raise ValueError("not a host")
        for number in (time, monotonic, wall):
            if type(number) not in (int, float) or not -_LARGEST < number < _LARGEST:
                raise ValueError("not a time")
        return cls(time, host, monotonic, wall)


class ClusterTime:
    """One replica's estimate. Not thread-safe; ``now`` is its monotonic clock.

    Args:
        host: see `Stamp`.
    """

    __slots__ = ("_offset", "host")

    def __init__(self, host: str = "") -> None:
        self.host = host
        self._offset = -math.inf

    @property
    def known(self) -> bool:
        """Whether it has read or begun it."""
        return self._offset > -math.inf

    def begin(self, wall: float, now: float) -> None:
        """Nobody has told it: begin with the wall clock, so that a person can read it."""
        if not self.known:
            self._offset = wall - now

    def at(self, moment: float) -> float:
        """What the cluster's clock shows at a monotonic time of this replica."""
        return moment + self._offset

    def forget(self) -> None:
        """It was away for so long that the others may have begun anew: theirs is right."""
        self._offset = -math.inf

    def heard(self, time: float, now: float) -> None:
        """Another replica's message carries that."""
        self._offset = max(self._offset, time - now)

    def read(self, stamp: Stamp, wall: float, now: float) -> None:
        """A ledger was written then, perhaps long ago."""
        since, by_wall = now - stamp.monotonic, wall - stamp.wall
        if not (stamp.host and stamp.host == self.host and 0 <= since <= by_wall + WALL_MARGIN):
            # Another host, or a machine that was copied while it ran and claims to be the same: nobody knows how long
            # ago that was. Then what is due comes free late, by as long as nobody wrote.
            since = 0.0
        self._offset = max(self._offset, stamp.time + since - now)

    def stamp(self, wall: float, now: float) -> Stamp:
        """For what is written now."""
        return Stamp(self.at(now), self.host, now, wall)

    def __repr__(self) -> str:
        return f"ClusterTime(offset={self._offset:.3f})"
