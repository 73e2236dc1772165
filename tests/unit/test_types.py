"""The values that travel: what is written can be read, what is wrong is named, and nothing shows a prompt."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import completions, joined, messages, pieces, texts, usages, whole

from remote_inference.errors import InvalidRequest
from remote_inference.messaging.wire import dumps, loads
from remote_inference.types import (
    WIRE_VERSION,
    Completion,
    EngineMetrics,
    FinishReason,
    InferenceRequest,
    Message,
    Priority,
    SamplingParams,
    Timings,
    TokenChunk,
    TokenUsage,
    ToolCall,
    ToolCallDelta,
    summary,
)

objects = st.dictionaries(texts, texts | st.integers() | st.booleans() | st.none(), max_size=3)
options = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": st.integers(1, 2**31),
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1),
        "frequency_penalty": st.floats(-2, 2),
        "presence_penalty": st.integers(-2, 2),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "stop": st.lists(texts.filter(bool), min_size=1, max_size=4),
        "logit_bias": st.dictionaries(st.text("0123456789", min_size=1), st.integers(-100, 100)),
        "reasoning_effort": st.sampled_from(["low", "high"]),
        "tools": st.lists(objects, max_size=2),
        "tool_choice": st.sampled_from(["auto", "none"]) | objects,
        "response_format": objects,
        "extra_body": objects,
        "idempotent": st.booleans(),
    },
)


class TestRequest:
    @given(st.lists(messages, min_size=1, max_size=4), options)
    def test_what_is_written_is_read_back_the_same(self, conversation, given_options):
        request = InferenceRequest.parse("gpt", conversation, **given_options)
        assert InferenceRequest.parse(**loads(dumps(request.to_wire()))) == request

    @given(options)
    def test_a_prompt_is_one_user_message(self, given_options):
        request = InferenceRequest.parse("gpt", "hello", **given_options)
        assert request.messages == (Message(role="user", content="hello"),)
        assert InferenceRequest.parse(**request.to_wire()) == request

    @given(st.lists(messages, min_size=1, max_size=3), options)
    def test_an_estimate_can_be_made_of_every_request(self, conversation, given_options):
        request = InferenceRequest.parse("gpt", conversation, **given_options)
        assert 0 < request.estimated_prompt_tokens() < request.estimated_tokens()

    def test_sampling_params_can_be_given_whole_and_overridden_by_name(self):
        sampling = SamplingParams(temperature=1.0, max_tokens=5, stop=("x",))
        request = InferenceRequest.parse("gpt", "hi", sampling=sampling, max_tokens=7)
        assert request.sampling == replace(sampling, max_tokens=7)

    def test_openais_newer_name_of_max_tokens_is_known(self):
        assert InferenceRequest.parse("gpt", "hi", max_completion_tokens=5).sampling.max_tokens == 5

    def test_one_choice_may_be_asked_for(self):
        assert InferenceRequest.parse("gpt", "hi", n=1) == InferenceRequest.parse("gpt", "hi")


TOOL_CALL = {"id": "c", "function": {"name": "f", "arguments": "{}"}}
TOO_LARGE = 10**400

BROKEN = [
    ("deployment", {"deployment": ""}),
    ("deployment", {"deployment": 5}),
    ("messages", {"messages": ""}),
    ("messages", {"messages": []}),
    ("messages", {"messages": 5}),
    ("messages", {"messages": {"role": "user"}}),
    ("messages[0]", {"messages": ["MARKED"]}),
    ("messages[0].role", {"messages": [{"content": "MARKED"}]}),
    ("messages[0].role", {"messages": [{"role": ["MARKED"], "content": "x"}]}),
    (
        "messages[1].role",
        {"messages": [{"role": "user", "content": "x"}, {"role": "MARKED", "content": "x"}]},
    ),
    ("messages[0].content", {"messages": [{"role": "user"}]}),
    ("messages[0].content", {"messages": [{"role": "user", "content": 5}]}),
    ("messages[0].content", {"messages": [{"role": "user", "content": []}]}),
    ("messages[0].content", {"messages": [{"role": "assistant"}]}),
    ("messages[0].content[0].type", {"messages": [{"role": "user", "content": ["MARKED"]}]}),
    ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [{"type": ["MARKED"]}]}]}),
    ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [{"type": "MARKED"}]}]}),
    (
        "messages[0].content[0].text",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
    ),
    (
        "messages[0].content[0].image_url.url",
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///MARKED"}}]}
            ]
        },
    ),
    (
        "messages[0].content[0].image_url.url",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "https://MARKED"}]}]},
    ),
    ("messages[0].colour", {"messages": [{"role": "user", "content": "x", "colour": "MARKED"}]}),
    ("messages[0].name", {"messages": [{"role": "user", "content": "x", "name": 5}]}),
    ("messages[0].refusal", {"messages": [{"role": "assistant", "content": "x", "refusal": 5}]}),
    ("messages[0].tool_call_id", {"messages": [{"role": "tool", "content": "x"}]}),
    ("messages[0].tool_calls", {"messages": [{"role": "user", "content": "x", "tool_calls": [TOOL_CALL]}]}),
    ("messages[0].tool_calls", {"messages": [{"role": "assistant", "tool_calls": "MARKED"}]}),
    ("messages[0].tool_calls[0].function", {"messages": [{"role": "assistant", "tool_calls": ["MARKED"]}]}),
    (
        "messages[0].tool_calls[1].id",
        {"messages": [{"role": "assistant", "tool_calls": [TOOL_CALL, {**TOOL_CALL, "id": 5}]}]},
    ),
    (
        "messages[0].tool_calls[0].function.arguments",
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {}}}]}
            ]
        },
    ),
    ("temperature", {"temperature": 2.5}),
    ("temperature", {"temperature": "MARKED"}),
    ("temperature", {"temperature": True}),
    ("temperature", {"temperature": float("nan")}),
    ("temperature", {"temperature": float("inf")}),
    ("temperature", {"temperature": TOO_LARGE}),
    ("top_p", {"top_p": -0.1}),
    ("frequency_penalty", {"frequency_penalty": 3}),
    ("presence_penalty", {"presence_penalty": -3}),
    ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": 1.5}),
    ("max_tokens", {"max_tokens": True}),
    ("max_tokens", {"max_completion_tokens": 0}),
    ("seed", {"seed": 2**63}),
    ("stop", {"stop": 5}),
    ("stop", {"stop": ["ok", ""]}),
    ("stop", {"stop": ""}),
    ("logit_bias", {"logit_bias": [1]}),
    ("logit_bias.5", {"logit_bias": {"5": 101}}),
    ("reasoning_effort", {"reasoning_effort": 5}),
    ("sampling", {"sampling": {"temperature": 1}}),
    ("tools", {"tools": "MARKED"}),
    ("tools", {"tools": ["MARKED"]}),
    ("tool_choice", {"tool_choice": 5}),
    ("response_format", {"response_format": "MARKED"}),
    ("extra_body", {"extra_body": ["MARKED"]}),
    ("idempotent", {"idempotent": "no"}),
    ("n", {"n": 2}),
    ("version", {"version": WIRE_VERSION + 1}),
    ("version", {"version": "MARKED"}),
    ("colour", {"colour": "MARKED"}),
]


@pytest.mark.parametrize(
    ("path", "changes"), BROKEN, ids=[f"{i}-{path}" for i, (path, _) in enumerate(BROKEN)]
)
def test_a_broken_field_is_named_by_its_path_and_nothing_of_its_value_is_shown(path, changes):
    whole_request: dict[str, Any] = {"deployment": "gpt", "messages": "hi", **changes}
    with pytest.raises(InvalidRequest) as caught:
        InferenceRequest.parse(**whole_request)
    assert caught.value.field == path
    assert "MARKED" not in str(caught.value)


def test_every_sampling_parameter_is_among_those_that_are_broken_above():
    assert {f.name for f in fields(SamplingParams)} <= {path.partition(".")[0] for path, _ in BROKEN}


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    JUNK
    | st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "tool"]) | JUNK},
            optional={"content": JUNK, "tool_calls": JUNK, "tool_call_id": JUNK, "refusal": JUNK},
        ),
        max_size=2,
    ),
    st.dictionaries(
        st.sampled_from([f.name for f in fields(SamplingParams)] + ["tools", "tool_choice", "n", "version"]),
        JUNK,
    ),
)
def test_whatever_a_caller_gives_is_a_request_or_refused_by_name(given_messages, given_options):
    try:
        request = InferenceRequest.parse("gpt", given_messages, **given_options)
    except InvalidRequest:
        pass
    else:
        assert InferenceRequest.parse(**json.loads(json.dumps(request.to_wire()))) == request


class TestPriority:
    @pytest.mark.parametrize("priority", Priority)
    def test_is_known_by_number_and_by_name_in_any_case(self, priority):
        given_as = (priority, int(priority), priority.name, priority.name.lower())
        assert {Priority.parse(one) for one in given_as} == {priority}

    @pytest.mark.parametrize("value", [4, -1, "urgent", None, True, 1.0, [], ""])
    def test_nothing_else_is_one(self, value):
        with pytest.raises(InvalidRequest, match="priority"):
            Priority.parse(value)


SECRET = "MARKED"


@pytest.mark.parametrize(
    "value",
    [
        Message(role="user", content=SECRET, name=SECRET),
        Message(role="assistant", refusal=SECRET),
        ToolCall(id="c", name="f", arguments=SECRET),
        ToolCallDelta(index=0, arguments=SECRET),
        SamplingParams(stop=(SECRET,), logit_bias={SECRET: 1}),
        InferenceRequest.parse(
            "gpt",
            [{"role": "user", "content": [{"type": "text", "text": SECRET}]}],
            stop=SECRET,
            tools=[{SECRET: SECRET}],
            tool_choice={SECRET: SECRET},
            response_format={SECRET: SECRET},
            extra_body={SECRET: SECRET},
        ),
        TokenChunk(SECRET, SECRET, SECRET, (ToolCallDelta(index=0, arguments=SECRET),)),
        Completion(
            request_id="r",
            deployment="d",
            text=SECRET,
            reasoning=SECRET,
            refusal=SECRET,
            tool_calls=(ToolCall(id="c", name="f", arguments=SECRET),),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_repr_shows_a_prompt_or_an_answer(value):
    assert SECRET not in repr(value)


def test_a_summary_shows_no_prompt():
    assert summary(InferenceRequest.parse("gpt", SECRET)) == "gpt · 1 message · ~9 tokens"


class TestCompletion:
    @given(completions)
    def test_what_is_written_is_read_back_the_same(self, completion):
        assert Completion.from_wire(loads(dumps(completion.to_wire()))) == completion

    @given(completions)
    def test_fields_of_a_newer_version_are_left_out(self, completion):
        wire = completion.to_wire() | {"of_version_two": 1}
        wire["timings"] |= {"of_version_two": 1}
        wire["usage"] |= {"of_version_two": 1}
        assert Completion.from_wire(wire) == completion

    @given(st.data(), completions)
    def test_any_prefix_of_its_chunks_and_the_remainder_are_the_whole(self, data, completion):
        chunks = data.draw(pieces(completion))
        prefix = chunks[: data.draw(st.integers(0, len(chunks)))]
        assert joined([*prefix, completion.remainder(prefix)]) == whole(completion)

    @given(st.data(), completions)
    def test_nothing_remains_after_all_chunks(self, data, completion):
        assert not completion.remainder(data.draw(pieces(completion))).has_output

    @given(completions)
    def test_the_remainder_brings_finish_reason_and_usage(self, completion):
        rest = completion.remainder([])
        assert (rest.finish_reason, rest.usage) == (completion.finish_reason, completion.usage)


class TestTokenChunk:
    @given(st.data(), completions)
    def test_the_output_is_read_back_the_same(self, data, completion):
        for chunk in data.draw(pieces(completion)):
            wire = loads(dumps(chunk.to_wire()))
            assert TokenChunk.from_wire(wire, "r", "e", 7) == replace(
                chunk, request_id="r", epoch="e", sequence=7
            )

    def test_an_empty_one_writes_nothing_and_has_no_output(self):
        chunk = TokenChunk(finish_reason=FinishReason.STOP, usage=TokenUsage(prompt_tokens=1))
        assert chunk.to_wire() == {}
        assert not chunk.has_output


@given(usages)
def test_usage_is_read_back_the_same(usage):
    assert TokenUsage.from_wire(usage.to_wire()) == usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_usage_that_nobody_told_is_zero():
    assert TokenUsage.from_wire(None) == TokenUsage()


@given(
    st.lists(
        st.builds(
            EngineMetrics, started=st.integers(0, 9), failed=st.integers(0, 9), cost_usd=st.floats(0, 9)
        )
    )
)
def test_metrics_of_several_processes_are_added_up(parts):
    total = EngineMetrics.total(parts, queued=4)
    assert total.queued == 4
    assert total.started == sum(part.started for part in parts)
    assert total.failed == sum(part.failed for part in parts)
    assert total.cost_usd == pytest.approx(sum(part.cost_usd for part in parts))


def test_timings_begin_at_nothing():
    assert Timings() == Timings(queued=0.0, first_token=None, total=0.0)
