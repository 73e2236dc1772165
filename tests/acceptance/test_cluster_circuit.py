"""One circuit and one session for the whole cluster: processes of threads and of prefork, on real RabbitMQ."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection
from local_nodes import WorkerNode
from local_process import wait_until
from market import APP, QUICK, Market, children, open_market
from rabbitmq_admin import RabbitMQAdmin
from shop_nodes import Held

from remote_inference import CircuitOpen, InferenceHandle, ServerError
from remote_inference.testing.behaviours import Reply, Status

POOLS = ["threads", "prefork"]
LIMIT = 60.0
THRESHOLD = 3
OLD, NEW = "sk-old", "sk-new"


def deployment(*, policy: str = "reject", probes: int = 1, **more: Any) -> dict[str, Any]:
    breaker = {"failure_threshold": THRESHOLD, "open_duration": 600.0, "max_open_duration": 600.0}
    return {
        "name": "a",
        "retry": {"max_retries": 0},
        "on_capacity_exhausted": policy,
        "circuit_breaker": {**breaker, "half_open_max_probes": probes},
        **more,
    }


def circuits(market: Market) -> list[str]:
    """What each worker says of the circuit."""
    return [worker["engines"]["a"]["circuit"] for worker in market.inference.workers(timeout=0.3).values()]


def listening(market: Market) -> int:
    """How many processes hear orders."""
    workers = market.inference.workers(timeout=0.3).values()
    return sum(len(worker.get("processes", ["its own"])) for worker in workers)


def wait_for_circuits(market: Market, state: str, workers: int) -> None:
    wait_until(lambda: circuits(market) == [state] * workers, f"{state} in {workers} workers", LIMIT)


@pytest.mark.parametrize("pool", POOLS)
def test_a_circuit_that_opens_in_one_process_is_open_in_all_and_one_probe_closes_all(
    start_workers, fresh_broker_url: str, pool: str
):
    with open_market(fresh_broker_url, deployment()) as market:
        start_workers(2, "-Q", market.queues, QUICK, "-c", "2", app=APP, env=market.environment, pool=pool)
        market.server.default = Status(500)
        processes = 2 if pool == "threads" else 4
        failed = 0
        while "open" not in circuits(market):
            try:
                market.inference.submit("a", "fails").result(LIMIT)
            except ServerError:
                failed += 1
            except CircuitOpen:
                break
        assert failed <= (THRESHOLD - 1) * processes + 1
        wait_for_circuits(market, "open", 2)
        for handle in market.inference.submit_many("a", ["refused"] * 20):
            with pytest.raises(CircuitOpen):
                handle.result(LIMIT)
        assert market.server.count == failed

        market.server.default = Reply()
        market.inference.force_open("a", 0.5)

        def answered() -> bool:
            try:
                return bool(market.inference.submit("a", "probe").result(LIMIT).text)
            except CircuitOpen:
                return False

        wait_until(answered, "a probe", LIMIT)
        wait_for_circuits(market, "closed", 2)
        for handle in market.inference.submit_many("a", ["taken"] * 20):
            assert handle.result(LIMIT).text


@pytest.mark.parametrize("pool", POOLS)
def test_half_open_admits_exactly_the_configured_number_of_probes_in_the_cluster(
    start_workers, fresh_broker_url: str, tmp_path: Path, pool: str
):
    probes, release = 2, tmp_path / "release"
    with open_market(fresh_broker_url, deployment(policy="queue", probes=probes)) as market:
        start_workers(3, "-Q", market.queues, QUICK, "-c", "4", app=APP, env=market.environment, pool=pool)
        market.inference.force_open("a", 1.0)
        wait_for_circuits(market, "half_open", 3)
        market.server.default = Held(Reply(), release, after=1)
        handles = market.inference.submit_many("a", [f"prompt {number}" for number in range(24)])
        wait_until(lambda: market.server.in_flight == probes, "the probes", LIMIT)
        time.sleep(3.0)  # all slots have asked again, more than once
        assert (market.server.count, market.server.max_in_flight) == (probes, probes)
        release.touch()
        for handle in handles:
            assert handle.result(LIMIT).text
        wait_for_circuits(market, "closed", 3)


def begun(market: Market) -> dict[str, int]:
    """How many requests each worker has in flight."""
    workers = market.inference.workers(timeout=0.3)
    return {name: worker["metrics"]["a"]["in_flight"] for name, worker in workers.items()}


@pytest.mark.parametrize("pool", POOLS)
def test_a_prober_that_is_killed_frees_its_slot(
    start_workers, fresh_broker_url: str, tmp_path: Path, pool: str
):
    release = tmp_path / "release"
    with open_market(fresh_broker_url, deployment(policy="queue")) as market:
        nodes = start_workers(
            2, "-Q", market.queues, QUICK, "-c", "1", app=APP, env=market.environment, pool=pool
        )
        market.inference.force_open("a", 0.5)
        wait_for_circuits(market, "half_open", 2)
        market.server.default = Held(Reply(), release, after=1)
        handle = market.inference.submit("a", "probe", on_restart="announce")
        wait_until(lambda: market.server.in_flight == 1, "the probe", LIMIT)
        wait_until(lambda: sorted(begun(market).values()) == [0, 1], "the prober", LIMIT)
        [prober] = [name for name, count in begun(market).items() if count]
        [node] = [node for node in nodes if node.hostname() == prober]
        for pid in [*children(node.pid), node.pid]:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: market.server.count == 2, "another probe", LIMIT)
        release.touch()
        assert handle.result(LIMIT).text


def refused(handle: InferenceHandle) -> bool:
    try:
        handle.result(LIMIT)
    except CircuitOpen:
        return True
    return False


@pytest.mark.parametrize("pool", POOLS)
def test_the_operators_word_reaches_a_worker_that_is_started_later(
    start_workers, fresh_broker_url: str, pool: str
):
    def start() -> WorkerNode:
        [node] = start_workers(
            1, "-Q", market.queues, QUICK, "-c", "2", app=APP, env=market.environment, pool=pool
        )
        return node

    with open_market(fresh_broker_url, deployment()) as market:
        first = start()
        processes = 1 if pool == "threads" else 2
        # a child that has not begun to listen is not told, and not counted: it hears of it as a newcomer
        wait_until(lambda: listening(market) == processes, "the pool's children to listen", LIMIT)
        answers = market.inference.force_open("a", 600)
        assert answers == {first.hostname(): {"ok": "circuit of a open for 600 s", "processes": processes}}
        start()
        wait_for_circuits(market, "open", 2)
        first.kill(signal.SIGTERM)
        first.wait_for_exit()
        for handle in market.inference.submit_many("a", ["refused"] * 10):
            assert refused(handle)
        market.inference.force_close("a")
        assert market.inference.submit("a", "taken").result(LIMIT).text
        assert market.server.count == 1


def test_a_prefork_child_that_is_started_later_knows_the_operators_word(start_workers, fresh_broker_url: str):
    with open_market(fresh_broker_url, deployment()) as market:
        [node] = start_workers(
            1, "-Q", market.queues, QUICK, "-c", "2", app=APP, env=market.environment, pool="prefork"
        )
        market.inference.force_open("a", 600)
        before = children(node.pid)
        os.kill(before[0], signal.SIGKILL)
        wait_until(
            lambda: len(children(node.pid)) == len(before) and before[0] not in children(node.pid),
            "another child",
            LIMIT,
        )
        for handle in market.inference.submit_many("a", ["refused"] * 10):
            assert refused(handle)
        assert market.server.count == 0


@contextlib.contextmanager
def stopped(node: WorkerNode) -> Iterator[None]:
    """A worker that stands still with all its processes."""
    pids = [*children(node.pid), node.pid]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


def listeners(admin: RabbitMQAdmin, broker_url: str) -> int:
    """How many workers hear orders."""
    vhost = Connection(broker_url).virtual_host
    return sum(name.startswith("inference.bus.") for name in admin.queues(vhost))


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_that_stood_still_while_a_rebuild_was_ordered_makes_up_for_it(
    start_workers, fresh_broker_url: str, rabbitmq_admin: RabbitMQAdmin, tmp_path: Path, pool: str
):
    key = tmp_path / "key"
    key.write_text(OLD)
    with open_market(
        fresh_broker_url, deployment(api_key={"from_file": str(key)}), broker_heartbeat=2
    ) as market:
        nodes = start_workers(
            2, "-Q", market.queues, QUICK, "-c", "1", app=APP, env=market.environment, pool=pool
        )
        for handle in market.inference.submit_many("a", ["before"] * 20):
            assert handle.result(LIMIT).text

        with stopped(nodes[1]):
            wait_until(  # until then an order would reach its socket, and be read from there later
                lambda: listeners(rabbitmq_admin, fresh_broker_url) == 1,
                "the broker to give up the one that stands still",
                LIMIT,
            )
            key.write_text(NEW)
            answers = market.inference.rebuild_session("a")
            assert list(answers) == [nodes[0].hostname()]
        wait_until(lambda: len(market.inference.workers(timeout=0.3)) == 2, "both workers", LIMIT)
        nodes[0].kill(signal.SIGTERM)
        nodes[0].wait_for_exit()

        def with_the_new_key() -> bool:
            prompt = f"after {time.monotonic()}"
            market.inference.submit("a", prompt).result(LIMIT)
            [request] = [r for r in market.server.requests if r.body["messages"][-1]["content"] == prompt]
            return bool(request.key == NEW)

        wait_until(with_the_new_key, "the new key", LIMIT)
        time.sleep(2.0)  # nobody rebuilds again for the same order
        assert with_the_new_key()
        assert nodes[1].log.count("event SessionRebuilt") == 1
