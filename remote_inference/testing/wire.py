"""OpenAI's chat completion format, written by hand: what a provider puts on the wire.

Kept apart from the library's own reader of that format on purpose: a fake that shared code with what it tests
would share its mistakes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

__all__ = [
    "DONE",
    "ToolCall",
    "Usage",
    "chunk",
    "completion",
    "encode",
    "error_body",
    "event",
    "prompt_text",
    "split",
]

DONE = b"data: [DONE]\n\n"
_ID = "chatcmpl-fake"
_CREATED = 1_700_000_000
_ARGUMENT_PIECE = (
    8  # characters of a tool call's arguments in one chunk: small, so that they must be put together
)


@dataclass(frozen=True)
class Usage:
    """Token counts of an answer; what is None is counted from the request and the text.

    Attributes:
        prompt_tokens: Input tokens, cached ones included.
        completion_tokens: Output tokens, reasoning included.
        cached_tokens: Part of the input that was read from the provider's cache.
        reasoning_tokens: Part of the output that was spent on reasoning.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    _: KW_ONLY
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def body(self, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
        """OpenAI's `usage` object, with the counts given here for what is None."""
        prompt = prompt_tokens if self.prompt_tokens is None else self.prompt_tokens
        output = completion_tokens if self.completion_tokens is None else self.completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


@dataclass(frozen=True)
class ToolCall:
    """One function call of an answer; `arguments` is the JSON text that the model wrote, valid or not."""

    name: str
    arguments: str = "{}"
    id: str = "call_1"

    def body(self) -> dict[str, Any]:
        """The call as it stands in an answer that is not streamed."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }

    def deltas(self, index: int) -> Iterable[dict[str, Any]]:
        """The call in pieces: name and id first, then the arguments a few characters at a time."""
        head = {"index": index, "id": self.id, "type": "function"}
        yield {"tool_calls": [{**head, "function": {"name": self.name, "arguments": ""}}]}
        for start in range(0, len(self.arguments), _ARGUMENT_PIECE):
            piece = self.arguments[start : start + _ARGUMENT_PIECE]
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def encode(value: object) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def event(value: object) -> bytes:
    """One server-sent event with `value` as its data."""
    return b"data: " + encode(value) + b"\n\n"


def chunk(
    model: str, delta: Mapping[str, Any] | None, finish_reason: str | None = None, usage: object = None
) -> bytes:
    """One `chat.completion.chunk` event; without a delta it is the last one, which carries only the usage."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    body: dict[str, Any] = {"id": _ID, "object": "chat.completion.chunk", "created": _CREATED, "model": model}
    body["choices"] = choices
    if usage is not None:
        body["usage"] = usage
    return event(body)


def completion(model: str, message: Mapping[str, Any], finish_reason: str | None, usage: object) -> bytes:
    """The whole answer of a call that is not streamed."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return encode(
        {
            "id": _ID,
            "object": "chat.completion",
            "created": _CREATED,
            "model": model,
            "choices": [choice],
            "usage": usage,
        }
    )


def error_body(
    message: str, *, type: str, code: str | None = None, param: str | None = None
) -> dict[str, dict[str, str | None]]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def prompt_text(body: object) -> str:
    """All text of a request's messages, to estimate its input tokens from."""
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        return ""
    parts: list[str] = []
    for message in body["messages"]:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            parts.append(content)
        elif isinstance(content, list):
            parts += [str(part.get("text", "")) for part in content if isinstance(part, dict)]
    return "".join(parts)


def split(text: str) -> Sequence[str]:
    """A text in token-like pieces that give the text again when they are joined."""
    return re.findall(r"\s*\S+|\s+$", text)
