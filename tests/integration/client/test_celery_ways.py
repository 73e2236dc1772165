"""`infer` is an ordinary Celery task: results, groups, chords, links, expiry, signals and events work on it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, chord, group
from celery.exceptions import TaskRevokedError
from celery.signals import after_task_publish, before_task_publish
from shops import SmallShop, eventually, headers_of

from remote_inference import Backpressure, BadRequest, Completion, InvalidRequest, RateLimited

OpenShop = Callable[..., SmallShop]
MARK = "the-marked-prompt"
ECHO = {"options": {"echo": True}, "retry": {"max_retries": 0}}


@pytest.fixture
def shop(open_rabbit_shop: OpenShop, redis_url: str) -> SmallShop:
    limited = {"status": 429, "retry_after": 7.5, "code": "insufficient_quota", "type": "insufficient_quota"}
    shop = open_rabbit_shop(
        {
            "a": ECHO,
            "bad": {"options": {"faults": [{"status": 400, "code": "c", "param": "top_p"}] * 9}},
            "limited": {"retry": {"max_retries": 0}, "options": {"faults": [limited] * 9}},
        },
        settings={"result_backend": redis_url, "result_extended": False},
    )
    _add_tasks(shop.app)
    return shop


def _add_tasks(app: Celery) -> None:
    app.conf.task_routes = {"shop.*": {"queue": "inference.control"}}

    @app.task(name="shop.join", shared=False)
    def join(parts: list[dict[str, Any]]) -> str:
        return "+".join(part["text"] for part in parts)

    @app.task(name="shop.after", shared=False)
    def after(completion: dict[str, Any]) -> str:
        return "after " + completion["text"]

    @app.task(name="shop.failed", shared=False)
    def failed(task_id: str) -> str:
        return "failed " + task_id


def test_a_result_is_the_completion_as_json(shop: SmallShop) -> None:
    shop.work()
    result = shop.inference.infer.apply_async(("a", "hello"), ignore_result=False)
    wire = result.get(timeout=20)
    assert isinstance(wire, dict)
    completion = Completion.from_wire(wire)
    assert completion.to_wire() == wire
    assert (completion.text, completion.deployment, completion.request_id) == ("hello", "a", result.id)


def test_without_asking_for_it_no_result_is_kept(shop: SmallShop) -> None:
    shop.work()
    result = shop.inference.infer.delay("a", "hello")
    eventually(lambda: shop.inference.status()["a"].completed == 1)
    assert result.state == "PENDING"


def test_errors_come_back_typed_with_their_fields(shop: SmallShop) -> None:
    shop.work()
    infer = shop.inference.infer
    results = {name: infer.apply_async((name, "x"), ignore_result=False) for name in ("limited", "bad")}
    with pytest.raises(RateLimited) as limited:
        results["limited"].get(timeout=20)
    assert limited.value.retry_after == 7.5
    assert limited.value.quota
    assert (limited.value.deployment, limited.value.request_id) == ("limited", results["limited"].id)
    with pytest.raises(BadRequest) as bad:
        results["bad"].get(timeout=20)
    assert (bad.value.status, bad.value.param, bad.value.attempt) == (400, "top_p", 1)


def test_groups_chords_and_links(shop: SmallShop) -> None:
    shop.work()
    infer, tasks = shop.inference.infer, shop.app.tasks
    part = infer.s
    together = group(part("a", text).set(ignore_result=False) for text in "xyz").apply_async()
    assert [wire["text"] for wire in together.get(timeout=20)] == ["x", "y", "z"]
    joined = chord([part("a", text).set(ignore_result=False) for text in "xyz"])(tasks["shop.join"].s())
    assert joined.get(timeout=20) == "x+y+z"
    link = tasks["shop.after"].s()
    link.freeze("link-" + together.id)
    infer.apply_async(("a", "it"), link=link)
    assert shop.app.AsyncResult("link-" + together.id).get(timeout=20) == "after it"
    errback = tasks["shop.failed"].s()
    errback.freeze("errback-" + together.id)
    failing = infer.apply_async(("bad", "x"), link_error=errback)
    assert shop.app.AsyncResult("errback-" + together.id).get(timeout=20) == "failed " + failing.id
    chained = (part("a", "first").set(ignore_result=False) | tasks["shop.after"].s()).apply_async()
    assert chained.get(timeout=20) == "after first"


def test_a_member_of_a_group_that_is_refused_raises_in_the_caller(
    open_rabbit_shop: OpenShop, redis_url: str
) -> None:
    table = {"queue_capacity": 1, "on_capacity_exhausted": "reject"}
    shop = open_rabbit_shop({"a": table}, settings={"result_backend": redis_url})
    with pytest.raises(Backpressure):
        group(shop.inference.infer.s("a", text) for text in "xyz").apply_async()
    with pytest.raises(InvalidRequest):
        group(shop.inference.infer.s("b", text) for text in "xyz").apply_async()


def test_a_result_over_rpc(open_rabbit_shop: OpenShop) -> None:
    shop = open_rabbit_shop({"a": ECHO}, settings={"result_backend": "rpc://"})
    shop.work()
    result = shop.inference.infer.apply_async(("a", "hello"), ignore_result=False)
    assert result.get(timeout=20)["text"] == "hello"


def test_an_expired_one_never_starts(shop: SmallShop) -> None:
    result = shop.inference.infer.apply_async(("a", "late"), expires=0.2)
    (message,) = shop.take("inference.a")
    assert message.properties["expiration"] == "200"
    assert headers_of(message)["expires"]
    shop.inference.infer.apply_async(("a", "late"), expires=0.2)
    eventually(lambda: shop.depth("a") == 0)  # the broker drops it
    assert result.id


def test_a_revoked_one_never_starts(shop: SmallShop) -> None:
    result = shop.inference.infer.apply_async(("a", "x"), ignore_result=False)
    shop.inference.cancel(result.id)
    shop.work()
    with pytest.raises(TaskRevokedError):
        result.get(timeout=20)
    assert shop.inference.status()["a"].started == 0


def test_headers_stamps_and_ids_are_kept(shop: SmallShop) -> None:
    infer = shop.inference.infer
    infer.apply_async(("a", "x"), headers={"trace": "t-1"}, task_id="given", time_limit=50, shadow="short")
    stamped = infer.s("a", "y")
    stamped.stamp(customer="c-9")
    stamped.apply_async(priority=3)
    second, first = shop.take("inference.a")[::-1]
    assert headers_of(second)["trace"] == "t-1"
    assert headers_of(second)["id"] == second.properties["correlation_id"] == "given"
    assert headers_of(second)["timelimit"][0] == 50
    assert headers_of(second)["shadow"] == "short"
    assert headers_of(first)["stamps"] == {"customer": "c-9"}
    assert first.properties["priority"] == 3
    for message in (first, second):
        assert message.properties["delivery_mode"] == 2
        assert headers_of(message)["argsrepr"] == "()"
        assert headers_of(message)["kwargsrepr"].startswith("a · 1 message · ~")


def test_the_message_is_json_whatever_the_settings_say(open_rabbit_shop: OpenShop) -> None:
    settings = {"task_serializer": "pickle", "accept_content": ["json", "pickle"], "task_compression": "gzip"}
    shop = open_rabbit_shop({"a": ECHO}, settings=settings)
    shop.inference.infer.delay("a", MARK)
    shop.inference.submit("a", MARK)
    for message in shop.take("inference.a"):
        assert message.content_type == "application/json"
        assert MARK not in str(headers_of(message))
    shop.work()
    assert shop.inference.submit("a", "through").result(20).text == "through"


def test_the_publish_signals_fire_once_and_after_only_when_it_is_queued(open_rabbit_shop: OpenShop) -> None:
    shop = open_rabbit_shop({"a": {"queue_capacity": 1, "on_capacity_exhausted": "reject"}})
    seen: list[tuple[str, str]] = []

    def before(headers: dict[str, Any], routing_key: str = "", **_: Any) -> None:
        seen.append(("before", headers["id"]))

    def after(headers: dict[str, Any], **_: Any) -> None:
        seen.append(("after", headers["id"]))

    before_task_publish.connect(before, sender="remote_inference.infer")
    after_task_publish.connect(after, sender="remote_inference.infer")
    try:
        handle = shop.inference.submit("a", "1")
        assert seen == [("before", handle.request_id), ("after", handle.request_id)]
        for call in (shop.inference.submit, shop.inference.infer.delay):
            seen.clear()
            with pytest.raises(Backpressure):
                call("a", "2")
            assert [kind for kind, _ in seen] == ["before"]
        shop.take("inference.a")
        seen.clear()
        result = shop.inference.infer.delay("a", "3")
        assert seen == [("before", result.id), ("after", result.id)]
    finally:
        before_task_publish.disconnect(before, sender="remote_inference.infer")
        after_task_publish.disconnect(after, sender="remote_inference.infer")


def test_task_sent_events_are_sent_and_show_no_prompt(open_shop: OpenShop) -> None:
    shop = open_shop({"a": {}}, settings={"task_send_sent_event": True})
    events: list[dict[str, Any]] = []
    ready = threading.Event()
    stop = threading.Event()

    def listen() -> None:
        with shop.app.connection_for_read() as connection:
            receiver = shop.app.events.Receiver(connection, handlers={"task-sent": events.append})
            with receiver.consumer_context() as (reading, _, _):
                ready.set()
                while not stop.is_set():
                    try:
                        reading.drain_events(timeout=0.2)
                    except TimeoutError:
                        pass

    thread = threading.Thread(target=listen)
    thread.start()
    assert ready.wait(10)
    ids = {shop.inference.submit("a", MARK).request_id, shop.inference.infer.delay("a", MARK).id}
    ids |= {handle.request_id for handle in shop.inference.submit_many("a", [MARK, MARK])}
    try:
        eventually(lambda: {event["uuid"] for event in events} == ids)
    finally:
        stop.set()
        thread.join()
    assert MARK not in str(events)
    assert {event["kwargs"] for event in events} == {"a · 1 message · ~12 tokens"}


def test_eagerly_it_needs_no_broker(open_shop: OpenShop) -> None:
    settings = {"task_always_eager": True, "task_eager_propagates": True}
    shop = open_shop({"a": ECHO}, url="amqp://nobody@127.0.0.1:1//", settings=settings)
    infer = shop.inference.infer
    assert infer.delay("a", "hello").get().text == "hello"
    assert infer.apply(("a", "hello")).get().text == "hello"
    assert infer("a", "hello").text == "hello"
    with pytest.raises(InvalidRequest):
        infer.delay("a", "hello", max_tokens=0)
