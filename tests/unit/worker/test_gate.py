"""The gate: what cannot be sent goes back to its queue, and only that queue is not consumed meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from kombu import Queue

from remote_inference.events import Event, GateClosed, GateOpened, Hooks
from remote_inference.reasons import GateKind, GateReason
from remote_inference.types import Priority
from remote_inference.worker.gate import HURRY, HURRY_LOOK, LONGEST_HOLD, TAGS, Gate

QUEUE = "inference.gpt"
LIMIT = GateReason.of_limit("requests")
PAUSE = GateReason.of_limit("paused")


class Channel:
    """Writes down what is done on it, in order."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []

    def basic_cancel(self, tag: str, **options: Any) -> None:
        self.done.append(("cancel", tag))


class ConsumerSet:
    """As much of kombu's `Consumer` as the gate touches."""

    no_ack = False

    def __init__(self, channel: Channel, queues: dict[str, Any]) -> None:
        self.channel = channel
        self._queues = dict(queues)
        self._active_tags = {name: f"tag:{name}" for name in queues}
        self._active_queue_no_ack = dict.fromkeys(queues, False)
        self._count = 0

    def consuming_from(self, queue: str) -> bool:
        return queue in self._active_tags

    def _basic_consume(self, queue: Any, no_ack: bool, nowait: bool) -> None:
        self._count += 1
        self._active_tags[queue.name] = f"tag{self._count}:{queue.name}"
        self.channel.done.append(("consume", queue.name))


class Entry:
    """What a timer calls. To cancel it while it runs ends a greenlet in the middle."""

    def __init__(self, at: float, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.at = at
        self._function, self._args = function, args
        self.cancelled = self._running = False

    def cancel(self) -> None:
        assert not self._running, "it cancels itself"
        self.cancelled = True

    def __call__(self) -> None:
        if not self.cancelled:
            self._running = True
            self._function(*self._args)
            self._running = False


class Worker:
    """The fake consumer, its timer and its hub."""

    def __init__(self, *, with_hub: bool) -> None:
        self.time = 1000.0
        self.channel = Channel()
        self.app = Celery("t", broker="memory://", set_as_current=False)
        self.app.amqp.queues.add(Queue(QUEUE))
        self.app.amqp.queues.add(Queue("inference.other"))
        self.app.amqp.queues.add(Queue("celery"))
        self.app.amqp.queues.select([QUEUE, "inference.other", "celery"])
        self.timers: list[Entry] = []
        self.soon: list[Callable[[], None]] = []
        self.events: list[Event] = []
        self.consumer = SimpleNamespace(
            app=self.app,
            hub=SimpleNamespace(call_soon=self.soon.append) if with_hub else None,
            timer=SimpleNamespace(call_after=self.call_after),
            task_consumer=ConsumerSet(self.channel, self.app.amqp.queues.consume_from),
            connection=SimpleNamespace(transport=SimpleNamespace(driver_type="amqp")),
            connection_errors=(ConnectionError,),
            pool=SimpleNamespace(active=True),
        )
        self.gate = Gate(self.consumer, Hooks([self.events.append]), now=lambda: self.time)

    def call_after(self, seconds: float, function: Callable[..., None], args: tuple[Any, ...] = ()) -> Entry:
        self.timers.append(Entry(self.time + seconds, function, args))
        return self.timers[-1]

    def turn(self) -> None:
        """The loop's turn."""
        soon, self.soon = self.soon, []
        self.consumer.hub = None if self.consumer.hub is None else SimpleNamespace(call_soon=self.soon.append)
        for action in soon:
            action()

    def pass_time(self, seconds: float) -> None:
        self.turn()
        self.time += seconds
        self.fire()
        self.turn()

    def fire(self, *, early: float = 0.0) -> None:
        """Let the timers run that are due, or nearly so."""
        due = [entry for entry in self.timers if entry.at <= self.time + early]
        self.timers = [entry for entry in self.timers if entry.at > self.time + early]
        for entry in due:
            entry()

    def message(
        self,
        queue: str = QUEUE,
        *,
        redelivered: bool = True,
        lost: bool = False,
        priority: Priority = Priority.BACKGROUND,
    ) -> Any:
        """One that has just been delivered."""

        def reject(requeue: bool) -> None:
            if lost:
                raise ConnectionError
            self.channel.done.append(("reject", requeue))

        tag = self.consumer.task_consumer._active_tags.get(queue, f"tag:{queue}")
        return SimpleNamespace(
            delivery_info={"consumer_tag": tag, "routing_key": queue, "redelivered": redelivered},
            properties={"priority": int(priority)},
            channel=self.channel,
            reject=reject,
        )

    @property
    def consumed(self) -> set[str]:
        return set(self.app.amqp.queues.consume_from)


@pytest.fixture(params=[True, False], ids=["hub", "no-hub"])
def worker(request) -> Worker:
    return Worker(with_hub=request.param)


def test_an_open_gate_is_open(worker):
    assert not worker.gate.any_closed
    assert not worker.gate.closed(QUEUE)
    assert worker.gate.status() == {}


def test_a_message_handed_back_stops_the_consuming_first_and_then_goes_back(worker):
    worker.gate.hand_back(worker.message(), "id", LIMIT, worker.time + 10)
    worker.turn()
    assert worker.channel.done == [("cancel", f"tag:{QUEUE}"), ("reject", True)]
    assert worker.gate.closed(QUEUE)
    assert worker.gate.any_closed
    assert worker.consumed == {"inference.other", "celery"}
    assert worker.gate.status() == {
        "gpt": {"until": 1010.0, "reason": {"kind": "limit", "detail": "requests"}}
    }
    assert worker.gate.reasons() == {"gpt": LIMIT}
    assert worker.events == [GateClosed(deployment="gpt", reason=LIMIT, until=1010.0)]


@pytest.mark.parametrize("redelivered", [False, True])
def test_what_is_put_back_leaves_nothing_else_in_the_broker(worker, redelivered):
    worker.gate.hand_back(worker.message(redelivered=redelivered), "id", PAUSE, worker.time + 10)
    worker.gate.bounce(worker.message(redelivered=redelivered), "id")
    worker.turn()
    assert [done[0] for done in worker.channel.done] == ["cancel", "reject", "reject"]


def test_it_opens_at_its_time(worker):
    worker.gate.hand_back(worker.message(), "id", PAUSE, worker.time + 10)
    worker.pass_time(9.9)
    assert worker.gate.closed(QUEUE)
    worker.pass_time(0.2)
    assert not worker.gate.any_closed
    assert worker.consumed == {QUEUE, "inference.other", "celery"}
    assert worker.channel.done[-1] == ("consume", QUEUE)
    assert worker.events[-1] == GateOpened(deployment="gpt")


def test_the_earliest_end_wins_and_the_consuming_is_stopped_once(worker):
    """Of a pool's processes one may have a permit before the others; who has none is handed back once more."""
    for seconds in (20, 5, 10):
        worker.gate.hand_back(worker.message(), "id", PAUSE, worker.time + seconds)
    worker.turn()
    assert [done[0] for done in worker.channel.done] == ["cancel", "reject", "reject", "reject"]
    assert worker.gate.handed_back == 3
    worker.pass_time(4.9)
    assert worker.gate.closed(QUEUE)
    worker.pass_time(0.2)
    assert not worker.gate.any_closed
    assert len(worker.events) == 2


def test_a_shutdown_keeps_it_shut_whoever_else_hands_back(worker):
    worker.gate.hand_back(worker.message(), "id", GateReason.of_limit("shutdown"), worker.time + 1000)
    worker.gate.hand_back(worker.message(), "id", PAUSE, worker.time + 5)
    worker.turn()
    worker.pass_time(6.0)
    assert worker.gate.closed(QUEUE)


def test_a_prolonging_that_comes_with_the_timer_is_kept():
    worker = Worker(with_hub=True)
    worker.gate.hand_back(worker.message(), "id", PAUSE, worker.time + 10)
    worker.turn()
    worker.time += 10.1
    worker.gate.hand_back(worker.message(), "id", PAUSE, worker.time + 10)
    worker.turn()
    assert [entry.cancelled for entry in worker.timers] == [True, False]
    worker.fire()
    assert worker.gate.closed(QUEUE)
    assert ("consume", QUEUE) not in worker.channel.done


def test_it_opens_in_the_timers_own_turn():
    """What a timer asks the loop to do next, kombu's does after its next wait for events: up to a second late."""
    worker = Worker(with_hub=True)
    worker.gate.hand_back(worker.message(), "id", LIMIT, worker.time + 1)
    worker.gate.hand_back(worker.message("celery"), "id", LIMIT, worker.time + 1)
    worker.turn()
    worker.time += 1.1
    worker.fire()
    assert not worker.soon
    assert worker.channel.done[-2:] == [("consume", QUEUE), ("reject", True)]


def test_a_timer_that_is_early_comes_again(worker):
    """Its clock is not the wall's; with gevent, to cancel itself would end it before it can."""
    worker.gate.hand_back(worker.message(), "id", PAUSE, worker.time + 10)
    worker.pass_time(9.99)
    worker.fire(early=0.1)
    assert worker.gate.closed(QUEUE)
    worker.pass_time(0.1)
    assert not worker.gate.any_closed
    assert QUEUE in worker.consumed


def test_a_gate_that_was_opened_leaves_no_timer_behind(worker):
    for _ in range(5):
        closes(worker, worker.message())
        worker.gate.hurry(QUEUE)
        worker.turn()
        worker.time += HURRY + 1
    assert all(entry.cancelled for entry in worker.timers)


def test_what_an_operator_cancelled_it_does_not_consume_again(worker):
    late = worker.message()
    closes(worker, worker.message())
    worker.gate.forget(QUEUE)  # Celery's part: no tag, not selected
    closes(worker, late)
    worker.pass_time(10.0)
    worker.gate.hurry(QUEUE)
    worker.turn()
    assert ("consume", QUEUE) not in worker.channel.done
    assert worker.channel.done[-1] == ("reject", True)
    assert QUEUE not in worker.consumed
    assert not worker.gate.any_closed


def test_what_had_been_sent_already_bounces(worker):
    worker.gate.hand_back(worker.message(), "id", PAUSE, worker.time + 10)
    worker.turn()
    late = worker.message()
    assert worker.gate.queue_of(late) == QUEUE, "its consumer's tag is known after the cancel too"
    worker.gate.bounce(late, "late")
    worker.turn()
    assert worker.channel.done[-1] == ("reject", True)
    assert worker.gate.bounced == 1


def test_the_operator_opens_it_before_its_time(worker):
    worker.gate.hand_back(worker.message(), "id", PAUSE, worker.time + 100)
    worker.turn()
    worker.gate.open(QUEUE)
    worker.turn()
    assert not worker.gate.any_closed
    assert QUEUE in worker.consumed
    worker.pass_time(200)  # the old timer finds nothing to do
    assert worker.channel.done.count(("consume", QUEUE)) == 1


def test_opening_an_open_one_does_nothing(worker):
    worker.gate.open(QUEUE)
    worker.turn()
    assert worker.channel.done == []
    assert worker.events == []


def test_over_a_reconnect_it_stays_shut_and_opens_on_the_new_channel(worker):
    worker.gate.hand_back(worker.message(), "id", PAUSE, worker.time + 10)
    worker.turn()
    worker.channel = Channel()
    worker.consumer.task_consumer = ConsumerSet(worker.channel, worker.app.amqp.queues.consume_from)
    worker.timers = []  # the old connection's are gone
    worker.gate.reconnected()
    assert worker.gate.closed(QUEUE)
    worker.pass_time(10.1)
    assert worker.channel.done == [("consume", QUEUE)]


def test_a_message_of_a_lost_connection_is_left_to_the_broker(worker):
    worker.gate.hand_back(worker.message(lost=True), "id", PAUSE, worker.time + 10)
    worker.turn()
    assert worker.gate.closed(QUEUE)


def test_a_message_routed_by_hand_to_another_queue_waits_alone(worker):
    worker.gate.hand_back(worker.message("celery"), "id", PAUSE, worker.time + 60)
    worker.turn()
    assert worker.consumed == {QUEUE, "inference.other", "celery"}
    assert worker.channel.done == [], "back at once it would come again at once"
    worker.pass_time(LONGEST_HOLD + 0.1)
    assert worker.channel.done == [("reject", True)]


def test_when_the_worker_ends_it_does_not_begin_to_consume_again(worker):
    worker.gate.hand_back(worker.message(), "id", PAUSE, worker.time + 10)
    worker.turn()
    worker.channel.done.clear()
    worker.consumer.pool.active = False
    worker.pass_time(10.1)
    worker.gate.open(QUEUE)
    worker.turn()
    assert worker.channel.done == [], "the pool runs nothing any more"


def closes(worker: Worker, *messages: Any, seconds: float = 1.0, reason: GateReason = LIMIT) -> None:
    for message in messages:
        worker.gate.hand_back(message, "id", reason, worker.time + seconds)
    worker.turn()


def test_an_urgent_word_opens_what_a_limit_has_shut_at_once(worker):
    closes(worker, worker.message())
    worker.gate.hurry(QUEUE)
    worker.turn()
    assert worker.channel.done[-1] == ("consume", QUEUE)
    assert not worker.gate.any_closed


@pytest.mark.parametrize("kind", [kind for kind in GateKind if kind is not GateKind.LIMIT])
def test_an_urgent_word_opens_nothing_else(worker, kind):
    closes(worker, worker.message(), reason=GateReason(kind))
    worker.gate.hurry(QUEUE)
    worker.turn()
    assert worker.gate.closed(QUEUE)
    assert worker.gate.refuses(worker.message(priority=Priority.CRITICAL))


def test_after_an_urgent_word_it_shuts_for_one_short_look(worker):
    """All slots may hold others when the word comes: their hand-backs make room, and shut the gate."""
    taken = [worker.message() for _ in range(4)]
    worker.gate.hurry(QUEUE)
    worker.turn()
    worker.time += HURRY / 2
    closes(worker, taken[0], taken[1])
    worker.time += HURRY_LOOK + 0.001  # the timer is late; the rest of them are handed back first
    closes(worker, taken[2])
    worker.pass_time(HURRY_LOOK + 0.001)
    assert not worker.gate.any_closed, "each of them has shut it for a look only"
    assert worker.channel.done[-1] == ("consume", QUEUE)
    closes(worker, taken[3])
    assert not worker.gate.any_closed, "it was taken before the gate opened, and says nothing new"
    assert worker.channel.done[-1] == ("reject", True)
    closes(worker, worker.message())
    worker.pass_time(0.9)
    assert worker.gate.closed(QUEUE), "one look is enough: the word comes when the request is in the queue"


def test_the_memory_of_an_urgent_word_is_short(worker):
    worker.gate.hurry(QUEUE)
    worker.turn()
    worker.time += HURRY + 0.01
    closes(worker, worker.message())
    worker.pass_time(0.9)
    assert worker.gate.closed(QUEUE)


def test_an_urgent_message_that_has_come_all_the_same_is_let_in(worker):
    """What is put back makes room for it before the broker hears that the queue is not consumed any more."""
    closes(worker, worker.message())
    assert worker.gate.refuses(worker.message())
    assert worker.gate.refuses(worker.message(priority=Priority.NORMAL))
    assert not worker.gate.refuses(worker.message(priority=Priority.HIGH))
    assert not worker.gate.refuses(worker.message("inference.other"))


def test_a_pause_is_heeded_whenever_the_message_was_taken(worker):
    early = worker.message()
    closes(worker, worker.message())
    worker.pass_time(1.1)
    assert not worker.gate.any_closed
    closes(worker, early, reason=PAUSE)
    assert worker.gate.closed(QUEUE)


def test_opening_and_closing_at_once_leaves_it_in_one_state():
    """Without a loop, hand-backs come from the pool's threads, words and timers from others."""
    worker = Worker(with_hub=False)
    inner = worker.channel.basic_cancel

    def slow_cancel(tag: str, **options: Any) -> None:
        inner(tag, **options)
        between.set()
        time.sleep(0.001)

    worker.channel.basic_cancel = slow_cancel
    for _ in range(50):
        between = threading.Event()

        def word(between: threading.Event = between) -> None:
            assert between.wait(5.0)
            worker.gate.hurry(QUEUE)

        thread = threading.Thread(target=word)
        thread.start()
        before = worker.gate.handed_back
        worker.gate.hand_back(worker.message(), "id", LIMIT, worker.time + 1)
        assert worker.channel.done[-1] in {("reject", True), ("consume", QUEUE)}
        thread.join()
        assert worker.gate.handed_back == before + 1
        assert not worker.gate.any_closed
        assert worker.consumer.task_consumer.consuming_from(QUEUE)
        worker.time += HURRY + 1


def test_it_does_not_remember_every_tag_for_ever(worker):
    early = worker.message(redelivered=True)
    assert not worker.gate.refuses(early)
    for _ in range(2 * TAGS):
        closes(worker, worker.message())
        worker.pass_time(1.1)
    assert len(worker.gate._tags) <= TAGS + 3
    early.delivery_info["routing_key"] = "by.hand"
    assert worker.gate.queue_of(early) == QUEUE, "it was found out when the message came"


def test_its_repr_says_what_is_shut(worker):
    worker.gate.hand_back(worker.message(), "id", PAUSE, worker.time + 10)
    worker.turn()
    assert repr(worker.gate) == f"Gate(shut=['{QUEUE}'], handed_back=1, bounced=0)"
