"""What comes back: chunks, usage, the completion."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import InvalidRequest
from ..value import Value
from .wire import JSON, WIRE_VERSION, known_fields

__all__ = ["Completion", "FinishReason", "Timings", "TokenChunk", "TokenUsage", "ToolCall", "ToolCallDelta"]


class FinishReason(str, enum.Enum):
    """Why the model stopped."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ToolCall(Value):
    """A call that the model asks for. ``arguments`` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str = field(repr=False, default="")

    def to_openai(self) -> JSON:
        """OpenAI's shape of it."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }

    @classmethod
    def from_openai(cls, value: Any, path: str = "tool_call") -> ToolCall:
        """Read OpenAI's shape.

        Raises:
            InvalidRequest: with the path of the field at fault.
        """
        function = value.get("function") if isinstance(value, Mapping) else None
        if not isinstance(function, Mapping):
            raise InvalidRequest(f"{path}.function", "must be an object with name and arguments")
        call_id, name, arguments = value.get("id"), function.get("name"), function.get("arguments", "")
        for label, part in (("id", call_id), ("function.name", name), ("function.arguments", arguments)):
            if not isinstance(part, str):
                raise InvalidRequest(f"{path}.{label}", "must be a string")
        return cls(id=call_id, name=name, arguments=arguments)  # type: ignore[arg-type]  # checked above


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TokenUsage(Value):
    """Tokens as the provider counted them.

    ``cached_tokens`` are part of ``prompt_tokens``, ``reasoning_tokens`` part of ``completion_tokens``.
    ``estimated``: the provider told nothing (a cancelled stream), the figures are ours. ``cost_usd``: what the
    provider, or a gateway before it, says that they cost.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    cost_usd: float | None = None

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: TokenUsage) -> TokenUsage:
        """Both together; an estimate if one of them is."""
        return TokenUsage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            estimated=self.estimated or other.estimated,
            cost_usd=_sum(self.cost_usd, other.cost_usd),
        )

    def to_wire(self) -> JSON:
        """The figures that are not zero."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name)}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any] | None) -> TokenUsage:
        """Read `to_wire`."""
        return cls(**known_fields(cls, wire or {}))


def _sum(one: float | None, other: float | None) -> float | None:
    return one if other is None else other if one is None else one + other


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ToolCallDelta(Value):
    """A piece of a tool call: ``index`` tells which, from 0 without gaps; ``id`` and ``name`` come once."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = field(default="", repr=False)


@dataclass(frozen=True, eq=False, repr=False)
class TokenChunk(Value):
    """A piece of the answer.

    Attributes:
        text_delta: text to append.
        reasoning_delta, refusal_delta: likewise, where the model gives them.
        tool_calls: pieces of tool calls.
        finish_reason, usage: on the chunk that brings them.
        restarted: everything before this chunk is void (only with ``on_restart="announce"``).
        request_id, epoch, sequence: which stream, which attempt of it, and the place in it.
    """

    text_delta: str = field(default="", repr=False)
    reasoning_delta: str = field(default="", repr=False)
    refusal_delta: str = field(default="", repr=False)
    tool_calls: tuple[ToolCallDelta, ...] = field(default=(), repr=False)
    finish_reason: FinishReason | None = None
    usage: TokenUsage | None = None
    restarted: bool = False
    request_id: str = ""
    epoch: str = ""
    sequence: int = 0

    @property
    def has_output(self) -> bool:
        """Whether there is anything for a reader in it."""
        return bool(self.text_delta or self.reasoning_delta or self.refusal_delta or self.tool_calls)

    def to_wire(self) -> JSON:
        """The output's part, with one-letter keys: it is written for every few tokens."""
        wire: JSON = {}
        if self.text_delta:
            wire["t"] = self.text_delta
        if self.reasoning_delta:
            wire["r"] = self.reasoning_delta
        if self.refusal_delta:
            wire["f"] = self.refusal_delta
        if self.tool_calls:
            wire["c"] = [[d.index, d.id, d.name, d.arguments] for d in self.tool_calls]
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any], request_id: str, epoch: str, sequence: int) -> TokenChunk:
        """Read `to_wire`."""
        calls = tuple(ToolCallDelta(index=i, id=d, name=n, arguments=a) for i, d, n, a in wire.get("c", ()))
        return cls(
            wire.get("t", ""),
            wire.get("r", ""),
            wire.get("f", ""),
            calls,
            request_id=request_id,
            epoch=epoch,
            sequence=sequence,
        )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Timings(Value):
    """Seconds. ``queued`` is from submit to the first attempt, by the two machines' clocks."""

    queued: float = 0.0
    first_token: float | None = None
    total: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Completion(Value):
    """The whole answer.

    ``first_token`` in ``timings`` and ``total`` count from the start of the first attempt. ``cost_usd`` is by the
    deployment's prices; where it has none, what the provider or a gateway says (LiteLLM, OpenRouter), or None.
    ``call_id`` is by what the provider, or a gateway before it, knows the call; empty where it told none.
    """

    request_id: str
    deployment: str
    model: str = ""
    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason = FinishReason.STOP
    usage: TokenUsage = TokenUsage()
    cost_usd: float | None = None
    attempts: int = 1
    timings: Timings = Timings()
    call_id: str = ""

    def __repr__(self) -> str:
        """What logs, events and Flower show as the result."""
        tokens = f"{self.usage.prompt_tokens}+{self.usage.completion_tokens} tokens"
        attempts = "" if self.attempts == 1 else f" · {self.attempts} attempts"
        said = f"{self.deployment} · {self.finish_reason} · {tokens}{attempts} · {self.timings.total:.2f} s"
        return f"<Completion {self.request_id}: {said}>"

    def to_wire(self) -> JSON:
        """JSON: what the outcome carries and what a result backend keeps."""
        wire = {
            "version": WIRE_VERSION,
            "request_id": self.request_id,
            "deployment": self.deployment,
            "model": self.model,
            "text": self.text,
            "reasoning": self.reasoning,
            "refusal": self.refusal,
            "tool_calls": [call.to_openai() for call in self.tool_calls],
            "finish_reason": str(self.finish_reason),
            "usage": self.usage.to_wire(),
            "cost_usd": self.cost_usd,
            "attempts": self.attempts,
            "timings": {f.name: getattr(self.timings, f.name) for f in fields(Timings)},
        }
        if self.call_id:
            wire["call_id"] = self.call_id
        return wire

    def __json__(self) -> JSON:
        """Kombu's JSON encoder asks for this: so a task may return the `Completion`, whose repr shows no text."""
        return self.to_wire()

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Completion:
        """Read `to_wire`, also of a newer version (fields that are not known are left out)."""
        known = known_fields(cls, wire)
        known["tool_calls"] = tuple(ToolCall.from_openai(call) for call in wire.get("tool_calls", ()))
        try:
            known["finish_reason"] = FinishReason(wire.get("finish_reason", "stop"))
        except ValueError:  # a newer worker's word: the answer is whole all the same
            known["finish_reason"] = FinishReason.STOP
        known["usage"] = TokenUsage.from_wire(wire.get("usage"))
        known["timings"] = Timings(**known_fields(Timings, wire.get("timings", {})))
        return cls(**known)

    def remainder(self, chunks: Iterable[TokenChunk]) -> TokenChunk:
        """What is left of this answer after those chunks of it, as one chunk (maybe an empty one)."""
        text = reasoning = refusal = 0
        ids: set[int] = set()
        names: set[int] = set()
        arguments: dict[int, int] = {}
        for chunk in chunks:
            text += len(chunk.text_delta)
            reasoning += len(chunk.reasoning_delta)
            refusal += len(chunk.refusal_delta)
            for d in chunk.tool_calls:
                arguments[d.index] = arguments.get(d.index, 0) + len(d.arguments)
                if d.id:
                    ids.add(d.index)
                if d.name:
                    names.add(d.index)
        rest = []
        for index, call in enumerate(self.tool_calls):
            delta = ToolCallDelta(
                index=index,
                id="" if index in ids else call.id,
                name="" if index in names else call.name,
                arguments=call.arguments[arguments.get(index, 0) :],
            )
            if delta.id or delta.name or delta.arguments:
                rest.append(delta)
        return TokenChunk(
            self.text[text:],
            self.reasoning[reasoning:],
            self.refusal[refusal:],
            tuple(rest),
            finish_reason=self.finish_reason,
            usage=self.usage,
            request_id=self.request_id,
        )
