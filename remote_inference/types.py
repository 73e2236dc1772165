"""The values that travel: a request, its chunks, its completion, and their versioned JSON.

Requests and answers have OpenAI's shapes, because that is what users have; each provider translates at its edge.
No ``repr`` here shows a prompt or an answer.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import InvalidRequest
from .value import Value

__all__ = [
    "WIRE_VERSION",
    "Completion",
    "EngineMetrics",
    "FinishReason",
    "InferenceRequest",
    "Message",
    "Priority",
    "SamplingParams",
    "Timings",
    "TokenChunk",
    "TokenUsage",
    "ToolCall",
    "ToolCallDelta",
    "summary",
]

WIRE_VERSION = 1
"""The version of the JSON below. A reader refuses a higher one and ignores fields that it does not know."""

JSON = dict[str, Any]


class Priority(enum.IntEnum):
    """AMQP priorities; first in, first out within one."""

    BACKGROUND = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3

    @classmethod
    def parse(cls, value: Any) -> Priority:
        """A `Priority`, its number, or its name in any case.

        Raises:
            InvalidRequest: it is none of them.
        """
        try:
            if isinstance(value, str):
                return cls[value.upper()]
            if isinstance(value, int) and not isinstance(value, bool):
                return cls(value)
        except (KeyError, ValueError):
            pass
        raise InvalidRequest("priority", "must be BACKGROUND, NORMAL, HIGH, CRITICAL, or 0 to 3")


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


ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_PARTS = frozenset({"text", "image_url", "input_audio", "file", "refusal"})


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Message(Value):
    """One message of a conversation, in OpenAI's shape.

    ``content`` is a text, a tuple of content parts (``{"type": "text" | "image_url" …}``), or None on an
    assistant's message that only calls tools or refuses.
    """

    role: str
    content: str | tuple[JSON, ...] | None = field(default=None, repr=False)
    name: str | None = field(default=None, repr=False)
    tool_call_id: str | None = None
    tool_calls: tuple[ToolCall, ...] = field(default=(), repr=False)
    refusal: str | None = field(default=None, repr=False)

    def to_openai(self) -> JSON:
        """OpenAI's shape of it."""
        wire: JSON = {
            "role": self.role,
            "content": list(self.content) if isinstance(self.content, tuple) else self.content,
        }
        if self.name is not None:
            wire["name"] = self.name
        if self.tool_call_id is not None:
            wire["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            wire["tool_calls"] = [call.to_openai() for call in self.tool_calls]
        if self.refusal is not None:
            wire["refusal"] = self.refusal
        return wire

    @classmethod
    def parse(cls, value: Any, path: str = "message") -> Message:
        """Check a `Message` or a mapping of OpenAI's shape.

        Raises:
            InvalidRequest: with the path of the field at fault.
        """
        if isinstance(value, Message):
            value = value.to_openai()
        if not isinstance(value, Mapping):
            raise InvalidRequest(path, "must be an object with role and content")
        role = value.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise InvalidRequest(f"{path}.role", f"must be one of {', '.join(sorted(ROLES))}")
        unknown = value.keys() - {"role", "content", "name", "tool_call_id", "tool_calls", "refusal"}
        if unknown:
            raise InvalidRequest(f"{path}.{min(map(str, unknown))}", "is not a field of a message")
        calls = value.get("tool_calls") or ()
        if calls and role != "assistant":
            raise InvalidRequest(f"{path}.tool_calls", "only an assistant's message has tool calls")
        if not isinstance(calls, (list, tuple)):
            raise InvalidRequest(f"{path}.tool_calls", "must be a list")
        content = value.get("content")
        if isinstance(content, (list, tuple)):
            content = tuple(_content_part(part, f"{path}.content[{i}]") for i, part in enumerate(content))
            if not content:
                raise InvalidRequest(f"{path}.content", "must not be empty")
        elif content is None:
            if not calls and not (role == "assistant" and isinstance(value.get("refusal"), str)):
                raise InvalidRequest(f"{path}.content", "is missing")
        elif not isinstance(content, str):
            raise InvalidRequest(f"{path}.content", "must be a string or a list of parts")
        if role == "tool" and not isinstance(value.get("tool_call_id"), str):
            raise InvalidRequest(f"{path}.tool_call_id", "a tool's message names the call that it answers")
        for key in ("name", "tool_call_id", "refusal"):
            if value.get(key) is not None and not isinstance(value[key], str):
                raise InvalidRequest(f"{path}.{key}", "must be a string")
        return cls(
            role=role,
            content=content,
            name=value.get("name"),
            tool_call_id=value.get("tool_call_id"),
            tool_calls=tuple(ToolCall.from_openai(c, f"{path}.tool_calls[{i}]") for i, c in enumerate(calls)),
            refusal=value.get("refusal"),
        )


def _content_part(part: Any, path: str) -> JSON:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str) or kind not in _PARTS:
        raise InvalidRequest(f"{path}.type", f"must be one of {', '.join(sorted(_PARTS))}")
    if kind == "text" and not isinstance(part.get("text"), str):
        raise InvalidRequest(f"{path}.text", "must be a string")
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, Mapping) else None
        if not isinstance(url, str) or not url.startswith(("http://", "https://", "data:image/")):
            raise InvalidRequest(f"{path}.image_url.url", "must be an http(s) URL or a data:image/ URL")
    return dict(part)


_NUMBERS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
}
_INTEGERS: dict[str, tuple[int, int]] = {
    "max_tokens": (1, 2**31),
    "seed": (-(2**63), 2**63 - 1),
}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SamplingParams(Value):
    """How to sample; None leaves it to the provider. The names and ranges are OpenAI's."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = field(default=(), repr=False)
    logit_bias: Mapping[str, float] | None = field(default=None, repr=False)
    reasoning_effort: str | None = None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> SamplingParams:
        """Check the values that are given (None counts as not given).

        Raises:
            InvalidRequest: with the name of the field at fault.
        """
        given = {key: value for key, value in values.items() if value is not None}
        for key, (low, high) in _NUMBERS.items():
            if key in given:
                given[key] = _number(given[key], key, low, high)
        for key, (low, high) in _INTEGERS.items():
            value = given.get(key)
            if key in given and (
                isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high
            ):
                raise InvalidRequest(key, f"must be a whole number from {low} to {high}")
        if "stop" in given:
            stop = (given["stop"],) if isinstance(given["stop"], str) else given["stop"]
            if not isinstance(stop, (list, tuple)) or not all(isinstance(s, str) and s for s in stop):
                raise InvalidRequest("stop", "must be a string or a list of strings, none of them empty")
            given["stop"] = tuple(stop)
        if "logit_bias" in given:
            bias = given["logit_bias"]
            if not isinstance(bias, Mapping):
                raise InvalidRequest("logit_bias", "must map token ids to numbers")
            given["logit_bias"] = {str(k): _number(v, f"logit_bias.{k}", -100, 100) for k, v in bias.items()}
        if "reasoning_effort" in given and not isinstance(given["reasoning_effort"], str):
            raise InvalidRequest("reasoning_effort", "must be a string")
        return cls(**given)

    def to_openai(self) -> JSON:
        """The parameters that are set, under OpenAI's names."""
        wire = {
            f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) not in (None, ())
        }
        if self.stop:
            wire["stop"] = list(self.stop)
        return wire


SAMPLING_FIELDS = frozenset(f.name for f in fields(SamplingParams))


def _number(value: Any, path: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidRequest(path, "must be a number")
    if not low <= value <= high:  # NaN is not either
        raise InvalidRequest(path, f"must be from {low:g} to {high:g}")
    return value


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class InferenceRequest(Value):
    """One logical request, however many attempts it takes.

    Attributes:
        deployment: the deployment's name.
        messages: the conversation, at least one.
        sampling: how to sample.
        tools, tool_choice, response_format: as in OpenAI's API, passed on.
        extra_body: fields of the provider's own, put into the request's body as they are.
        idempotent: False turns retries off.
    """

    deployment: str
    messages: tuple[Message, ...] = field(repr=False)
    sampling: SamplingParams = SamplingParams()
    tools: tuple[JSON, ...] = field(default=(), repr=False)
    tool_choice: str | JSON | None = field(default=None, repr=False)
    response_format: JSON | None = field(default=None, repr=False)
    extra_body: JSON | None = field(default=None, repr=False)
    idempotent: bool = True

    @classmethod
    def parse(cls, deployment: Any, messages: Any, **options: Any) -> InferenceRequest:
        """Check what a caller gave: a prompt or messages, and OpenAI's parameters by name.

        Args:
            deployment: the deployment's name.
            messages: a prompt (one user message), or a sequence of `Message` or mappings.
            **options: the fields of `SamplingParams` and of this class.

        Raises:
            InvalidRequest: with the path of the field at fault. Nothing of the prompt is in it.
        """
        if not isinstance(deployment, str) or not deployment:
            raise InvalidRequest("deployment", "must be the name of a deployment")
        if isinstance(messages, str):
            if not messages:
                raise InvalidRequest("messages", "the prompt is empty")
            messages = (Message(role="user", content=messages),)
        elif isinstance(messages, (list, tuple)):
            if not messages:
                raise InvalidRequest("messages", "at least one message is needed")
            messages = tuple(Message.parse(m, f"messages[{i}]") for i, m in enumerate(messages))
        else:
            raise InvalidRequest("messages", "must be a prompt or a list of messages")
        if options.get("n") not in (None, 1):
            raise InvalidRequest("n", "only one choice a request: submit it n times instead")
        options.pop("n", None)
        version = options.pop("version", WIRE_VERSION)
        if not isinstance(version, int) or version > WIRE_VERSION:
            raise InvalidRequest("version", f"this is version {WIRE_VERSION} of the library's messages")
        if options.get("max_completion_tokens") is not None:
            options.setdefault("max_tokens", options["max_completion_tokens"])
        options.pop("max_completion_tokens", None)
        sampling = options.pop("sampling", None)
        if isinstance(sampling, SamplingParams):
            options = {**sampling.to_openai(), **options}
        elif sampling is not None:
            raise InvalidRequest("sampling", "must be a SamplingParams")
        given = {key: options.pop(key) for key in SAMPLING_FIELDS & options.keys()}
        tools = options.pop("tools", None) or ()
        if not isinstance(tools, (list, tuple)) or not all(isinstance(tool, Mapping) for tool in tools):
            raise InvalidRequest("tools", "must be a list of objects")
        tool_choice = options.pop("tool_choice", None)
        if tool_choice is not None and not isinstance(tool_choice, (str, Mapping)):
            raise InvalidRequest("tool_choice", "must be a string or an object")
        objects = {}
        for key in ("response_format", "extra_body"):
            value = objects[key] = options.pop(key, None)
            if value is not None and not isinstance(value, Mapping):
                raise InvalidRequest(key, "must be an object")
        idempotent = options.pop("idempotent", True)
        if not isinstance(idempotent, bool):
            raise InvalidRequest("idempotent", "must be true or false")
        if options:
            name = min(options)
            raise InvalidRequest(
                name, "is not a field of a request; use extra_body for fields of the provider's own"
            )
        return cls(
            deployment=deployment,
            messages=messages,
            sampling=SamplingParams.parse(given) if given else _DEFAULT_SAMPLING,
            tools=tuple(dict(tool) for tool in tools),
            tool_choice=dict(tool_choice) if isinstance(tool_choice, Mapping) else tool_choice,
            idempotent=idempotent,
            **objects,
        )

    def checked(self) -> InferenceRequest:
        """What `parse` makes of it: one that was built by hand may be wrong.

        Raises:
            InvalidRequest: with the path of the field at fault.
        """
        parts = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("deployment", "messages")
        }
        return InferenceRequest.parse(self.deployment, self.messages, **parts)

    def to_wire(self) -> JSON:
        """The keyword arguments of the task `remote_inference.infer`: JSON, flat, OpenAI's names."""
        wire: JSON = {
            "deployment": self.deployment,
            "messages": [message.to_openai() for message in self.messages],
        }
        wire.update(self.sampling.to_openai())
        if self.tools:
            wire["tools"] = list(self.tools)
        for key in ("tool_choice", "response_format", "extra_body"):
            if getattr(self, key) is not None:
                wire[key] = getattr(self, key)
        if not self.idempotent:
            wire["idempotent"] = False
        wire["version"] = WIRE_VERSION
        return wire

    def estimated_prompt_tokens(self) -> int:
        """Tokens of the prompt by rule of thumb: four UTF-8 bytes each, four a message, 85 an image.

        The figures are from OpenAI's token-counting guide and its price of a low-detail image.
        """
        return 3 + sum(4 + _content_tokens(message) for message in self.messages) + _json_tokens(self.tools)

    def estimated_tokens(self) -> int:
        """What to reserve: the prompt, and the answer at its bound (512 where none is set)."""
        return self.estimated_prompt_tokens() + (self.sampling.max_tokens or 512)


_DEFAULT_SAMPLING = SamplingParams()


def _content_tokens(message: Message) -> int:
    total = sum(len(call.arguments) // 4 + 8 for call in message.tool_calls)
    if isinstance(message.content, str):
        return total + _text_tokens(message.content)
    for part in message.content or ():
        total += _text_tokens(part["text"]) if part["type"] == "text" else 85
    return total


def _text_tokens(text: str) -> int:
    return (len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))) // 4 + 1


def _json_tokens(values: Sequence[JSON]) -> int:
    return sum(len(str(value)) // 4 for value in values)


def summary(request: InferenceRequest) -> str:
    """What logs, events and Flower show in place of the arguments."""
    count = len(request.messages)
    plural = "" if count == 1 else "s"
    return f"{request.deployment} · {count} message{plural} · ~{request.estimated_prompt_tokens()} tokens"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TokenUsage(Value):
    """Tokens as the provider counted them.

    ``cached_tokens`` are part of ``prompt_tokens``, ``reasoning_tokens`` part of ``completion_tokens``.
    ``estimated``: the provider told nothing (a cancelled stream), the figures are ours.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False

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
        )

    def to_wire(self) -> JSON:
        """The figures that are not zero."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name)}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any] | None) -> TokenUsage:
        """Read `to_wire`."""
        return cls(**_known(cls, wire or {}))


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

    ``first_token`` in ``timings`` and ``total`` count from the start of the first attempt. ``cost_usd`` is None
    where the deployment has no prices.
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

    def __repr__(self) -> str:
        """What logs, events and Flower show as the result."""
        tokens = f"{self.usage.prompt_tokens}+{self.usage.completion_tokens} tokens"
        attempts = "" if self.attempts == 1 else f" · {self.attempts} attempts"
        said = f"{self.deployment} · {self.finish_reason} · {tokens}{attempts} · {self.timings.total:.2f} s"
        return f"<Completion {self.request_id}: {said}>"

    def to_wire(self) -> JSON:
        """JSON: what the outcome carries and what a result backend keeps."""
        return {
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

    def __json__(self) -> JSON:
        """Kombu's JSON encoder asks for this: so a task may return the `Completion`, whose repr shows no text."""
        return self.to_wire()

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Completion:
        """Read `to_wire`, also of a newer version (fields that are not known are left out)."""
        known = _known(cls, wire)
        known["tool_calls"] = tuple(ToolCall.from_openai(call) for call in wire.get("tool_calls", ()))
        try:
            known["finish_reason"] = FinishReason(wire.get("finish_reason", "stop"))
        except ValueError:  # a newer worker's word: the answer is whole all the same
            known["finish_reason"] = FinishReason.STOP
        known["usage"] = TokenUsage.from_wire(wire.get("usage"))
        known["timings"] = Timings(**_known(Timings, wire.get("timings", {})))
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


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EngineMetrics(Value):
    """Counts since the process began, of one deployment. Always: ``started = in_flight + completed + failed +
    rejected + cancelled + handed_back``.

    Attributes:
        queued: requests that wait in the broker (None where it was not asked).
        in_flight: being worked on now, backoffs included.
        completed, failed, cancelled: how they ended; a passed deadline is a failure.
        rejected: ended by our own refusal (an open circuit, where the policy is not to wait).
        handed_back: put back into the queue, because the deployment cannot send now. They come again.
        retried: attempts after the first one.
        prompt_tokens, completion_tokens, cost_usd: what was used, cancelled requests included.
    """

    queued: int | None = None
    in_flight: int = 0
    started: int = 0
    completed: int = 0
    failed: int = 0
    rejected: int = 0
    cancelled: int = 0
    handed_back: int = 0
    retried: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> EngineMetrics:
        """Read a worker's figures, also a newer one's (those that are not known are left out)."""
        return cls(**_known(cls, wire))

    @classmethod
    def total(cls, parts: Iterable[EngineMetrics], queued: int | None = None) -> EngineMetrics:
        """The sum over processes."""
        sums: dict[str, float] = {}
        for part in parts:
            for f in fields(cls):
                if f.name != "queued":
                    sums[f.name] = sums.get(f.name, 0) + getattr(part, f.name)
        return cls(queued=queued, **sums)  # type: ignore[arg-type]  # whole numbers stay whole


def _known(cls: type[Any], wire: Mapping[str, Any]) -> JSON:
    names = {f.name for f in fields(cls)}
    return {key: value for key, value in wire.items() if key in names}
