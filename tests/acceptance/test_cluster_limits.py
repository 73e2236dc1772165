"""One limit for the processes of all pools, and what is shown of it, on real RabbitMQ."""

from __future__ import annotations

import os
import signal
import time
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


def shared_by(market: Market, count: int) -> bool:
    """Whether so many processes know each other and the limit, and each of them holds some of it."""
    found = processes(market)
    limits = [process["limits"] for process in found.values()]
    held = [key["rights"]["requests"] for keys in limits for key in keys.values()]
    return (
        len(found) == count
        and all(len(process["cluster"]["members"]) == count - 1 for process in found.values())
        and all(key["limits"] == {"requests": RIGHTS} for keys in limits for key in keys.values())
        and sum(held) < RIGHTS // 2  # what nobody needs nobody holds
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
        wait_until(lambda: shared_by(market, 3), "another child in its place", LIMIT)
        assert victim not in processes(market)
        assert market.inference.submit("a", "x").result(LIMIT).text


def test_a_killed_workers_rights_come_back_and_the_next_one_goes_on_at_once(
    start_workers, fresh_broker_url: str
):
    """Its host shows that it has ended: nobody waits for a lease."""
    deployment = {"name": "a", "max_concurrent": 2}
    with open_market(fresh_broker_url, deployment) as market:
        options = ("-Q", market.queues, QUICK, "-c", "2")
        for _ in range(3):
            [worker] = start_workers(1, *options, app=APP, env=market.environment)
            began = time.monotonic()
            for handle in market.inference.submit_many("a", ["x"] * 6):
                assert handle.result(LIMIT).text
            assert time.monotonic() - began < 8.0
            worker.kill()
