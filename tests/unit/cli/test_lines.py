"""What a batch's lines ask for, and the records that answer them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cli.lines import (
    BadLine,
    DeploymentNeeded,
    LineReader,
    error_record,
    key_of,
    result_record,
)
from remote_inference.errors import ServerError
from remote_inference.types import Completion, FinishReason, Priority, TokenUsage, ToolCall

ONE = LineReader(("gpt",))
TWO = LineReader(("gpt", "claude"))


def line(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def openai_line(custom_id: Any = "a", **body: Any) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **body}
    return line(custom_id=custom_id, method="POST", url="/v1/chat/completions", body=body)


class TestPlain:
    def test_a_prompt_with_options_becomes_a_request(self):
        item = ONE.read(line(id="a", prompt="Hi", priority="high", max_tokens=5, stop=["x"]), 7)
        assert (item.line_id, item.number, item.priority, item.openai) == ("a", 7, Priority.HIGH, False)
        assert item.request.deployment == "gpt"
        assert item.request.messages[0].content == "Hi"
        assert item.request.sampling.max_tokens == 5

    def test_messages_may_stand_in_place_of_the_prompt(self):
        item = ONE.read(line(id=3, messages=[{"role": "system", "content": "x"}]), 1)
        assert item.request.messages[0].role == "system"

    def test_priorities_are_names_or_numbers_and_the_default_is_the_readers(self):
        reader = LineReader(("gpt",), None, Priority.BACKGROUND)
        assert reader.read(line(id="a", prompt="x"), 1).priority is Priority.BACKGROUND
        assert reader.read(line(id="a", prompt="x", priority=3), 1).priority is Priority.CRITICAL

    def test_a_line_may_name_its_deployment(self):
        assert TWO.read(line(id="a", prompt="x", deployment="claude"), 1).request.deployment == "claude"

    def test_of_several_deployments_one_must_be_named(self):
        with pytest.raises(DeploymentNeeded, match="gpt, claude"):
            TWO.read(line(id="a", prompt="x"), 1)
        assert (
            LineReader(("gpt", "claude"), "claude").read(line(id="a", prompt="x"), 1).request.deployment
            == "claude"
        )

    @pytest.mark.parametrize(
        ("raw", "reason"),
        [
            (b"{", "is not JSON"),
            (b"\xff{}", "is not UTF-8"),
            (b"[1]", "must be an object"),
            (b"[" * 100_000, "is not JSON"),
            (line(prompt="x"), "id: is missing"),
            (line(id=None, prompt="x"), "id: must be a string or a whole number"),
            (line(id=True, prompt="x"), "id: must be a string or a whole number"),
            (line(id=1.5, prompt="x"), "id: must be a string or a whole number"),
            (line(id="", prompt="x"), "id: must be"),
            (line(id="a"), "prompt: is missing"),
            (line(id="a", prompt=""), "the prompt is empty"),
            (line(id="a", prompt=["x"]), "prompt: must be a string"),
            (line(id="a", prompt="x", messages=[]), "not both"),
            (line(id="a", prompt="x", priority="urgent"), "priority: must be"),
            (line(id="a", prompt="x", max_tokens=0), "max_tokens: must be"),
            (line(id="a", prompt="x", tempo=1), "tempo: is not a field"),
            (line(id="a", prompt="x", deployment="other"), "deployment: no such deployment"),
            (line(id="a", prompt="x", deployment=5), "deployment: no such deployment"),
        ],
    )
    def test_a_bad_line_says_which_field_is_at_fault(self, raw: bytes, reason: str):
        with pytest.raises(BadLine) as caught:
            ONE.read(raw, 1)
        assert reason in caught.value.reason

    def test_a_bad_line_keeps_its_id_and_shows_nothing_of_the_prompt(self):
        with pytest.raises(BadLine) as caught:
            ONE.read(line(id="a", prompt="SECRET", max_tokens="SECRET"), 1)
        assert caught.value.line_id == "a"
        assert "SECRET" not in str(caught.value)


class TestOpenAI:
    def test_a_body_becomes_a_request_and_what_we_have_no_name_for_is_passed_on(self):
        item = ONE.read(openai_line(max_completion_tokens=9, stream=True, user="u", logprobs=True), 1)
        assert item.openai
        assert item.request.sampling.max_tokens == 9
        assert item.request.extra_body == {"user": "u", "logprobs": True}

    def test_a_model_that_is_a_deployments_name_selects_it(self):
        assert TWO.read(openai_line(model="claude"), 1).request.deployment == "claude"
        assert (
            LineReader(("gpt", "claude"), "gpt").read(openai_line(model="claude"), 1).request.deployment
            == "claude"
        )

    def test_another_model_goes_to_the_deployment_of_the_command(self):
        assert ONE.read(openai_line(model="gpt-4o-2024"), 1).request.deployment == "gpt"
        with pytest.raises(DeploymentNeeded):
            TWO.read(openai_line(model="gpt-4o-2024"), 1)

    @pytest.mark.parametrize(
        ("raw", "reason"),
        [
            (openai_line(custom_id=None), "custom_id: must be"),
            (line(custom_id="a", method="GET", url="/v1/chat/completions", body={}), "method: must be POST"),
            (line(custom_id="a", method="POST", url="/v1/embeddings", body={}), "url: must be"),
            (
                line(custom_id="a", method="POST", url="/v1/chat/completions", body=[]),
                "body: must be an object",
            ),
            (line(custom_id="a", prompt="x"), "prompt: is not a field of a batch line"),
            (openai_line(messages=[]), "body.messages: at least one"),
            (openai_line(n=2), "body.n: only one choice"),
            (openai_line(temperature=9), "body.temperature: must be from 0 to 2"),
        ],
    )
    def test_a_bad_line_says_which_field_is_at_fault(self, raw: bytes, reason: str):
        with pytest.raises(BadLine) as caught:
            ONE.read(raw, 1)
        assert reason in caught.value.reason
        assert caught.value.openai


@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["id", "custom_id", "prompt", "messages", "body", "model", "priority", "n", "stop"]
                ),
                inner,
            )
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_line_is_an_item_or_a_bad_line(raw: bytes):
    try:
        item = ONE.read(raw, 1)
    except BadLine:
        return
    assert item.request.deployment == "gpt"


COMPLETION = Completion(
    request_id="r1",
    deployment="gpt",
    model="gpt-4o",
    text="Blue.",
    finish_reason=FinishReason.LENGTH,
    usage=TokenUsage(prompt_tokens=4, completion_tokens=2, cached_tokens=1, reasoning_tokens=1),
    attempts=2,
)


def test_a_plain_lines_record():
    record = result_record(ONE.read(line(id="a", prompt="x"), 1), COMPLETION)
    assert record["id"] == "a"
    assert record["text"] == "Blue."
    assert record["finish_reason"] == "length"
    assert record["usage"]["total_tokens"] == 6
    assert record["attempts"] == 2
    json.dumps(record)


def test_an_openai_lines_record_has_openais_shape():
    record = result_record(ONE.read(openai_line("a"), 1), COMPLETION)
    assert set(record) == {"id", "custom_id", "response", "error"}
    assert record["custom_id"] == "a"
    assert record["error"] is None
    assert record["response"]["status_code"] == 200
    assert record["response"]["request_id"] == "r1"
    body = record["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Blue.", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}


def test_a_record_of_tool_calls_has_no_content():
    call = ToolCall(id="c", name="f", arguments="{}")
    completion = Completion(
        request_id="r", deployment="gpt", tool_calls=(call,), finish_reason=FinishReason.TOOL_CALLS
    )
    message = result_record(ONE.read(openai_line("a"), 1), completion)["response"]["body"]["choices"][0][
        "message"
    ]
    assert message["content"] is None
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


def test_error_records_have_the_shape_of_their_line():
    error = ServerError("overloaded", status=503)
    plain = error_record(3, "a", error, openai=False)
    assert plain == {"id": "a", "error": {"code": "server_error", "message": str(error), "line": 3}}
    openai = error_record(3, "a", BadLine("body: must be an object"), openai=True)
    assert (openai["custom_id"], openai["response"]) == ("a", None)
    assert openai["error"]["message"] == "line 3: body: must be an object"


def test_the_number_1_is_another_id_than_the_string_1():
    assert key_of(1) != key_of("1")
