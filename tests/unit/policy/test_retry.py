"""Whether another attempt follows, and when."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference import errors
from remote_inference.config import RetryPolicy
from remote_inference.policy.retry import MIN_PAUSE, RetryDecision, backoff, decide

PLAIN = RetryPolicy(jitter="none")
NO = RetryDecision(retry=False)


def asked(error: errors.RequestError, policy: RetryPolicy = PLAIN, **changes: Any) -> RetryDecision:
    known: dict[str, Any] = {
        "retries_used": 0,
        "idempotent": True,
        "deadline_left": None,
        "rng": random.Random(1),
    }
    return decide(policy, error, **{**known, **changes})


def test_backoff_doubles_up_to_its_bound() -> None:
    delays = [
        asked(errors.ServerError(), RetryPolicy(jitter="none", max_retries=9), retries_used=n).delay
        for n in range(8)
    ]
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]


def test_the_multiplier_is_the_policys_and_never_overflows() -> None:
    policy = RetryPolicy(jitter="none", initial_backoff=0.5, backoff_multiplier=3.0, max_retries=1_000)
    assert asked(errors.Timeout(), policy, retries_used=2).delay == 4.5
    assert asked(errors.Timeout(), policy, retries_used=999).delay == policy.max_backoff


@pytest.mark.parametrize(("jitter", "low", "high"), [("equal", 2.0, 4.0), ("full", 0.0, 4.0)])
def test_jitter_is_drawn_from_the_whole_range(jitter: Any, low: float, high: float) -> None:
    policy, rng = RetryPolicy(jitter=jitter), random.Random(7)
    delays = [backoff(policy, 2, rng) for _ in range(2_000)]
    assert all(low <= delay <= high for delay in delays)
    assert min(delays) < low + 0.05
    assert max(delays) > high - 0.05
    assert len(set(delays)) > 1_900


def test_two_sources_of_randomness_give_two_delays_and_a_callable_is_one() -> None:
    policy = RetryPolicy()
    assert backoff(policy, 0, random.Random(1)) != backoff(policy, 0, random.Random(2))
    assert backoff(policy, 0, lambda: 0.5) == 0.75


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.RateLimited(), "rate_limited"),
        (errors.ServerError(status=500), "server_error"),
        (errors.ServerError(status=409), "server_error"),
        (errors.InvalidResponse(), "server_error"),
        (errors.StreamTruncated(), "server_error"),
        (errors.Timeout("read"), "timeout"),
        (errors.NetworkError("reset"), "network"),
    ],
)
def test_what_retry_on_names_is_retried_and_nothing_else(error: errors.RequestError, kind: Any) -> None:
    assert asked(error, RetryPolicy(jitter="none", retry_on=(kind,))) == RetryDecision(retry=True, delay=1.0)
    others = tuple(k for k in PLAIN.retry_on if k != kind)
    assert asked(error, RetryPolicy(retry_on=others)) == NO


@pytest.mark.parametrize(
    "error",
    [
        errors.Unauthorized(),
        errors.Forbidden(),
        errors.BadRequest(),
        errors.ContextLengthExceeded(),
        errors.ContentFiltered(),
        errors.CircuitOpen(),
        errors.LimitReached(),
        errors.Cancelled(),
        errors.DeadlineExceeded(),
        errors.WorkerLost(),
        errors.RateLimited(quota=True),
        errors.RateLimited(retry_after=5.0, quota=True),
    ],
)
def test_what_no_retry_helps_is_never_retried(error: errors.RequestError) -> None:
    assert asked(error) == NO


def test_retries_end() -> None:
    assert asked(errors.ServerError(), retries_used=2).retry
    assert asked(errors.ServerError(), retries_used=3) == NO
    assert asked(errors.RateLimited(), retries_used=3) == NO


@pytest.mark.parametrize("used", [0, 3, 50])
def test_a_429_with_a_time_costs_no_retry_and_pauses_the_key(used: int) -> None:
    decision = asked(errors.RateLimited(retry_after=20.0), retries_used=used)
    assert decision == RetryDecision(retry=True, delay=20.0, uses_retry=False, pause=20.0)


def test_no_retries_is_no_retries_but_the_key_is_paused_all_the_same() -> None:
    off = RetryPolicy(max_retries=0)
    assert asked(errors.ServerError(), off) == NO
    assert asked(errors.RateLimited(retry_after=9.0), off) == RetryDecision(retry=False, pause=9.0)


def test_a_429_with_a_time_is_not_cut_by_the_longest_backoff() -> None:
    assert asked(errors.RateLimited(retry_after=600.0)).delay == 600.0


def test_a_429_whose_time_is_ignored_is_an_ordinary_failure() -> None:
    policy = RetryPolicy(jitter="none", respect_retry_after=False)
    assert asked(errors.RateLimited(retry_after=20.0), policy) == RetryDecision(retry=True, delay=1.0)
    assert asked(errors.RateLimited(retry_after=20.0), policy, retries_used=3) == NO
    assert asked(errors.ServerError(status=503, retry_after=20.0), policy).delay == 1.0


def test_free_retries_cannot_become_a_hot_loop() -> None:
    assert asked(errors.RateLimited(retry_after=0.0)) == RetryDecision(retry=True, delay=1.0)
    assert asked(errors.RateLimited(retry_after=0.001)).pause == MIN_PAUSE


def test_a_server_error_waits_at_least_as_long_as_it_asks_for() -> None:
    assert asked(errors.ServerError(status=503, retry_after=20.0)) == RetryDecision(retry=True, delay=20.0)
    assert asked(errors.ServerError(status=503, retry_after=0.2)).delay == 1.0


def test_nothing_is_retried_that_would_begin_after_the_deadline() -> None:
    assert asked(errors.ServerError(), deadline_left=1.01).retry
    assert asked(errors.ServerError(), deadline_left=1.0) == NO
    assert asked(errors.RateLimited(retry_after=20.0), deadline_left=19.0) == RetryDecision(
        retry=False, pause=20.0
    )


def test_what_is_not_idempotent_is_never_retried_but_the_key_is_paused_all_the_same() -> None:
    assert asked(errors.NetworkError(), idempotent=False) == NO
    assert asked(errors.RateLimited(retry_after=9.0), idempotent=False) == RetryDecision(
        retry=False, pause=9.0
    )


@given(
    st.integers(0, 5_000),
    st.floats(0.001, 100),
    st.floats(1, 1000),
    st.sampled_from(["none", "equal", "full"]),
    st.floats(0, 0.999),
)
def test_a_backoff_is_never_negative_nor_over_its_bound(
    used: int, initial: float, multiplier: float, jitter: Any, drawn: float
) -> None:
    policy = RetryPolicy(
        initial_backoff=initial, max_backoff=100.0, backoff_multiplier=multiplier, jitter=jitter
    )
    assert 0.0 <= backoff(policy, used, lambda: drawn) <= 100.0


def test_a_server_that_says_no_is_believed() -> None:
    for error in (errors.ServerError(status=503), errors.RateLimited(), errors.Timeout("server")):
        assert asked(error.advised(should_retry=False)) == NO
    paused = asked(errors.RateLimited(retry_after=5.0).advised(should_retry=False))
    assert paused == RetryDecision(retry=False, pause=5.0), "the key rests all the same"


def test_a_server_that_says_yes_is_believed_within_the_configuration() -> None:
    odd = errors.BadRequest(status=400).advised(should_retry=True)
    assert asked(odd) == RetryDecision(retry=True, delay=1.0)
    assert not asked(odd, RetryPolicy(max_retries=0)).retry
    assert not asked(odd, idempotent=False).retry
    assert not asked(odd, retries_used=3).retry
    busy = errors.ServerError(status=503).advised(should_retry=True)
    assert not asked(busy, RetryPolicy(retry_on=("timeout",))).retry, "what was configured counts for more"
