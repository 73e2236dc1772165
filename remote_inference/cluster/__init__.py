"""What workers share: the limits of a key, and who may send next. No I/O."""

from __future__ import annotations

from .base import Cost, LimitKey, Permit, RateLimiter
from .limits.limiter import GossipRateLimiter
from .limits.routing import RoutingLimiter
from .limits.shared_estimates import SharedEstimates
from .limits.transfer import Transfers
from .local.estimates import TokenEstimates
from .membership import Replica, StateListener
from .strict import LimitStore, StoreUnavailable, StrictRateLimiter

__all__ = [
    "Cost",
    "GossipRateLimiter",
    "LimitKey",
    "LimitStore",
    "Permit",
    "RateLimiter",
    "Replica",
    "RoutingLimiter",
    "SharedEstimates",
    "StateListener",
    "StoreUnavailable",
    "StrictRateLimiter",
    "TokenEstimates",
    "Transfers",
]
