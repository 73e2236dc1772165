"""Batch lines: what a line of the input asks for, and what a line of the output says of it.

Two shapes are read, line by line: OpenAI's batch lines (``{"custom_id", "method", "url", "body"}``) and plain ones
(``{"id", "prompt", "priority"}``). Each is answered in its own shape. OpenAI's are described in its guide
"Batch API" and its reference "The request input object" and "The request output object".
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InferenceError, InvalidRequest
from ..types import SAMPLING_FIELDS, Completion, InferenceRequest, Priority

__all__ = ["BadLine", "DeploymentNeeded", "Item", "LineReader", "error_record", "key_of", "result_record"]

OPENAI_URL = "/v1/chat/completions"
_OURS = SAMPLING_FIELDS | {
    "max_completion_tokens",
    "messages",
    "model",
    "n",
    "response_format",
    "stream",
    "stream_options",
    "tool_choice",
    "tools",
}


class BadLine(Exception):
    """A line that cannot be sent.

    Attributes:
        reason: with the field's path; nothing of the prompt is in it.
        line_id: the line's id, as far as it could be read.
        openai: whether it is answered in OpenAI's shape.
        code: ``invalid_line`` or ``duplicate_id``.
    """

    def __init__(
        self, reason: str, line_id: Any = None, *, openai: bool = False, code: str = "invalid_line"
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line_id = line_id
        self.openai = openai
        self.code = code


class DeploymentNeeded(Exception):
    """No line can tell which of several deployments is meant: the command has to."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A line that asks for something.

    Attributes:
        number: the line's, from 1.
        line_id: its ``id`` or ``custom_id``: a string or a whole number.
        openai: whether it is answered in OpenAI's shape.
        request, priority: what is asked for.
    """

    number: int
    line_id: str | int
    openai: bool
    request: InferenceRequest = field(repr=False)
    priority: Priority

    @property
    def key(self) -> str:
        """What tells this line from all others, in both files."""
        return key_of(self.line_id)


def key_of(line_id: str | int) -> str:
    """One word for an id, in which 1 and "1" differ."""
    return json.dumps(line_id)


class LineReader:
    """Reads lines; knows the deployments that they may name.

    Args:
        deployments: the names that the configuration has.
        deployment: for lines that name none of them; None where there is only one, or none was given.
        priority: for lines that have none.
    """

    def __init__(
        self,
        deployments: tuple[str, ...],
        deployment: str | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> None:
        self._names = deployments
        self._default = deployment or (deployments[0] if len(deployments) == 1 else None)
        self._priority = priority

    def read(self, raw: bytes, number: int) -> Item:
        """Read a line.

        Raises:
            BadLine: it cannot be sent.
            DeploymentNeeded: it names no deployment, and there are several.
        """
        value = _object(raw)
        openai = "custom_id" in value or "body" in value
        name = "custom_id" if openai else "id"
        line_id = value.get(name)
        if isinstance(line_id, bool) or not isinstance(line_id, (str, int)) or line_id == "":
            what = "is missing" if name not in value else "must be a string or a whole number"
            raise BadLine(f"{name}: {what}", openai=openai)
        try:
            priority = Priority.parse(value["priority"]) if "priority" in value else self._priority
            request = self._from_openai(value) if openai else self._from_plain(value)
        except InvalidRequest as exc:
            raise BadLine(str(exc), line_id, openai=openai) from exc
        return Item(number=number, line_id=line_id, openai=openai, request=request, priority=priority)

    def _from_plain(self, value: Mapping[str, Any]) -> InferenceRequest:
        options = {key: item for key, item in value.items() if key not in ("id", "priority", "deployment")}
        prompt, messages = options.pop("prompt", None), options.pop("messages", None)
        if prompt is not None and messages is not None:
            raise InvalidRequest("prompt", "give it or messages, not both")
        if prompt is None and messages is None:
            raise InvalidRequest("prompt", "is missing")
        if prompt is not None and not isinstance(prompt, str):
            raise InvalidRequest("prompt", "must be a string")
        return InferenceRequest.parse(
            self._named(value.get("deployment"), "deployment"),
            prompt if messages is None else messages,
            **options,
        )

    def _from_openai(self, value: Mapping[str, Any]) -> InferenceRequest:
        for key in value.keys() - {"custom_id", "method", "url", "body", "priority"}:
            raise InvalidRequest(key, "is not a field of a batch line")
        if value.get("method", "POST") != "POST":
            raise InvalidRequest("method", "must be POST")
        if value.get("url", OPENAI_URL) != OPENAI_URL:
            raise InvalidRequest("url", f"must be {OPENAI_URL}")
        body = value.get("body")
        if not isinstance(body, Mapping):
            raise InvalidRequest("body", "must be an object")
        options = {key: item for key, item in body.items() if key in _OURS}
        model, messages = options.pop("model", None), options.pop("messages", None)
        for key in ("stream", "stream_options"):  # all answers are whole ones here
            options.pop(key, None)
        # what this library has no name for is the provider's: the body was written for it
        extra = {key: item for key, item in body.items() if key not in _OURS}
        name = model if model in self._names else self._named(None, "model")
        try:
            return InferenceRequest.parse(name, messages, extra_body=extra or None, **options)
        except InvalidRequest as exc:
            raise InvalidRequest(f"body.{exc.field}", exc.reason) from exc

    def _named(self, name: Any, field_name: str) -> str:
        if name is None:
            if self._default is None:
                raise DeploymentNeeded(
                    f"several deployments: {', '.join(self._names)}; give --deployment NAME"
                )
            return self._default
        if name not in self._names:
            raise InvalidRequest(field_name, f"no such deployment; there are: {', '.join(self._names)}")
        return str(name)


def _object(raw: bytes) -> Mapping[str, Any]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise BadLine("is not UTF-8") from exc
    try:
        value = json.loads(text)
    except json.JSONDecodeError as exc:
        raise BadLine(f"is not JSON: {exc.msg} at column {exc.colno}") from exc
    except (RecursionError, ValueError) as exc:  # nested too deep; a number of too many digits
        raise BadLine("is not JSON that can be read") from exc
    if not isinstance(value, Mapping):
        raise BadLine("must be an object")
    return value


def result_record(item: Item, completion: Completion) -> dict[str, Any]:
    """The output's line for an answer."""
    if item.openai:
        return {
            "id": f"batch_req_{completion.request_id}",
            "custom_id": item.line_id,
            "response": {
                "status_code": 200,
                "request_id": completion.request_id,
                "body": _chat_completion(completion),
            },
            "error": None,
        }
    record: dict[str, Any] = {
        "id": item.line_id,
        "text": completion.text,
        "finish_reason": str(completion.finish_reason),
        "usage": {"total_tokens": completion.usage.total_tokens, **_counts(completion)},
        "deployment": completion.deployment,
        "model": completion.model,
        "attempts": completion.attempts,
        "cost_usd": completion.cost_usd,
        "request_id": completion.request_id,
    }
    for key in ("reasoning", "refusal"):
        if getattr(completion, key):
            record[key] = getattr(completion, key)
    if completion.tool_calls:
        record["tool_calls"] = [call.to_openai() for call in completion.tool_calls]
    return record


def _counts(completion: Completion) -> dict[str, Any]:
    usage = completion.usage
    counts: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }
    if usage.cached_tokens:
        counts["cached_tokens"] = usage.cached_tokens
    if usage.reasoning_tokens:
        counts["reasoning_tokens"] = usage.reasoning_tokens
    return counts


def _chat_completion(completion: Completion) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": completion.text or (None if completion.tool_calls or completion.refusal else ""),
        "refusal": completion.refusal or None,
    }
    if completion.reasoning:
        message["reasoning_content"] = completion.reasoning
    if completion.tool_calls:
        message["tool_calls"] = [call.to_openai() for call in completion.tool_calls]
    usage = completion.usage
    return {
        "id": f"chatcmpl-{completion.request_id}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": completion.model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": str(completion.finish_reason),
            }
        ],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        },
    }


def error_record(
    number: int, line_id: str | int | None, error: InferenceError | BadLine, *, openai: bool
) -> dict[str, Any]:
    """The output's line for a line that has no answer. It is asked again when the batch is run again."""
    if isinstance(error, BadLine):
        code, message = error.code, f"line {number}: {error.reason}"
    else:
        # RateLimited: rate_limited, as the names in retry_on
        code, message = re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower(), str(error)
    told = {"code": code, "message": message, "line": number}
    if openai:
        return {"id": f"batch_req_line_{number}", "custom_id": line_id, "response": None, "error": told}
    return {"id": line_id, "error": told}
