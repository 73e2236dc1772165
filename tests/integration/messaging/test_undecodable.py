"""What no worker can read is refused, kept, and told to its sender; it never loops, and no log shows its body."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from shops import DEAD_LETTERS, SmallShop, body_of, eventually, headers_of

from remote_inference import InvalidRequest, UndecodableMessage
from remote_inference.client.handle import InferenceHandle
from remote_inference.clock import SystemClock
from remote_inference.messaging.names import INFER_TASK

OpenShop = Callable[..., SmallShop]
MARK = "the-marked-prompt"
GOOD = {"deployment": "a", "messages": [{"role": "user", "content": MARK}], "version": 1}
NOTHING: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def body(kwargs: dict[str, Any] = GOOD) -> bytes:
    return json.dumps([[], kwargs, NOTHING]).encode()


CASES: dict[str, tuple[bytes, str, dict[str, Any], str]] = {
    "a newer header": (body(), "application/json", {"inference": {"v": 2}}, "version 2"),
    "a header that is none": (body(), "application/json", {"inference": 7}, "not a mapping"),
    "a header of wrong types": (
        body(),
        "application/json",
        {"inference": {"v": 1, "sent": []}},
        "wrong type",
    ),
    "a newer request": (body({**GOOD, "version": 9}), "application/json", {}, "version 9"),
    "an unknown deployment": (body({**GOOD, "deployment": "b"}), "application/json", {}, "deployment"),
    "wrong arguments": (body({**GOOD, "max_tokens": 0}), "application/json", {}, "max_tokens"),
    "an unknown argument": (body({**GOOD, MARK[:5]: 1}), "application/json", {}, "not a field"),
    "no messages": (body({"deployment": "a"}), "application/json", {}, "messages"),
    "not JSON": (b"{" + MARK.encode(), "application/json", {}, ""),
    "not UTF-8": (b'"\xff\xfe"', "application/json", {}, ""),
    "pickle": (b"\x80\x04N." + MARK.encode(), "application/x-python-serialize", {}, ""),
    "yaml": (b"- " + MARK.encode(), "application/x-yaml", {}, ""),
    "plain text": (MARK.encode(), "text/plain", {}, ""),
    "a content type of nobody's": (MARK.encode(), "application/x-nobody", {}, ""),
    "a number": (b"5", "application/json", {}, ""),
    "null": (b"null", "application/json", {}, ""),
    "an object": (json.dumps({"prompt": MARK}).encode(), "application/json", {}, ""),
    "too short a list": (json.dumps([MARK]).encode(), "application/json", {}, ""),
    "a list of other things": (json.dumps([1, MARK, 3]).encode(), "application/json", {}, ""),
    "an old message in a new one": (
        json.dumps({"args": 1, "kwargs": MARK}).encode(),
        "application/json",
        {},
        "",
    ),
    "no id": (body(), "application/json", {"id": None}, ""),
    "expires at no time": (body(), "application/json", {"expires": "tomorrow-ish"}, ""),
    "another task": (body(), "application/json", {"task": "shop.unknown"}, ""),
    "no task": (body(), "application/json", {"task": None}, ""),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_kept_told_and_gone(
    open_shop: OpenShop, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    payload, content_type, given, reason = CASES[case]
    headers = dict(given)
    shop = open_shop({"a": {"options": {"echo": True}}})
    shop.declare()
    shop.inference.submit("a", "to have the reply queue").cancel()
    shop.take("inference.a")
    submitter = shop.inference.submitter
    handle = InferenceHandle(
        submitter._identity.new_id(), "a", clock=SystemClock(), cancel=lambda _: None, deadline=None
    )
    submitter._desk.expect(handle)
    own = headers.pop("inference", {"v": 1}) if "inference" in headers else {"v": 1}
    if isinstance(own, dict):
        own = {**own, "reply": submitter._identity.token}
    complete = {"id": handle.request_id, "task": INFER_TASK, "inference": own, "lang": "py", **headers}
    complete = {name: value for name, value in complete.items() if value is not None}
    caplog.set_level(logging.DEBUG)
    shop.publish("inference.a", payload, content_type, complete, correlation_id=handle.request_id)
    worker = shop.work(concurrency=1)
    eventually(lambda: shop.ready(DEAD_LETTERS) == 1, case)
    # and the worker goes on, with its one slot
    for number in range(3):
        assert shop.inference.submit("a", f"fine {number}").result(20).text == f"fine {number}"
    assert worker.is_alive
    if isinstance(own, dict):
        with pytest.raises((UndecodableMessage, InvalidRequest)) as caught:
            handle.result(20)
        assert reason in str(caught.value)
        assert MARK not in str(caught.value)
    worker.stop()
    assert shop.depth("a") == 0
    (letter,) = shop.take(DEAD_LETTERS)
    kept = headers_of(letter)
    assert kept["inference_reason"]
    assert reason in kept["inference_reason"]
    if reason:  # it was read; what is kept is the call, without Celery's options
        assert json.loads(body_of(letter))[:2] == json.loads(payload)[:2]
    else:
        assert body_of(letter) == payload
    shown = [
        record for record in caplog.records if MARK in record.getMessage() or MARK in str(record.exc_text)
    ]
    assert not shown, [(record.name, record.getMessage()[:200]) for record in shown]


def test_a_good_request_shows_its_prompt_to_no_log(
    open_shop: OpenShop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    shop = open_shop({"a": {"options": {"echo": True}}})
    shop.work()
    assert shop.inference.submit("a", MARK).result(20).text == MARK
    shop.inference.infer.delay("a", MARK)
    eventually(lambda: shop.inference.status()["a"].completed == 2)
    shown = [record for record in caplog.records if MARK in record.getMessage()]
    assert not shown, [(record.name, record.getMessage()[:200]) for record in shown]
