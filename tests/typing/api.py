"""The types that users see. Never run: `make typecheck` fails where one of them changes."""

from __future__ import annotations

from typing_extensions import assert_type

from remote_inference.errors import Backpressure, InferenceError
from remote_inference.types import Completion, FinishReason, Priority, TokenChunk, TokenUsage


def a_chunk(chunk: TokenChunk) -> None:
    assert_type(chunk.text_delta, str)
    assert_type(chunk.finish_reason, FinishReason | None)
    assert_type(chunk.usage, TokenUsage | None)
    assert_type(chunk.restarted, bool)


def a_completion(completion: Completion) -> None:
    assert_type(completion.text, str)
    assert_type(completion.usage.total_tokens, int)
    assert_type(completion.cost_usd, float | None)
    assert_type(completion.attempts, int)


def a_priority() -> None:
    assert_type(Priority.parse("high"), Priority)


def a_refusal(error: Backpressure) -> InferenceError:
    assert_type(error.retry_after, float)
    assert_type(error.reason, str)
    return error
