"""The types that users see. Never run: `make typecheck` fails where one of them changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

from celery import Celery
from typing_extensions import assert_type

from remote_inference import (
    Deployment,
    Inference,
    InferenceHandle,
    InferenceRequest,
    Message,
    register_provider,
)
from remote_inference.config import InferenceConfig
from remote_inference.errors import Backpressure, Cancelled, InferenceError, StreamRestarted
from remote_inference.events import Event, RequestFinished
from remote_inference.providers import AnswerReader, HttpRequest, Provider, ProviderCall
from remote_inference.types import (
    Completion,
    EngineMetrics,
    FinishReason,
    Priority,
    SamplingParams,
    TokenChunk,
    TokenUsage,
    ToolCall,
)


class OwnReader(AnswerReader):
    def event(self, kind: str, data: str) -> TokenChunk | None:
        return TokenChunk(data)

    def body(self, data: bytes) -> TokenChunk | None:
        return None

    def end(self) -> TokenChunk:
        return TokenChunk(finish_reason=FinishReason.STOP, usage=TokenUsage(cost_usd=0.1))


class OwnProvider(Provider):
    name = "own"
    options = ("speed",)

    def request(self, call: ProviderCall) -> HttpRequest:
        assert_type(call.request, InferenceRequest)
        return HttpRequest(path="/x", body=b"{}")

    def reader(self, call: ProviderCall) -> AnswerReader:
        return OwnReader()


def a_provider() -> None:
    register_provider("own", OwnProvider, endpoint="https://own.example", key_variable="OWN_KEY")
    register_provider("far", "far.module:Provider")


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


def a_hook(event: Event) -> None:
    if isinstance(event, RequestFinished):
        assert_type(event.cost_usd, float | None)


def an_inference(app: Celery) -> Inference:
    Inference(app)
    Inference(app, config={"deployment": [{"name": "gpt-4o"}]})
    Inference(app, deployments=[Deployment(name="gpt-4o")], hooks=[a_hook])
    inference = Inference(app, config="inference.toml")
    assert_type(inference.config, InferenceConfig)
    return inference


def submitting(inference: Inference) -> InferenceHandle:
    inference.submit("gpt-4o", "Why?", priority="high", deadline=timedelta(seconds=5), max_tokens=5)
    inference.submit("gpt-4o", [{"role": "user", "content": "Why?"}], on_restart="announce")
    inference.submit("gpt-4o", [Message(role="user", content="Why?")], on_disconnect="finish")
    inference.submit(InferenceRequest.parse("gpt-4o", "Why?", sampling=SamplingParams(seed=1)))
    many = inference.submit_many(
        "gpt-4o", ["a", [{"role": "user", "content": "b"}]], priority=Priority.BACKGROUND
    )
    assert_type(many, list[InferenceHandle])
    handle = inference.submit("gpt-4o", "Why?", priority=Priority.HIGH, deadline=30)
    assert_type(handle, InferenceHandle)
    return handle


def a_handle(handle: InferenceHandle) -> None:
    assert_type(iter(handle), Iterator[TokenChunk])
    for chunk in handle:
        assert_type(chunk, TokenChunk)
    assert_type(handle.result(timeout=60), Completion)
    assert_type(handle.text, str)
    assert_type(handle.done, bool)
    assert_type(handle.request_id, str)
    assert_type(handle.deployment, str)
    handle.cancel()
    handle.result().tool_calls.index(ToolCall(id="a", name="f"))


async def a_handle_in_asyncio(inference: Inference) -> None:
    handle = await inference.asubmit("gpt-4o", "Why?", priority=Priority.HIGH)
    assert_type(handle, InferenceHandle)
    assert_type(handle.__aiter__(), AsyncIterator[TokenChunk])
    async for chunk in handle:
        assert_type(chunk, TokenChunk)
    assert_type(await handle, Completion)
    assert_type(await handle.aresult(timeout=60), Completion)


def operating(inference: Inference) -> None:
    assert_type(inference.status(), dict[str, EngineMetrics])
    assert_type(inference.workers(timeout=1.0), dict[str, dict[str, Any]])
    assert_type(inference.rebuild_session("gpt-4o"), dict[str, Any])
    inference.cancel("id", "other id")
    inference.close()


def errors(restarted: StreamRestarted, cancelled: Cancelled) -> None:
    assert_type(restarted.epoch, str)
    assert_type(cancelled.usage, dict[str, Any] | None)
    assert_type(cancelled.attempt, int)
