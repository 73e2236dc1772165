"""Whom to ask instead: the fallback decision."""

from __future__ import annotations

from collections.abc import Collection

from ..config import CapacityPolicy, Deployment, InferenceConfig
from ..errors import (
    Backpressure,
    CircuitOpen,
    ContextLengthExceeded,
    InferenceError,
    InvalidResponse,
    LimitReached,
    NetworkError,
    RateLimited,
    ServerError,
    Timeout,
)
from ..reasons import LimitReason

__all__ = ["next_deployment"]

# Capacity that is not there, and attempts that failed for good. What is wrong with the request or the
# credential (400, 401, 403, a content filter) would be wrong elsewhere too, or has to be seen.
_CAPACITY = (
    Backpressure,
    CircuitOpen,
    InvalidResponse,
    LimitReached,
    NetworkError,
    RateLimited,
    ServerError,
    Timeout,
)
# What concerns this process, whichever deployment is asked.
_THE_PROCESS = frozenset({LimitReason.MARKS_UNAVAILABLE, LimitReason.PROCESS_RESERVED, LimitReason.SHUTDOWN})
_THE_BROKER = frozenset({"broker_blocked", "broker_down"})  # the fallback's queue is on it too


def next_deployment(
    deployment: Deployment, error: InferenceError, config: InferenceConfig, *, tried: Collection[str] = ()
) -> str | None:
    """The deployment to try after this final error, or None to hand the error to the caller.

    Only where the deployment says ``on_capacity_exhausted = "fallback"``; `ContextLengthExceeded` only with
    ``fallback_on_context_length``. The fallbacks of a fallback are not followed: the list of the deployment
    that was asked for is the whole list.

    Args:
        deployment: The one that was asked for.
        error: What stands after its retries.
        config: Where the names are looked up.
        tried: Names that need not be tried again.
    """
    if isinstance(error, ContextLengthExceeded):
        willing = deployment.fallback_on_context_length
    elif isinstance(error, Backpressure) and error.reason in _THE_BROKER:
        willing = False
    elif isinstance(error, LimitReached) and error.code in _THE_PROCESS:
        willing = False
    else:
        willing = isinstance(error, _CAPACITY) and deployment.on_capacity_exhausted == CapacityPolicy.FALLBACK
    if not willing:
        return None
    for name in deployment.fallback:
        if name != deployment.name and name not in tried and name in config.deployments:
            return name
    return None
