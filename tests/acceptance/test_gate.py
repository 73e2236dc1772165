"""A deployment that cannot send leaves the others alone, and keeps its own order."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection
from local_process import wait_until
from market import APP, Market, open_market

from remote_inference import Priority, ServerError
from remote_inference.testing.behaviours import Reply, Status, rate_limited
from remote_inference.testing.server import ProviderServer

POOLS = ["threads", "gevent", "prefork"]
LIMIT = 60.0
WAITING = 500
BATCH = 20
ROUNDS = 2
PER_ROUND = 50
KEPT = 0.80  # two cores that others use too; `b` waits for its provider, so that slots are what counts
ORDER = [Priority.BACKGROUND, Priority.CRITICAL, Priority.NORMAL, Priority.HIGH]


def seconds_for(market: Market, deployment: str) -> float:
    """What a round of requests takes."""
    began = time.monotonic()
    for handle in market.inference.submit_many(deployment, ["prompt"] * PER_ROUND):
        handle.result(LIMIT)
    return time.monotonic() - began


def gates(market: Market) -> set[str]:
    """The deployments whose gates are shut."""
    return {name for worker in market.inference.workers(timeout=0.1).values() for name in worker["gates"]}


def fill(market: Market, deployment: str) -> list[str]:
    """Let 500 requests of all priorities wait; gives the order in which they are due."""
    due: dict[Priority, list[str]] = {priority: [] for priority in ORDER}
    for start in range(0, WAITING, BATCH):
        priority = ORDER[start // BATCH % len(ORDER)]
        prompts = [f"{priority.name} {number}" for number in range(start, start + BATCH)]
        for handle in market.inference.submit_many(
            deployment, prompts, priority=priority, on_disconnect="finish"
        ):
            assert not handle.done
        due[priority] += prompts
    return [prompt for priority in sorted(due, reverse=True) for prompt in due[priority]]


def arrivals(server: ProviderServer, model: str) -> list[str]:
    """The prompts that reached a provider for a model, in that order."""
    return [r.body["messages"][-1]["content"] for r in server.requests if r.model == model]


def purge(broker_url: str, deployment: str) -> None:
    with Connection(broker_url) as connection:
        connection.channel().queue_purge(f"inference.{deployment}")


@contextlib.contextmanager
def blocked_market(broker_url: str, cause: str, blocked: list[str]) -> Iterator[Market]:
    """`b` works; those of `blocked` answer with a long 429, or with 500s that open their circuit."""
    with contextlib.ExitStack() as stack:
        market_server = stack.enter_context(ProviderServer(first_byte_delay=0.08))
        deployments: list[dict[str, Any]] = [{"name": "b"}]
        for name in blocked:
            bad = market_server if cause == "429" else stack.enter_context(ProviderServer())
            breaker = {"failure_threshold": 1, "open_duration": 60.0}
            retry = {"max_retries": 0} if cause == "circuit" else {}
            deployments.append(
                {"name": name, "endpoint": bad.url, "circuit_breaker": breaker, "retry": retry}
            )
            bad.on(name, rate_limited(60) if cause == "429" else Status(500, delay=0.5))
        yield stack.enter_context(open_market(broker_url, *deployments, server=market_server))


@pytest.mark.parametrize(
    ("pool", "cause"), [*((pool, "429") for pool in POOLS), ("threads", "circuit"), ("prefork", "circuit")]
)
def test_a_blocked_deployment_costs_another_one_nothing_and_keeps_its_order(
    start_workers, fresh_broker_url: str, pool: str, cause: str
):
    blocked = [f"a{number}" for number in range(ROUNDS)]
    with blocked_market(fresh_broker_url, cause, blocked) as market:
        args = ("-Q", market.queues)
        [node] = start_workers(1, *args, "-c", "4", app=APP, env=market.environment, pool=pool)
        seconds_for(market, "b")  # sessions and connections are made
        alone, beside = [], []
        for name in blocked:
            alone.append(seconds_for(market, "b"))
            if cause == "circuit":  # a circuit in each process of the pool
                for handle in market.inference.submit_many(name, ["to fail"] * 4):
                    with pytest.raises(ServerError):
                        handle.result(LIMIT)
            due = fill(market, name)
            wait_until(lambda n=name: n in gates(market), "the gate to shut", LIMIT)
            beside.append(seconds_for(market, "b"))
            assert name in gates(market)
            if name != blocked[-1]:
                purge(fresh_broker_url, name)
        kept = statistics.median(alone) / statistics.median(beside)
        print(
            f"{pool}, {cause}: b keeps {kept:.1%} of its throughput; seconds alone {alone}, beside {beside}"
        )
        assert kept >= KEPT

        # another worker knows nothing of the gate, and takes one at a time
        node.kill("SIGTERM")
        node.wait_for_exit()
        server = market.server if cause == "429" else None
        with contextlib.ExitStack() as stack:
            if server is None:
                server = stack.enter_context(ProviderServer())
                for table in market.tables:
                    table["endpoint"] = server.url
            model = blocked[-1]
            server.on(model, Reply(tokens=1))
            before = len(arrivals(server, model))
            start_workers(1, *args, "-c", "1", app=APP, env=market.environment, pool=pool)
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: len(arrivals(server, model)) >= before + WAITING, "all to arrive", 15)
            arrived = arrivals(server, model)
            assert arrived[before:] == due


@pytest.mark.parametrize("pool", POOLS)
def test_a_gate_opens_by_itself_and_the_order_is_exact(start_workers, fresh_broker_url: str, pool: str):
    with open_market(fresh_broker_url, {"name": "a"}) as market:
        market.server.on("a", rate_limited(4), times=1)
        start_workers(1, "-Q", market.queues, "-c", "1", app=APP, env=market.environment, pool=pool)
        first = market.inference.submit("a", "the first", priority=Priority.CRITICAL)
        wait_until(lambda: "a" in gates(market), "the gate to shut", LIMIT)

        due = fill(market, "a")

        assert first.result(LIMIT).attempts >= 1
        market.server.wait_for(lambda s: s.count == 2 + WAITING, LIMIT)
        times = [request.received_at for request in market.server.requests]
        assert market.arrivals("a")[1:] == ["the first", *due]
        assert times[1] - times[0] >= 4.0
        [node] = start_workers.nodes
        assert "outcome='handed_back'" in node.log
        assert "Traceback" not in node.log  # to wait is nothing to warn of


@pytest.mark.parametrize("pool", POOLS)
def test_an_operator_decides_whether_a_queue_is_consumed_whatever_its_gate_does(
    start_workers, fresh_broker_url: str, pool: str
):
    with open_market(fresh_broker_url, {"name": "a"}, {"name": "b"}) as market:
        market.server.on("a", rate_limited(2), times=1)
        start_workers(1, "-Q", market.queues, "-c", "1", app=APP, env=market.environment, pool=pool)
        control = market.inference.app.control
        handle = market.inference.submit("a", "to wait")
        wait_until(lambda: "a" in gates(market), "the gate to shut", LIMIT)

        control.cancel_consumer("inference.a")
        wait_until(lambda: "a" not in gates(market), "the gate to be forgotten", LIMIT)
        opens = time.monotonic() + 2.5
        while time.monotonic() < opens:  # that nothing happens cannot be waited for
            market.inference.submit("b", "meanwhile").result(LIMIT)
        assert len(market.arrivals("a")) == 1

        control.add_consumer("inference.a")
        assert handle.result(LIMIT).text
        assert len(market.arrivals("a")) == 2


def test_a_half_open_circuit_lets_exactly_its_probes_through(start_workers, fresh_broker_url: str):
    breaker = {"failure_threshold": 1, "open_duration": 1.0, "half_open_max_probes": 2}
    deployment = {"name": "a", "circuit_breaker": breaker, "retry": {"max_retries": 0}}
    with open_market(fresh_broker_url, deployment) as market:
        [node] = start_workers(1, "-Q", market.queues, "-c", "8", app=APP, env=market.environment)
        market.server.on("a", Status(500), times=1)
        with pytest.raises(Exception, match="500"):
            market.inference.submit("a", "to fail").result(LIMIT)
        market.server.on("a", Reply(tokens=1, first_byte_delay=2.5), times=2)

        handles = market.inference.submit_many("a", [f"prompt {number}" for number in range(40)])
        for handle in handles:
            assert handle.result(LIMIT).text

        failed, *probes = market.server.requests[:3]
        assert probes[0].received_at - failed.received_at >= 1.0
        closed = min(probe.finished_at or 0.0 for probe in probes)
        assert [r.number for r in market.server.requests if r.received_at < closed] == [1, 2, 3]
        assert node.log.count("new='half_open'") == 1
