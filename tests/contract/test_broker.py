"""What the library asks of a broker holds over RabbitMQ and over the embedded broker alike.

Where the two differ on purpose (a comment in the test says so too):

- RabbitMQ pushes messages to a consumer up to its prefetch count, before the client reads them; the embedded
  broker hands one out when `drain_events` asks. So with a consumer, RabbitMQ's queue may be empty where the
  embedded one is not, and a message with a time to live of 0 reaches a waiting consumer only on RabbitMQ.
- RabbitMQ tells of errors after a publish at the next read; with publisher confirms, as here, that is the
  same call. The embedded broker raises in the call that is at fault, always.
- A publish to several queues of which one is full: RabbitMQ refuses it and fills the others, the embedded
  broker fills none (`tests/unit/messaging/test_embedded.py`).
- A message whose own time is up, behind one that may wait longer: RabbitMQ counts it until it gets to the
head. - After a channel error RabbitMQ has closed the channel and ended its consumers; the embedded channel
goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import amqp
import pytest
from amqp.exceptions import (
    AccessRefused,
    ConsumerCancelled,
    MessageNacked,
    NotFound,
    PreconditionFailed,
    ResourceLocked,
)
from kombu import Connection

from remote_inference.messaging.embedded import close_broker, register

Connect = Callable[[], Connection]
BOUNDED = {"x-max-priority": 3, "x-max-length": 2, "x-overflow": "reject-publish"}


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
def connect(contract_url: str) -> Iterator[Connect]:
    """Opens connections, which are closed after the test."""
    opened: list[Connection] = []

    def open_connection() -> Connection:
        connection = Connection(contract_url, transport_options={"confirm_publish": True})
        opened.append(connection)
        connection.connect()
        return connection

    yield open_connection
    for connection in opened:
        connection.release()


@pytest.fixture
def channel(connect: Connect) -> Any:
    return connect().channel()


@pytest.fixture
def name() -> str:
    return f"contract.{uuid4().hex}"


def declare(channel: Any, queue: str, arguments: dict[str, Any] | None = None, **flags: bool) -> str:
    return channel.queue_declare(queue, **{"auto_delete": False, **flags}, arguments=arguments).queue


def publish(
    channel: Any,
    queue: str,
    *bodies: str,
    exchange: str = "",
    mandatory: bool = False,
    priority: int | None = None,
    **properties: Any,
) -> None:
    for body in bodies:
        message = channel.prepare_message(body.encode(), priority=priority, properties=properties)
        channel.basic_publish(message, exchange=exchange, routing_key=queue, mandatory=mandatory)


def get(channel: Any, queue: str, no_ack: bool = False) -> Any:
    raw = channel.basic_get(queue, no_ack=no_ack)
    return None if raw is None else channel.message_to_python(raw)


def text(message: Any) -> str:
    return message.body if isinstance(message.body, str) else bytes(message.body).decode()


def empty(channel: Any, queue: str) -> list[str]:
    """Take all there is, in the order in which it comes."""
    return [text(message) for message in iter(lambda: get(channel, queue, no_ack=True), None)]


def counts(channel: Any, queue: str) -> tuple[int, int]:
    declared = channel.queue_declare(queue, passive=True)
    return declared.message_count, declared.consumer_count


def eventually(holds: Callable[[], bool], *, within: float = 5.0) -> None:
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, "did not come to hold"
        time.sleep(0.005)


def exists(connect: Connect, queue: str) -> bool:
    with connect() as connection:
        try:
            connection.channel().queue_declare(queue, passive=True)
        except NotFound:
            return False
        return True


class Inbox:
    """A consumer that keeps what it gets."""

    def __init__(self, connection: Connection, queue: str, channel: Any = None, **options: Any) -> None:
        self.connection = connection
        self.channel = channel or connection.channel()
        self.messages: list[Any] = []
        self.tag = self.channel.basic_consume(
            queue, callback=lambda raw: self.messages.append(self.channel.message_to_python(raw)), **options
        )

    @property
    def texts(self) -> list[str]:
        return [text(message) for message in self.messages]

    def wait_for(self, count: int) -> list[str]:
        while len(self.messages) < count:
            self.connection.drain_events(timeout=5)
        return self.texts

    def read_all(self) -> list[str]:
        """Read until nothing has come for a while: as much as the prefetch count lets through."""
        try:
            while True:
                self.connection.drain_events(timeout=0.1)
        except TimeoutError:
            return self.texts


# Order


def test_higher_priorities_leave_first_and_within_one_the_oldest(channel: Any, name: str) -> None:
    declare(channel, name, {"x-max-priority": 3})
    for body, priority in [("a0", 0), ("b0", 0), ("a3", 3), ("a1", 1), ("b3", 3), ("b1", 1)]:
        publish(channel, name, body, priority=priority)
    assert empty(channel, name) == ["a3", "b3", "a1", "b1", "a0", "b0"]


def test_a_priority_above_the_highest_counts_as_the_highest_and_none_as_the_lowest(
    channel: Any, name: str
) -> None:
    declare(channel, name, {"x-max-priority": 3})
    publish(channel, name, "none")
    publish(channel, name, "three", priority=3)
    publish(channel, name, "nine", priority=9)
    assert empty(channel, name) == ["three", "nine", "none"]


def test_a_queue_without_priorities_keeps_the_order_of_publishing(channel: Any, name: str) -> None:
    declare(channel, name)
    publish(channel, name, "first", priority=0)
    publish(channel, name, "second", priority=9)
    assert empty(channel, name) == ["first", "second"]


def test_a_requeued_message_is_back_in_its_place_and_says_so(channel: Any, name: str) -> None:
    declare(channel, name, {"x-max-priority": 3})
    for body, priority in [("a3", 3), ("a1", 1), ("b1", 1), ("c1", 1), ("a0", 0)]:
        publish(channel, name, body, priority=priority)
    taken = [get(channel, name) for _ in range(3)]
    publish(channel, name, "late", priority=1)
    assert not taken[2].delivery_info["redelivered"]
    taken[2].reject(requeue=True)
    taken[1].reject(requeue=True)
    taken[0].ack()
    messages = list(iter(lambda: get(channel, name), None))
    assert [text(message) for message in messages] == ["a1", "b1", "c1", "late", "a0"]
    assert [bool(message.delivery_info["redelivered"]) for message in messages] == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize("what_closes", ["channel", "connection"])
def test_what_was_not_settled_when_it_closes_is_back_in_its_place(
    connect: Connect, channel: Any, name: str, what_closes: str
) -> None:
    declare(channel, name, {"x-max-priority": 1})
    publish(channel, name, "a", "b", "c")
    other = connect()
    holder = other.channel()
    assert [text(get(holder, name)) for _ in range(2)] == ["a", "b"]
    publish(channel, name, "urgent", priority=1)
    (holder if what_closes == "channel" else other).close()
    eventually(lambda: counts(channel, name)[0] == 4)
    assert empty(channel, name) == ["urgent", "a", "b", "c"]


# Bounds


def test_a_full_queue_refuses_the_publish_and_keeps_what_it_has(channel: Any, name: str) -> None:
    declare(channel, name, BOUNDED)
    publish(channel, name, "a", "b")
    with pytest.raises(MessageNacked):
        publish(channel, name, "urgent", priority=3)
    assert empty(channel, name) == ["a", "b"]
    publish(channel, name, "c")
    assert empty(channel, name) == ["c"]


def test_messages_that_are_delivered_and_not_settled_do_not_count_towards_the_length(
    channel: Any, name: str
) -> None:
    declare(channel, name, BOUNDED)
    publish(channel, name, "a", "b")
    taken = get(channel, name)
    publish(channel, name, "c")
    with pytest.raises(MessageNacked):
        publish(channel, name, "d")
    taken.reject(requeue=True)  # what was accepted once is taken back, whatever the length
    eventually(lambda: counts(channel, name)[0] == 3)
    assert empty(channel, name) == ["a", "b", "c"]


@pytest.mark.parametrize("overflow", [{}, {"x-overflow": "drop-head"}])
def test_a_queue_that_drops_makes_room_at_its_head(channel: Any, name: str, overflow: dict[str, str]) -> None:
    declare(channel, name, {"x-max-length": 2, **overflow})
    publish(channel, name, "a", "b", "c")
    assert empty(channel, name) == ["b", "c"]


def test_the_head_that_is_dropped_is_the_next_to_leave_not_the_least_urgent(channel: Any, name: str) -> None:
    declare(channel, name, {"x-max-length": 2, "x-max-priority": 1})
    publish(channel, name, "low", priority=0)
    publish(channel, name, "high", priority=1)
    publish(channel, name, "low too", priority=0)
    assert empty(channel, name) == ["low", "low too"]


# Time


def test_a_message_goes_when_its_queue_keeps_it_no_longer(channel: Any, name: str) -> None:
    declare(channel, name, {"x-message-ttl": 40})
    publish(channel, name, "short")
    eventually(lambda: counts(channel, name)[0] == 0)
    assert get(channel, name) is None


def test_a_message_goes_when_its_own_time_is_up(channel: Any, name: str) -> None:
    declare(channel, name)
    publish(channel, name, "short", expiration="40")
    publish(channel, name, "long", expiration="60000")
    eventually(lambda: counts(channel, name)[0] == 1)
    assert empty(channel, name) == ["long"]


def test_the_shorter_of_two_times_to_live_counts(channel: Any, name: str) -> None:
    declare(channel, name, {"x-message-ttl": 60_000})
    publish(channel, name, "short", expiration="40")
    eventually(lambda: counts(channel, name)[0] == 0)


def test_a_full_queue_has_room_again_when_messages_have_expired(channel: Any, name: str) -> None:
    declare(channel, name, {**BOUNDED, "x-message-ttl": 40})
    publish(channel, name, "a", "b")
    eventually(lambda: counts(channel, name)[0] == 0)
    publish(channel, name, "c")


def test_a_message_given_back_too_late_is_gone(channel: Any, name: str) -> None:
    declare(channel, name)
    publish(channel, name, "short", expiration="40")
    taken = get(channel, name)
    time.sleep(0.06)  # nothing shows from outside that the time of a message that is out is up
    taken.reject(requeue=True)
    eventually(lambda: counts(channel, name)[0] == 0)
    assert get(channel, name) is None


def test_an_expiration_that_is_no_number_is_refused(channel: Any, name: str) -> None:
    declare(channel, name)
    with pytest.raises(PreconditionFailed):
        publish(channel, name, "x", expiration="soon")


def test_a_queue_goes_when_it_has_been_unused_for_long_enough(
    connect: Connect, channel: Any, name: str
) -> None:
    declare(channel, name, {"x-expires": 60})
    publish(channel, name, "x")
    deadline = time.monotonic() + 5
    returned: list[int] = []
    channel.events["basic_return"].add(lambda error, *_: returned.append(error.code))
    while not returned:  # publishing is no use of a queue, so this does not keep it
        assert time.monotonic() < deadline
        publish(channel, name, "x", mandatory=True)
        time.sleep(0.005)
    assert not exists(connect, name)


def test_a_queue_with_a_consumer_does_not_expire_and_does_after_it(connect: Connect, name: str) -> None:
    connection = connect()
    channel = connection.channel()
    declare(channel, name, {"x-expires": 60})
    inbox = Inbox(connection, name, channel, no_ack=True)
    time.sleep(0.15)  # that it does not go cannot be waited for
    publish(channel, name, "still here")
    assert inbox.wait_for(1) == ["still here"]
    channel.basic_cancel(inbox.tag)
    time.sleep(0.2)  # asking for the queue would be a use of it
    assert not exists(connect, name)


# Declaring


def test_a_passive_declare_tells_messages_and_consumers(connect: Connect, channel: Any, name: str) -> None:
    declare(channel, name)
    publish(channel, name, "a", "b", "c")
    taken = get(channel, name)
    assert counts(channel, name) == (2, 0)
    taken.ack()
    other = connect()
    inbox = Inbox(other, name)
    assert counts(channel, name)[1] == 1
    inbox.channel.basic_cancel(inbox.tag)
    assert counts(channel, name)[1] == 0


def test_a_queue_that_is_not_there_is_not_found(connect: Connect, name: str) -> None:
    for ask in (
        lambda channel: channel.queue_declare(name, passive=True),
        lambda channel: channel.basic_get(name),
        lambda channel: channel.queue_purge(name),
        lambda channel: channel.basic_consume(name, callback=print),
        lambda channel: channel.queue_bind(name, "amq.direct", "key"),
    ):
        with pytest.raises(NotFound) as caught:
            ask(connect().channel())
        assert caught.value.code == 404


def test_an_exchange_that_is_not_there_is_not_found(connect: Connect, channel: Any, name: str) -> None:
    declare(channel, name)
    for ask in (
        lambda channel: channel.exchange_declare(name, "direct", passive=True),
        lambda channel: channel.queue_bind(name, "no such exchange", "key"),
        lambda channel: publish(channel, name, "x", exchange="no such exchange"),
    ):
        with pytest.raises(NotFound):
            ask(connect().channel())


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        ({**BOUNDED, "x-max-length": 3}, {}),
        ({"x-max-priority": 3}, {}),
        ({}, {}),
        (BOUNDED, {"durable": True}),
        (BOUNDED, {"auto_delete": True}),
    ],
)
def test_a_queue_declared_otherwise_is_refused(
    connect: Connect, channel: Any, name: str, arguments: dict[str, Any], flags: dict[str, bool]
) -> None:
    declare(channel, name, BOUNDED)
    assert declare(channel, name, BOUNDED) == name
    with pytest.raises(PreconditionFailed) as caught:
        declare(connect().channel(), name, arguments, **flags)
    assert caught.value.code == 406


def test_an_exchange_declared_otherwise_is_refused(connect: Connect, channel: Any, name: str) -> None:
    channel.exchange_declare(name, "fanout", auto_delete=False)
    channel.exchange_declare(name, "fanout", auto_delete=False)
    with pytest.raises(PreconditionFailed):
        connect().channel().exchange_declare(name, "direct", auto_delete=False)
    channel.exchange_delete(name)


@pytest.mark.parametrize(
    "arguments",
    [
        {"x-max-priority": 256},
        {"x-max-priority": -1},
        {"x-max-length": -1},
        {"x-message-ttl": -1},
        {"x-expires": 0},
        {"x-overflow": "explode"},
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(
    channel: Any, name: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(PreconditionFailed):
        declare(channel, name, arguments)


def test_a_queue_without_a_name_gets_one_of_its_own(channel: Any) -> None:
    first, second = declare(channel, "", exclusive=True), declare(channel, "", exclusive=True)
    assert first
    assert first != second


def test_an_exclusive_queue_is_its_connections_alone_and_goes_with_it(connect: Connect, name: str) -> None:
    holder, other = connect(), connect()
    declare(holder.channel(), name, exclusive=True)
    declare(holder.channel(), name, exclusive=True)
    for ask in (
        lambda: declare(other.channel(), name, exclusive=True),
        lambda: other.channel().queue_declare(name, passive=True),
        lambda: other.channel().basic_get(name),
        lambda: other.channel().basic_consume(name, callback=print),
    ):
        with pytest.raises(ResourceLocked) as caught:
            ask()
        assert caught.value.code == 405
    holder.release()
    eventually(lambda: not exists(connect, name))
    declare(other.channel(), name, exclusive=True)


def test_an_auto_delete_queue_goes_with_its_last_consumer(connect: Connect, name: str) -> None:
    first, second = connect(), connect()
    declare(first.channel(), name, auto_delete=True)
    assert exists(connect, name)
    one, _two = Inbox(first, name), Inbox(second, name)
    one.channel.basic_cancel(one.tag)
    assert exists(connect, name)
    second.release()
    eventually(lambda: not exists(connect, name))


def test_a_deleted_queue_takes_its_messages_along(connect: Connect, channel: Any, name: str) -> None:
    declare(channel, name)
    publish(channel, name, "a", "b")
    assert channel.queue_delete(name) == 2
    assert channel.queue_delete(name) == 0
    assert not exists(connect, name)


def test_a_queue_in_use_or_with_messages_can_be_spared(connect: Connect, channel: Any, name: str) -> None:
    declare(channel, name)
    publish(channel, name, "a")
    with pytest.raises(PreconditionFailed):
        connect().channel().queue_delete(name, if_empty=True)
    assert empty(channel, name) == ["a"]
    other = connect()
    inbox = Inbox(other, name)
    with pytest.raises(PreconditionFailed):
        connect().channel().queue_delete(name, if_unused=True)
    inbox.channel.basic_cancel(inbox.tag)
    assert channel.queue_delete(name, if_unused=True, if_empty=True) == 0
    assert not exists(connect, name)


def test_a_purge_drops_what_is_ready_and_spares_what_is_out(channel: Any, name: str) -> None:
    declare(channel, name)
    publish(channel, name, "a", "b", "c")
    taken = get(channel, name)
    assert channel.queue_purge(name) == 2
    taken.reject(requeue=True)
    eventually(lambda: counts(channel, name)[0] == 1)
    assert empty(channel, name) == ["a"]


# Routing


def test_a_fanout_exchange_fills_every_queue(channel: Any, name: str) -> None:
    channel.exchange_declare(name, "fanout", auto_delete=False)
    queues = [declare(channel, f"{name}.{number}") for number in range(3)]
    for queue in queues:
        channel.queue_bind(queue, name, "")
        channel.queue_bind(queue, name, "twice, and yet once")
    publish(channel, "whatever", "x", exchange=name)
    assert [empty(channel, queue) for queue in queues] == [["x"]] * 3
    channel.queue_unbind(queues[0], name, "")
    channel.queue_unbind(queues[0], name, "twice, and yet once")
    publish(channel, "", "y", exchange=name)
    assert [empty(channel, queue) for queue in queues] == [[], ["y"], ["y"]]
    channel.exchange_delete(name)


def test_a_direct_exchange_goes_by_the_key(channel: Any, name: str) -> None:
    one, two = declare(channel, f"{name}.1"), declare(channel, f"{name}.2")
    channel.queue_bind(one, "amq.direct", f"{name}.one")
    channel.queue_bind(one, "amq.direct", f"{name}.both")
    channel.queue_bind(two, "amq.direct", f"{name}.both")
    publish(channel, f"{name}.one", "1", exchange="amq.direct")
    publish(channel, f"{name}.both", "2", exchange="amq.direct")
    assert (empty(channel, one), empty(channel, two)) == (["1", "2"], ["2"])


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("task.*", ["task.a"], ["task", "task.a.b", "other.a"]),
        ("task.#", ["task", "task.a", "task.a.b"], ["tasks", "other.task"]),
        ("#", ["", "a", "a.b"], []),
        ("*.b.#.d", ["a.b.d", "a.b.c.d", "a.b.c.c.d"], ["b.d", "a.b.c", "a.b.d.e"]),
        ("#.a.#", ["a", "x.a", "a.y", "x.a.y"], ["x", "ab"]),
        ("a+b", ["a+b"], ["aab"]),
    ],
)
def test_a_topic_exchange_goes_by_patterns(
    channel: Any, name: str, pattern: str, fits: list[str], does_not: list[str]
) -> None:
    channel.exchange_declare(name, "topic", auto_delete=False)
    declare(channel, name)
    channel.queue_bind(name, name, pattern)
    for key in [*fits, *does_not]:
        publish(channel, key, key, exchange=name)
    assert empty(channel, name) == fits
    channel.exchange_delete(name)


def test_an_auto_delete_exchange_goes_with_its_last_binding(
    connect: Connect, channel: Any, name: str
) -> None:
    channel.exchange_declare(name, "direct", auto_delete=True)
    declare(channel, name)
    channel.queue_bind(name, name, "key")
    channel.queue_delete(name)
    with pytest.raises(NotFound):
        channel.exchange_declare(name, "direct", passive=True)


def test_a_mandatory_message_that_no_queue_takes_comes_back(channel: Any, name: str) -> None:
    returned: list[tuple[int, str, str, Any]] = []
    channel.events["basic_return"].add(
        lambda error, exchange, key, message: returned.append((error.code, exchange, key, message.body))
    )
    publish(channel, name, "nobody's", mandatory=True)
    publish(channel, name, "nobody's, and nobody asks")
    eventually(lambda: len(returned) == 1)
    ((code, exchange, key, body),) = returned
    assert (code or 312, exchange, key) == (
        312,
        "",
        name,
    )  # py-amqp has no class for 312, and leaves the code at 0
    assert body in (b"nobody's", "nobody's")
    declare(channel, name)
    publish(channel, name, "somebody's", mandatory=True)
    assert len(returned) == 1


# Dead letters


@pytest.mark.parametrize("reason", ["rejected", "expired", "maxlen"])
def test_dead_messages_go_where_the_queue_sends_them(channel: Any, name: str, reason: str) -> None:
    letters = declare(channel, f"{name}.dead")
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": letters}
    declare(channel, name, {**arguments, **({"x-max-length": 1} if reason == "maxlen" else {})})
    publish(channel, name, "x", **({"expiration": "20"} if reason == "expired" else {}))
    if reason == "rejected":
        get(channel, name).reject(requeue=False)
    elif reason == "maxlen":
        publish(channel, name, "y")
    eventually(lambda: counts(channel, letters)[0] == 1)
    letter = get(channel, letters, no_ack=True)
    assert text(letter) == "x"
    (death,) = letter.headers["x-death"]
    assert (death["queue"], death["reason"], death["count"]) == (name, reason, 1)
    assert letter.headers["x-first-death-reason"] == reason


def test_an_expired_message_reaches_whoever_waits_for_the_dead_letters(connect: Connect, name: str) -> None:
    connection = connect()
    channel = connection.channel()
    letters = declare(channel, f"{name}.dead")
    inbox = Inbox(connection, letters, no_ack=True)
    declare(
        channel,
        name,
        {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": letters, "x-message-ttl": 50},
    )
    publish(channel, name, "x")
    assert inbox.wait_for(1) == ["x"]


def test_a_message_that_only_goes_round_is_dropped_and_a_rejected_one_is_not(channel: Any, name: str) -> None:
    declare(
        channel, name, {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": name, "x-max-length": 1}
    )
    publish(channel, name, "a", "b")
    message = get(channel, name)
    assert text(message) == "b"
    message.reject(requeue=False)
    eventually(lambda: counts(channel, name)[0] == 1)
    assert empty(channel, name) == ["b"]


# Consuming


def test_a_message_arrives_as_it_was_sent(channel: Any, name: str) -> None:
    declare(channel, name, {"x-max-priority": 3})
    body = bytes(range(256))
    channel.basic_publish(
        amqp.Message(
            body,
            content_type="application/data",
            content_encoding="binary",
            application_headers={"id": "7", "nested": {"list": [1, "two", None, True]}},
            correlation_id="c",
            reply_to="r",
            priority=2,
            delivery_mode=2,
        ),
        routing_key=name,
    )
    message = get(channel, name)
    assert message.body == body
    assert message.content_type == "application/data"
    assert message.content_encoding == "binary"
    assert message.headers == {"id": "7", "nested": {"list": [1, "two", None, True]}}
    sent = {"correlation_id": "c", "reply_to": "r", "priority": 2, "delivery_mode": 2}
    assert {name: message.properties[name] for name in sent} == sent
    assert message.delivery_info["exchange"] == ""
    assert message.delivery_info["routing_key"] == name


def test_kombus_own_producer_and_consumer_exchange_json(connect: Connect, name: str) -> None:
    connection = connect()
    declare(connection.channel(), name)
    connection.Producer().publish({"prompt": "ü"}, routing_key=name, serializer="json")
    message = get(connection.channel(), name)
    assert message.decode() == {"prompt": "ü"}


def test_an_unread_connection_times_out(connect: Connect, name: str) -> None:
    connection = connect()
    declare(connection.channel(), name)
    Inbox(connection, name)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.02)


def test_a_waiting_consumer_gets_what_another_connection_publishes(connect: Connect, name: str) -> None:
    reader, writer = connect(), connect()
    declare(reader.channel(), name)
    inbox = Inbox(reader, name)
    channel = writer.channel()
    thread = threading.Timer(0.05, publish, (channel, name, "x"))
    thread.start()
    assert inbox.wait_for(1) == ["x"]
    thread.join()


def test_messages_without_acknowledgement_are_gone_once_delivered(
    connect: Connect, channel: Any, name: str
) -> None:
    declare(channel, name)
    publish(channel, name, "a", "b")
    other = connect()
    assert Inbox(other, name, no_ack=True).wait_for(2) == ["a", "b"]
    other.release()
    assert counts(channel, name)[0] == 0
    assert get(channel, name) is None


def test_an_acknowledged_message_is_gone_and_several_can_be_at_once(
    connect: Connect, channel: Any, name: str
) -> None:
    declare(channel, name)
    publish(channel, name, "a", "b", "c", "d")
    other = connect()
    inbox = Inbox(other, name)
    inbox.wait_for(4)
    inbox.channel.basic_ack(inbox.messages[1].delivery_tag, multiple=True)
    inbox.messages[3].ack()
    other.release()
    eventually(lambda: counts(channel, name) == (1, 0))
    assert empty(channel, name) == ["c"]


def test_the_prefetch_count_of_a_channel_is_shared_by_its_consumers(
    connect: Connect, channel: Any, name: str
) -> None:
    one, two = declare(channel, f"{name}.1"), declare(channel, f"{name}.2")
    publish(channel, one, "a", "b", "c")
    publish(channel, two, "d", "e", "f")
    connection = connect()
    shared = connection.channel()
    shared.basic_qos(0, 2, True)
    first, second = Inbox(connection, one, shared), Inbox(connection, two, shared)
    first.read_all()
    held = [*first.messages, *second.messages]
    assert len(held) == 2
    held[0].ack()
    first.read_all()
    assert len(first.messages) + len(second.messages) == 3


def test_a_prefetch_count_that_is_not_global_is_each_later_consumers_own(
    connect: Connect, channel: Any, name: str
) -> None:
    one, two = declare(channel, f"{name}.1"), declare(channel, f"{name}.2")
    publish(channel, one, "a", "b", "c")
    publish(channel, two, "d", "e", "f")
    connection = connect()
    shared = connection.channel()
    shared.basic_qos(0, 1, False)
    first = Inbox(connection, one, shared)
    shared.basic_qos(0, 2, False)
    second = Inbox(connection, two, shared)
    second.read_all()
    assert (first.texts, second.texts) == (["a"], ["d", "e"])
    first.messages[0].ack()
    second.read_all()
    assert (first.texts, second.texts) == (["a", "b"], ["d", "e"])


def test_the_prefetch_count_does_not_hold_back_consumers_without_acknowledgement_nor_gets(
    connect: Connect, channel: Any, name: str
) -> None:
    declare(channel, name)
    publish(channel, name, "a", "b", "c", "d")
    connection = connect()
    own = connection.channel()
    own.basic_qos(0, 1, True)
    assert [text(get(own, name)) for _ in range(2)] == ["a", "b"]
    assert Inbox(connection, name, own, no_ack=True).wait_for(2) == ["c", "d"]


def test_consumers_of_one_connection_take_turns(connect: Connect, channel: Any, name: str) -> None:
    one, two = declare(channel, f"{name}.1"), declare(channel, f"{name}.2")
    connection = connect()
    shared = connection.channel()
    shared.basic_qos(0, 1, True)
    first, second = Inbox(connection, one, shared), Inbox(connection, two, shared)
    count = 25
    publish(channel, one, *(f"a{number}" for number in range(count)))
    publish(channel, two, *(f"z{number}" for number in range(count)))
    order = []
    for _ in range(2 * count):
        before = len(first.messages)
        connection.drain_events(timeout=5)
        inbox = first if len(first.messages) > before else second
        order.append(text(inbox.messages[-1]))
        inbox.messages[-1].ack()
    assert len(set(order)) == 2 * count
    # neither queue has to be empty before the other gets its turn; whose turn it is, is RabbitMQ's to say
    assert {body[0] for body in order[:count]} == {"a", "z"}


def test_after_a_cancel_nothing_more_is_delivered_and_what_was_can_be_settled(
    connect: Connect, channel: Any, name: str
) -> None:
    declare(channel, name)
    publish(channel, name, "a")
    connection = connect()
    inbox = Inbox(connection, name)
    inbox.wait_for(1)
    inbox.channel.basic_cancel(inbox.tag)
    publish(channel, name, "b")
    assert inbox.read_all() == ["a"]
    inbox.messages[0].ack()
    connection.release()
    eventually(lambda: counts(channel, name) == (1, 0))
    assert empty(channel, name) == ["b"]


def test_consumers_hear_that_their_queue_was_deleted(connect: Connect, channel: Any, name: str) -> None:
    declare(channel, name)
    connection = connect()
    told: list[str] = []
    inbox = Inbox(connection, name, consumer_tag="mine", on_cancel=told.append)
    channel.queue_delete(name)
    connection.drain_events(timeout=5)
    assert told == [inbox.tag] == ["mine"]


def test_a_consumer_that_cannot_be_told_fails_when_its_queue_is_deleted(
    connect: Connect, channel: Any, name: str
) -> None:
    declare(channel, name)
    connection = connect()
    Inbox(connection, name)
    channel.queue_delete(name)
    with pytest.raises(ConsumerCancelled):
        connection.drain_events(timeout=5)


def test_an_exclusive_consumer_is_the_only_one(connect: Connect, channel: Any, name: str) -> None:
    declare(channel, name)
    inbox = Inbox(connect(), name, exclusive=True)
    with pytest.raises(AccessRefused):
        Inbox(connect(), name)
    inbox.channel.basic_cancel(inbox.tag)
    Inbox(connect(), name)
    with pytest.raises(AccessRefused):
        Inbox(connect(), name, exclusive=True)


def test_recovering_gives_back_all_that_is_unsettled(channel: Any, name: str) -> None:
    declare(channel, name)
    publish(channel, name, "a", "b")
    assert [text(get(channel, name)) for _ in range(2)] == ["a", "b"]
    channel.basic_recover(requeue=True)
    eventually(lambda: counts(channel, name)[0] == 2)
    assert empty(channel, name) == ["a", "b"]


def test_a_closed_connection_is_not_used_again(connect: Connect, name: str) -> None:
    connection = connect()
    channel = connection.channel()
    declare(channel, name)
    message = channel.prepare_message(b"x")
    connection.release()
    with pytest.raises(connection.connection_errors):
        channel.basic_publish(message, routing_key=name)
