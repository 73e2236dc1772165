"""Words for the end of an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.errors import InvalidResponse, RequestError, ServerError, StreamTruncated
from remote_inference.providers.finish_reasons import read_finish_reason
from remote_inference.types import FinishReason

ENDS = {
    FinishReason.STOP: "stop STOP Stop eos end_turn endturn stop_sequence FinishReason.STOP complete COMPLETE",
    FinishReason.LENGTH: "length max_tokens MAX_TOKENS maxTokens model_context_window_exceeded model_length max-tokens",
    FinishReason.TOOL_CALLS: "tool_calls tool_use toolUse function_call TOOL_CALL",
    FinishReason.CONTENT_FILTER: "content_filter contentFilter sensitive prohibited_content recitation blocklist "
    "PROHIBITED_CONTENT spii safety guardrail_intervened image_safety refusal",
}
FAILURES = {
    ServerError: "error network_error malformed_function_call insufficient_system_resource OTHER unknown "
    "upstream_error model_failure unexpected_tool_call",
    StreamTruncated: "abort aborted cancelled timeout request_cancelled_by_user",
    InvalidResponse: "sunshine quantum 42",
}


@pytest.mark.parametrize(
    ("end", "word"), [(end, word) for end, words in ENDS.items() for word in words.split()]
)
def test_a_word_that_is_known_is_an_end(end: FinishReason, word: str) -> None:
    assert read_finish_reason(word) is end


@pytest.mark.parametrize(
    "word", ["", " ", "null", "None", "NONE", "nil", "FINISH_REASON_UNSPECIFIED", "in_progress"]
)
def test_a_word_for_none_is_no_end(word: str) -> None:
    assert read_finish_reason(word) is None


@pytest.mark.parametrize(
    ("kind", "word"), [(kind, word) for kind, words in FAILURES.items() for word in words.split()]
)
def test_a_word_for_a_failure_or_for_nothing_that_is_known_fails(kind: type[RequestError], word: str) -> None:
    end = read_finish_reason(word)
    assert callable(end)
    assert type(end()) is kind


@given(st.text(max_size=100))
def test_no_word_is_a_good_end_by_chance(word: str) -> None:
    end = read_finish_reason(word)
    if callable(end):
        assert isinstance(end(), RequestError)
        assert len(end().code) <= 64
