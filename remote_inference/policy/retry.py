"""Whether to try again, and when: a pure function of the policy, the error and a random number."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from ..config import RetryPolicy
from ..errors import RateLimited, RequestError, ServerError
from .classify import traits

__all__ = ["MIN_PAUSE", "RetryDecision", "backoff", "decide"]

MIN_PAUSE = 0.1
"""Seconds; a shorter ``Retry-After`` counts as this: such retries cost nothing and must not be a hot loop."""


@dataclass(frozen=True, kw_only=True)
class RetryDecision:
    """What follows a failed attempt.

    Attributes:
        retry: Whether another attempt follows.
        delay: Seconds until then. Where ``pause`` is set, the limiter's pause is that wait: do not sleep too.
        uses_retry: Whether it counts towards ``max_retries``.
        pause: Seconds for which the key has to be paused, also if this request does not try again.
    """

    retry: bool
    delay: float = 0.0
    uses_retry: bool = True
    pause: float | None = None


def decide(
    policy: RetryPolicy,
    error: RequestError,
    *,
    retries_used: int,
    idempotent: bool,
    deadline_left: float | None,
    rng: random.Random | Callable[[], float],
) -> RetryDecision:
    """Decide on another attempt.

    - A 429 for which the provider named a time costs no retry and asks to pause the key. A named time of 0 is
      none: it costs a retry and waits the usual backoff.
    - A 5xx that names a time waits at least that long, where that is respected.
    - ``max_retries=0`` turns retries off, those that cost nothing included.
    - What the server says of another attempt (``x-should-retry``) counts for more than the kind of the error.
    - Spent quota is final. So is `Unauthorized` here: the engine rebuilds the session and decides for itself.
    - No retry that would begin at or after the deadline.

    Args:
        policy: The deployment's.
        error: What went wrong.
        retries_used: Retries that counted, before this one.
        idempotent: False: never.
        deadline_left: Seconds, None for no deadline.
        rng: Where the jitter comes from; a callable gives numbers in [0, 1).
    """
    found = traits(error)
    named = _named_time(policy, error)
    pause = named if isinstance(error, RateLimited) and found.retry_kind else None
    makes_sense = found.retry_kind in policy.retry_on
    if error.should_retry is not None:
        # What the configuration rules out stays so.
        makes_sense = error.should_retry and (makes_sense or found.retry_kind is None)
    allowed = idempotent and policy.max_retries > 0 and makes_sense
    if not allowed or (pause is None and retries_used >= policy.max_retries):
        return RetryDecision(retry=False, pause=pause)
    if pause is not None:
        delay = pause
    else:
        delay = max(backoff(policy, retries_used, rng), named or 0.0)
    if deadline_left is not None and delay >= deadline_left:
        return RetryDecision(retry=False, pause=pause)
    return RetryDecision(retry=True, delay=delay, uses_retry=pause is None, pause=pause)


def _named_time(policy: RetryPolicy, error: RequestError) -> float | None:
    if not policy.respect_retry_after or not isinstance(error, (RateLimited, ServerError)):
        return None
    return max(error.retry_after, MIN_PAUSE) if error.retry_after else None


def backoff(policy: RetryPolicy, retries_used: int, rng: random.Random | Callable[[], float]) -> float:
    """Seconds before the next attempt: exponential, bounded, with jitter.

    The kinds of jitter are those of "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015): ``equal``
    keeps half and draws the other half, ``full`` draws the whole, ``none`` draws nothing.
    """
    try:
        ceiling = min(policy.max_backoff, policy.initial_backoff * policy.backoff_multiplier**retries_used)
    except OverflowError:
        ceiling = policy.max_backoff
    if policy.jitter == "none":
        return ceiling
    drawn = rng.random() if isinstance(rng, random.Random) else rng()
    return ceiling * drawn if policy.jitter == "full" else ceiling / 2 * (1.0 + drawn)
