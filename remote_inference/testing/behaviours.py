"""What a scripted provider says when nothing is broken: answers and refusals, as plain values.

A behaviour decides and does nothing: it turns a request into an `Answer`, whose body is a series of steps
(bytes, pauses, an end), and the server carries the steps out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from remote_inference.testing.wire import DONE, ToolCall, Usage, chunk, completion, encode, error_body, split

__all__ = [
    "Answer",
    "Behaviour",
    "Framing",
    "Pause",
    "Piece",
    "Prompt",
    "Reply",
    "Status",
    "Step",
    "Stop",
    "content_filter",
    "context_length_exceeded",
    "insufficient_quota",
    "invalid_api_key",
    "overloaded",
    "rate_limited",
]

Framing = Literal["chunked", "close", "length"]
_SSE = "text/event-stream; charset=utf-8"
_JSON = "application/json"


class Piece(NamedTuple):
    """Bytes of the body, written at once, and how many tokens they carry."""

    data: bytes
    tokens: int = 0


class Pause(NamedTuple):
    """Nothing is written for so many seconds."""

    seconds: float


class Stop(Enum):
    """How a body ends other than well."""

    HANG = "hang"  # nothing more is written; the connection stays open until the client closes it
    CLOSE = "close"  # the connection is closed (FIN)
    RESET = "reset"  # the connection is reset (RST)


Step: TypeAlias = Piece | Pause | Stop


class Prompt(NamedTuple):
    """What of a request an answer depends on."""

    model: str
    stream: bool
    include_usage: bool
    prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A response, ready to be carried out.

    Attributes:
        status: HTTP status.
        headers: Besides those that the framing asks for.
        steps: The body.
        framing: `chunked`; `close` (delimited by the end of the connection); `length` (a Content-Length).
        delay: Seconds before the headers; None: no header is ever sent.
        drip_head: Bytes and seconds: the head goes out so slowly.
        drip_body: The same for the body, whose own pauses are dropped.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    steps: Iterable[Step] = ()
    framing: Framing = "chunked"
    delay: float | None = 0.0
    drip_head: tuple[int, float] | None = None
    drip_body: tuple[int, float] | None = None


class Behaviour(Protocol):
    """Anything that answers a request."""

    def answer(self, prompt: Prompt) -> Answer:
        """The response to `prompt`."""
        ...


@dataclass(frozen=True)
class Reply:
    """A good answer.

    Attributes:
        text: What it says; without it `tokens` count.
        tokens: The pieces it is streamed in, or only their number.
        usage: Counts that differ from the real ones.
        finish_reason: By default `tool_calls` with tool calls, else `stop`.
        tool_calls: Function calls, streamed with their arguments in pieces.
        refusal: Streamed and given as `refusal`.
        reasoning: Given as `reasoning_content` (vLLM's and DeepSeek's field) before the text.
        framing: `chunked`; `close`: the body ends with the connection. Not streamed: `length`, or `close`.
        first_byte_delay: Seconds before the headers.
        first_token_delay: Seconds between the headers and the first token.
        token_delay: Seconds between two tokens, or a cycle of such.
        burst: Tokens a write.
        headers: More response headers.
    """

    text: str | None = None
    _: KW_ONLY
    tokens: int | tuple[str, ...] = 10
    usage: Usage | None = None
    finish_reason: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    refusal: str | None = None
    reasoning: str | None = None
    framing: Framing = "chunked"
    first_byte_delay: float = 0.0
    first_token_delay: float = 0.0
    token_delay: float | tuple[float, ...] = 0.0
    burst: int = 1
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def pieces(self) -> tuple[str, ...]:
        """The text as it is streamed."""
        if self.text is not None:
            return tuple(split(self.text))
        if isinstance(self.tokens, int):
            # Without text a call for tools or a refusal says nothing besides.
            count = 0 if self.tool_calls or self.refusal is not None else self.tokens
            return tuple(f"t{number} " for number in range(count))
        return tuple(self.tokens)

    @property
    def reason(self) -> str:
        """The finish reason that is sent."""
        return self.finish_reason or ("tool_calls" if self.tool_calls else "stop")

    def deltas(self) -> list[dict[str, Any]]:
        """What a stream says, one dict a chunk, each worth one token."""
        said: list[dict[str, Any]] = [{"reasoning_content": piece} for piece in split(self.reasoning or "")]
        said += [{"content": piece} for piece in self.pieces]
        said += [{"refusal": piece} for piece in split(self.refusal or "")]
        for index, call in enumerate(self.tool_calls):
            said += call.deltas(index)
        return said

    def usage_body(self, prompt: Prompt) -> dict[str, Any]:
        """The `usage` object for this answer to `prompt`."""
        return (self.usage or Usage()).body(prompt.prompt_tokens, len(self.deltas()))

    def message(self) -> dict[str, Any]:
        """What an answer that is not streamed says."""
        message: dict[str, Any] = {"content": "".join(self.pieces) or None, "refusal": self.refusal}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [call.body() for call in self.tool_calls]
        return message

    def speech(self, prompt: Prompt) -> Iterator[Step]:
        """The role chunk and the tokens, with their pauses."""
        yield Piece(chunk(prompt.model, {"role": "assistant", "content": ""}))
        yield from _paced(self, prompt.model)

    def ending(self, prompt: Prompt, *, done: bool = True) -> Iterator[Step]:
        """The finish reason, the usage if it was asked for, and `[DONE]`."""
        data = chunk(prompt.model, {}, self.reason)
        if prompt.include_usage:
            data += chunk(prompt.model, None, usage=self.usage_body(prompt))
        yield Piece(data + DONE if done else data)

    def whole(self, prompt: Prompt) -> bytes:
        """The body of an answer that is not streamed."""
        return completion(prompt.model, self.message(), self.reason, self.usage_body(prompt))

    def answer(self, prompt: Prompt) -> Answer:
        """The whole answer, streamed or not."""
        if prompt.stream:
            return self.streamed(_stream(self, prompt))
        return self.unstreamed([Piece(self.whole(prompt), len(self.deltas()))])

    def streamed(self, steps: Iterable[Step], content_type: str = _SSE) -> Answer:
        """An event stream of `steps` in place of this reply's own, with its headers and delays."""
        return Answer(
            headers={"content-type": content_type, "cache-control": "no-cache", **self.headers},
            steps=steps,
            framing="chunked" if self.framing == "length" else self.framing,
            delay=self.first_byte_delay,
        )

    def unstreamed(self, steps: Iterable[Step], content_type: str = _JSON) -> Answer:
        """A JSON body of `steps`, which is there when all tokens would have been generated."""
        delays = itertools.cycle(
            self.token_delay if isinstance(self.token_delay, tuple) else (self.token_delay,)
        )
        generation = sum(itertools.islice(delays, len(self.deltas())))
        return Answer(
            headers={"content-type": content_type, **self.headers},
            steps=steps,
            framing="close" if self.framing == "close" else "length",
            delay=self.first_byte_delay + self.first_token_delay + generation,
        )


@lru_cache(maxsize=256)
def _stream(reply: Reply, prompt: Prompt) -> tuple[Step, ...]:
    """The steps of a whole stream, encoded once: a benchmark sends it thousands of times."""
    return tuple(itertools.chain(reply.speech(prompt), reply.ending(prompt)))


def _paced(reply: Reply, model: str) -> Iterator[Step]:
    delays = itertools.cycle(
        reply.token_delay if isinstance(reply.token_delay, tuple) else (reply.token_delay,)
    )
    events = [chunk(model, delta) for delta in reply.deltas()]
    burst = max(1, reply.burst)
    for start in range(0, len(events), burst):
        group = events[start : start + burst]
        pause = reply.first_token_delay if start == 0 else sum(itertools.islice(delays, len(group)))
        if pause > 0:
            yield Pause(pause)
        yield Piece(b"".join(group), len(group))


@dataclass(frozen=True)
class Status:
    """A refusal, or any other plain answer.

    Attributes:
        code: HTTP status.
        body: Bytes and text are sent as they are, all else as JSON; None: an error object made from the code.
        headers: For instance `{"retry-after": "2"}`.
        delay: Seconds before it.
    """

    code: int
    body: Any = field(default=None, hash=False)
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)
    _: KW_ONLY
    delay: float = 0.0

    def answer(self, prompt: Prompt) -> Answer:
        """The status with its body."""
        body = (
            error_body(f"status {self.code}", type=_error_type(self.code)) if self.body is None else self.body
        )
        content_type = "text/plain" if isinstance(body, (bytes, str)) else _JSON
        data = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else encode(body)
        return Answer(
            status=self.code,
            headers={"content-type": content_type, **self.headers},
            steps=[Piece(data)],
            framing="length",
            delay=self.delay,
        )


def _error_type(code: int) -> str:
    return {401: "authentication_error", 403: "permission_error", 429: "requests"}.get(
        code, "server_error" if code >= 500 else "invalid_request_error"
    )


def context_length_exceeded(limit: int = 128_000) -> Status:
    """OpenAI's 400 for a prompt that is too long."""
    text = f"This model's maximum context length is {limit} tokens. However, your messages resulted in more."
    body = error_body(text, type="invalid_request_error", code="context_length_exceeded", param="messages")
    return Status(400, body)


def insufficient_quota() -> Status:
    """OpenAI's 429 for an account without money, which waiting does not help."""
    text = "You exceeded your current quota, please check your plan and billing details."
    return Status(429, error_body(text, type="insufficient_quota", code="insufficient_quota"))


def invalid_api_key() -> Status:
    """OpenAI's 401."""
    text = "Incorrect API key provided."
    return Status(401, error_body(text, type="invalid_request_error", code="invalid_api_key"))


def content_filter() -> Status:
    """Azure OpenAI's 400 for a prompt that its content policy refuses."""
    text = "The response was filtered due to the prompt triggering the content management policy."
    return Status(400, error_body(text, type="invalid_request_error", code="content_filter", param="prompt"))


def rate_limited(retry_after: float | str | None = None, headers: Mapping[str, str] | None = None) -> Status:
    """OpenAI's 429; `retry_after` goes into the header as it is (seconds, or a date)."""
    more = dict(headers or {})
    if retry_after is not None:
        more["retry-after"] = str(retry_after)
    body = error_body("Rate limit reached for requests.", type="requests", code="rate_limit_exceeded")
    return Status(429, body, more)


def overloaded(code: int = 503) -> Status:
    """A provider that is too busy."""
    return Status(
        code, error_body("The engine is currently overloaded.", type="server_error", code="overloaded")
    )
