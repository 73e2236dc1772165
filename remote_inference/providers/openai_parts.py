"""Where in a delta or a message the text is, and where the reasoning and the refusal.

Text: a string, or a list of parts (Mistral, servers that mirror the request's shape). Reasoning: ``reasoning_content``
(DeepSeek, vLLM, SGLang, xAI), ``reasoning`` (OpenRouter, Groq, newer vLLM), ``thinking`` (Ollama's relatives), lists of
blocks (LiteLLM, OpenRouter), or parts of the content (Mistral).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidResponse

__all__ = ["has_output", "reasoning_of", "refusal_of", "text_of"]

_REASONING = (
    "reasoning_content", "reasoning", "thinking", "reasoning_text", "thinking_content", "thoughts", "thought",
    "thinking_blocks", "reasoning_details",
)  # fmt: skip
_THOUGHTS = frozenset(
    {
        "thinking",
        "reasoning",
        "reasoning_text",
        "reasoning.text",
        "reasoning.summary",
        "summary_text",
        "thought",
    }
)
_INSIDE = ("text", "content", "thinking", "reasoning", "summary")
_DEEPEST = 5


_OUTPUT = ("content", "text", *_REASONING, "refusal", "tool_calls", "function_call")


def has_output(holder: Any) -> bool:
    """Whether a delta, a message, or a choice in their place says anything: a role and empty values do not."""
    if isinstance(holder, Mapping):
        return any(holder.get(name) for name in _OUTPUT)
    return isinstance(holder, str) and bool(holder)


def text_of(content: Any) -> str:
    """The text of a ``content``.

    Raises:
        InvalidResponse: it is neither text nor parts.
    """
    if content is None or content.__class__ is str:
        return content or ""
    if isinstance(content, Mapping):
        if not content.keys() & {"text", "type", "parts"}:
            raise InvalidResponse("content")
        content = content.get("parts", [content])
    if not isinstance(content, list):
        raise InvalidResponse("content")
    return "".join(_text_of_part(part) for part in content)


def _text_of_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or part.get("type") in _THOUGHTS or part.get("thought") is True:
        return ""
    text = part.get("text")
    if isinstance(text, Mapping):  # {"text": {"value": ...}}
        text = text.get("value")
    if text is None:  # {"type": "text", "content": ...}
        text = part.get("content")
    return text if isinstance(text, str) else ""


def reasoning_of(holder: Mapping[str, Any], content: Any) -> str:
    """The reasoning in a delta or a message, from the first place where there is some."""
    for name in _REASONING:
        found = holder.get(name)
        if found:
            text = _thoughts(found, 0)
            if text:
                return text
    if isinstance(content, list):
        return "".join(
            _thoughts(part, 0)
            for part in content
            if isinstance(part, Mapping) and (part.get("type") in _THOUGHTS or part.get("thought") is True)
        )
    return ""


def _thoughts(value: Any, depth: int) -> str:
    if isinstance(value, str):
        return value
    if depth > _DEEPEST:
        return ""
    if isinstance(value, list):
        return "".join(_thoughts(item, depth + 1) for item in value)
    if isinstance(value, Mapping):
        return next((text for name in _INSIDE if (text := _thoughts(value.get(name), depth + 1))), "")
    return ""


def refusal_of(holder: Mapping[str, Any], content: Any) -> str:
    """The refusal in a delta or a message, or in the parts of its content."""
    refusal = holder.get("refusal")
    if refusal is None or refusal.__class__ is str:
        if refusal or not isinstance(content, list):
            return refusal or ""
    elif refusal is not False:
        raise InvalidResponse("refusal")
    parts = content if isinstance(content, list) else []
    return "".join(
        part["refusal"]
        for part in parts
        if isinstance(part, Mapping) and isinstance(part.get("refusal"), str)
    )
