"""What is asked: priority, messages, sampling, the request, all checked where they are made."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import InvalidRequest
from ..value import Value
from .answer import ToolCall
from .wire import JSON, WIRE_VERSION

__all__ = ["SAMPLING_FIELDS", "InferenceRequest", "Message", "Priority", "SamplingParams", "summary"]


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
