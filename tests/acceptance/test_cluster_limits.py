"""One limit for the processes of all pools, and what is shown of it, on real RabbitMQ."""

from __future__ import annotations

import os
import signal
from typing import Any

from local_process import wait_until
from market import APP, QUICK, Market, open_market

LIMIT = 60.0
RIGHTS = 600


def processes(market: Market) -> dict[str, dict[str, Any]]:
    """What each process says of limits and members: the children of the prefork worker, and the other worker."""
    found: dict[str, dict[str, Any]] = {}
    for name, worker in market.inference.workers(timeout=0.5).items():
        found |= worker.get("processes") or {name: worker}
    return found


def shared_by(market: Market, count: int, *, at_least: int = RIGHTS) -> bool:
    """Whether so many processes know each other, and hold the limit together, or at least so much of it."""
    found = processes(market)
    limits = [process["limits"] for process in found.values()]
    held = sum(key["rights"]["requests"] for keys in limits for key in keys.values())
    return (
        len(found) == count
        and all(len(process["cluster"]["members"]) == count - 1 for process in found.values())
        and held >= at_least
        and all(key["limits"] == {"requests": RIGHTS} for keys in limits for key in keys.values())
    )


def test_prefork_children_and_threads_share_a_limit_and_all_of_them_show_it(
    start_workers, fresh_broker_url: str
):
    deployment = {"name": "a", "rate_limits": {"requests_per_minute": RIGHTS}}
    with open_market(fresh_broker_url, deployment) as market:
        options = ("-Q", market.queues, QUICK, "-c", "2")
        start_workers(1, *options, app=APP, env=market.environment, pool="prefork")
        start_workers(1, *options, app=APP, env=market.environment, pool="threads")
        wait_until(lambda: shared_by(market, 3), "three that share", LIMIT)
        for handle in market.inference.submit_many("a", ["x"] * 40):
            assert handle.result(LIMIT).text

        before = processes(market)
        victim = next(name for name in before if name.isdigit())
        os.kill(int(victim), signal.SIGKILL)
        # less what it may have spent, at its pace, in the time for which it could still have been alive
        wait_until(lambda: shared_by(market, 3, at_least=RIGHTS // 2), "another child in its place", LIMIT)
        assert victim not in processes(market)
        assert market.inference.submit("a", "x").result(LIMIT).text
