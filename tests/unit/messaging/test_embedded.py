"""The embedded broker on its own: what no other broker can show, and what a fake clock makes exact.

What it has in common with RabbitMQ is in `tests/contract/test_broker.py`.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from amqp.exceptions import (
    ConnectionForced,
    MessageNacked,
    NotFound,
    PreconditionFailed,
    RecoverableConnectionError,
)
from celery import Celery
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from kombu import Connection
from kombu.transport import TRANSPORT_ALIASES

from remote_inference.messaging.embedded import (
    Broker,
    QueueFull,
    QueueGone,
    broker_named,
    close_broker,
    register,
)
from remote_inference.messaging.embedded.queue import Entry, Envelope, MessageQueue, QueueSettings
from remote_inference.messaging.embedded.records import Delivery, Session
from remote_inference.messaging.embedded.routing import topic_matches

REFUSING = {"x-max-length": 1, "x-overflow": "reject-publish"}


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def broker(clock: FakeClock) -> Broker:
    return Broker("test", clock=clock)


@pytest.fixture
def session(broker: Broker) -> Session:
    return broker.open_session(broker.connect())


@pytest.fixture
def url() -> Iterator[str]:
    register()
    name = f"unit-{uuid4().hex}"
    yield f"embedded://{name}"
    close_broker(name)


def letter(body: bytes = b"x", *, exchange: str = "", key: str = "q") -> Envelope:
    return Envelope(body=body, exchange=exchange, routing_key=key)


def take(broker: Broker, session: Session, queue: str = "q") -> Delivery | None:
    found = broker.get(session, queue)
    return None if found is None else found[0]


# The queue, against a model


class QueueMachine(RuleBasedStateMachine):
    """A `MessageQueue` does what a sorted list does."""

    held = Bundle("held")

    @initialize(
        max_priority=st.integers(0, 3),
        max_length=st.none() | st.integers(0, 6),
        reject=st.booleans(),
        ttl=st.none() | st.integers(1, 20),
    )
    def make(self, max_priority: int, max_length: int | None, reject: bool, ttl: int | None) -> None:
        self.now = 0.0
        self.settings = QueueSettings(
            max_priority=max_priority, max_length=max_length, reject_when_full=reject, message_ttl=ttl
        )
        self.queue = MessageQueue(self.settings)
        self.model: list[tuple[int, int, float]] = []  # (-priority, number, expiry), sorted
        self.published = 0

    @rule(priority=st.integers(0, 5), ttl=st.none() | st.integers(0, 30))
    def push(self, priority: int, ttl: int | None) -> None:
        limit = self.settings.max_length
        full = self.settings.reject_when_full and limit is not None and len(self.model) >= limit
        assert self.queue.refuses == full
        if full:
            return
        self.published += 1
        self.queue.push(letter(str(self.published).encode()), priority=priority, ttl=ttl, now=self.now)
        limits = [limit for limit in (ttl, self.settings.message_ttl) if limit is not None]
        expiry = self.now + min(limits) if limits else float("inf")
        self.model.append((-min(priority, self.settings.max_priority), self.published, expiry))
        self.settle_down()

    @rule(target=held)
    def pop(self) -> tuple[Entry, tuple[int, int, float]] | None:
        entry = self.queue.pop()
        if not self.model:
            assert entry is None
            return None
        assert entry is not None
        expected = self.model.pop(0)
        assert entry.envelope.body == str(expected[1]).encode()
        return entry, expected

    @rule(item=consumes(held))
    def settle(self, item: tuple[Entry, Any] | None) -> None:
        if item is not None:
            self.queue.settle(item[0])

    @rule(item=consumes(held))
    def requeue(self, item: tuple[Entry, tuple[int, int, float]] | None) -> None:
        if item is not None:
            entry, place = item
            in_time = place[2] > self.now
            assert self.queue.requeue(entry, now=self.now) == in_time
            if in_time:
                assert entry.redelivered
                self.model.append(place)
            self.settle_down()

    @rule(seconds=st.integers(1, 10))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        self.settle_down()

    @rule()
    def purge(self) -> None:
        assert self.queue.purge() == len(self.model)
        self.model.clear()

    def settle_down(self) -> None:
        """What the broker does at every operation: drop the expired, then what is over the length."""
        expired = {int(entry.envelope.body) for entry in self.queue.expired(self.now)}
        assert expired == {number for _, number, expiry in self.model if expiry <= self.now}
        self.model = sorted(place for place in self.model if place[2] > self.now)
        dropped = [int(entry.envelope.body) for entry in self.queue.surplus()]
        limit = self.settings.max_length
        over = 0 if limit is None or self.settings.reject_when_full else max(0, len(self.model) - limit)
        assert dropped == [number for _, number, _ in self.model[:over]]
        del self.model[:over]

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        if hasattr(self, "queue"):
            assert len(self.queue) == len(self.model)

    @invariant()
    def keeps_no_crowd_of_leftovers(self) -> None:
        if hasattr(self, "queue"):
            assert len(self.queue._order) <= 2 * len(self.model) + 1

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            left = [int(entry.envelope.body) for entry in iter(self.queue.pop, None)]
            assert left == [number for _, number, _ in self.model]


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_settled_message_is_not_kept_until_it_would_have_expired() -> None:
    queue = MessageQueue(QueueSettings())
    for _ in range(1000):
        queue.push(letter(), ttl=3600)
        entry = queue.pop()
        assert entry is not None
        queue.settle(entry)
    assert len(queue._expiries) <= 1


@pytest.mark.parametrize(("now", "in_time"), [(4.999, True), (5.0, False)])
def test_a_message_is_given_back_only_before_its_time_is_up(now: float, in_time: bool) -> None:
    queue = MessageQueue(QueueSettings())
    queue.push(letter(), ttl=5.0)
    entry = queue.pop()
    assert entry is not None
    assert queue.requeue(entry, now=now) == in_time
    assert len(queue) == in_time


@given(
    st.lists(st.sampled_from(["a", "b", "*", "#"]), max_size=5), st.lists(st.sampled_from("ab"), max_size=5)
)
def test_topic_patterns_match_as_their_definition_says(pattern: list[str], words: list[str]) -> None:
    def defined(wanted: list[str], left: list[str]) -> bool:
        if not wanted:
            return not left
        if wanted[0] == "#":
            return any(defined(wanted[1:], left[taken:]) for taken in range(len(left) + 1))
        return bool(left) and wanted[0] in ("*", left[0]) and defined(wanted[1:], left[1:])

    assert topic_matches(".".join(pattern), ".".join(words)) == defined(pattern, words)


def test_a_pattern_of_many_hashes_is_matched_at_once() -> None:
    assert not topic_matches(".".join(["#", "a"] * 40 + ["b"]), ".".join("a" * 200))


@pytest.mark.parametrize(
    "arguments",
    [
        {"x-max-length-bytes": 10},
        {"x-single-active-consumer": True},
        {"x-queue-type": "quorum"},
        {"x-overflow": "reject-publish-dlx"},
        {"x-max-length": True},
        {"x-max-length": "7"},
    ],
)
def test_what_the_broker_does_not_have_is_refused_and_not_ignored(arguments: dict[str, Any]) -> None:
    with pytest.raises(PreconditionFailed):
        QueueSettings.from_arguments(arguments)


# Publishing


def test_a_publish_to_several_queues_of_which_one_is_full_reaches_none(
    broker: Broker, session: Session
) -> None:
    broker.declare_queue(session, "roomy")
    broker.declare_queue(session, "full", arguments=REFUSING)
    broker.publish(session, letter(key="full"))
    for queue in ("roomy", "full"):
        broker.bind(session, queue, "amq.fanout", "")
    with pytest.raises(QueueFull) as caught:
        broker.publish(session, letter(exchange="amq.fanout"))
    assert caught.value.queue == "full"
    assert take(broker, session, "roomy") is None


def test_dead_letters_do_not_overfill_a_queue_that_refuses(broker: Broker, session: Session) -> None:
    broker.declare_queue(session, "dead", arguments=REFUSING)
    broker.declare_queue(
        session, "q", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    )
    for _ in range(2):
        broker.publish(session, letter())
        delivery = take(broker, session)
        assert delivery is not None
        broker.reject(session, delivery.tag, requeue=False)
    assert broker.declare_queue(session, "dead", passive=True)[1] == 1


def test_dead_letters_for_an_exchange_that_is_gone_are_dropped(broker: Broker, session: Session) -> None:
    broker.declare_queue(session, "q", arguments={"x-dead-letter-exchange": "gone"})
    broker.publish(session, letter())
    delivery = take(broker, session)
    assert delivery is not None
    broker.reject(session, delivery.tag, requeue=False)
    assert take(broker, session) is None


@pytest.mark.parametrize("error", [QueueFull("inference.a"), QueueGone("", "reply.b")])
def test_the_errors_survive_pickle_and_say_what_happened(error: Exception) -> None:
    clone = pickle.loads(pickle.dumps(error))
    assert (type(clone), clone.args, str(clone)) == (type(error), error.args, str(error))
    assert any(name in str(error) for name in ("inference.a", "reply.b"))


def test_a_full_queue_and_a_gone_one_are_told_at_once_whatever_the_publish_retries(url: str) -> None:
    app = Celery("shop", broker=url, set_as_current=False)
    app.conf.update(task_default_queue="q", task_publish_retry=True)
    app.conf.task_publish_retry_policy = {"max_retries": 1000, "interval_start": 10}

    @app.task(name="shop.work", shared=False)
    def work() -> None: ...

    with app.connection_for_write() as connection, connection.channel() as channel:
        app.amqp.queues["q"].queue_arguments = REFUSING
        work.delay()
        with pytest.raises(QueueFull) as caught:
            work.delay()
        assert isinstance(caught.value, MessageNacked)
        with pytest.raises(QueueGone):
            connection.Producer(channel).publish("x", routing_key="gone", mandatory=True, retry=True)
    app.close()


def test_a_body_is_handed_on_and_never_copied(url: str) -> None:
    body = b"prompt" * 1000
    with Connection(url) as connection:
        channel = connection.channel()
        for queue in ("a", "b"):
            channel.queue_declare(queue)
            channel.queue_bind(queue, "amq.fanout")
        channel.basic_publish(channel.prepare_message(body), exchange="amq.fanout")
        first = channel.basic_get("a")
        first.reject(requeue=True)
        assert channel.basic_get("a").body is body
        assert channel.basic_get("b").body is body


def test_changing_a_messages_headers_changes_neither_the_queue_nor_other_copies(url: str) -> None:
    headers = {"id": "1"}
    with Connection(url) as connection:
        channel = connection.channel()
        channel.queue_declare("q")
        channel.basic_publish(channel.prepare_message("x", headers=headers), routing_key="q")
        headers["id"] = "2"
        message = channel.basic_get("q")
        message.headers["id"] = "3"
        message.properties["priority"] = 9
        message.reject(requeue=True)
        again = channel.basic_get("q")
        assert again.headers == {"id": "1"}
        assert "priority" not in again.properties


def test_no_repr_shows_a_prompt(broker: Broker, session: Session, url: str) -> None:
    envelope = Envelope(body=b"my secret", exchange="", routing_key="q", headers={"h": "my secret"})
    broker.declare_queue(session, "q")
    broker.publish(session, envelope)
    delivery = take(broker, session)
    with Connection(url) as connection:
        channel = connection.channel()
        shown = repr([envelope, broker, session, delivery, channel, connection, connection.connection])
    assert "my secret" not in shown


# Time


def test_a_queues_messages_expire_at_their_time_and_not_before(
    broker: Broker, session: Session, clock: FakeClock
) -> None:
    broker.declare_queue(session, "q", arguments={"x-message-ttl": 2000})
    broker.publish(session, letter(b"queue's"))
    broker.publish(session, letter(b"own"), ttl=1.0)
    clock.now += 0.999
    assert broker.declare_queue(session, "q", passive=True)[1] == 2
    clock.now += 0.001
    assert broker.declare_queue(session, "q", passive=True)[1] == 1
    clock.now += 1.0
    assert broker.declare_queue(session, "q", passive=True)[1] == 0


def test_every_use_of_a_queue_puts_its_end_off_and_publishing_is_none(
    broker: Broker, session: Session, clock: FakeClock
) -> None:
    broker.declare_queue(session, "q", arguments={"x-expires": 10_000})
    clock.now += 9
    broker.get(session, "q")
    clock.now += 9
    broker.declare_queue(session, "q", passive=True)
    clock.now += 9
    tag = broker.consume(session, "q", print)
    clock.now += 100
    broker.cancel(session, tag)
    clock.now += 9
    assert broker.publish(session, letter())
    clock.now += 1
    assert not broker.publish(session, letter())
    with pytest.raises(NotFound):
        broker.declare_queue(session, "q", passive=True)


def test_what_is_given_back_to_a_queue_that_is_gone_is_dropped(
    broker: Broker, session: Session, clock: FakeClock
) -> None:
    broker.declare_queue(session, "q", arguments={"x-expires": 1000})
    broker.publish(session, letter())
    delivery = take(broker, session)
    assert delivery is not None
    clock.now += 1
    broker.declare_queue(session, "q")
    broker.reject(session, delivery.tag, requeue=True)
    assert take(broker, session) is None


def test_settling_twice_is_an_error(broker: Broker, session: Session) -> None:
    broker.declare_queue(session, "q")
    broker.publish(session, letter())
    delivery = take(broker, session)
    assert delivery is not None
    broker.acknowledge(session, delivery.tag)
    with pytest.raises(PreconditionFailed):
        broker.acknowledge(session, delivery.tag)
    with pytest.raises(PreconditionFailed):
        broker.reject(session, delivery.tag, requeue=True)


# Waiting


def when_it_waits(connection: Connection) -> threading.Event:
    """An event that is set as soon as somebody waits on the connection for something to come."""
    waiting = threading.Event()
    changed = connection.connect().broker_client.changed
    wait = changed.wait

    def watched_wait(timeout: float | None = None) -> bool:
        waiting.set()
        return bool(wait(timeout))

    changed.wait = watched_wait
    return waiting


def test_what_becomes_due_meanwhile_wakes_whoever_waits_for_it(url: str) -> None:
    with Connection(url) as reader, Connection(url) as writer:
        channel = reader.channel()
        channel.queue_declare("dead")
        got: list[Any] = []
        channel.basic_consume("dead", callback=got.append)
        waiting = when_it_waits(reader)
        thread = threading.Thread(target=reader.drain_events, kwargs={"timeout": 30})
        thread.start()
        assert waiting.wait(5)
        other = writer.channel()
        arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
        other.queue_declare("q", arguments=arguments)
        other.basic_publish(other.prepare_message("x", properties={"expiration": "20"}), routing_key="q")
        thread.join(5)
        assert [message.body for message in got] == [b"x"]


def test_waking_ends_the_wait_that_goes_on_or_the_next_one(url: str) -> None:
    with Connection(url) as connection:
        connection.connect()
        connection.transport.wake()
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=None)
        with pytest.raises(TimeoutError, match="nothing to deliver"):
            connection.drain_events(timeout=0)  # and not the one after


@pytest.mark.parametrize("ends", ["connection", "broker"])
def test_a_wait_fails_when_its_connection_or_broker_is_closed(url: str, ends: str) -> None:
    connection = Connection(url)
    raised: list[BaseException] = []
    waiting = when_it_waits(connection)

    def drain() -> None:
        try:
            connection.drain_events()
        except RecoverableConnectionError as exc:
            raised.append(exc)

    thread = threading.Thread(target=drain)
    thread.start()
    assert waiting.wait(5)
    if ends == "connection":
        connection.connection.close()
    else:
        close_broker(url.removeprefix("embedded://"))
    thread.join(5)
    assert [type(exc) for exc in raised] == [
        RecoverableConnectionError if ends == "connection" else ConnectionForced
    ]


def test_an_acknowledgement_from_another_thread_lets_a_limited_consumer_go_on(url: str) -> None:
    with Connection(url) as connection:
        channel = connection.channel()
        channel.queue_declare("q")
        channel.basic_qos(0, 1, True)
        got: list[Any] = []
        channel.basic_consume("q", callback=got.append)
        for _ in range(2):
            channel.basic_publish(channel.prepare_message("x"), routing_key="q")
        connection.drain_events(timeout=5)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0)
        waiting = when_it_waits(connection)
        thread = threading.Thread(target=connection.drain_events, kwargs={"timeout": 30})
        thread.start()
        assert waiting.wait(5)
        got[0].ack()
        thread.join(5)
        assert len(got) == 2


def test_every_message_is_settled_once_when_threads_give_back_a_fifth_of_them(url: str) -> None:
    count, consumers = 8000, 4
    settled: list[int] = []
    done = threading.Event()
    given_back = set(range(0, count, 5))
    lock = threading.Lock()
    setup = Connection(url)
    setup.channel().queue_declare("q", auto_delete=False, arguments={"x-max-priority": 3})

    def settle(message: Any) -> None:
        number = int(message.body)
        with lock:
            back = number in given_back
            given_back.discard(number)
        if back:
            message.reject(requeue=True)
            return
        message.ack()
        with lock:
            settled.append(number)
            if len(settled) == count:
                done.set()

    def publish(part: int) -> None:
        with Connection(url) as connection:
            channel = connection.channel()
            for number in range(part, count, 2):
                channel.basic_publish(
                    channel.prepare_message(str(number), priority=number % 4), routing_key="q"
                )

    def consume() -> None:
        held: list[Any] = []
        with Connection(url) as connection:
            channel = connection.channel()
            channel.basic_qos(0, 8, True)
            channel.basic_consume("q", callback=held.append)
            while not done.is_set():
                try:
                    connection.drain_events(timeout=0.05)
                except TimeoutError:
                    pass
                if len(held) >= 4 or done.is_set():  # another thread than the one that reads settles them
                    batch = held[:]
                    held.clear()
                    thread = threading.Thread(
                        target=lambda batch=batch: [settle(message) for message in batch]
                    )
                    thread.start()
                    thread.join(0 if len(settled) < count // 2 else None)
                elif held:
                    settle(held.pop())

    threads = [threading.Thread(target=publish, args=(part,)) for part in range(2)]
    threads += [threading.Thread(target=consume) for _ in range(consumers)]
    for thread in threads:
        thread.start()
    assert done.wait(60)
    for thread in threads:
        thread.join(10)
    assert sorted(settled) == list(range(count))
    assert setup.channel().queue_declare("q", passive=True).message_count == 0
    setup.release()


# Names and URLs


def test_messages_outlive_the_connection_of_their_producer(url: str) -> None:
    with Connection(url) as producer:
        producer.channel().queue_declare("q", auto_delete=False)
        producer.Producer().publish("x", routing_key="q")
    with Connection(url) as consumer:
        assert consumer.channel().basic_get("q").payload == "x"


def test_brokers_of_different_names_share_nothing_and_a_closed_one_starts_anew(url: str) -> None:
    name = url.removeprefix("embedded://")
    with Connection(url) as one, Connection(url + "-other") as other:
        one.channel().queue_declare("q", auto_delete=False)
        with pytest.raises(NotFound):
            other.channel().queue_declare("q", passive=True)
    assert broker_named(name) is broker_named(name.upper())
    close_broker(name)
    close_broker(name)
    close_broker(name + "-other")
    with Connection(url) as again, pytest.raises(NotFound):
        again.channel().queue_declare("q", passive=True)


def test_a_connection_recovers_on_a_new_broker_after_its_own_was_closed(url: str) -> None:
    with Connection(url) as connection:
        connection.channel()
        close_broker(url.removeprefix("embedded://"))
        assert not connection.connected
        connection.ensure_connection(max_retries=1)
        connection.channel().queue_declare("q")


def test_a_url_without_a_name_means_the_default_broker() -> None:
    register()
    with Connection("embedded://") as connection:
        connection.connect()
        assert connection.connection.broker is broker_named()
    close_broker()


def test_registering_twice_is_the_same_as_once() -> None:
    register()
    before = copy.copy(TRANSPORT_ALIASES)
    register()
    assert before == TRANSPORT_ALIASES


def test_importing_registers_nothing() -> None:
    code = (
        "import remote_inference.messaging.embedded.transport, kombu.transport as t, sys;"
        "sys.exit('embedded' in t.TRANSPORT_ALIASES)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


GEVENT = """
from gevent import monkey; monkey.patch_all()
import gevent, time
from kombu import Connection
from remote_inference.messaging.embedded import register
register()
with Connection("embedded://g") as reader, Connection("embedded://g") as writer:
    channel, out = reader.channel(), writer.channel()
    channel.queue_declare("q")
    got = []
    channel.basic_consume("q", callback=got.append)
    waiting = gevent.spawn(reader.drain_events, timeout=5)
    gevent.sleep(0.01)
    out.basic_publish(out.prepare_message("x"), routing_key="q")
    waiting.get(timeout=5)
    assert got[0].payload == b"x" or got[0].body == b"x"
    begun = time.monotonic()
    try:
        reader.drain_events(timeout=0.05)
    except TimeoutError:
        assert time.monotonic() - begun < 1
    else:
        raise AssertionError
"""


def test_greenlets_wait_without_stopping_each_other() -> None:
    pytest.importorskip("gevent")
    run = subprocess.run(
        [sys.executable, "-c", GEVENT], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
