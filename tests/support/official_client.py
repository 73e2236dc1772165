"""The official client as a judge: what it makes of the bytes of a recording, with a transport that has them already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx2
import openai

from remote_inference.testing.recordings import Reading, Recording

__all__ = ["official_reading", "verdict"]

_JUDGED = ("text", "reasoning", "tool_calls", "finish_reason", "usage")


def official_reading(recording: Recording) -> dict[str, Any]:
    """What the official client reads, put together as its documentation says."""
    kind = "text/event-stream" if recording.stream else "application/json"

    def answer(request: httpx2.Request) -> httpx2.Response:
        # rightly labelled: it goes by the label
        headers = {"content-type": kind, **recording.headers}
        return httpx2.Response(recording.status, headers=headers, content=recording.body, request=request)

    client = openai.OpenAI(
        api_key="x",
        base_url="http://127.0.0.1:1/v1",
        max_retries=0,
        http_client=httpx2.Client(transport=httpx2.MockTransport(answer)),
    )
    messages: Any = [{"role": "user", "content": "why?"}]
    if not recording.stream:
        whole = client.chat.completions.create(model="m", messages=messages)
        choice = whole.choices[0]
        calls = [
            (call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()
        ]
        return _put(
            choice.message.content, _reasoning(choice.message), calls, choice.finish_reason, whole.usage
        )
    text = reasoning = ""
    finish = usage = None
    found: dict[Any, list[str]] = {}
    with client.chat.completions.create(model="m", messages=messages, stream=True) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices or ():
                finish = choice.finish_reason or finish
                if choice.delta is None:
                    continue
                text += choice.delta.content or ""
                reasoning += _reasoning(choice.delta)
                for piece in choice.delta.tool_calls or ():
                    call = found.setdefault(piece.index, ["", "", ""])
                    call[0] = call[0] or piece.id or ""
                    if piece.function:
                        call[1] += piece.function.name or ""
                        call[2] += piece.function.arguments or ""
    return _put(text, reasoning, [tuple(call) for call in found.values()], finish, usage)


def verdict(recording: Recording, ours: Reading) -> str:
    """``same``, or in what the official client differs from our reading."""
    try:
        theirs = official_reading(recording)
    except Exception as exc:
        return "the same: an error" if ours.error else f"raises {type(exc).__name__}"
    if ours.error:
        return f"reads an answer where we read {ours.error}"
    mine = _put(
        ours.text,
        ours.reasoning,
        list(ours.tool_calls),
        ours.finish_reason,
        {name: count for name, count in (ours.usage or {}).items() if name.endswith("_tokens")},
    )
    differing = [name for name in _JUDGED if mine[name] != theirs[name]]
    return f"differs in {', '.join(differing)}" if differing else "same"


def _put(text: Any, reasoning: str, calls: list[Any], finish: Any, usage: Any) -> dict[str, Any]:
    return {
        "text": text or "",
        "reasoning": reasoning,
        "tool_calls": [tuple(call) for call in calls],
        # its legacy word for the same
        "finish_reason": "tool_calls" if finish == "function_call" else finish,
        "usage": _counts(usage),
    }


def _reasoning(holder: Any) -> str:
    extra = holder.model_extra or {}
    found = extra.get("reasoning_content") or extra.get("reasoning") or ""
    return found if isinstance(found, str) else ""


def _counts(usage: Any) -> dict[str, int]:
    if usage is None:
        return {}
    if isinstance(usage, Mapping):
        return {name: count for name, count in usage.items() if count}
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    counts = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": getattr(prompt, "cached_tokens", None),
        "reasoning_tokens": getattr(completion, "reasoning_tokens", None),
    }
    return {name: count for name, count in counts.items() if count}
