"""Limits that nobody named (``rate_limits = "auto"``): `LearnedLimits` finds them out, for one limit key.

Where the provider tells its limits in headers, those are the limits. Where it does not, a 429 shows that what was
sent in the minute before was too much: the limit becomes a little less than that, comes slowly back to it, and
beyond it ever faster, as TCP's window does (CUBIC, RFC 9438, section 4.2). It goes no further than twice what has
been seen to pass: a quiet hour proves nothing.

How a limiter uses it, under its lock and with one for each key that learns:

- `observe` with each `QuotaReport`; `refused` too where the report says so, with what was counted in the window;
- `tick` now and then (once a second is enough), with what is counted in the window;
- each of the three says whether `to_wire` has changed: that goes into a last-writer-wins register at ("limits", key),
  and what comes out of that one goes into `merge_wire`;
- `ceilings` are the limits now; with the named ones the least of each holds: ``Ceilings(**learned.ceilings(now))
  .least(named)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...policy.quota import DIMENSIONS, QuotaReport

__all__ = ["LearnedLimits"]

_BACKED_OFF = 0.9
_LEAST_AT_ONCE = 0.5  # of the limit so far: one 429 in a quiet minute has another cause than the limit
_RECOVERY = 300.0  # seconds until what was refused is tried again
_FURTHEST = 2.0
_SAME_TROUBLE = 10.0  # seconds: requests that were on their way at a 429 get theirs too
_NOTICED = 1.01  # smaller changes are not worth a message
_SURE = 5
_MOST = 1e12


class LearnedLimits:
    """The limits of a key, as far as they showed. Times are seconds since the epoch. Not safe for threads."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}  # by headers
        self._votes: dict[str, int] = {}  # above 0: headers of that dimension are of a minute
        self._levels: dict[str, tuple[float, float]] = {}  # what went through, and when more was refused

    def observe(self, report: QuotaReport) -> bool:
        """The provider's headers came."""
        changed = False
        limits = report.per_minute()
        longer = {quota.dimension for quota in report.quotas if quota.lasts} - limits.keys()
        for dimension in longer:
            # Of a day, as it seems. A reset by itself may deceive, so that both kinds of seeming are counted.
            if self._vote(dimension, -1) < 0 and self._told.pop(dimension, None) is not None:
                changed = True
        for dimension, limit in limits.items():
            if self._vote(dimension, +1) <= 0:
                continue
            limit, known = min(limit, _MOST), self._told.get(dimension)
            if known is None or limit < known or limit > known * _NOTICED:
                self._told[dimension] = limit
                changed = True
        return changed

    def _vote(self, dimension: str, vote: int) -> int:
        votes = self._votes.get(dimension, 0) + vote
        self._votes[dimension] = min(max(votes, -_SURE), _SURE)
        return votes

    def refused(self, used: Mapping[str, float], now: float, report: QuotaReport | None = None) -> bool:
        """A 429 came.

        Args:
            used: What was counted in the window, by dimension.
            now: Seconds since the epoch.
            report: What its headers said. Where they show what is used up, nothing is left to be guessed.
        """
        if report is not None and 0 in report.remaining().values():
            return False
        changed = False
        limits = self.ceilings(now)
        for dimension in DIMENSIONS:
            count = used.get(dimension, 0.0)
            if dimension in self._told or not count > 0:
                continue
            known = self._levels.get(dimension)
            if known is not None:
                if now - known[1] < _SAME_TROUBLE:
                    continue
                limit = limits[dimension]
                count = min(max(count, limit * _LEAST_AT_ONCE), limit)
            self._levels[dimension] = (min(max(count, 1.0), _MOST), now)
            changed = True
        return changed

    def tick(self, used: Mapping[str, float], now: float) -> bool:
        """Time has passed. What was counted in the window meanwhile, and not refused, is known to go through."""
        changed = False
        for dimension, (level, since) in self._levels.items():
            count = min(used.get(dimension, 0.0), _MOST)
            if count > level * _NOTICED and now - since > _RECOVERY:
                self._levels[dimension] = (count, since)
                changed = True
        return changed

    def ceilings(self, now: float) -> dict[str, float]:
        """The limits of a minute, by dimension; none is there for what is not known to be limited."""
        found = {dimension: _grown(level, now - since) for dimension, (level, since) in self._levels.items()}
        return {**found, **self._told}

    def to_wire(self) -> dict[str, Any]:
        """All that `merge_wire` needs; JSON."""
        return {
            "told": dict(self._told),
            "refused": {dimension: list(level) for dimension, level in self._levels.items()},
        }

    def merge_wire(self, value: Any, now: float) -> bool:
        """Take over what another replica found out, later than this one; whether it differs.

        What is malformed changes nothing. A refusal in the future is one of now.
        """
        told, levels = _told(value), _levels(value, now)
        if told is None or levels is None or (told, levels) == (self._told, self._levels):
            return False
        self._told, self._levels = told, levels
        return True

    def __repr__(self) -> str:
        return f"LearnedLimits(told {self._told}, refused {self._levels})"


def _grown(level: float, age: float) -> float:
    progress = (max(age, 0.0) - _RECOVERY) / _RECOVERY
    return max(1.0, level * min(1.0 + (1.0 - _BACKED_OFF) * progress**3, _FURTHEST))


def _told(value: Any) -> dict[str, float] | None:
    told = value.get("told") if isinstance(value, dict) else None
    if not isinstance(told, dict):
        return None
    found = {name: limit for name, limit in told.items() if name in DIMENSIONS}
    return dict(found) if all(map(_is_limit, found.values())) else None


def _levels(value: Any, now: float) -> dict[str, tuple[float, float]] | None:
    levels = value.get("refused") if isinstance(value, dict) else None
    if not isinstance(levels, dict):
        return None
    found = {}
    for name, level in levels.items():
        if name not in DIMENSIONS:
            continue
        if not isinstance(level, list) or len(level) < 2 or not _is_limit(level[0]) or not _is_time(level[1]):
            return None
        found[name] = (level[0], min(level[1], now))
    return found


def _is_limit(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= _MOST


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
