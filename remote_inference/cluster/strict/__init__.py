"""Limits that are counted in one place, outside: exact, for the price of a round trip."""

from __future__ import annotations

from .limiter import StrictRateLimiter
from .store import LimitStore, StoreUnavailable

__all__ = ["LimitStore", "StoreUnavailable", "StrictRateLimiter"]
