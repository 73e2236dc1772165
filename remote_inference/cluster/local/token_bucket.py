"""How quickly a replica may use what it may use: a token bucket, so that a minute's worth does not go in a second."""

from __future__ import annotations

import math

__all__ = ["TokenBucket"]

STEADY = 0.25
"""Seconds' worth that may go at once while there is always something to send ..."""
FEW = 2.0
"""... or so many units: who comes a moment late must not lose a turn by it."""


class TokenBucket:
    """Units a second, of which ``burst`` seconds' worth may go at once after a quiet time. Not thread-safe.

    A cost above the bucket's size passes when the bucket is full, and is paid back by those that follow.

    Args:
        burst: seconds' worth; see `RateLimits.burst`.
        now: monotonic.
    """

    __slots__ = ("_at", "_level", "_rate", "_size", "_steady", "burst")

    def __init__(self, burst: float, now: float) -> None:
        self.burst = burst
        self._steady = False
        self._rate = math.inf
        self._size = math.inf
        self._level = math.inf
        self._at = now

    def set_rate(self, rate: float, now: float, *, steady: bool = False) -> None:
        """From now on so many units a second; infinite: as many as there are. ``steady``: with small bursts only."""
        if rate == self._rate and steady == self._steady:
            return
        self._steady = steady
        if rate == math.inf:
            self._rate = self._size = self._level = math.inf
            return
        size = max(rate * self.burst, 1.0)
        if steady:
            size = min(size, max(rate * STEADY, FEW))
        if self._rate == math.inf:
            level = size if self._level == math.inf else self._level
        else:
            self._refill(now)
            level = self._level
        self._rate, self._size, self._level, self._at = rate, size, min(level, size), now

    def due(self, cost: float, now: float, *, ahead: bool = False) -> float:
        """When the cost may pass; now or earlier if it may. ``ahead``: it may by a burst before its time."""
        # before anything is taken: else what had no room in the bucket would come in after it
        self._refill(now)
        if self._level >= cost:
            return now
        lacking = min(cost, self._size) - self._level
        if ahead:
            lacking -= max(self._rate * self.burst, 1.0)
        if lacking <= 1e-9:
            return now
        return now + lacking / self._rate if self._rate > 0 else math.inf

    def take(self, cost: float) -> None:
        """It passed."""
        self._level -= cost

    def give_back(self, cost: float) -> None:
        """It cost less (or more, if negative) than was taken."""
        self._level = min(self._level + cost, self._size)

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._level = min(self._size, self._level + (now - self._at) * self._rate)
            self._at = now

    def __repr__(self) -> str:
        return f"TokenBucket({self._rate:g}/s, {self._level:.1f} of {self._size:.1f})"
