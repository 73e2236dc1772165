"""Reading the answer: OpenAI's shape, and the oddities that compatible servers send."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.credentials import Secret
from remote_inference.errors import (
    BadRequest,
    ContentFiltered,
    ContextLengthExceeded,
    InvalidResponse,
    RequestError,
    ServerError,
    StreamTruncated,
)
from remote_inference.providers.error_body import error_of_answer, error_of_object
from remote_inference.providers.openai_reader import ChatReader
from remote_inference.providers.usage import UsageCount
from remote_inference.types import FinishReason, TokenChunk, TokenUsage


def read(*events: Any, secret: Secret | None = None) -> tuple[list[TokenChunk], ChatReader]:
    reader = ChatReader(secret)
    chunks = [
        reader.event("message", event if isinstance(event, str) else json.dumps(event)) for event in events
    ]
    return [chunk for chunk in chunks if chunk is not None], reader


def said(delta: Any, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


def text(chunks: list[TokenChunk]) -> str:
    return "".join(chunk.text_delta for chunk in chunks)


ODDITIES = {
    "words": "still at work",
    "a number": "1",
    "true": "true",
    "a string": '"alive"',
    "a null choice": {"choices": [None]},
    "a list for a delta": said([]),
    "a list of pings": [{"type": "ping"}],
    "a failover": {"type": "failover", "message": "another server goes on"},
    "a stage": {"code": 102, "message": "processing"},
    "role only": said({"role": "assistant"}),
    "role and empty content": said({"role": "assistant", "content": ""}),
    "role and null content": said({"role": "assistant", "content": None}),
    "empty delta": said({}),
    "null delta": said(None),
    "null usage": said({}, usage=None),
    "no choices": {"choices": []},
    "null choices and a usage": {"choices": None, "usage": {"prompt_tokens": 1}},
    "usage alone": {"usage": {"prompt_tokens": 1}},
    "azure's filter results": {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]},
    "azure's content filter offsets": {
        "choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {}}]
    },
    "empty finish reason": said({"content": ""}, ""),
    "another choice": {"choices": [{"index": 1, "delta": {"content": "no"}, "finish_reason": "length"}]},
    "error null": said({}, error=None),
    "empty tool calls": said({"tool_calls": []}),
    "null tool calls": said({"tool_calls": None}),
    "a vendor's own event": {"hello": 1},
    "nothing": {},
    "nothing at all": "",
    "a ping": {"type": "ping"},
    "a ping that is no JSON": "ping",
    "null": "null",
}


@pytest.mark.parametrize("oddity", ODDITIES)
def test_an_oddity_before_between_and_after_changes_nothing(oddity: str) -> None:
    odd = ODDITIES[oddity]
    chunks, reader = read(odd, said({"content": "a"}), odd, said({"content": "b"}), said({}, "stop"), odd)
    assert text(chunks) == "ab"
    assert reader.end().finish_reason is FinishReason.STOP


def test_the_usage_comes_after_the_finish_in_a_chunk_without_choices() -> None:
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    _, reader = read(said({"content": "a"}), said({}, "stop"), {"choices": [], "usage": usage})
    expected = TokenUsage(prompt_tokens=9, completion_tokens=4, cached_tokens=8, reasoning_tokens=3)
    assert reader.end().usage == expected


def test_usage_on_every_chunk_counts_once() -> None:
    _, reader = read(
        *(said({"content": "a"}, usage={"prompt_tokens": 2, "completion_tokens": n}) for n in (1, 2, 3)),
        said({}, "stop"),
    )
    assert reader.end().usage == TokenUsage(prompt_tokens=2, completion_tokens=3)


def test_the_finish_reason_may_come_with_the_text() -> None:
    chunks, reader = read(said({"content": "all of it"}, "length"))
    assert text(chunks) == "all of it"
    assert reader.end().finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("word", "reason"),
    [("stop", "stop"), ("length", "length"), ("tool_calls", "tool_calls"), ("function_call", "tool_calls"),
     ("max_tokens", "length"), ("STOP", "stop"), ("eos", "stop")],
)  # fmt: skip
def test_finish_reasons_are_mapped(word: str, reason: str) -> None:
    _, reader = read(said({"content": "a"}, word))
    assert reader.end().finish_reason is FinishReason(reason)


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ([said({"content": "a"})], StreamTruncated),
        ([], StreamTruncated),
        ([said({}, "content_filter")], ContentFiltered),
        ([said({}, "abort")], StreamTruncated),
        ([said({}, "error")], ServerError),
        ([said({}, "insufficient_system_resource")], ServerError),
    ],
)
def test_an_answer_that_is_not_whole_has_no_last_chunk(events: list[Any], error: type[RequestError]) -> None:
    _, reader = read(*events)
    with pytest.raises(error):
        reader.end()


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_comes_under_two_names(field: str) -> None:
    chunks, _ = read(said({"content": None, field: "hm"}), said({"content": "a", field: None}))
    assert [chunk.reasoning_delta for chunk in chunks] == ["hm", ""]
    assert text(chunks) == "a"


def test_a_legacy_function_call_is_a_tool_call() -> None:
    chunks, reader = read(
        said({"function_call": {"name": "f", "arguments": ""}}),
        said({"function_call": {"arguments": "{}"}}),
        said({}, "function_call"),
    )
    pieces = [piece for chunk in chunks for piece in chunk.tool_calls]
    assert [(p.index, p.id, p.name, p.arguments) for p in pieces] == [(0, "", "f", "")]
    last = reader.end()
    assert last.finish_reason is FinishReason.TOOL_CALLS
    # no arguments might have stood for some that come; and its result needs an id to refer to
    assert [(p.index, p.id, p.arguments) for p in last.tool_calls] == [(0, "call_0", "{}")]


def test_tool_calls_without_an_index_are_told_apart_by_id() -> None:
    calls = [{"id": name, "function": {"name": name, "arguments": {"x": 1}}} for name in ("a", "b")]
    chunks, _ = read(said({"tool_calls": [calls[0]]}), said({"tool_calls": [calls[1]]}))
    pieces = [piece for chunk in chunks for piece in chunk.tool_calls]
    assert [(p.index, p.name, p.arguments) for p in pieces] == [(0, "a", '{"x": 1}'), (1, "b", '{"x": 1}')]


def test_text_beside_a_tool_call_is_kept() -> None:
    call = {"index": 0, "id": "i", "function": {"name": "f", "arguments": '{"a":'}}
    [chunk] = read(said({"content": "I look", "tool_calls": [call]}))[0]
    assert chunk.text_delta == "I look"
    [delta] = chunk.tool_calls
    assert (delta.id, delta.name, delta.arguments) == ("i", "f", '{"a":')


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ("<html>", "not_json"),
        ("{not json", "not_json"),
        ("[1]", "not_json"),
        ("{}x", "not_json"),
        ("[" * 100_000, "not_json"),
        ({"choices": "x"}, "no_choices"),
        ({"choices": [1]}, "no_choices"),
        (said(7), "no_delta"),
        (said({"content": 7}), "content"),
        (said({"content": {"a": 1}}), "content"),
        (said({"tool_calls": {"a": 1}}), "tool_calls"),
        (said({"tool_calls": [1]}), "tool_calls"),
        (said({"tool_calls": [{"index": 0, "function": 1}]}), "tool_calls"),
        (said({"tool_calls": [{"index": 0, "function": {"arguments": 1}}]}), "tool_calls"),
        ({"choices": [{"index": 0, "delta": {}, "finish_reason": 7}]}, "finish_reason"),
    ],
)
def test_what_is_not_the_format_is_invalid(event: Any, code: str) -> None:
    with pytest.raises(InvalidResponse) as caught:
        read(event)
    assert caught.value.code == code
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_white_space_around_an_object_is_allowed() -> None:
    chunks, _ = read("  " + json.dumps(said({"content": "a"})) + " ")
    assert text(chunks) == "a"


_KEYS = st.sampled_from(
    "choices delta content index finish_reason usage error code type message tool_calls function name arguments id "
    "refusal reasoning object prompt_tokens".split()
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(_KEYS | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values, st.sampled_from(["event", "choice", "delta", "whole", "error"]))
def test_any_json_is_read_or_refused_with_one_of_our_errors(value: Any, place: str) -> None:
    reader = ChatReader(None)
    event = {"event": value, "choice": {"choices": [value]}, "delta": said(value)}.get(place, value)
    try:
        if place == "whole":
            reader.body(json.dumps(event).encode())
        elif place == "error":
            assert isinstance(error_of_object(200, value, secret=None), RequestError)
        else:
            reader.event("message", json.dumps(event))
    except RequestError:
        pass


@given(st.binary(max_size=60), st.integers(400, 599))
def test_any_error_body_gives_an_error(body: bytes, status: int) -> None:
    assert isinstance(error_of_answer(status, {}, body, now=0.0, secret=None), RequestError)


@given(json_values, st.integers(400, 599))
def test_any_json_error_body_gives_an_error(value: Any, status: int) -> None:
    body = json.dumps({"error": value}).encode()
    assert isinstance(error_of_answer(status, {}, body, now=0.0, secret=None), RequestError)


def usage_of(usage: dict[str, Any]) -> TokenUsage | None:
    count = UsageCount()
    count.add(usage)
    return count.usage(0)


def test_counts_that_are_none_count_as_zero() -> None:
    strange = {"prompt_tokens": -1, "completion_tokens": "x", "prompt_tokens_details": None}
    assert usage_of(strange) is None
    cached = usage_of({"prompt_tokens": 5, "prompt_cache_hit_tokens": 3})
    assert cached == TokenUsage(prompt_tokens=5, cached_tokens=3)


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000.",
        "the request exceeds the available context size",
        "prompt is too long: 210000 tokens > 200000 maximum",
    ],
)
def test_a_prompt_that_is_too_long_is_known_by_the_words_where_there_is_no_code(message: str) -> None:
    error = error_of_object(400, {"message": message, "type": "invalid_request_error"}, secret=None)
    assert isinstance(error, ContextLengthExceeded)
    assert not any(isinstance(arg, str) and "tokens" in arg for arg in error.args)


def test_a_plain_bad_request_is_not_taken_for_a_long_prompt() -> None:
    error = error_of_object(400, {"message": "unknown field", "code": "x", "param": "a[0].b"}, secret=None)
    assert type(error) is BadRequest
    assert error.param == "a[0].b"


def test_a_code_that_repeats_the_key_is_left_out() -> None:
    error = error_of_object(
        400, {"code": "sk-abc", "param": "x-sk-abc", "type": "sk-abc"}, secret=Secret("sk-abc")
    )
    assert "sk-abc" not in repr(error.args)


EARLY = {
    "beside every piece": [said({"content": "The "}, "stop"), said({"content": "sky "}, "stop")],
    "beside the reasoning": [said({"reasoning_content": "hmm"}, "stop")],
    "after reasoning alone": [said({"reasoning_content": "hmm"}), said({}, "stop")],
    "beside the role and a usage": [
        said({"role": "assistant", "content": ""}, "stop", usage={"prompt_tokens": 3, "completion_tokens": 1})
    ],
    "beside one piece": [said({"content": " "}, "stop")],
    "before the text and after it": [said({"content": ""}, "stop"), said({"content": "h"}), said({}, "stop")],
    "after a late piece, with a usage": [
        said({"content": "h"}, "stop"),
        said({"content": "i"}, "stop"),
        said({}, usage={"prompt_tokens": 3, "completion_tokens": 1}),
    ],
    "half a character": [said({"content": "\ud83d"}, "stop")],
}


@pytest.mark.parametrize("events", EARLY.values(), ids=EARLY)
def test_a_finish_that_may_come_with_every_chunk_completes_nothing(events: list[Any]) -> None:
    """Should the connection break now, the rest of the answer is missing."""
    _, reader = read(*events)
    assert not reader.complete
    assert not reader.done


IN_TIME = {
    "alone, after the text": [said({"content": "hi"}), said({}, "stop")],
    "beside the last text, then a usage": [
        said({"content": "hi"}, "stop"),
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}},
    ],
    "beside the last text, then an empty delta": [said({"content": "hi"}, "stop"), said({"content": ""})],
    "too long to answer": [said({"reasoning_content": "hmm"}), said({}, "length")],
    "nothing to say, and its tokens after that": [
        said({"role": "assistant", "content": ""}),
        said({}, "stop"),
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}},
    ],
}


@pytest.mark.parametrize("events", IN_TIME.values(), ids=IN_TIME)
def test_a_finish_after_the_output_completes_the_answer(events: list[Any]) -> None:
    _, reader = read(*events)
    assert reader.complete


@pytest.mark.parametrize(
    ("kind", "event"),
    [
        ("status", "done"),
        ("metrics", {"type": "metrics_error_rate", "message": "0 errors"}),
        ("status", {"status": "failed_over", "message": "another server goes on"}),
        ("notice", {"detail": "slow today"}),
    ],
)
def test_a_vendors_own_event_neither_ends_nor_fails_an_answer(kind: str, event: Any) -> None:
    _, reader = read(said({"content": "hi"}))
    assert reader.event(kind, event if isinstance(event, str) else json.dumps(event)) is None
    assert not reader.done


def test_details_are_an_error_only_where_nothing_else_has_come() -> None:
    with pytest.raises(RequestError):
        read({"detail": "Not Found"})
    assert text(read(said({"content": "hi"}), {"detail": "slow today"})[0]) == "hi"


def test_words_alone_are_no_answer() -> None:
    _, reader = read("Internal Server Error")
    with pytest.raises(StreamTruncated):
        reader.end()
