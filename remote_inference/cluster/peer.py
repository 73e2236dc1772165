"""`PeerState`: what a replica knows of another one."""

from __future__ import annotations

import math

__all__ = ["PeerState"]

OFFSET_MEMORY = 60.0
"""Seconds after which a measured offset is replaced: quartz clocks drift by some 50 millionths."""


class PeerState:
    """Another member, as heard."""

    __slots__ = (
        "_earlier",
        "_lowest",
        "_since",
        "gone",
        "heard",
        "joining",
        "left",
        "name",
        "offset",
        "rank",
        "skew",
        "weight",
    )

    def __init__(self, now: float) -> None:
        self.heard = now
        self.name = ""
        self.weight = 1.0
        self.rank = 0
        self.joining = True
        self.gone = False
        """It is no more, or was given up."""
        self.left = False
        """It said good-bye: what it has said is all."""
        self.skew = 0.0
        self.offset = math.inf
        """What to add to its monotonic times; infinite before the first was heard."""
        self._lowest = self._earlier = math.inf
        self._since = now

    def measure(self, sent: float, now: float) -> None:
        """It was that time there, when its message was sent."""
        if now - self._since > OFFSET_MEMORY:
            self._earlier, self._lowest, self._since = self._lowest, math.inf, now
        self._lowest = min(self._lowest, now - sent)
        self.offset = min(self._lowest, self._earlier)
