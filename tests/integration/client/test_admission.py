"""Queue and admission: properties, order, who gets in, and what a changed capacity does."""

from __future__ import annotations

import json
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from amqp.exceptions import PreconditionFailed
from shops import SmallShop, body_of, eventually, timed

from remote_inference import Backpressure, Priority
from remote_inference.events import CapacityMismatch
from remote_inference.messaging.admission import threshold
from remote_inference.messaging.names import BUS_EXCHANGE
from remote_inference.messaging.queues import arguments

OpenShop = Callable[..., SmallShop]
REJECT = {"on_capacity_exhausted": "reject"}
B, N, H, C = Priority.BACKGROUND, Priority.NORMAL, Priority.HIGH, Priority.CRITICAL


def fill(shop: SmallShop, name: str, priority: Priority, most: int = 10_000) -> int:
    """Submit until it is refused; how many were taken."""
    for taken in range(most):
        _, refused = timed(lambda: shop.inference.submit(name, "x", priority=priority))
        if refused is not None:
            assert isinstance(refused, Backpressure), refused
            assert refused.deployment == name
            assert refused.reason == ("queue_full" if priority is C else "class_full")
            return taken
    raise AssertionError("never refused")


def test_the_queue_has_the_properties_of_its_deployment(open_shop: OpenShop) -> None:
    shop = open_shop({"a": {"queue_capacity": 7}})
    shop.inference.submit("a", "x")
    expected = {"x-max-priority": 3, "x-max-length": 7, "x-overflow": "reject-publish"}
    assert arguments(7) == expected

    def declare(**changes: Any) -> None:
        shop.raw(
            lambda channel: channel.queue_declare(
                "inference.a",
                durable=changes.pop("durable", True),
                auto_delete=False,
                arguments={**expected, **changes},
            )
        )

    declare()  # with any other, the broker refuses
    for other in (
        {"x-max-priority": 4},
        {"x-max-length": 8},
        {"x-overflow": "drop-head"},
        {"durable": False},
    ):
        with pytest.raises(PreconditionFailed):
            declare(**other)


def test_first_in_first_out_within_a_class_and_higher_classes_first(open_shop: OpenShop) -> None:
    shop = open_shop({"a": {}})
    order = [B, C, N, H, N, B, C, H, N, N]
    for number, priority in enumerate(order):
        if number % 2:
            shop.inference.submit("a", str(number), priority=priority)
        else:
            shop.inference.infer.apply_async(("a", str(number)), priority=int(priority))
    shop.inference.submit_many("a", ["m1", "m2", "m3"], priority=H)
    expected = [str(i) for p in (C, H) for i, given in enumerate(order) if given is p]
    expected += ["m1", "m2", "m3"]
    expected += [str(i) for p in (N, B) for i, given in enumerate(order) if given is p]
    assert shop.prompts("a") == expected


def test_the_workers_are_told_of_urgent_requests_that_got_in_and_of_no_others(open_shop: OpenShop) -> None:
    shop = open_shop({"a": {"queue_capacity": 3, **REJECT}})
    shop.inference.submit("a", "x")  # so that what belongs to the bus is declared

    def listen(channel: Any) -> None:
        channel.queue_declare("heard", exclusive=False, auto_delete=False)
        channel.queue_bind("heard", BUS_EXCHANGE, "")

    def heard() -> list[str]:
        """The kinds of all orders so far; a cancel is the mark after which there are no more."""
        shop.inference.cancel("mark")
        kinds: list[str] = []

        def marked() -> bool:
            kinds.extend(json.loads(body_of(message))["kind"] for message in shop.take("heard"))
            return "cancel" in kinds

        eventually(marked, "the mark")
        return kinds

    shop.raw(listen)
    handles = shop.inference.submit_many("a", ["x"] * 3, priority=C)
    assert [handle.done for handle in handles] == [False, False, True]  # there was room for two
    assert set(heard()) == {"urgent", "cancel"}
    with pytest.raises(Backpressure):
        shop.inference.submit("a", "x", priority=C)
    assert all(handle.done for handle in shop.inference.submit_many("a", ["x"] * 3, priority=C))
    assert heard() == ["cancel"]


@pytest.mark.parametrize("capacity", [1, 2, 10, 100])
def test_each_class_is_refused_from_its_share_on(open_shop: OpenShop, capacity: int) -> None:
    shop = open_shop({"a": {"queue_capacity": capacity, **REJECT}})
    total = 0
    for priority in Priority:
        total += fill(shop, "a", priority)
        assert total == shop.depth("a") == threshold(capacity, priority)
    assert total == capacity


@pytest.mark.parametrize("capacity", [1, 2, 10])
def test_a_flood_from_many_threads_keeps_nobody_out(open_shop: OpenShop, capacity: int) -> None:
    shop = open_shop({"a": {"queue_capacity": capacity, **REJECT}})
    start = threading.Barrier(16)
    taken, odd = [], []

    def flood() -> None:
        start.wait()
        for _ in range(10):
            try:
                taken.append(shop.inference.submit("a", "x", priority=B))
            except Backpressure as refused:
                if refused.reason != "class_full":
                    odd.append(refused)

    threads = [threading.Thread(target=flood) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not odd
    assert len(taken) == shop.depth("a") == threshold(capacity, B)
    assert fill(shop, "a", C) == capacity - threshold(capacity, B)


def _flood(url: str, capacity: int, start: Any, results: Any) -> None:
    shop = SmallShop(url, {"a": {"queue_capacity": capacity, **REJECT}})
    shop.declare()
    start.wait(60)
    taken = 0
    for _ in range(capacity):
        try:
            shop.inference.submit("a", "x", priority=B)
            taken += 1
        except Backpressure:
            break
    results.put(taken)
    shop.close()


def test_a_flood_from_several_processes_leaves_room_for_the_critical(
    open_rabbit_shop: OpenShop, fresh_broker_url: str
) -> None:
    capacity, processes = 100, 4
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(processes), context.Queue()
    children = [
        context.Process(target=_flood, args=(fresh_broker_url, capacity, start, results))
        for _ in range(processes)
    ]
    for child in children:
        child.start()
    taken = sum(results.get(timeout=60) for _ in children)
    for child in children:
        child.join(20)
    shop = open_rabbit_shop({"a": {"queue_capacity": capacity, **REJECT}})
    # each process takes one at a time near its bound: all but one may have looked a moment too early
    assert threshold(capacity, B) <= taken <= threshold(capacity, B) + processes - 1
    assert shop.depth("a") == taken
    assert fill(shop, "a", C) == capacity - taken


def test_many_at_once_take_what_there_is_room_for_in_order(open_shop: OpenShop) -> None:
    shop = open_shop({"a": {"queue_capacity": 50, **REJECT}})
    handles = shop.inference.submit_many("a", [str(i) for i in range(200)])
    assert [handle.done for handle in handles] == [False] * 45 + [True] * 155
    for handle in handles[45:]:
        with pytest.raises(Backpressure) as caught:
            handle.result(0)
        assert caught.value.reason == "class_full"
    assert shop.prompts("a") == [str(i) for i in range(45)]


def test_many_at_once_wait_for_room_where_the_policy_is_to_queue(open_shop: OpenShop) -> None:
    shop = open_shop({"a": {"queue_capacity": 10, "options": {"echo": True}}})
    shop.work(concurrency=2)
    handles = shop.inference.submit_many("a", [f"p{i}" for i in range(150)])
    assert [handle.result(30).text for handle in handles] == [f"p{i}" for i in range(150)]


def test_queueing_waits_up_to_its_limit_and_rejecting_does_not_wait(open_shop: OpenShop) -> None:
    shop = open_shop(
        {
            "patient": {"queue_capacity": 1, "admission_timeout": 1.0},
            "hasty": {"queue_capacity": 1, "admission_timeout": 30.0, **REJECT},
        }
    )
    for name, least, most in (("patient", 0.9, 10), ("hasty", 0.0, 10)):
        shop.inference.submit(name, "x")
        for call in (
            lambda name=name: shop.inference.submit(name, "y"),
            lambda name=name: shop.inference.infer.apply_async((name, "y")),
            lambda name=name: shop.inference.infer.delay(name, "y"),
            lambda name=name: shop.inference.submit_many(name, ["y"])[0].result(0),
        ):
            took, error = timed(call)
            assert isinstance(error, Backpressure), error
            assert error.reason == "class_full"
            assert least <= took < most
        assert shop.depth(name) == 1


def test_room_that_comes_in_time_is_taken(open_shop: OpenShop) -> None:
    shop = open_shop({"a": {"queue_capacity": 1, "admission_timeout": 20.0}})
    shop.inference.submit("a", "first")
    timer = threading.Timer(0.5, lambda: shop.prompts("a"))
    timer.start()
    took, error = timed(lambda: shop.inference.submit("a", "second"))
    timer.join()
    assert error is None
    assert took >= 0.4
    assert shop.prompts("a") == ["second"]


def test_a_refusal_is_never_told_from_an_old_look(open_shop: OpenShop) -> None:
    shop = open_shop({"a": {"queue_capacity": 10, **REJECT}})
    for _ in range(8):
        shop.inference.submit("a", "x", priority=N)
    shop.take("inference.a")  # the queue is empty, and this process has not looked since
    shop.inference.submit("a", "y", priority=B)
    assert shop.depth("a") == 1


@pytest.mark.parametrize("many", [False, True])
def test_a_full_queue_sends_to_the_fallbacks_in_their_order(open_shop: OpenShop, many: bool) -> None:
    small = {"queue_capacity": 1, **REJECT}
    shop = open_shop(
        {
            "a": {"queue_capacity": 1, "on_capacity_exhausted": "fallback", "fallback": ["b", "c"]},
            "b": {**small},
            "c": {**small},
        }
    )
    if many:
        handles = shop.inference.submit_many("a", ["1", "2", "3", "4"])
        with pytest.raises(Backpressure):
            handles.pop().result(0)
    else:
        handles = [shop.inference.submit("a", text) for text in "123"]
        with pytest.raises(Backpressure):
            shop.inference.submit("a", "4")
    assert [handle.deployment for handle in handles] == ["a", "b", "c"]
    assert [shop.prompts(name) for name in "abc"] == [["1"], ["2"], ["3"]]


def test_what_went_to_a_fallback_is_answered_by_it(open_shop: OpenShop) -> None:
    shop = open_shop(
        {
            "a": {"queue_capacity": 1, "on_capacity_exhausted": "fallback", "fallback": ["b"]},
            "b": {"options": {"text": "from b"}},
        }
    )
    shop.inference.submit("a", "1")
    one = shop.inference.submit("a", "2")
    (many,) = shop.inference.submit_many("a", ["3"])
    shop.work("b")
    for handle in (one, many):
        completion = handle.result(20)
        assert (completion.text, completion.deployment) == ("from b", "b")


def test_a_celery_task_stays_where_it_was_sent(open_shop: OpenShop) -> None:
    shop = open_shop(
        {"a": {"queue_capacity": 1, "on_capacity_exhausted": "fallback", "fallback": ["b"]}, "b": {}}
    )
    shop.inference.infer.delay("a", "1")
    with pytest.raises(Backpressure):
        shop.inference.infer.delay("a", "2")
    assert (shop.depth("a"), shop.depth("b")) == (1, 0)


# -- a changed capacity


@pytest.mark.parametrize(("before", "after"), [(5, 9), (9, 5)])
def test_an_empty_queue_that_nobody_uses_is_made_anew(open_shop: OpenShop, before: int, after: int) -> None:
    old = open_shop({"a": {"queue_capacity": before, **REJECT}})
    old.declare()
    seen: list[object] = []
    new = open_shop({"a": {"queue_capacity": after, **REJECT}}, hooks=[seen.append])
    assert fill(new, "a", C) == after
    assert not [event for event in seen if isinstance(event, CapacityMismatch)]


@pytest.mark.parametrize(("before", "after"), [(5, 9), (9, 5)])
def test_a_queue_in_use_keeps_its_capacity_and_senders_the_smaller_one(
    open_shop: OpenShop, before: int, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    old = open_shop({"a": {"queue_capacity": before, **REJECT}})
    old.inference.submit("a", "kept")
    seen: list[object] = []
    new = open_shop({"a": {"queue_capacity": after, **REJECT}}, hooks=[seen.append])
    with caplog.at_level(logging.WARNING):
        assert fill(new, "a", C) == min(before, after) - 1
    assert any("Queue arguments cannot be changed" in record.getMessage() for record in caplog.records)
    (told,) = (event for event in seen if isinstance(event, CapacityMismatch))
    assert (told.deployment, told.configured, told.declared) == ("a", after, before)
    old.take("inference.a")
    old.inference.submit("a", "the other process goes on")
    assert old.prompts("a") == ["the other process goes on"]


@pytest.mark.parametrize("after", [3, 9])
def test_workers_of_both_configurations_serve_a_queue_in_use(open_shop: OpenShop, after: int) -> None:
    old = open_shop({"a": {"queue_capacity": 5, "options": {"echo": True}}})
    worker = old.work()
    new = open_shop({"a": {"queue_capacity": after, "options": {"echo": True}}})
    assert new.inference.submit("a", "1").result(20).text == "1"
    other = new.work()  # starts, though it cannot have its own capacity
    assert worker.is_alive
    assert other.is_alive
    for shop in (old, new):
        handles = shop.inference.submit_many("a", ["x"] * 30)
        assert {handle.result(20).text for handle in handles} == {"x"}
    worker.stop()
    assert old.inference.submit("a", "2").result(20).text == "2"


def test_a_queue_of_somebody_elses_making_is_a_typed_refusal(
    open_shop: OpenShop, caplog: pytest.LogCaptureFixture
) -> None:
    shop = open_shop({"a": {}})
    shop.raw(lambda channel: channel.queue_declare("inference.a", durable=True, auto_delete=False))
    shop.publish("inference.a", b"x", "text/plain", {})  # in use: it cannot be made anew
    _, error = timed(lambda: shop.inference.submit("a", "1"))
    assert isinstance(error, Backpressure)
    assert error.reason == "no_queue"
    assert any("inference.a" in record.getMessage() for record in caplog.records)
    shop.take("inference.a")
    shop.inference.submit("a", "2")  # empty and unused: made anew as it must be
    assert shop.prompts("a") == ["2"]


def test_a_queue_that_was_deleted_is_declared_again(open_shop: OpenShop) -> None:
    shop = open_shop({"a": {}})
    shop.inference.submit("a", "1")
    shop.raw(lambda channel: channel.queue_delete("inference.a"))
    shop.inference.submit("a", "2")
    assert shop.prompts("a") == ["2"]
    shop.raw(lambda channel: channel.queue_delete("inference.a"))
    time.sleep(0)
    shop.inference.submit_many("a", ["3", "4"])
    eventually(lambda: shop.depth("a") == 2)
