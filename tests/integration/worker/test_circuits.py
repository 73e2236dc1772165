"""Circuits of several processes over the real broker: their gossip, and the locks of their probes."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kombu import Connection

from remote_inference.clock import SystemClock
from remote_inference.cluster import Replica
from remote_inference.config import InferenceConfig, load_config
from remote_inference.errors import CircuitOpen
from remote_inference.events import Hooks
from remote_inference.messaging.gossip import Gossip
from remote_inference.messaging.publisher import Publisher
from remote_inference.policy.breaker import Admission, CircuitBreaker
from remote_inference.worker.circuits import Circuits

LIMIT = 30.0
PROBES = 2


class Process:
    """As much of a worker's process as its circuits need."""

    def __init__(self, url: str, config: InferenceConfig) -> None:
        self.clock, self.hooks, self.config = SystemClock(), Hooks(), config
        self.publisher = Publisher(lambda: Connection(url))
        self.replica = Replica(self.clock)
        self.circuits = Circuits(self, replica=self.replica, rng=random.Random())
        self.gossip = Gossip(self.replica, lambda: Connection(url), self.publisher)
        self.replica.start()
        self.gossip.start()

    @property
    def breaker(self) -> CircuitBreaker:
        return self.circuits.breaker(self.config.deployments["a"])

    def close(self) -> None:
        self.gossip.close()
        self.publisher.close()


@pytest.fixture
def start(fresh_broker_url: str) -> Iterator[Callable[[int], list[Process]]]:
    """`start(count)` gives that many processes that know each other."""
    config = load_config(
        {
            "deployment": [
                {
                    "name": "a",
                    "provider": "openai",
                    "endpoint": f"https://{uuid.uuid4().hex}.example/v1",
                    "circuit_breaker": {
                        "failure_threshold": 2,
                        "open_duration": 0.5,
                        "half_open_max_probes": PROBES,
                    },
                }
            ]
        }
    )
    processes: list[Process] = []

    def start(count: int) -> list[Process]:
        processes.extend(Process(fresh_broker_url, config) for _ in range(count))
        wait_for(lambda: all(len(members(process)) == len(processes) for process in processes), "all members")
        return processes

    yield start
    for process in processes:
        process.close()


def members(process: Process) -> list[str]:
    """Those whom it knows, and who hear it too."""
    with process.replica.lock:
        now = process.clock.monotonic()
        return process.replica.members(now) if now >= process.replica.life.listening_until else []


def wait_for(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.01)


def test_a_circuit_that_opens_or_closes_in_one_process_does_so_in_all(start):
    one, two, three = start(3)
    one.circuits.force(one.config.deployments["a"], 600.0)
    wait_for(lambda: two.breaker.state == three.breaker.state == "open", "open")
    [late] = start(1)[3:]
    wait_for(lambda: late.breaker.state == "open", "open in one that started later")
    assert abs(late.breaker.shared.until - one.breaker.shared.until) < 1.0
    three.circuits.force(one.config.deployments["a"], None)
    wait_for(lambda: {p.breaker.state for p in (one, two, three, late)} == {"closed"}, "closed")


def test_exactly_the_configured_number_probe_in_all_processes_together(start):
    processes = start(3)
    for _ in range(2):
        processes[0].breaker.admit().failure()
    wait_for(lambda: all(p.breaker.state == "half_open" for p in processes), "half open")
    probes: list[Admission] = []
    stop = threading.Event()

    def ask(process: Process) -> None:
        while not stop.is_set():
            try:
                probes.append(process.breaker.admit())
            except CircuitOpen:
                time.sleep(0.01)

    threads = [threading.Thread(target=ask, args=(process,)) for process in processes for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(probes) >= PROBES, "probes")
        time.sleep(1.5)  # two more rounds of asking: nobody else may get in
        assert len(probes) == PROBES
        probes[0].neutral()
        wait_for(lambda: len(probes) > PROBES, "another probe")
        time.sleep(1.5)
        assert len(probes) == PROBES + 1
    finally:
        stop.set()
        for thread in threads:
            thread.join(LIMIT)
    assert all(probe.probe for probe in probes)
    probes[1].success()
    wait_for(lambda: {p.breaker.state for p in processes} == {"closed"}, "closed")


def test_a_prober_that_is_cut_off_frees_its_slots(start):
    one, two = start(2)
    one.circuits.force(one.config.deployments["a"], 0.2)
    wait_for(lambda: one.breaker.state == two.breaker.state == "half_open", "half open")
    probes = [one.breaker.admit() for _ in range(PROBES)]
    with pytest.raises(CircuitOpen, match="probing"):
        two.breaker.admit()
    one.publisher.renew()
    found: list[Admission] = []

    def admitted() -> bool:
        try:
            found.append(two.breaker.admit())
        except CircuitOpen:
            return False
        return True

    wait_for(admitted, "a slot")
    probes[0].success()
    wait_for(lambda: two.breaker.state == "closed", "closed")
