"""Strict limits in real workers: exact for all of them, and nothing is let through while Redis is away."""

from __future__ import annotations

import time

import pytest
from local_process import wait_until
from pytest_celery import RedisTestBackend
from shop_nodes import DEPLOYMENT, LIMIT, Shop

LIMITS = {"requests_per_minute": 20, "burst": 60.0, "strict": True}


@pytest.fixture
def strict_shop(shop: Shop, private_redis: RedisTestBackend) -> Shop:
    """A shop with a strict limit, counted in a Redis that the test may stop."""
    shop.options["rate_limits"] = LIMITS
    shop.tables["redis"] = {"url": private_redis.container.url}
    return shop


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_all_processes_together_send_what_the_limit_allows(strict_shop: Shop, pool: str) -> None:
    strict_shop.workers(2, slots=4, pool=pool)
    caller = strict_shop.caller()
    began = time.monotonic()
    handles = caller.submit_many(DEPLOYMENT, [f"prompt {number}" for number in range(40)])

    wait_until(lambda: sum(handle.done for handle in handles) == 20, "the first minute's worth", LIMIT)
    time.sleep(2.0)  # that no more is sent cannot be waited for

    assert time.monotonic() - began < 58.0, "within one minute"
    assert len(strict_shop.provider.requests) == 20


def test_requests_wait_for_a_redis_that_is_away_and_go_on_when_it_is_back(
    strict_shop: Shop, private_redis: RedisTestBackend
) -> None:
    strict_shop.workers(1, slots=2)
    caller = strict_shop.caller()
    caller.submit(DEPLOYMENT, "before").result(LIMIT)
    private_redis.kill()
    handles = caller.submit_many(DEPLOYMENT, ["during"] * 4)

    def gate() -> str:
        [worker] = caller.workers(timeout=0.3).values()
        return str(worker["gates"].get(DEPLOYMENT, {}).get("reason", ""))

    wait_until(lambda: "store_unavailable" in gate(), "the gate to shut", LIMIT)
    assert len(strict_shop.provider.requests) == 1

    private_redis.restart()

    assert {handle.result(LIMIT).attempts for handle in handles} == {1}, "it cost no retry"
    assert len(strict_shop.provider.requests) == 5
