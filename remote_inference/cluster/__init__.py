"""What workers share: the limits of a key, and who may send next. No I/O."""

from __future__ import annotations

from .base import Cost, LimitKey, Permit, RateLimiter
from .dispatch import LimiterByKey
from .estimates import TokenEstimates
from .limiter import GossipRateLimiter
from .ratios import SharedEstimates
from .replica import Replica
from .strict import LimitStore, StoreUnavailable, StrictRateLimiter

__all__ = [
    "Cost",
    "GossipRateLimiter",
    "LimitKey",
    "LimitStore",
    "LimiterByKey",
    "Permit",
    "RateLimiter",
    "Replica",
    "SharedEstimates",
    "StoreUnavailable",
    "StrictRateLimiter",
    "TokenEstimates",
]
