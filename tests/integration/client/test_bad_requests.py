"""A bad request fails where it is made, by the path of its field, and nothing is sent."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest
from shops import SmallShop

from remote_inference import InferenceRequest, InvalidRequest, Message

OpenShop = Callable[..., SmallShop]
SECRET = "the-marked-prompt"
OK = [{"role": "user", "content": SECRET}]

BAD: list[tuple[str, Any, dict[str, Any]]] = [
    ("messages", [], {}),
    ("messages", "", {}),
    ("messages", None, {}),
    ("messages", 5, {}),
    ("messages[0]", [SECRET], {}),
    ("messages[0].role", [{"role": "wizard", "content": SECRET}], {}),
    ("messages[0].role", [{"content": SECRET}], {}),
    ("messages[0].content", [{"role": "user"}], {}),
    ("messages[0].content", [{"role": "user", "content": 5}], {}),
    ("messages[0].content", [{"role": "user", "content": []}], {}),
    ("messages[1].content[0].type", [*OK, {"role": "user", "content": [{"type": "hologram"}]}], {}),
    ("messages[0].colour", [{"role": "user", "content": SECRET, "colour": "red"}], {}),
    ("messages[0].tool_call_id", [{"role": "tool", "content": SECRET}], {}),
    ("max_tokens", OK, {"max_tokens": 0}),
    ("max_tokens", OK, {"max_tokens": "many"}),
    ("max_tokens", OK, {"max_tokens": True}),
    ("temperature", OK, {"temperature": 3}),
    ("temperature", OK, {"temperature": "hot"}),
    ("temperature", OK, {"temperature": float("nan")}),
    ("top_p", OK, {"top_p": -1}),
    ("seed", OK, {"seed": 0.5}),
    ("stop", OK, {"stop": [1]}),
    ("n", OK, {"n": 2}),
    ("tools", OK, {"tools": "hammer"}),
    ("tool_choice", OK, {"tool_choice": 1}),
    ("response_format", OK, {"response_format": "json"}),
    ("extra_body", OK, {"extra_body": [1]}),
    ("extra_body.when", OK, {"extra_body": {"when": datetime.datetime(2026, 1, 1)}}),
    ("extra_body.x[0]", OK, {"extra_body": {"x": [float("nan")]}}),
    ("idempotent", OK, {"idempotent": "yes"}),
    ("max_tokns", OK, {"max_tokns": 5}),
    ("deadline", OK, {"deadline": -1}),
    ("deadline", OK, {"deadline": 0}),
    ("deadline", OK, {"deadline": "soon"}),
    ("deadline", OK, {"deadline": float("inf")}),
    ("deadline", OK, {"deadline": datetime.timedelta(seconds=-5)}),
    ("messages", [{"role": "user", "content": "x" * 5000}], {}),
]
IDS = [f"{number}-{field}" for number, (field, _, _) in enumerate(BAD)]
SHARED = {"deadline"}  # of `submit_many`: one for all


@pytest.fixture
def shop(open_shop: OpenShop) -> SmallShop:
    shop = open_shop({"a": {"max_request_bytes": 4096}})
    shop.declare()
    return shop


def refused(call: Callable[[], Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        call()
    assert SECRET not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(("field", "messages", "options"), BAD, ids=IDS)
def test_every_way_names_the_field_and_sends_nothing(
    shop: SmallShop, field: str, messages: Any, options: dict[str, Any]
) -> None:
    inference = shop.inference
    assert refused(lambda: inference.submit("a", messages, **options)).field == field
    many = refused(lambda: inference.submit_many("a", ["fine", messages], **options)).field
    assert many in (f"requests[1].{field}", f"requests[0].{field}", field)
    assert many == f"requests[1].{field}" or set(options)  # options are for all: the first one is at fault
    kwargs = {"deployment": "a", "messages": messages, **options}
    assert refused(lambda: inference.infer.apply_async(kwargs=kwargs)).field == field
    assert refused(lambda: inference.infer.delay(**kwargs)).field == field
    assert refused(lambda: inference.infer.s(**kwargs).apply_async()).field == field
    assert shop.depth("a") == 0


def test_an_unknown_deployment(shop: SmallShop) -> None:
    inference = shop.inference
    for name in ("b", "", None, 5):
        assert refused(lambda name=name: inference.submit(name, "x")).field == "deployment"
        assert refused(lambda name=name: inference.submit_many(name, ["x"])).field == "requests[0].deployment"
        assert refused(lambda name=name: inference.infer.delay(name, "x")).field == "deployment"
    assert refused(lambda: inference.infer.delay()).field == "deployment"
    assert shop.depth("a") == 0


def test_how_it_is_called(shop: SmallShop) -> None:
    inference = shop.inference
    assert refused(lambda: inference.submit("a", "x", priority=9)).field == "priority"
    assert refused(lambda: inference.submit_many("a", ["x"], priority="urgent")).field == "priority"
    assert refused(lambda: inference.infer.apply_async(("a", "x"), priority=4)).field == "priority"
    assert refused(lambda: inference.submit("a", "x", on_restart="explode")).field == "on_restart"
    assert refused(lambda: inference.submit_many("a", ["x"], on_disconnect="x")).field == "on_disconnect"
    assert refused(lambda: inference.infer.apply_async(("a", "x", 1))).field == "args"
    assert refused(lambda: inference.infer.apply_async(("a", "x"), {"messages": "y"})).field == "messages"
    assert shop.depth("a") == 0


def test_a_request_object_is_checked_too(shop: SmallShop) -> None:
    empty = InferenceRequest(deployment="a", messages=())
    assert refused(lambda: shop.inference.submit(empty)).field == "messages"
    assert refused(lambda: shop.inference.submit_many("a", ["x", empty])).field == "requests[1].messages"
    odd = InferenceRequest(deployment="a", messages=(Message(role="wizard", content="x"),))
    assert refused(lambda: shop.inference.submit(odd)).field == "messages[0].role"
    assert shop.depth("a") == 0


def test_one_bad_request_among_many_keeps_all_of_them_back(shop: SmallShop) -> None:
    requests = [*["x"] * 5, "y" * 5000, "z"]
    assert refused(lambda: shop.inference.submit_many("a", requests)).field == "requests[5].messages"
    assert shop.depth("a") == 0


def test_half_a_surrogate_pair_is_no_bad_request(open_shop: OpenShop) -> None:
    shop = open_shop({"a": {"options": {"echo": True}}})
    shop.work()
    assert shop.inference.submit("a", "half \ud83d a pair").result(20).text == "half \ud83d a pair"
