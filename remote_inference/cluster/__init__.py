"""What workers share: the limits of a key, and who may send next. No I/O."""

from __future__ import annotations

from .base import Cost, LimitKey, Permit, RateLimiter
from .local import LocalRateLimiter

__all__ = ["Cost", "LimitKey", "LocalRateLimiter", "Permit", "RateLimiter"]
