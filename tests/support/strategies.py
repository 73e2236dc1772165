"""Hypothesis strategies for the values that travel."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st

from remote_inference.types import (
    Completion,
    FinishReason,
    Message,
    Timings,
    TokenChunk,
    TokenUsage,
    ToolCall,
    ToolCallDelta,
)

# Lone surrogates too: a model's escape sequences can make them, and they must get through.
texts = st.text(st.characters(), max_size=12)
amounts = st.floats(0, 1e6, allow_nan=False)

usages = st.builds(
    TokenUsage,
    prompt_tokens=st.integers(0, 10**6),
    completion_tokens=st.integers(0, 10**6),
    cached_tokens=st.integers(0, 100),
    reasoning_tokens=st.integers(0, 100),
    estimated=st.booleans(),
)
tool_calls = st.builds(
    ToolCall, id=st.text("abc1", min_size=1), name=st.text("xyz_", min_size=1), arguments=texts
)
completions = st.builds(
    Completion,
    request_id=st.uuids().map(str),
    deployment=st.just("gpt"),
    model=st.just("m"),
    text=texts,
    reasoning=texts,
    refusal=texts,
    tool_calls=st.lists(tool_calls, max_size=3).map(tuple),
    finish_reason=st.sampled_from(FinishReason),
    usage=usages,
    cost_usd=st.none() | amounts,
    attempts=st.integers(1, 9),
    timings=st.builds(Timings, queued=amounts, first_token=st.none() | amounts, total=amounts),
)

_parts = st.one_of(
    texts.map(lambda text: {"type": "text", "text": text}),
    st.just({"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}}),
    st.just({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
)
_contents = texts | st.lists(_parts, min_size=1, max_size=3).map(tuple)
messages = st.one_of(
    st.builds(
        Message,
        role=st.sampled_from(["system", "developer", "user"]),
        content=_contents,
        name=st.none() | texts,
    ),
    st.builds(
        Message,
        role=st.just("assistant"),
        content=st.none() | _contents,
        tool_calls=st.lists(tool_calls, min_size=1, max_size=2).map(tuple),
    ),
    st.builds(Message, role=st.just("assistant"), content=st.none() | _contents, refusal=texts),
    st.builds(Message, role=st.just("tool"), content=_contents, tool_call_id=st.text("abc", min_size=1)),
)


@st.composite
def pieces(draw: st.DrawFn, completion: Completion) -> list[TokenChunk]:
    """That completion's whole output, cut up as a model might send it."""
    todo: list[list[TokenChunk]] = [
        [TokenChunk(text_delta=part) for part in _cut(draw, completion.text)],
        [TokenChunk(reasoning_delta=part) for part in _cut(draw, completion.reasoning)],
        [TokenChunk(refusal_delta=part) for part in _cut(draw, completion.refusal)],
    ]
    for index, call in enumerate(completion.tool_calls):
        if draw(st.booleans()):
            deltas = [ToolCallDelta(index=index, id=call.id, name=call.name)]
        else:  # the name comes after the id
            deltas = [ToolCallDelta(index=index, id=call.id), ToolCallDelta(index=index, name=call.name)]
        deltas += [ToolCallDelta(index=index, arguments=part) for part in _cut(draw, call.arguments)]
        todo.append([TokenChunk(tool_calls=(delta,)) for delta in deltas])
    made: list[TokenChunk] = []
    while todo := [one for one in todo if one]:
        made.append(draw(st.sampled_from(todo)).pop(0))
    return made


def _cut(draw: st.DrawFn, text: str) -> list[str]:
    if not text:
        return []
    places = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=3)) | {0, len(text)})
    return [text[a:b] for a, b in pairwise(places)]


def joined(chunks: list[TokenChunk]) -> tuple[object, ...]:
    """What a reader has who puts all chunks together."""
    calls: dict[int, list[str]] = {}
    for chunk in chunks:
        for delta in chunk.tool_calls:
            call = calls.setdefault(delta.index, ["", "", ""])
            call[0] += delta.id
            call[1] += delta.name
            call[2] += delta.arguments
    return (
        "".join(chunk.text_delta for chunk in chunks),
        "".join(chunk.reasoning_delta for chunk in chunks),
        "".join(chunk.refusal_delta for chunk in chunks),
        [tuple(calls[index]) for index in sorted(calls)],
    )


def whole(completion: Completion) -> tuple[object, ...]:
    """What that reader should have."""
    return (
        completion.text,
        completion.reasoning,
        completion.refusal,
        [(call.id, call.name, call.arguments) for call in completion.tool_calls],
    )
