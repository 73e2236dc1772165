"""A broker that is down, frozen or short of memory: a typed error in time, never a hang, never a second copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from local_nodes import NotInstalled, rabbitmq_server
from local_process import free_port
from pytest_celery import RabbitMQTestBroker
from rabbitmq_admin import RabbitMQAdmin
from services import missing_service
from shops import SmallShop, eventually, timed
from tcp_proxy import TCPProxy

from remote_inference import Backpressure, SubmitUncertain
from remote_inference.messaging.names import CANCELLED_QUEUE

OpenShop = Callable[..., SmallShop]
LIMIT = 2.0
SLACK = 6.0  # of a loaded machine; far below any hang
REJECT = {"on_capacity_exhausted": "reject"}
# what users have in their settings, and what would publish twice or for ever
RETRYING = {
    "task_publish_retry": True,
    "task_publish_retry_policy": {"max_retries": None, "interval_start": 0, "interval_step": 0.1},
    "broker_transport_options": {"confirm_publish": True},
    "task_send_sent_event": True,
}


def ways(shop: SmallShop, name: str) -> list[Callable[[], Any]]:
    """Every way to send a request."""
    inference = shop.inference
    return [
        lambda: inference.submit(name, "x"),
        lambda: inference.submit_many(name, ["x"])[0].result(0),
        lambda: inference.infer.apply_async((name, "x")),
        lambda: inference.infer.apply_async((name, "x"), retry=True),
        lambda: inference.infer.delay(name, "x"),
    ]


@pytest.fixture
def proxy(rabbitmq_admin: RabbitMQAdmin, tmp_path: Path) -> Iterator[TCPProxy]:
    proxy = TCPProxy(tmp_path, rabbitmq_admin.host, rabbitmq_admin.port)
    proxy.start()
    yield proxy
    proxy.drop()


@pytest.fixture
def proxied(proxy: TCPProxy, fresh_broker_url: str, rabbitmq_admin: RabbitMQAdmin) -> str:
    return fresh_broker_url.replace(f"{rabbitmq_admin.host}:{rabbitmq_admin.port}", f"127.0.0.1:{proxy.port}")


@pytest.mark.parametrize(
    "settings", [{}, RETRYING, {"result_backend": "rpc://"}], ids=["plain", "retrying", "rpc"]
)
def test_a_broker_that_was_never_there(open_rabbit_shop: OpenShop, settings: dict[str, Any]) -> None:
    table = {"admission_timeout": LIMIT}
    url = f"amqp://guest:guest@127.0.0.1:{free_port()}//"
    shop = open_rabbit_shop(
        {"a": table, "hasty": {"admission_timeout": 60, **REJECT}}, url=url, settings=settings
    )
    for name, least, most in (("a", LIMIT * 0.9, LIMIT + SLACK), ("hasty", 0.0, SLACK)):
        for way in ways(shop, name)[:1] if settings == {} and name == "a" else ways(shop, name)[2:3]:
            took, error = timed(way)
            assert isinstance(error, Backpressure), error
            assert error.reason == "broker_down"
            assert least <= took <= most


@pytest.mark.parametrize("settings", [{}, RETRYING], ids=["plain", "retrying"])
def test_a_broker_that_goes_and_comes_back(
    open_rabbit_shop: OpenShop, proxy: TCPProxy, proxied: str, settings: dict[str, Any], fresh_broker_url: str
) -> None:
    tables = {"a": {"admission_timeout": LIMIT}, "hasty": {"admission_timeout": 60, **REJECT}}
    shop = open_rabbit_shop(tables, url=proxied, settings=settings)
    beside = open_rabbit_shop(tables, url=fresh_broker_url)
    for name in tables:
        shop.inference.submit(name, "before")
    proxy.drop()
    for name, least, most in (("hasty", 0.0, SLACK), ("a", LIMIT * 0.9, LIMIT + SLACK)):
        for way in ways(shop, name)[:: 4 if name == "a" else 1]:
            took, error = timed(way)
            assert isinstance(error, (Backpressure, SubmitUncertain)), error
            assert least <= took <= most
    proxy.start()
    eventually(lambda: timed(lambda: shop.inference.submit("hasty", "after"))[1] is None)
    shop.inference.submit("a", "after")
    assert [beside.prompts(name) for name in tables] == [["before", "after"]] * 2


def test_a_short_absence_is_waited_out(open_rabbit_shop: OpenShop, proxy: TCPProxy, proxied: str) -> None:
    shop = open_rabbit_shop({"a": {"admission_timeout": 30.0}}, url=proxied)
    shop.inference.submit("a", "before")
    proxy.drop()
    timer = threading.Timer(0.5, lambda: None)
    results: list[BaseException | None] = []
    thread = threading.Thread(
        target=lambda: results.append(timed(lambda: shop.inference.submit("a", "x"))[1])
    )
    thread.start()
    timer.start()
    timer.join()
    proxy.start()
    thread.join(40)
    assert results == [None]


def test_a_frozen_broker_is_told_of_in_time_and_makes_no_copies(
    open_rabbit_shop: OpenShop, proxy: TCPProxy, proxied: str, fresh_broker_url: str
) -> None:
    tables = {"a": {"admission_timeout": LIMIT}}
    shop = open_rabbit_shop(tables, url=proxied, settings=RETRYING)
    beside = open_rabbit_shop(tables, url=fresh_broker_url)
    shop.inference.submit("a", "before")
    proxy.freeze()
    errors: list[BaseException | None] = []
    times: list[float] = []

    def attempt(way: Callable[[], Any]) -> None:
        took, error = timed(way)
        times.append(took)
        errors.append(error)

    threads = [threading.Thread(target=attempt, args=(way,)) for way in ways(shop, "a")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(errors) == len(threads)
    assert all(isinstance(error, (Backpressure, SubmitUncertain)) for error in errors), errors
    assert max(times) <= LIMIT + SLACK
    uncertain = [error.request_id for error in errors if isinstance(error, SubmitUncertain)]
    proxy.thaw()
    eventually(lambda: timed(lambda: shop.inference.submit("a", "after"))[1] is None, within=40)
    waiting = beside.take("inference.a")
    assert 2 <= len(waiting) <= 2 + len(uncertain)
    ids = [message.properties["correlation_id"] for message in waiting]
    assert len(ids) == len(set(ids))
    if uncertain:  # whatever became of them, no worker begins them
        eventually(lambda: beside.ready(CANCELLED_QUEUE) >= len(uncertain), within=40)
        cancelled = {message.properties["correlation_id"] for message in beside.take(CANCELLED_QUEUE)}
        assert cancelled >= set(uncertain)


def test_a_confirm_that_is_late_is_uncertain_and_confirms_nothing_else(
    open_rabbit_shop: OpenShop, proxy: TCPProxy, proxied: str, fresh_broker_url: str
) -> None:
    tables = {"a": {"admission_timeout": LIMIT, "queue_capacity": 100_000}}
    shop = open_rabbit_shop(tables, url=proxied)
    beside = open_rabbit_shop(tables, url=fresh_broker_url)
    shop.inference.submit("a", "before")  # looked just now: the next is written without a look
    connections = shop.inference.publisher.connections
    proxy.freeze()
    handles = shop.inference.submit_many("a", ["1", "2", "3"])
    errors = [handle._error for handle in handles]
    assert all(isinstance(error, SubmitUncertain) for error in errors), errors
    assert [error.request_id for error in errors] == [handle.request_id for handle in handles]
    # the connection is dropped before the confirms come after all: else there would be no need to
    eventually(lambda: shop.inference.publisher.trouble == "broker_down")
    proxy.thaw()
    shop.inference.submit("a", "after")
    assert shop.inference.publisher.connections == connections + 1  # dropped, once
    eventually(lambda: beside.ready(CANCELLED_QUEUE) == 3)
    worker = beside.work()
    eventually(lambda: beside.depth("a") == 0)
    status = beside.inference.status()["a"]
    eventually(lambda: beside.inference.status()["a"].completed == 2)
    assert status.started <= 2
    worker.stop()


# -- short of memory


@pytest.fixture(scope="module")
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQTestBroker]:
    try:
        node = rabbitmq_server(tmp_path_factory.mktemp("broker"))
    except NotInstalled as exc:
        missing_service(str(exc))
    yield node
    node.container.process.remove()


def watermark(node: RabbitMQTestBroker, value: str) -> None:
    """Raise or end the memory alarm; returns when it has been raised or ended."""
    environment = node.container.process._environment
    program = shutil.which("/usr/lib/rabbitmq/bin/rabbitmqctl") or "rabbitmqctl"
    subprocess.run(
        [program, "-q", "-n", environment["RABBITMQ_NODENAME"], "set_vm_memory_high_watermark", value],
        env={**os.environ, **environment},
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=60,
    )


def test_a_blocked_connection_is_backpressure_until_the_alarm_ends(
    open_rabbit_shop: OpenShop, own_broker: RabbitMQTestBroker
) -> None:
    url = own_broker.container.celeryconfig["host_url"]
    tables = {"a": {"admission_timeout": LIMIT}, "hasty": {"admission_timeout": 20, **REJECT}}
    shop = open_rabbit_shop(tables, url=url, settings=RETRYING)
    shop.declare()
    watermark(own_broker, "0.0000001")
    try:
        eventually(lambda: isinstance(timed(lambda: shop.inference.submit("hasty", "x"))[1], Backpressure))
        for name, least, most in (("hasty", 0.0, SLACK), ("a", LIMIT * 0.9, LIMIT + SLACK)):
            for way in ways(shop, name):
                took, error = timed(way)
                assert isinstance(error, Backpressure), error
                assert error.reason == "broker_blocked"
                assert least <= took <= most
        timer = threading.Timer(1.0, watermark, (own_broker, "0.8"))
        timer.start()
        patient = open_rabbit_shop({"a": {"admission_timeout": 60.0}}, url=url)
        patient.inference.submit("a", "waited out")
        timer.join()
    finally:
        watermark(own_broker, "0.8")
    shop.inference.submit("a", "after")
    eventually(lambda: shop.depth("a") == 2)
    assert shop.prompts("a") == ["waited out", "after"]
