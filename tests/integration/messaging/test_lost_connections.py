"""Publisher and subscriber when their connection to RabbitMQ breaks: what must not be lost comes through."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kombu import Connection
from kombu.utils.url import parse_url
from local_process import wait_until
from tcp_proxy import TCPProxy

from remote_inference.messaging.delivery import Delivery, DeliveryState
from remote_inference.messaging.publisher import Publisher
from remote_inference.messaging.subscriber import Subscriber

LIMIT = 30.0  # seconds


@pytest.fixture
def proxy(broker_url: str, tmp_path: Path) -> Iterator[TCPProxy]:
    """Between the test and RabbitMQ."""
    broker = parse_url(broker_url)
    proxy = TCPProxy(tmp_path, broker["hostname"], broker["port"])
    proxy.start()
    yield proxy
    proxy.drop()


@pytest.fixture
def through_proxy(broker_url: str, proxy: TCPProxy) -> Callable[[], Connection]:
    """Makes connections that the proxy can break."""
    url = broker_url.replace(f":{parse_url(broker_url)['port']}/", f":{proxy.port}/")
    return lambda: Connection(url, connect_timeout=2)


@pytest.fixture
def publisher(through_proxy: Callable[[], Connection]) -> Iterator[Publisher]:
    publisher = Publisher(through_proxy)
    yield publisher
    publisher.close()


@pytest.fixture
def queue(broker_url: str) -> str:
    name = f"test.{uuid.uuid4()}"
    with Connection(broker_url) as connection:
        connection.default_channel.queue_declare(name, durable=True, auto_delete=False)
    return name


def connected(publisher: Publisher) -> int:
    """Which connection the publisher has, as soon as it has one."""
    return publisher.call(lambda connection: publisher.connections, patient=True).result(LIMIT)


def test_a_patient_call_is_made_when_the_broker_is_back(publisher: Publisher, proxy: TCPProxy):
    connected(publisher)
    proxy.drop()
    wait_until(lambda: publisher.trouble == "broker_down", "the publisher to notice")
    call = publisher.call(lambda connection: "made", patient=True)
    with pytest.raises(ConnectionError, match="not reachable"):
        publisher.call(lambda connection: "not made").result(LIMIT)
    proxy.start()

    assert call.result(LIMIT) == "made"


def test_a_patient_call_under_which_the_connection_breaks_is_made_again(publisher: Publisher):
    runs: list[int] = []

    def breaks_once(connection: Connection) -> str:
        runs.append(publisher.connections)
        if len(runs) == 1:
            raise ConnectionResetError("broken")
        return "made"

    assert publisher.call(breaks_once, patient=True).result(LIMIT) == "made"
    assert runs == [1, 2]


def test_a_patient_call_that_fails_by_itself_is_not_made_again(publisher: Publisher):
    runs: list[int] = []

    def fails(connection: Connection) -> None:
        runs.append(1)
        raise ValueError("its own fault")

    with pytest.raises(ValueError, match="its own fault"):
        publisher.call(fails, patient=True).result(LIMIT)
    assert runs == [1]


def test_a_renewed_publisher_leaves_a_connection_on_which_nothing_moves(
    publisher: Publisher, proxy: TCPProxy, queue: str
):
    first = connected(publisher)
    proxy.freeze()
    publisher.renew()
    wait_until(lambda: publisher.trouble == "broker_down", "the publisher to leave it")
    proxy.thaw()

    assert connected(publisher) == first + 1
    delivery = Delivery(queue, b"{}", {})
    publisher.publish(delivery)
    assert delivery.wait(LIMIT)
    assert delivery.state is DeliveryState.CONFIRMED


def test_a_connection_that_is_new_already_is_not_renewed(publisher: Publisher):
    first = connected(publisher)
    publisher.renew()
    publisher.renew()
    publisher.renew()

    wait_until(lambda: publisher.connections > first, "a new connection")
    assert connected(publisher) == first + 1


def test_a_kept_message_that_was_not_handed_on_comes_again(
    through_proxy: Callable[[], Connection], proxy: TCPProxy, broker_url: str, queue: str
):
    seen: list[bytes | str] = []
    busy, go_on = threading.Event(), threading.Event()

    def on_message(body: bytes | str) -> None:
        seen.append(bytes(body) if not isinstance(body, str) else body.encode())
        if len(seen) == 1:
            busy.set()
            go_on.wait(LIMIT)

    subscriber = Subscriber(through_proxy, lambda channel: {queue: True}, on_message, name="test")
    subscriber.start()
    try:
        assert subscriber.wait_ready(LIMIT)
        with Connection(broker_url) as connection:
            for body in (
                b"one",
                b"two",
            ):  # both are delivered; the connection is lost while the first is in hand
                connection.Producer().publish(body, routing_key=queue, content_type="text/plain")
        assert busy.wait(LIMIT)
        proxy.drop()
        proxy.start()
        go_on.set()
        wait_until(lambda: seen[-1] == b"two", "the second to come again", LIMIT)
    finally:
        go_on.set()
        subscriber.close()
    assert set(seen) == {b"one", b"two"}
