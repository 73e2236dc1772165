"""Pieces of tool calls find their call, whatever a server leaves out or repeats."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.errors import InvalidResponse
from remote_inference.providers.surrogates import HalfCharacters
from remote_inference.providers.tool_calls import ToolCalls

Call = tuple[str, str, str]


def put_together(events: list[list[dict[str, Any]]]) -> list[Call]:
    calls = ToolCalls(HalfCharacters())
    found: dict[int, list[str]] = {}
    for event in events:
        for delta in calls.take(event):
            call = found.setdefault(delta.index, ["", "", ""])
            assert not (delta.id and call[0])
            assert not (delta.name and call[1])
            call[0] += delta.id
            call[1] += delta.name
            call[2] += delta.arguments
    for delta in calls.rest("a1"):
        call = found.setdefault(delta.index, ["", "", ""])
        assert not (delta.id and call[0])
        assert not (delta.name and call[1])
        call[0] += delta.id
        call[1] += delta.name
        call[2] += delta.arguments
    assert sorted(found) == list(range(len(found)))
    ids = [call[0] for call in found.values()]
    assert all(ids)
    assert len(set(ids)) == len(ids)
    return [(i, n, a) for i, n, a in found.values()]


names = st.sampled_from(["f", "get_weather"])
arguments = st.dictionaries(
    st.text(max_size=3), st.integers() | st.text(max_size=5), min_size=1, max_size=3
).map(json.dumps)


@given(
    st.lists(
        st.tuples(names, arguments, st.lists(st.integers(1, 30), max_size=4), st.booleans()),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["counted", "zero", "none", "null", "from one", "string"]),
    st.sampled_from(["first", "all", "none", "empty", "number"]),
    st.sampled_from(["first", "all"]),
)
def test_calls_one_after_the_other_are_told_apart(
    made: list[tuple[str, str, list[int], bool]], index: str, ids: str, named: str
) -> None:
    events: list[list[dict[str, Any]]] = []
    for number, (name, text, cuts, bare_head) in enumerate(made):
        places = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
        pieces = [text[a:b] for a, b in pairwise(places)]
        for position, piece in enumerate([""] * bare_head + pieces):
            call: dict[str, Any] = {"function": {"arguments": piece}}
            if index != "none":
                numbers = {
                    "counted": number,
                    "zero": 0,
                    "null": None,
                    "from one": number + 1,
                    "string": str(number),
                }
                call["index"] = numbers[index]
            if ids == "empty":
                call["id"] = ""
            elif ids != "none" and (ids == "all" or not position):
                call["id"] = 100 + number if ids == "number" else f"call_{number}"
            if named == "all" or not position:
                call["function"]["name"] = name
            events.append([call])
    found = put_together(events)
    assert [(name, text) for _, name, text in found] == [(name, text) for name, text, _, _ in made]
    if ids in ("first", "all"):
        assert [call_id for call_id, _, _ in found] == [f"call_{number}" for number in range(len(made))]


@given(st.lists(st.tuples(names, arguments), min_size=2, max_size=4), st.booleans(), st.booleans())
def test_whole_calls_in_one_list_are_so_many_calls(
    made: list[tuple[str, str]], with_ids: bool, with_index: bool
) -> None:
    event = [
        {
            **({"index": 0} if with_index else {}),
            **({"id": f"c{number}"} if with_ids else {}),
            "function": {"name": name, "arguments": text},
        }
        for number, (name, text) in enumerate(made)
    ]
    assert [(name, text) for _, name, text in put_together([event])] == made


@given(st.lists(arguments, min_size=2, max_size=3), st.randoms(use_true_random=False))
def test_pieces_in_any_order_of_calls_go_by_their_number(made: list[str], random: Any) -> None:
    left = {number: list(text) for number, text in enumerate(made)}
    events = [[{"index": n, "id": f"c{n}", "function": {"name": "f", "arguments": ""}}] for n in left]
    while left:
        number = random.choice(sorted(left))
        events.append([{"index": number, "function": {"arguments": left[number].pop(0)}}])
        if not left[number]:
            del left[number]
    assert [text for _, _, text in put_together(events)] == made


def test_two_calls_of_one_id_are_given_two() -> None:
    call = {"id": "x", "function": {"name": "f", "arguments": "{}"}}
    assert [
        call_id
        for call_id, _, _ in put_together([[call], [{**call, "function": {"name": "g", "arguments": "{}"}}]])
    ] == [
        "x",
        "x_2",
    ]


@pytest.mark.parametrize(
    "pieces", [{}, [1], "x", [{"function": 1}], [{"function": {"arguments": 1}}], [{"id": True}]]
)
def test_what_is_no_call_is_refused(pieces: Any) -> None:
    with pytest.raises(InvalidResponse, match="tool_calls"):
        put_together([pieces])


def test_a_server_cannot_open_calls_without_end() -> None:
    with pytest.raises(InvalidResponse):
        put_together([[{"id": f"{n}", "function": {"name": "f"}}] for n in range(2000)])


def piece(
    index: int | None = None, id: str | None = None, name: str | None = None, args: str | None = None
) -> Any:
    call: dict[str, Any] = {"function": {}}
    if index is not None:
        call["index"] = index
    if id is not None:
        call["id"] = id
    if name is not None:
        call["function"]["name"] = name
    if args is not None:
        call["function"]["arguments"] = args
    return call


X, Y = '{"x":1}', '{"y":2}'
ODD: dict[str, tuple[list[list[Any]], list[Call]]] = {
    "a number twice in one list, then pieces of both": (
        [[piece(0, "a", "f", ""), piece(0, "b", "g", "")], [piece(0, args=X), piece(0, args=Y)]],
        [("a", "f", X), ("b", "g", Y)],
    ),
    "ids in turn under one number": (
        [
            [piece(0, "a", "f", '{"x"')],
            [piece(0, "b", "f", '{"y"')],
            [piece(0, "a", None, ":1}")],
            [piece(0, "b", None, ":2}")],
        ],
        [("a", "f", X), ("b", "f", Y)],
    ),
    "an empty object first": ([[piece(0, "a", "f", "{}")], [piece(0, args=X)]], [("a", "f", X)]),
    "an empty object, then pieces": (
        [[piece(0, "a", "f", "{}")], [piece(0, args='{"x"')], [piece(0, args=":1}")]],
        [("a", "f", X)],
    ),
    "an empty object alone": ([[piece(0, "a", "f", "{}")]], [("a", "f", "{}")]),
    "all again at the end": (
        [[piece(0, "a", "f", '{"x"')], [piece(0, args=":1}")], [piece(0, "a", "f", '{"x": 1}')]],
        [("a", "f", X)],
    ),
    "nothing but whole objects": (
        [[piece(name="f", args=X)], [piece(args=Y)]],
        [("call_0_a1", "f", X), ("call_1_a1", "f", Y)],
    ),
    "one id, another name": (
        [[piece(0, "a", "f", X)], [piece(0, "a", "g", Y)]],
        [("a", "f", X), ("a_2", "g", Y)],
    ),
    "a name in pieces": (
        [[piece(0, "a", "get_")], [piece(0, name="weather")], [piece(0, args=X)]],
        [("a", "get_weather", X)],
    ),
    "a name that grows": (
        [[piece(0, "a", "get_")], [piece(0, name="get_weather")], [piece(0, args=X)]],
        [("a", "get_weather", X)],
    ),
    "an id alone as the head": (
        [[piece(0, "a", "f", X)], [piece(0, "b")], [piece(0, name="g")], [piece(0, args=Y)]],
        [("a", "f", X), ("b", "g", Y)],
    ),
    "pieces of one call in one list": (
        [[piece(0, "a", "f", "")], [piece(0, args='{"x"'), piece(0, args=":1}")]],
        [("a", "f", X)],
    ),
    "one without a list": ([piece(0, "a", "f", X)], [("a", "f", X)]),
    "null beside it": ([[piece(0, "a", "f", X)], [None]], [("a", "f", X)]),
}


@pytest.mark.parametrize(("events", "calls"), ODD.values(), ids=ODD)
def test_what_servers_repeat_or_leave_out(events: list[Any], calls: list[Call]) -> None:
    assert put_together(events) == calls


GLUED = {
    "two documents": [[piece(0, "a", "f", '{"x"')], [piece(0, args=':1}{"y":2}')]],
    "broken under two ids": [
        [piece(0, "a", "f", '{"x":')],
        [piece(0, "b", "f", '{"y":')],
        [piece(0, "a", None, "1}")],
    ],
}


def test_a_name_is_told_with_the_first_arguments_be_they_empty() -> None:
    calls = ToolCalls(HalfCharacters())
    [head] = calls.take([piece(0, "a", "f", "")])
    assert (head.id, head.name) == ("a", "f")
    with pytest.raises(InvalidResponse, match="tool_calls"):
        calls.take([piece(0, name="oo", args="")])


@pytest.mark.parametrize("events", GLUED.values(), ids=GLUED)
def test_what_can_be_no_one_calls_is_no_success(events: list[Any]) -> None:
    with pytest.raises(InvalidResponse, match="tool_calls"):
        put_together(events)


def test_arguments_of_an_answer_that_was_cut_short_may_be_broken() -> None:
    calls = ToolCalls(HalfCharacters())
    calls.take([piece(0, "a", "f", '{"x":')])
    calls.take([piece(0, "b", None, '{"y":')])
    calls.rest("a1", cut_short=True)
