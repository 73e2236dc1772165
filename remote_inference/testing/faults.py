"""What can go wrong on the way from a provider, as behaviours: cuts, stalls, silence, broken chunks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Literal

from remote_inference.testing.behaviours import (
    Answer,
    Framing,
    Pause,
    Piece,
    Prompt,
    Reply,
    Status,
    Step,
    Stop,
)
from remote_inference.testing.wire import DONE, completion, encode, error_body, event

__all__ = [
    "BadChunk",
    "Comments",
    "Cut",
    "Drip",
    "HugeLine",
    "NoDone",
    "Raw",
    "Redirect",
    "Silent",
    "SlowHeaders",
    "Stall",
    "StreamError",
    "Unfinished",
    "WrongContentType",
]


_PLAIN = Reply()
_SHORT = Reply(tokens=3)


def _until(steps: Iterable[Step], tokens: int) -> Iterator[Step]:
    """The steps up to and with the one that makes `tokens` full."""
    sent = 0
    for step in steps:
        if isinstance(step, Piece) and step.tokens and sent >= tokens:
            return
        yield step
        sent += step.tokens if isinstance(step, Piece) else 0


def _broken(reply: Reply, prompt: Prompt, after: int, rest: Iterable[Step]) -> Answer:
    """The reply's first `after` tokens, then `rest`; not streamed, half of the body stands for the tokens."""
    if prompt.stream:
        return reply.streamed(itertools.chain(_until(reply.speech(prompt), after), rest))
    body = reply.whole(prompt)
    # The Content-Length is the whole body's, so that the missing half is missed.
    reply_headers = {"content-length": str(len(body))} if reply.framing != "close" else {}
    answer = reply.unstreamed(itertools.chain([Piece(body[: len(body) // 2])], rest))
    return replace(answer, headers={**answer.headers, **reply_headers}, framing="close")


@dataclass(frozen=True)
class Cut:
    """The connection is lost after some tokens: reset, or closed in good order but too early."""

    after: int = 3
    _: KW_ONLY
    reset: bool = True
    reply: Reply = _PLAIN

    def answer(self, prompt: Prompt) -> Answer:
        """The first tokens, then the end of the connection."""
        # A reset throws away what the client has not read yet: leave it a moment.
        rest: list[Step] = [Pause(0.05), Stop.RESET] if self.reset else [Stop.CLOSE]
        return _broken(self.reply, prompt, self.after, rest)


@dataclass(frozen=True)
class Stall:
    """Some tokens, then silence on an open connection."""

    after: int = 3
    _: KW_ONLY
    reply: Reply = _PLAIN

    def answer(self, prompt: Prompt) -> Answer:
        """The first tokens, then nothing."""
        return _broken(self.reply, prompt, self.after, [Stop.HANG])


@dataclass(frozen=True)
class Silent:
    """Nothing comes: not even the headers, or the headers and no body."""

    before: Literal["headers", "body"] = "headers"

    def answer(self, prompt: Prompt) -> Answer:
        """The silence asked for."""
        answer = Reply().streamed([Stop.HANG])
        return answer if self.before == "body" else Answer(delay=None)


@dataclass(frozen=True)
class Unfinished:
    """All tokens but no finish reason, in a response that ends well; with or without `[DONE]`."""

    _: KW_ONLY
    done: bool = False
    reply: Reply = _PLAIN

    def answer(self, prompt: Prompt) -> Answer:
        """The tokens, and no end."""
        reply = self.reply
        if not prompt.stream:
            body = completion(prompt.model, reply.message(), None, reply.usage_body(prompt))
            return reply.unstreamed([Piece(body)])
        end = [Piece(DONE)] if self.done else []
        return reply.streamed(itertools.chain(reply.speech(prompt), end))


@dataclass(frozen=True)
class NoDone:
    """A whole answer without the `[DONE]` that should follow it."""

    _: KW_ONLY
    reply: Reply = _PLAIN

    def answer(self, prompt: Prompt) -> Answer:
        """The answer with its finish reason."""
        reply = self.reply
        if not prompt.stream:
            return reply.answer(prompt)
        return reply.streamed(itertools.chain(reply.speech(prompt), reply.ending(prompt, done=False)))


@dataclass(frozen=True)
class BadChunk:
    """A chunk that is not JSON after some tokens; the rest of the answer follows it."""

    after: int = 3
    _: KW_ONLY
    data: str = '{"choices": [{"del'
    reply: Reply = _PLAIN

    def answer(self, prompt: Prompt) -> Answer:
        """The answer with the bad chunk in it."""
        if not prompt.stream:
            return self.reply.unstreamed([Piece(self.data.encode())])
        bad = Piece(f"data: {self.data}\n\n".encode())
        return _broken(self.reply, prompt, self.after, itertools.chain([bad], self.reply.ending(prompt)))


@dataclass(frozen=True)
class StreamError:
    """An `error` object inside a response that began with 200."""

    after: int = 3
    _: KW_ONLY
    error: Mapping[str, Any] = field(
        default_factory=lambda: error_body(
            "The server is overloaded.", type="server_error", code="overloaded"
        ),
        hash=False,
    )
    reply: Reply = _PLAIN

    def answer(self, prompt: Prompt) -> Answer:
        """The first tokens, then the error."""
        if not prompt.stream:
            return self.reply.unstreamed([Piece(encode(self.error))])
        return _broken(self.reply, prompt, self.after, [Piece(event(self.error))])


@dataclass(frozen=True)
class Comments:
    """Some tokens, then nothing but comments (`: ping`), for ever."""

    after: int = 0
    _: KW_ONLY
    interval: float = 0.05
    reply: Reply = _PLAIN

    def answer(self, prompt: Prompt) -> Answer:
        """The first tokens, then the comments."""
        ping: tuple[Step, ...] = (Pause(self.interval), Piece(b": ping\n\n"))
        pings = itertools.cycle(ping)
        if self.after == 0:
            return self.reply.streamed(pings)
        return _broken(self.reply, prompt, self.after, pings)


@dataclass(frozen=True)
class Drip:
    """A good answer whose body arrives a few bytes at a time."""

    size: int = 1
    _: KW_ONLY
    interval: float = 0.001
    reply: Reply = _SHORT

    def answer(self, prompt: Prompt) -> Answer:
        """The reply, dripping."""
        return replace(self.reply.answer(prompt), drip_body=(self.size, self.interval))


@dataclass(frozen=True)
class SlowHeaders:
    """A good answer whose status line and headers arrive a few bytes at a time."""

    interval: float = 0.05
    _: KW_ONLY
    size: int = 4
    reply: Reply = _PLAIN

    def answer(self, prompt: Prompt) -> Answer:
        """The reply, its head dripping."""
        return replace(self.reply.answer(prompt), drip_head=(self.size, self.interval))


@dataclass(frozen=True)
class HugeLine:
    """A `data:` line of `size` bytes that does not end, then silence."""

    size: int = 8_000_000

    def answer(self, prompt: Prompt) -> Answer:
        """The line, in pieces that a socket takes."""
        block = 65_536
        pieces = (Piece(b"x" * min(block, self.size - at)) for at in range(0, self.size, block))
        return Reply().streamed(itertools.chain([Piece(b"data: ")], pieces, [Stop.HANG]))


@dataclass(frozen=True)
class WrongContentType:
    """Status 200 and something that is neither a stream nor JSON, as a captive portal or a proxy sends it."""

    content_type: str = "text/html"
    body: str = "<html><body>Please log in</body></html>"

    def answer(self, prompt: Prompt) -> Answer:
        """The page."""
        return Reply().unstreamed([Piece(self.body.encode())], self.content_type)


@dataclass(frozen=True)
class Redirect:
    """A redirect, which a client must not follow with the credential in its hand."""

    location: str
    status: int = 307

    def answer(self, prompt: Prompt) -> Answer:
        """The redirect."""
        return Status(self.status, b"", {"location": self.location}).answer(prompt)


@dataclass(frozen=True)
class Raw:
    """Bytes of one's own as the body of a 200; each element is one write."""

    body: tuple[bytes, ...]
    _: KW_ONLY
    content_type: str = "text/event-stream"
    framing: Framing = "chunked"
    interval: float = 0.0
    end: Stop | None = None

    def answer(self, prompt: Prompt) -> Answer:
        """The bytes, with `interval` seconds between two writes."""
        steps: list[Step] = []
        for number, data in enumerate(self.body):
            if number and self.interval > 0:
                steps.append(Pause(self.interval))
            steps.append(Piece(data))
        if self.end is not None:
            steps.append(self.end)
        return Answer(headers={"content-type": self.content_type}, steps=steps, framing=self.framing)
