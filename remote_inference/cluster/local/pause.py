"""A key's pause and the ramp after it, so that those who waited do not all come at once."""

from __future__ import annotations

import math

from ...reasons import LimitReason

__all__ = ["RAMP", "RAMP_STEP", "Pause"]

RAMP_STEP = 0.5
"""Seconds in which the number of requests let through since the pause's end may double: one at once, two by
0.5 s, four by 1 s … It is slow start, as TCP's (RFC 5681): it need not know the limit, and is soon there."""

RAMP = 5.0
"""Seconds after which the ramp ends: by then a thousand requests were let through."""


class Pause:
    """Until when nothing is let through, and how much soon after. Not thread-safe; times are monotonic.

    Where ``crowd`` replicas wait, each takes its turn on the ramp by its ``rank`` among them.
    """

    __slots__ = ("admitted", "crowd", "quiet_until", "rank", "until", "until_epoch")

    def __init__(self) -> None:
        self.until = -math.inf
        self.until_epoch = 0.0
        self.quiet_until = -math.inf
        self.admitted = 0
        self.crowd, self.rank = 1, 0

    def active(self, now: float) -> bool:
        """Whether nothing is let through now."""
        return now < self.until

    def extend(self, until: float, until_epoch: float, now: float, *, ramp: bool = True) -> bool:
        """Pause until then, if that is later than now and than the pause there is. Whether it was.

        Without a ramp, all may come at once after it: for a moment's pause of those who do not come quicker anyway.
        """
        if until <= max(self.until, now):
            return False
        self._set(until, until_epoch, ramp or now < self.quiet_until)
        return True

    def end(self, now: float) -> None:
        """End it now, if it lasts longer."""
        if now < self.until:
            self._set(now, 0.0)

    def opens_at(self, now: float) -> tuple[float, LimitReason | None]:
        """When the next request may pass, and why not now, if so."""
        if now < self.until:
            return self.until, LimitReason.PAUSED
        if now >= self.quiet_until:
            return now, None
        at = self.until + RAMP_STEP * math.log2(self.admitted * self.crowd + self.rank + 1)
        return (at, LimitReason.RAMP) if at > now else (now, None)

    def _set(self, until: float, until_epoch: float, ramp: bool = True) -> None:
        self.until = until
        self.until_epoch = until_epoch
        self.quiet_until = until + RAMP if ramp else until
        self.admitted = 0
