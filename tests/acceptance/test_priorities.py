"""Priorities as a caller sees them, with Celery's default prefetch settings; and what many handles cost."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from local_process import wait_until
from market import APP, Market, open_market

from remote_inference import Backpressure, Priority
from remote_inference.testing.behaviours import Reply
from remote_inference.testing.connection import ReceivedRequest

POOLS = ["threads", "gevent", "prefork"]
LIMIT = 60.0
SLOTS = 2
BUSY = "keep a slot"


def is_busy(request: ReceivedRequest) -> bool:
    return request.body["messages"][-1]["content"] == BUSY


def waiting(market: Market) -> int:
    return market.inference.status(timeout=0.1)["a"].queued


def occupy(market: Market) -> list:
    """Requests that keep every slot until they are cancelled."""
    market.server.on(is_busy, Reply(tokens=100_000, token_delay=0.05))
    held = market.inference.submit_many("a", [BUSY] * SLOTS, priority=Priority.CRITICAL)
    market.server.wait_for(lambda s: s.count == SLOTS, LIMIT)
    return held


@pytest.mark.parametrize("pool", POOLS)
def test_a_critical_request_is_the_next_to_start_before_500_background_ones(
    start_workers, fresh_broker_url: str, pool: str
):
    with open_market(fresh_broker_url) as market:
        start_workers(1, "-Q", market.queues, "-c", str(SLOTS), app=APP, env=market.environment, pool=pool)
        held = occupy(market)
        background = [f"background {number}" for number in range(500)]
        low = market.inference.submit_many("a", background, priority=Priority.BACKGROUND)
        normal = market.inference.submit("a", "normal")
        critical = market.inference.submit("a", "critical", priority=Priority.CRITICAL)
        wait_until(lambda: waiting(market) > 500 - SLOTS, "the queue to fill", LIMIT)

        held[0].cancel()
        critical.result(LIMIT)
        normal.result(LIMIT)
        held[1].cancel()
        for handle in low:
            handle.result(LIMIT)

        order = [prompt for prompt in market.arrivals("a") if prompt != BUSY]
        assert order[:2] == ["critical", "normal"]  # nothing was in a worker's hands but what it ran
        assert sorted(order) == sorted([*background, "normal", "critical"])


def test_a_queue_full_of_background_requests_takes_a_critical_one(start_workers, fresh_broker_url: str):
    capacity = 50
    deployment = {"name": "a", "queue_capacity": capacity, "on_capacity_exhausted": "reject"}
    with open_market(fresh_broker_url, deployment) as market:
        taken: dict[Priority, int] = {}
        reasons: list[str] = []
        for priority in (Priority.BACKGROUND, Priority.NORMAL, Priority.HIGH, Priority.CRITICAL):
            taken[priority] = 0
            for _ in range(capacity + 1):
                try:
                    market.inference.submit("a", priority.name, priority=priority)
                except Backpressure as refused:
                    reasons.append(refused.reason)
                    break
                taken[priority] += 1
        assert list(taken.values()) == [40, 5, 2, 3]
        assert reasons == ["class_full", "class_full", "class_full", "queue_full"]

        start_workers(1, "-Q", market.queues, "-c", "1", app=APP, env=market.environment)

        market.server.wait_for(lambda s: s.count == capacity, LIMIT)
        names = ["CRITICAL", "HIGH", "NORMAL", "BACKGROUND"]
        assert market.arrivals("a") == [name for name in names for _ in range(taken[Priority[name]])]


def test_200_handles_share_one_connection_for_replies(start_workers, fresh_broker_url: str):
    port = urlsplit(fresh_broker_url).port or 5672
    with open_market(fresh_broker_url) as market:
        start_workers(1, "-Q", market.queues, "-c", "8", app=APP, env=market.environment)
        before = connections_to(port)
        handles = [market.inference.submit("a", f"prompt {number}") for number in range(200)]
        most = connections_to(port)
        texts = {handle.result(LIMIT).text for handle in handles}
        most = max(most, connections_to(port))

        assert len(texts) == 1
        assert most - before == 2  # one that reads replies, one that publishes


def connections_to(port: int) -> int:
    """This process's TCP connections to a port."""
    own = set()
    for entry in os.scandir("/proc/self/fd"):
        try:
            own.add(os.readlink(entry.path))
        except FileNotFoundError:
            continue  # closed meanwhile
    count = 0
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            remote, inode = fields[2], fields[9]
            count += int(remote.rpartition(":")[2], 16) == port and f"socket:[{inode}]" in own
    return count
