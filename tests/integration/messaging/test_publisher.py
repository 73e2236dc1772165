"""The publisher on a real broker: it reconnects, and stays small where nobody reads."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from kombu import Connection
from rabbitmq_admin import RabbitMQAdmin
from shops import body_of, eventually
from tcp_proxy import TCPProxy

from remote_inference.messaging.delivery import Delivery, DeliveryState
from remote_inference.messaging.publisher import Publisher
from remote_inference.messaging.streams import ChunkStream
from remote_inference.types import TokenChunk

Read = Callable[[], list[str]]


@pytest.fixture
def proxy(rabbitmq_admin: RabbitMQAdmin, tmp_path: Path) -> Iterator[TCPProxy]:
    proxy = TCPProxy(tmp_path, rabbitmq_admin.host, rabbitmq_admin.port)
    proxy.start()
    yield proxy
    proxy.drop()


@pytest.fixture
def queue(broker_url: str) -> Iterator[str]:
    name = f"publisher.{uuid4().hex}"
    with Connection(broker_url) as connection:
        channel = connection.channel()
        channel.queue_declare(name, durable=True, auto_delete=False)
        yield name
        connection.channel().queue_delete(name)


def bodies(broker_url: str, queue: str) -> list[str]:
    with Connection(broker_url) as connection:
        channel = connection.channel()
        return [body_of(m).decode() for m in iter(lambda: channel.basic_get(queue, no_ack=True), None)]


def test_what_is_patient_waits_for_the_broker_to_come_back_in_order(
    proxy: TCPProxy, broker_url: str, queue: str, rabbitmq_admin: RabbitMQAdmin
) -> None:
    url = broker_url.replace(f"{rabbitmq_admin.host}:{rabbitmq_admin.port}", f"127.0.0.1:{proxy.port}")
    publisher = Publisher(lambda: Connection(url))
    first = Delivery(queue, b"0", {})
    publisher.publish(first)
    assert first.wait(20)
    proxy.drop()
    eventually(lambda: publisher.trouble == "broker_down")
    hasty = Delivery(queue, b"hasty", {}, patient=False)
    patient = [Delivery(queue, str(number).encode(), {}) for number in range(1, 50)]
    publisher.publish_all([hasty, *patient])
    assert hasty.wait(20)
    assert (hasty.state, hasty.reason) == (DeliveryState.NOT_SENT, "broker_down")
    withdrawn = patient.pop()
    assert publisher.withdraw(withdrawn)
    with pytest.raises(ConnectionError):
        publisher.call(lambda connection: None).result(20)
    proxy.start()
    assert all(delivery.wait(30) for delivery in patient)
    assert {delivery.state for delivery in patient} == {DeliveryState.CONFIRMED}
    assert bodies(broker_url, queue) == [str(number) for number in range(49)]
    publisher.close()


def test_a_stream_goes_on_after_a_reconnect(
    proxy: TCPProxy, broker_url: str, rabbitmq_admin: RabbitMQAdmin
) -> None:
    url = broker_url.replace(f"{rabbitmq_admin.host}:{rabbitmq_admin.port}", f"127.0.0.1:{proxy.port}")
    client = uuid4().hex[:16]
    publisher = Publisher(lambda: Connection(url))
    with Connection(broker_url) as connection:
        channel = connection.channel()
        channel.queue_declare(f"inference.reply.{client}.chunks", auto_delete=False)
        stream = ChunkStream(publisher, "id", client, None)
        stream.begin()
        stream.push(TokenChunk("one"))

        def arrived() -> bool:
            message = channel.basic_get(f"inference.reply.{client}.chunks", no_ack=True)
            return message is not None

        eventually(arrived)
        proxy.drop()
        eventually(lambda: publisher.trouble == "broker_down")
        stream.push(TokenChunk("two"))
        stream.push(TokenChunk("three"))
        proxy.start()
        eventually(arrived)
        stream.push(TokenChunk("four"))
        eventually(arrived)
        connection.channel().queue_delete(f"inference.reply.{client}.chunks")
    publisher.close()


def test_thirty_two_threads_publish_with_confirms(broker_url: str, queue: str) -> None:
    publisher = Publisher(lambda: Connection(broker_url))
    states: list[DeliveryState] = []

    def publish(thread: int) -> None:
        for number in range(50):
            delivery = Delivery(
                queue, f"{thread}-{number}".encode(), {"correlation_id": f"{thread}-{number}"}
            )
            publisher.publish(delivery)
            assert delivery.wait(60)
            states.append(delivery.state)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert states == [DeliveryState.CONFIRMED] * 1600
    got = bodies(broker_url, queue)
    assert len(got) == len(set(got)) == 1600
    for thread_number in (0, 31):  # in order for each of them
        own = [body for body in got if body.startswith(f"{thread_number}-")]
        assert own == [f"{thread_number}-{number}" for number in range(50)]
    publisher.close()


def test_closing_sends_what_is_there_and_later_things_end_at_once(broker_url: str, queue: str) -> None:
    publisher = Publisher(lambda: Connection(broker_url))
    deliveries = [Delivery(queue, b"x", {}) for _ in range(2000)]
    publisher.publish_all(deliveries)
    publisher.close(30)
    assert {delivery.state for delivery in deliveries} == {DeliveryState.CONFIRMED}
    assert len(bodies(broker_url, queue)) == 2000
    late = Delivery(queue, b"late", {})
    publisher.publish(late)
    assert late.wait(0)
    assert (late.state, late.reason) == (DeliveryState.NOT_SENT, "closed")
    with pytest.raises(RuntimeError):
        publisher.call(lambda connection: None).result(0)


def test_a_reset_drops_the_connection_of_its_delivery_alone(broker_url: str, queue: str) -> None:
    publisher = Publisher(lambda: Connection(broker_url))
    delivery = Delivery(queue, b"x", {})
    publisher.publish(delivery)
    assert delivery.wait(20)
    publisher.reset(delivery)  # confirmed meanwhile: nothing to drop
    assert publisher.call(lambda connection: publisher.connections).result(20) == 1
    publisher.close()


def test_memory_stays_flat_over_chunks_to_a_queue_that_is_gone(broker_url: str) -> None:
    publisher = Publisher(lambda: Connection(broker_url))
    gone: list[int] = []
    undo = publisher.watch("inference.reply.gone.chunks", lambda: gone.append(1))
    body = b"x" * 200

    def publish(count: int) -> None:
        for _ in range(count // 500):
            publisher.publish_all(
                [Delivery("inference.reply.gone.chunks", body, {}, confirm=False) for _ in range(500)]
            )
            publisher.call(lambda connection: None).result(60)

    publish(5_000)
    eventually(lambda: len(gone) == 5_000)
    gc.collect()
    tracemalloc.start()
    try:
        gone.clear()
        before = tracemalloc.get_traced_memory()[0]
        publish(50_000)
        eventually(lambda: len(gone) == 50_000, within=60)
        gone.clear()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 500_000, f"{grown} bytes"
    undo()
    assert not publisher._watched
    publisher.close()
