"""OpenAI's answers as chunks: one object of a stream at a time, or one whole completion.

Rules: https://platform.openai.com/docs/api-reference/chat/streaming. What is read besides is what vLLM,
llama.cpp, LiteLLM, DeepSeek and Azure were seen to send: no choices in the first chunk, ``delta`` or
``usage`` null, a finish reason beside text, reasoning under two names, tool calls without an index.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..credentials import Secret
from ..errors import ContentFiltered, InvalidResponse, RequestError, ServerError, StreamTruncated
from ..types import FinishReason, TokenChunk, TokenUsage, ToolCallDelta
from .base import AnswerReader
from .error_body import error_of_object

__all__ = ["ChatReader", "usage_of"]

_FINISH = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
    # The legacy of OpenAI, and what others call the same.
    "function_call": FinishReason.TOOL_CALLS,
    "tool_use": FinishReason.TOOL_CALLS,
    "max_tokens": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "safety": FinishReason.CONTENT_FILTER,
}
# Not ends, but failures: vLLM's "abort", OpenRouter's "error", DeepSeek's "insufficient_system_resource".
_FAILED = frozenset({"error", "insufficient_system_resource"})
_BROKEN_OFF = frozenset({"abort", "aborted", "cancelled", "canceled", "interrupted", "timeout"})


# Without the two searches for white space that json.loads makes around each object.
_raw_decode = json.JSONDecoder().raw_decode


class ChatReader(AnswerReader):
    """Reads one answer; see `AnswerReader`.

    Args:
        secret: the credential, which no error may repeat.

    Attributes:
        finish: the finish reason, once it has come.
    """

    def __init__(self, secret: Secret | None) -> None:
        self.finish: FinishReason | None = None
        self._secret = secret
        # the place of each tool call, by the server's index, or by its id where the server gives none
        self._calls: dict[str | int, int] = {}
        self._failure: RequestError | None = None

    def event(self, kind: str, data: str) -> TokenChunk | None:
        """See `AnswerReader.event`."""
        if data.startswith("[DONE]"):
            self.done = True
            return None
        if kind == "error":
            self._raise_error(data)
        try:
            event, end = _raw_decode(data)
            if end != len(data):
                event = json.loads(data)
        except (ValueError, RecursionError):
            event = _parsed(data)
        if event.__class__ is not dict:
            # Outside the handler: json's error holds the text.
            raise InvalidResponse("not_json")
        try:
            choice = event["choices"][0]
            delta = choice["delta"]
        except (KeyError, IndexError, TypeError):
            delta = choice = None
        if delta.__class__ is not dict or choice.get("index"):
            return self._odd(event, choice)
        usage = event.get("usage")
        if usage:
            self._take_usage(usage)
        finish = choice.get("finish_reason")
        if finish:
            self._take_finish(finish)
        if event.get("error"):
            raise error_of_object(200, event["error"], secret=self._secret)
        return self._output(delta)

    def _odd(self, event: dict[str, Any], choice: Any) -> TokenChunk | None:
        """An event without a delta for us: the usage, an error, Azure's filter results, nothing at all."""
        error = event.get("error")
        if error or event.get("object") == "error":
            raise error_of_object(200, error or event, secret=self._secret)
        choices = event.get("choices")
        if choices is not None and not isinstance(choices, list):
            raise InvalidResponse("no_choices")
        if choices and not isinstance(choices[0], dict):
            raise InvalidResponse("no_choices")
        usage = event.get("usage")
        if usage:
            self._take_usage(usage)
        if choice is None and choices:
            choice = choices[0]
        if choice is not None and not choice.get("index"):
            delta = choice.get("delta")
            if delta is not None and not isinstance(delta, dict):
                raise InvalidResponse("no_delta")
            finish = choice.get("finish_reason")
            if finish:
                self._take_finish(finish)
        elif choices is None and not usage and not _harmless(event):
            raise InvalidResponse("no_choices")
        return None

    def _raise_error(self, data: str) -> None:
        error = _parsed(data)
        inner = error.get("error") if isinstance(error, dict) else None
        raise error_of_object(200, inner or error, secret=self._secret)

    def body(self, data: bytes) -> TokenChunk | None:
        """See `AnswerReader.body`."""
        event = _parsed(data)
        if not isinstance(event, dict):
            raise InvalidResponse("not_json")
        error = event.get("error")
        if error or event.get("object") == "error":
            raise error_of_object(200, error or event, secret=self._secret)
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise InvalidResponse("no_choices")
        if event.get("usage"):
            self._take_usage(event["usage"])
        if choices[0].get("finish_reason"):
            self._take_finish(choices[0]["finish_reason"])
        message = choices[0].get("message")
        if not isinstance(message, dict):
            raise InvalidResponse("no_message")
        return self._output(message)

    def end(self) -> TokenChunk:
        """See `AnswerReader.end`.

        Raises:
            StreamTruncated: no finish reason has come.
            ContentFiltered: the filter cut the answer.
            ServerError: the server named a failure as the finish reason.
        """
        failure = self._failed()
        if failure is not None:
            raise failure
        return TokenChunk(finish_reason=self.finish, usage=self.usage)

    def _failed(self) -> RequestError | None:
        """Why the answer that has ended is not a whole one, or None."""
        if self._failure is not None:
            return self._failure
        if self.finish is FinishReason.CONTENT_FILTER:
            return ContentFiltered("content_filter")
        if self.finish is None:
            return StreamTruncated("no_finish_reason")
        return None

    def _output(self, delta: dict[str, Any]) -> TokenChunk | None:
        get = delta.get
        text = get("content")
        reasoning = get("reasoning_content") or get("reasoning")
        refusal = get("refusal")
        calls = get("tool_calls")
        function = get("function_call")
        if text.__class__ is str and not reasoning and not refusal and not calls and not function:
            return TokenChunk(text) if text else None
        pieces = self._tool_calls(calls) if calls else ()
        if function and not pieces:
            pieces = (_call_piece({"function": function, "id": "call_0" if function.get("name") else ""}, 0),)
        text, reasoning, refusal = _text(text), _text(reasoning), _text(refusal)
        if text or reasoning or refusal or pieces:
            return TokenChunk(text, reasoning, refusal, pieces)
        return None

    def _tool_calls(self, calls: Any) -> tuple[ToolCallDelta, ...]:
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise InvalidResponse("tool_calls")
        return tuple(_call_piece(call, self._index_of(call)) for call in calls)

    def _index_of(self, call: dict[str, Any]) -> int:
        index = call.get("index")
        if isinstance(index, int) and 0 <= index < 1024:  # some servers count from 1, or leave gaps
            return self._calls.setdefault(index, len(self._calls))
        call_id = call.get("id")
        if isinstance(call_id, str) and call_id:
            return self._calls.setdefault(call_id, len(self._calls))
        return max(0, len(self._calls) - 1)

    def _take_finish(self, reason: Any) -> None:
        if not isinstance(reason, str):
            raise InvalidResponse("finish_reason")
        word = reason.lower()
        if word in _FAILED:
            self._failure = ServerError(word)
        elif word in _BROKEN_OFF:
            self._failure = StreamTruncated(word)
        else:
            # A word that nobody knows yet is an end all the same.
            self.finish = _FINISH.get(word, FinishReason.STOP)
        self.complete = True

    def _take_usage(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self.usage = usage_of(usage)


def usage_of(usage: Mapping[str, Any]) -> TokenUsage:
    """OpenAI's ``usage`` object; DeepSeek's name for cached tokens too. What is no count counts as 0."""
    prompt, completion = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    cached = _count(prompt.get("cached_tokens")) if isinstance(prompt, Mapping) else 0
    return TokenUsage(
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        cached_tokens=cached or _count(usage.get("prompt_cache_hit_tokens")),
        reasoning_tokens=_count(completion.get("reasoning_tokens")) if isinstance(completion, Mapping) else 0,
    )


def _parsed(data: str | bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _text(value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, list):  # content parts, from servers that mirror the request's shape
        return "".join(_text(part.get("text")) for part in value if isinstance(part, dict))
    if not isinstance(value, str):
        raise InvalidResponse("content")
    return value


def _call_piece(call: dict[str, Any], index: int) -> ToolCallDelta:
    function = call.get("function")
    if function is None:
        function = {}
    if not isinstance(function, dict):
        raise InvalidResponse("tool_calls")
    call_id, name, arguments = call.get("id") or "", function.get("name") or "", function.get("arguments")
    if isinstance(arguments, (dict, list)):  # already parsed, by servers that mean well
        arguments = json.dumps(arguments)
    if not (isinstance(call_id, str) and isinstance(name, str) and isinstance(arguments, (str, type(None)))):
        raise InvalidResponse("tool_calls")
    return ToolCallDelta(index=index, id=call_id, name=name, arguments=arguments or "")


def _harmless(event: dict[str, Any]) -> bool:
    """Events without choices that mean nothing: Azure's filter results, and empty ones that keep a proxy
    awake."""
    return not event or bool(
        event.keys() & {"prompt_filter_results", "prompt_annotations", "usage", "timings"}
    )
