"""Our request as the body of OpenAI's chat completions.

Rules: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ..config import Deployment
from ..errors import BadRequest
from .base import ProviderCall, option_of

__all__ = ["chat_body", "max_tokens_field"]

# OpenAI's reasoning models refuse `max_tokens`; fine-tuned ones are called ft:MODEL:...
_REASONING = re.compile(r"(ft:)?(o[1-9]|gpt-[5-9])", re.IGNORECASE)


def max_tokens_field(deployment: Deployment) -> str:
    """Under which name the bound on the answer goes.

    ``options.max_tokens_field`` decides. Without it: ``max_completion_tokens`` for the models that refuse the
    other (o1 and later, gpt-5 and later), where OpenAI or Azure serves them; ``max_tokens`` everywhere else,
    because that is the name that every server knows.
    """
    chosen = option_of(deployment, "max_tokens_field")
    if isinstance(chosen, str):
        return chosen
    host = urlsplit(deployment.endpoint).hostname or ""
    theirs = host == "api.openai.com" or host.endswith((".api.openai.com", ".openai.azure.com"))
    return "max_completion_tokens" if theirs and _REASONING.match(deployment.model) else "max_tokens"


def chat_body(call: ProviderCall) -> bytes:
    """The body, encoded. The request's ``extra_body`` comes over the deployment's, and both over the
    parameters.

    Raises:
        BadRequest: ``extra_body`` asks for something that this library does otherwise (``messages``,
            ``model``, ``stream``, more than one choice).
    """
    request, deployment = call.request, call.deployment
    body: dict[str, Any] = {
        "model": deployment.model,
        "messages": [message.to_openai() for message in request.messages],
    }
    sampling = request.sampling.to_openai()
    if "max_tokens" in sampling:
        body[max_tokens_field(deployment)] = sampling.pop("max_tokens")
    body.update(sampling)
    for name, theirs in call.option("rename_fields", {}).items():
        if name in body:
            body[theirs] = body.pop(name)
    if request.tools:
        body["tools"] = request.tools
    if request.tool_choice is not None:
        body["tool_choice"] = request.tool_choice
    if request.response_format is not None:
        body["response_format"] = request.response_format
    if call.stream:
        body["stream"] = True
        if call.option("include_usage", True):
            body["stream_options"] = {"include_usage": True}
    for extra in (deployment.extra_body, request.extra_body):
        if extra:
            _add(body, extra)
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can say it, UTF-8 cannot
        return json.dumps(body, separators=(",", ":")).encode()


def _add(body: dict[str, Any], extra: Mapping[str, Any]) -> None:
    for name in ("messages", "model", "stream"):
        if name in extra:
            raise BadRequest("not_in_extra_body", param=name)
    if extra.get("n") not in (None, 1):
        raise BadRequest("one_choice_only", param="n")
    if extra.get("max_tokens") is not None or extra.get("max_completion_tokens") is not None:
        # Two bounds at once are refused.
        body.pop("max_tokens", None)
        body.pop("max_completion_tokens", None)
    options = body.get("stream_options")
    body.update(extra)
    if options is not None and isinstance(extra.get("stream_options"), Mapping):
        body["stream_options"] = {**options, **extra["stream_options"]}
