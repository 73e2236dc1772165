"""The nodes that the other acceptance tests stand on: workers and brokers that run, die and come back."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery
from local_process import free_port, wait_until
from pytest_celery import RabbitMQTestBroker, RedisTestBackend

LIMIT = 30  # seconds


def test_no_port_of_a_node_is_given_to_somebody_who_looks_for_it():
    """A client that retries while a broker restarts took its port once, and was connected with itself."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as given,
    ):
        lowest = min(server.getsockname()[1], given.getsockname()[1])
    given_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert given_from <= lowest
    assert all(1024 < free_port() < given_from for _ in range(50))


@pytest.mark.parametrize("pool", ["threads", "gevent", "prefork"])
def test_a_worker_runs_a_task_and_ends_on_sigterm(start_workers, client: Celery, pool: str):
    [node] = start_workers(1, "-c", "2", pool=pool)

    assert client.send_task("echo.echo", ["hello"]).get(timeout=LIMIT) == "hello"

    node.kill("SIGTERM")
    assert node.wait_for_exit() == 0
    assert "Warm shutdown" in node.log


def test_a_task_whose_worker_is_killed_is_run_by_another(start_workers, client: Celery, tmp_path: Path):
    holding = tmp_path / "holding"
    holding.mkdir()
    nodes = {str(node.pid): node for node in start_workers(2, "-c", "1")}
    result = client.send_task("echo.hold", [str(holding)])
    wait_until(lambda: any(holding.iterdir()), "a worker to begin")
    [first] = os.listdir(holding)

    nodes.pop(first).kill()
    (holding / "go").touch()

    [other] = nodes
    assert result.get(timeout=LIMIT) == int(other)


def test_a_kill_takes_the_prefork_children_along(start_workers, client: Celery, tmp_path: Path):
    [node] = start_workers(1, "-c", "1", pool="prefork")
    client.send_task("echo.hold", [str(tmp_path)])
    wait_until(lambda: any(path.name.isdigit() for path in tmp_path.iterdir()), "a child to begin")
    [child] = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
    assert child != node.pid

    node.kill()

    wait_until(lambda: not _runs(child), "the child to end")


def test_a_restarted_worker_is_another_process_and_takes_tasks(start_workers, client: Celery):
    [node] = start_workers(1, "-c", "1")
    before = node.pid

    node.restart()

    assert node.pid != before
    assert node.logs().count("ready.") == 1
    assert node.log.count("ready.") == 2
    assert client.send_task("echo.echo", ["again"]).get(timeout=LIMIT) == "again"


def test_a_worker_that_cannot_start_says_why(start_workers):
    with pytest.raises(RuntimeError, match=r"apps\.missing"):
        start_workers(1, app="apps.missing")


def test_a_private_broker_keeps_its_messages_and_workers_over_a_restart_and_a_kill(
    start_workers, make_client: Callable[[str], Celery], private_broker: RabbitMQTestBroker
):
    url = private_broker.container.url
    waiting = make_client(url).send_task("echo.echo", ["sent before the restart"])

    private_broker.restart()
    [node] = start_workers(1, "-c", "1", broker_url=url)
    assert waiting.get(timeout=LIMIT) == "sent before the restart"

    private_broker.kill()
    node.wait_for_log("Connection to broker lost")
    private_broker.restart()
    late = make_client(url).send_task("echo.echo", ["sent after the kill"])
    assert late.get(timeout=LIMIT) == "sent after the kill"


def test_a_private_redis_can_be_killed_and_comes_back_empty(private_redis: RedisTestBackend):
    private_redis.container.client.set("kept", "no")

    private_redis.kill()
    private_redis.restart()

    assert private_redis.container.client.get("kept") is None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # An orphan that nobody has waited for yet has ended all the same.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
