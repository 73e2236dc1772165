"""The publisher does the same over RabbitMQ and over the embedded broker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from kombu import Connection
from shops import body_of, eventually, headers_of

from remote_inference.messaging.delivery import Delivery, DeliveryState, Probe
from remote_inference.messaging.embedded import close_broker, register
from remote_inference.messaging.publisher import Publisher

Declare = Callable[..., str]


@pytest.fixture(params=["embedded", "rabbitmq"])
def contract_url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "rabbitmq":
        yield request.getfixturevalue("broker_url")
        return
    register()
    name = f"contract-{uuid4().hex}"
    yield f"embedded://{name}"
    close_broker(name)


@pytest.fixture
def publisher(contract_url: str) -> Iterator[Publisher]:
    publisher = Publisher(lambda: Connection(contract_url, transport_options={"confirm_publish": True}))
    yield publisher
    publisher.close()


@pytest.fixture
def channel(contract_url: str) -> Iterator[Any]:
    with Connection(contract_url) as connection:
        yield connection.channel()


@pytest.fixture
def declare(channel: Any) -> Iterator[Declare]:
    names: list[str] = []

    def make(**arguments: Any) -> str:
        names.append(f"contract.{uuid4().hex}")
        given = {name.replace("_", "-"): value for name, value in arguments.items()}
        channel.queue_declare(names[-1], durable=True, auto_delete=False, arguments=given)
        return names[-1]

    yield make
    for name in names:
        channel.queue_delete(name)


def take(channel: Any, queue: str) -> list[Any]:
    found = []
    while (raw := channel.basic_get(queue, no_ack=True)) is not None:
        found.append(channel.message_to_python(raw) if isinstance(raw, dict) else raw)
    return found


def ended(publisher: Publisher, *deliveries: Delivery) -> list[DeliveryState]:
    publisher.publish_all(deliveries)
    assert all(delivery.wait(20) for delivery in deliveries)
    return [delivery.state for delivery in deliveries]


def test_a_message_arrives_as_it_was_given(publisher: Publisher, channel: Any, declare: Declare) -> None:
    queue = declare(x_max_priority=3)
    properties = {
        "correlation_id": "c-1",
        "priority": 2,
        "delivery_mode": 2,
        "application_headers": {"task": "t", "inference": {"v": 1}},
    }
    assert ended(publisher, Delivery(queue, b'{"a":1}', properties)) == [DeliveryState.CONFIRMED]
    (message,) = take(channel, queue)
    assert body_of(message) == b'{"a":1}'
    assert message.content_type == "application/json"
    assert headers_of(message) == {"task": "t", "inference": {"v": 1}}
    found = {name: message.properties.get(name) for name in ("correlation_id", "priority", "delivery_mode")}
    assert found == {"correlation_id": "c-1", "priority": 2, "delivery_mode": 2}


def test_many_arrive_in_order(publisher: Publisher, channel: Any, declare: Declare) -> None:
    queue = declare()
    deliveries = [Delivery(queue, str(number).encode(), {}) for number in range(700)]
    assert set(ended(publisher, *deliveries)) == {DeliveryState.CONFIRMED}
    assert [int(body_of(message)) for message in take(channel, queue)] == list(range(700))


def test_a_full_queue_refuses_what_is_too_much_and_nothing_else(
    publisher: Publisher, channel: Any, declare: Declare
) -> None:
    full, free = declare(x_max_length=2, x_overflow="reject-publish"), declare()
    queues = [full, full, full, free, full, free]
    states = ended(publisher, *(Delivery(queue, b"1", {}) for queue in queues))
    yes, no = DeliveryState.CONFIRMED, DeliveryState.REFUSED
    assert states == [yes, yes, no, yes, no, yes]
    assert (len(take(channel, full)), len(take(channel, free))) == (2, 2)
    assert publisher.connections == 1


def test_a_queue_that_is_not_there_is_told_and_watched(publisher: Publisher, declare: Declare) -> None:
    there, nowhere = declare(), f"contract.{uuid4().hex}"
    gone = threading.Semaphore(0)
    undo = publisher.watch(nowhere, lambda: gone.release())
    properties = {"correlation_id": "c"}
    states = ended(publisher, Delivery(nowhere, b"1", properties), Delivery(there, b"1", properties))
    assert states == [DeliveryState.UNROUTABLE, DeliveryState.CONFIRMED]
    assert gone.acquire(timeout=20)
    publisher.publish(Delivery(nowhere, b"1", {}, confirm=False))  # as a chunk
    assert gone.acquire(timeout=20)
    undo()
    ended(publisher, Delivery(nowhere, b"1", properties))
    assert not gone.acquire(blocking=False)


def test_a_probe_comes_back_and_leaves_nothing(publisher: Publisher) -> None:
    probe = Probe()
    publisher.publish(probe)
    assert probe.wait(20)
    assert probe.state in (DeliveryState.UNROUTABLE, DeliveryState.CONFIRMED)


def test_calls_run_between_in_their_order_and_hand_on_their_errors(
    publisher: Publisher, channel: Any, declare: Declare
) -> None:
    queue = declare()

    def count(connection: Any) -> int:
        own = connection.channel()
        try:
            return int(own.queue_declare(queue, passive=True).message_count)
        finally:
            own.close()

    def missing(connection: Any) -> None:
        own = connection.channel()
        try:
            own.queue_declare("contract.not-there", passive=True)
        finally:
            own.close()

    assert ended(publisher, Delivery(queue, b"1", {})) == [DeliveryState.CONFIRMED]
    assert publisher.call(count).result(20) == 1
    with pytest.raises(Exception, match="404"):
        publisher.call(missing).result(20)
    with pytest.raises(ZeroDivisionError):
        publisher.call(lambda connection: 1 / 0).result(20)
    assert ended(publisher, Delivery(queue, b"1", {})) == [DeliveryState.CONFIRMED]
    assert publisher.connections == 1


def test_an_end_is_told_once_by_callback(publisher: Publisher, declare: Declare) -> None:
    queue, told = declare(), []
    publisher.publish_all(
        [Delivery(queue, b"1", {}, on_done=lambda d: told.append(d.state)) for _ in range(3)]
    )
    eventually(lambda: len(told) == 3)
    assert told == [DeliveryState.CONFIRMED] * 3


def test_closing_flushes(publisher: Publisher, channel: Any, declare: Declare) -> None:
    queue = declare()
    publisher.publish_all([Delivery(queue, b"1", {}) for _ in range(600)])
    publisher.close(20)
    assert len(take(channel, queue)) == 600
    late = Delivery(queue, b"late", {})
    publisher.publish(late)
    assert late.wait(1)
    assert late.state is DeliveryState.NOT_SENT
