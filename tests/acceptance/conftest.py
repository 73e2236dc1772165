"""Workers as processes, brokers that can be stopped, and clients of both, for the acceptance tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from local_nodes import NotInstalled, WorkerNode, rabbitmq_server, redis_server, worker
from pytest_celery import RabbitMQTestBroker, RedisTestBackend
from services import missing_service
from shop_nodes import Shop

from remote_inference.testing.server import ProviderServer

LOG_TAIL = 6000  # characters of each worker's log that the report of a failed test shows


class WorkerStarter:
    """Starts workers; calling it is all that a test does with it. `nodes` are those that it has started."""

    def __init__(self, directory: Path, broker_url: str, backend_url: str) -> None:
        self.nodes: list[WorkerNode] = []
        self._directory = directory
        self._urls = {"CELERY_BROKER_URL": broker_url, "CELERY_RESULT_BACKEND": backend_url}

    def __call__(
        self,
        count: int,
        *celery_args: str,
        app: str = "apps.echo",
        env: Mapping[str, str] | None = None,
        pool: str = "threads",
        broker_url: str | None = None,
        wait: bool = True,
    ) -> list[WorkerNode]:
        """Start workers side by side, and wait until all of them are ready.

        Args:
            count: How many.
            *celery_args: More arguments of `celery worker`: `"-Q", "inference.x", "-c", "4"`.
            app: The module with the Celery app, importable from this directory.
            env: More environment variables.
            pool: `threads`, `gevent`, `prefork` or `solo`.
            broker_url: Another broker than the test's own virtual host.
            wait: False: return at once; they may die before they are ready.
        """
        environment = self._urls | ({"CELERY_BROKER_URL": broker_url} if broker_url else {}) | dict(env or {})
        nodes = [
            worker(self._directory, app, celery_args, pool=pool, environment=environment)
            for _ in range(count)
        ]
        self.nodes += nodes
        for node in nodes if wait else ():
            node.container.wait_until_ready()
        return nodes

    def remove_all(self) -> None:
        """Kill what still runs."""
        for node in self.nodes:
            node.container.process.remove()


@pytest.fixture
def start_workers(tmp_path: Path, fresh_broker_url: str, redis_url: str) -> Iterator[WorkerStarter]:
    """`start_workers(count, *celery_args, app=, env=, pool=, broker_url=)` gives that many ready nodes.

    They use a virtual host that is the test's alone (`fresh_broker_url`), and Redis as their result backend
    (`redis_url`), by way of the environment variables that Celery reads itself.
    """
    starter = WorkerStarter(tmp_path, fresh_broker_url, redis_url)
    yield starter
    starter.remove_all()


@pytest.fixture
def make_client(redis_url: str) -> Iterator[Callable[[str], Celery]]:
    """`make_client(broker_url)` gives a Celery app that sends tasks by name, and reads results."""
    apps: list[Celery] = []

    def make(broker_url: str) -> Celery:
        apps.append(Celery("client", broker=broker_url, backend=redis_url, set_as_current=False))
        return apps[-1]

    yield make
    for app in apps:
        app.close()


@pytest.fixture
def client(make_client: Callable[[str], Celery], fresh_broker_url: str) -> Celery:
    """A Celery app on the test's own virtual host."""
    return make_client(fresh_broker_url)


@pytest.fixture
def shop(start_workers: WorkerStarter, fresh_broker_url: str, tmp_path: Path) -> Iterator[Shop]:
    """The application `apps.shop` with a scriptable provider; see `Shop` for what a test starts of it."""
    with ProviderServer() as provider:
        shop = Shop(start_workers, provider, fresh_broker_url, tmp_path)
        yield shop
        shop.close()


@pytest.fixture
def private_broker(tmp_path: Path) -> Iterator[RabbitMQTestBroker]:
    """A RabbitMQ server of the test's own, which it may kill and restart; `.container.url` is where it is."""
    yield from _server(rabbitmq_server, tmp_path)


@pytest.fixture
def private_redis(tmp_path: Path) -> Iterator[RedisTestBackend]:
    """A Redis server of the test's own, which it may kill and restart; `.container.url` is where it is."""
    yield from _server(redis_server, tmp_path)


def _server(start: Callable[[Path], Any], directory: Path) -> Iterator[Any]:
    try:
        node = start(directory)
    except NotInstalled as exc:
        missing_service(str(exc))
    yield node
    node.container.process.remove()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function, call: pytest.CallInfo[None]) -> Iterator[Any]:
    """Show the workers' logs with a failed test."""
    report = yield
    starter = getattr(item, "funcargs", {}).get("start_workers")
    if report.failed and isinstance(starter, WorkerStarter):
        report.sections += [(f"log of {node.hostname()}", node.log[-LOG_TAIL:]) for node in starter.nodes]
    return report
