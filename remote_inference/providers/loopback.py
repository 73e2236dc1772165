"""A provider without a network, for users' own tests: scripted tokens, delays and faults.

Its script is in the deployment's options. The provider puts it into the request, and the transport of ``loopback://``
endpoints plays it (`transport.loopback`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config import Deployment
from ..errors import (
    ConfigurationError,
    ContentFiltered,
    InvalidResponse,
    StreamTruncated,
)
from ..policy.classify import error_for_status
from ..transport.loopback import FAULTS
from ..types import FinishReason, Message, TokenChunk, TokenUsage
from .base import AnswerReader, HttpRequest, Provider, ProviderCall

__all__ = ["LoopbackProvider"]

_FINISH = ("stop", "length", "content_filter")


class LoopbackProvider(Provider):
    """Answers by the deployment's ``options``:

    - ``tokens``: the answer, a list of strings; or ``text``: the same in one string, cut at spaces; or ``echo
      = true``: the text of the last message. Without any of them the answer is ``ok``.
    - ``first_delay``, ``delay``: seconds before the first and between two tokens.
    - ``finish_reason``: ``stop``, ``length`` or ``content_filter``.
    - ``usage``: ``{"prompt_tokens": …}``, in place of the counted one.
    - ``faults``: a list, used up from the front, one a call; then all is well. Each is a table with
      ``status`` (and ``code``, ``type``, ``param``, ``retry_after``), with ``error`` (``timeout``, ``stall``,
      ``network``, ``invalid``, ``truncated``), or empty (this call is well). ``cut_after``: so many tokens
      come first; alone, it means ``truncated``.

    The faults that are used up are counted for each deployment's name in a process.
    """

    name: ClassVar[str] = "loopback"
    options: ClassVar[tuple[str, ...]] = (
        "delay",
        "echo",
        "faults",
        "finish_reason",
        "first_delay",
        "text",
        "tokens",
        "usage",
    )

    def check(self, deployment: Deployment) -> None:
        """Check the script.

        Raises:
            ConfigurationError: with the path of each field at fault.
        """
        faults: list[str] = []
        for check in (super().check, lambda made: _script(made.options)):
            try:
                check(deployment)
            except ConfigurationError as exc:
                faults += exc.faults
        if faults:
            raise ConfigurationError(faults)

    def request(self, call: ProviderCall) -> HttpRequest:
        """See `Provider.request`."""
        script = _script(call.deployment.options)
        tokens = _words(_last_text(call.request.messages)) if script.echo else script.tokens
        usage = script.usage or TokenUsage(
            prompt_tokens=call.request.estimated_prompt_tokens(), completion_tokens=len(tokens)
        )
        played = {
            "deployment": call.deployment.name,
            "tokens": tokens,
            "first_delay": script.first_delay,
            "delay": script.delay,
            "finish_reason": str(script.finish),
            "usage": usage.to_wire(),
            "faults": script.faults,
        }
        return HttpRequest(path="", body=json.dumps(played).encode())

    def reader(self, call: ProviderCall) -> AnswerReader:
        """See `Provider.reader`."""
        return _ScriptReader()


class _ScriptReader(AnswerReader):
    """Reads what `transport.loopback` sends."""

    def __init__(self) -> None:
        self._finish: FinishReason | None = None

    def event(self, kind: str, data: str) -> TokenChunk | None:
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise InvalidResponse("not_json")
        if "error" in event:
            error = event["error"]
            raise error_for_status(
                error.get("status", 200),
                error.get("code"),
                error.get("param"),
                error.get("type"),
                error.get("retry_after"),
            )
        if "finish_reason" in event:
            self._finish = FinishReason(event["finish_reason"])
            self.usage = TokenUsage.from_wire(event["usage"])
            self.complete = self.done = True
        return TokenChunk(event["text"]) if "text" in event else None

    def body(self, data: bytes) -> TokenChunk | None:
        return self.event("message", data.decode(errors="replace"))

    def end(self) -> TokenChunk:
        if self._finish is None:
            raise StreamTruncated("no_finish_reason")
        if self._finish is FinishReason.CONTENT_FILTER:
            raise ContentFiltered("content_filter")
        return TokenChunk(finish_reason=self._finish, usage=self.usage)


@dataclass(frozen=True, kw_only=True)
class _Script:
    tokens: tuple[str, ...]
    echo: bool
    delay: float
    first_delay: float
    finish: FinishReason
    usage: TokenUsage | None
    faults: tuple[Mapping[str, Any], ...]


def _words(text: str) -> tuple[str, ...]:
    """The text in pieces that give it again when joined; every piece but the first begins with its space."""
    head, *rest = text.split(" ")
    return tuple(piece for piece in (head, *(f" {word}" for word in rest)) if piece)


def _last_text(messages: tuple[Message, ...]) -> str:
    content = messages[-1].content
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content or () if part.get("type") == "text")


def _script(options: Mapping[str, Any]) -> _Script:
    """Read the options.

    Raises:
        ConfigurationError: with every fault.
    """
    faults: list[str] = []
    text, tokens, echo = options.get("text"), options.get("tokens"), options.get("echo", False)
    if (text is not None) + (tokens is not None) + (echo is True) > 1:
        faults.append("options: only one of text, tokens and echo")
    if text is not None and not isinstance(text, str):
        faults.append("options.text: must be a string")
        text = ""
    if tokens is not None and not (
        isinstance(tokens, (list, tuple)) and all(isinstance(token, str) and token for token in tokens)
    ):
        faults.append("options.tokens: must be a list of strings, none of them empty")
        tokens = ()
    if not isinstance(echo, bool):
        faults.append("options.echo: must be true or false")
    for name in ("delay", "first_delay"):
        if not _is_seconds(options.get(name, 0.0)):
            faults.append(f"options.{name}: must be seconds, 0 or more")
    finish = options.get("finish_reason", "stop")
    if finish not in _FINISH:
        faults.append(f"options.finish_reason: must be one of {', '.join(_FINISH)}")
    faults += _usage_faults(options.get("usage"))
    script = options.get("faults", ())
    if not isinstance(script, (list, tuple)):
        faults.append("options.faults: must be a list of tables")
    else:
        for index, fault in enumerate(script):
            faults += _fault_faults(fault, f"options.faults[{index}]")
    if faults:
        raise ConfigurationError(faults)
    usage = options.get("usage")
    return _Script(
        tokens=tuple(tokens) if tokens is not None else _words("ok" if text is None else text),
        echo=echo,
        delay=float(options.get("delay", 0.0)),
        first_delay=float(options.get("first_delay", 0.0)),
        finish=FinishReason(finish),
        usage=None if usage is None else TokenUsage(**usage),
        faults=tuple(script),
    )


def _usage_faults(usage: Any) -> list[str]:
    if usage is None:
        return []
    if not isinstance(usage, Mapping):
        return ["options.usage: must be a table of counts"]
    known = {"prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"}
    return [
        f"options.usage.{name}: must be a count, of {', '.join(sorted(known))}"
        for name, count in usage.items()
        if name not in known or not _is_count(count)
    ]


def _fault_faults(fault: Any, path: str) -> list[str]:
    if not isinstance(fault, Mapping):
        return [f"{path}: must be a table"]
    known = {"code", "cut_after", "error", "param", "retry_after", "status", "type"}
    faults = [f"{path}.{name}: is not known" for name in sorted(map(str, fault.keys() - known))]
    status = fault.get("status", 500)
    if not isinstance(status, int) or isinstance(status, bool) or not 400 <= status <= 599:
        faults.append(f"{path}.status: must be from 400 to 599")
    if "error" in fault and (fault["error"] not in list(FAULTS) or "status" in fault):
        faults.append(f"{path}.error: must be one of {', '.join(FAULTS)}, and without a status")
    if not _is_count(fault.get("cut_after", 0)):
        faults.append(f"{path}.cut_after: must be a number of tokens")
    if not _is_seconds(fault.get("retry_after", 0.0)):
        faults.append(f"{path}.retry_after: must be seconds, 0 or more")
    for name in ("code", "param", "type"):
        if not isinstance(fault.get(name, ""), str):
            faults.append(f"{path}.{name}: must be a string")
    return faults


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_seconds(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0
    )
