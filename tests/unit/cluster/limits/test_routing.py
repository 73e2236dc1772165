"""Each key goes to one limiter, and all its deployments with it."""

from __future__ import annotations

from typing import Any

import pytest

from remote_inference.cancel import CancelToken
from remote_inference.cluster import Cost, LimitKey
from remote_inference.cluster.limits.routing import RoutingLimiter
from remote_inference.config import RateLimits
from remote_inference.policy.quota import QuotaReport
from remote_inference.types import Priority

KEY, OTHER = LimitKey("openai", "env:KEY", "m"), LimitKey("openai", "env:KEY", "other")
PLAIN = RateLimits(requests_per_minute=5)
STRICT = RateLimits(requests_per_minute=5, strict=True)
COST = Cost(1, 1)


class Spy:
    """Notes what it is asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[tuple[Any, ...]] = []

    def configure(
        self, key: LimitKey, limits: RateLimits, *, deployment: str, max_concurrent: int | None = None
    ) -> None:
        self.calls.append(("configure", key.model, deployment, max_concurrent))

    def acquire(self, key: LimitKey, deployment: str, cost: Cost, **how: Any) -> Any:
        self.calls.append(("acquire", key.model, deployment))
        return self.name

    def observe(self, key: LimitKey, report: QuotaReport) -> None:
        self.calls.append(("observe", key.model))

    def pause(self, key: LimitKey, until: float) -> None:
        self.calls.append(("pause", key.model, until))

    def resume(self, key: LimitKey) -> None:
        self.calls.append(("resume", key.model))

    def paused_until(self, key: LimitKey) -> float:
        return 1.0 if self.name == "strict" else 2.0

    def snapshot(self) -> dict[str, Any]:
        return {str(key): self.name for key in (KEY, OTHER)}

    @property
    def heard(self) -> list[tuple[Any, ...]]:
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def shared() -> Spy:
    return Spy("shared")


@pytest.fixture
def strict() -> Spy:
    return Spy("strict")


def taken(limiter: RoutingLimiter, key: LimitKey = KEY) -> Any:
    return limiter.acquire(key, "a", COST, priority=Priority.NORMAL, patience=0.0, token=CancelToken())


def test_each_key_goes_where_its_limits_say(shared: Spy, strict: Spy) -> None:
    limiter = RoutingLimiter(shared, strict)
    limiter.configure(KEY, STRICT, deployment="a", max_concurrent=3)
    limiter.configure(OTHER, PLAIN, deployment="b")
    assert ("configure", "m", "a", 3) in strict.heard
    assert ("configure", "other", "b", None) in shared.heard
    assert strict.heard == []

    assert (taken(limiter), taken(limiter, OTHER)) == ("strict", "shared")
    assert (limiter.paused_until(KEY), limiter.paused_until(OTHER)) == (1.0, 2.0)
    limiter.pause(KEY, 7.0)
    limiter.resume(KEY)
    limiter.observe(KEY, QuotaReport())
    assert strict.heard == [("acquire", "m", "a"), ("pause", "m", 7.0), ("resume", "m"), ("observe", "m")]
    assert shared.heard == [("acquire", "other", "a")]
    assert limiter.snapshot() == {str(KEY): "strict", str(OTHER): "shared"}


@pytest.mark.parametrize("order", [1, -1])
def test_a_deployment_that_shares_a_strict_key_is_strict_whoever_comes_first(
    order: int, shared: Spy, strict: Spy
) -> None:
    limiter = RoutingLimiter(shared, strict)
    for deployment, limits in [("a", STRICT), ("b", RateLimits())][::order]:
        limiter.configure(KEY, limits, deployment=deployment)
    assert taken(limiter) == "strict"
    assert {call[2] for call in strict.heard if call[0] == "configure"} == {"a", "b"}


def test_a_key_whose_strict_deployment_moved_away_is_shared_again(shared: Spy, strict: Spy) -> None:
    limiter = RoutingLimiter(shared, strict)
    limiter.configure(KEY, RateLimits(), deployment="b")
    limiter.configure(KEY, STRICT, deployment="a")
    limiter.configure(OTHER, STRICT, deployment="a")
    limiter.configure(KEY, RateLimits(), deployment="b")
    assert (taken(limiter), taken(limiter, OTHER)) == ("shared", "strict")


def test_a_key_that_nobody_configured_is_left_to_the_shared_one(shared: Spy, strict: Spy) -> None:
    limiter = RoutingLimiter(shared, strict)
    limiter.pause(KEY, 9.0)
    assert (shared.heard, strict.heard) == ([("pause", "m", 9.0)], [])
