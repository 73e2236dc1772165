"""Recorded answers: the bytes that a server sends, and the right reading of them, as files.

A recording is a JSON file, so that a case is data and needs no code::

    {
      "about": "two calls under one index",
      "source": "https://github.com/OWNER/NAME/issues/1",
      "made": "from the report's text",
      "events": [{"choices": [...]}, "[DONE]"],
      "expect": {"text": "", "tool_calls": [["call_a", "f", "{}"]], "finish_reason": "tool_calls"}
    }

In place of ``events`` it may have ``lines`` (an event stream as it is, line by line), ``body`` (text, or JSON that is
encoded), or ``base64``. ``status``, ``headers`` and ``options`` (of the deployment) are optional.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import Deployment
from ..credentials import Secret
from ..errors import RequestError
from ..providers import AnswerFeed, Provider, ProviderCall
from ..types import InferenceRequest, TokenChunk, ToolCallDelta

__all__ = ["NOW", "Reading", "Recording", "read_answer"]

NOW = 1_800_000_000.0
"""Seconds since the epoch when a recording was made, for headers that name a time: 2027-01-15 08:00:00 UTC."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One answer as it came.

    Attributes:
        name: of the case.
        about: what is strange in it.
        source: where it was seen: an address, or a document.
        made: how the bytes were made. A recording that no server sent says so here.
        body: the bytes.
        status: of HTTP.
        headers: likewise.
        stream: whether a stream was asked for.
        options: of the deployment.
        expect: the right reading (`Reading.matches`).
        ends_early: it says that it has ended while more follows: where the body ends there, it looks like a whole one.
        official: what the format's official client makes of it: ``same``, or in what it differs and why.
    """

    name: str
    about: str = ""
    source: str = ""
    made: str = ""
    body: bytes = field(repr=False)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    expect: Mapping[str, Any] = field(default_factory=dict)
    ends_early: bool = False
    official: str = ""

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read a file.

        Raises:
            ValueError: it is no recording.
        """
        data = json.loads(path.read_text("utf-8"))
        ways = data.keys() & {"base64", "body", "events", "lines"}
        unknown = data.keys() - {
            "about", "base64", "body", "ends_early", "events", "expect", "headers", "lines", "made", "official",
            "options", "source", "status", "stream",
        }  # fmt: skip
        if len(ways) != 1 or unknown:
            raise ValueError(f"{path.name}: one of base64, body, events or lines, and no {sorted(unknown)}")
        [way] = ways
        return cls(
            name=path.stem,
            body=_encoded(way, data.pop(way)),
            **{name: value for name, value in data.items() if name not in ways},
        )

    @classmethod
    def load_all(cls, directory: Path) -> list[Recording]:
        """All files below a directory, in the order of their names."""
        return [cls.load(path) for path in sorted(directory.rglob("*.json"))]


def _encoded(way: str, value: Any) -> bytes:
    if way == "base64":
        return base64.b64decode(value)
    if way == "body":
        return value.encode() if isinstance(value, str) else json.dumps(value, ensure_ascii=False).encode()
    if way == "lines":
        return "".join(f"{line}\n" for line in value).encode()
    # ASCII only: half of a surrogate pair can be written so, and in no other way
    events = (event if isinstance(event, str) else json.dumps(event) for event in value)
    return "".join(f"data: {event}\n\n" for event in events).encode()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was read: the output put together, how it ended, or the error that ended it.

    Attributes:
        chunks: everything that came, neighbours of the same kind put together.
        text: put together.
        reasoning: likewise.
        refusal: likewise.
        tool_calls: id, name and arguments of each.
        finish_reason: by its name, None if there was none.
        usage: `TokenUsage.to_wire`, None if none was told.
        error: the class's name, empty if there was none.
        said: the error's text.
        raised: the error itself.
    """

    chunks: tuple[Any, ...] = field(repr=False, default=())
    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: tuple[tuple[str, str, str], ...] = ()
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    error: str = ""
    said: str = ""
    raised: RequestError | None = field(default=None, compare=False)

    def matches(self, expect: Mapping[str, Any]) -> list[str]:
        """What is not as it should be, a line each.

        ``expect`` has any of the attributes' names, and for an error those of its fields (``code``, ``retry_after``
        …) too. An answer is not to fail unless ``error`` is there.
        """
        lines = []
        for name, wanted in {"error": "", **expect}.items():
            found = (
                getattr(self, name)
                if name in Reading.__dataclass_fields__
                else getattr(self.raised, name, None)
            )
            if _plain(found) != _plain(wanted):
                lines.append(f"{name}: {found!r} should be {wanted!r}")
        return lines


def _plain(value: Any) -> Any:
    """As JSON has it, floats to the microsecond."""
    return json.loads(json.dumps(value), parse_float=lambda text: round(float(text), 6))


def read_answer(
    provider: Provider,
    deployment: Deployment,
    recording: Recording,
    pieces: Iterable[bytes] | None = None,
    *,
    key: Secret | None = None,
    prompt: str = "why?",
) -> Reading:
    """Have a provider read a recording, without a network.

    Args:
        provider: which reads.
        deployment: which was asked.
        recording: what it answered.
        pieces: the body as it arrives; None: in one piece.
        key: which was sent.
        prompt: likewise.
    """
    call = ProviderCall(
        request=InferenceRequest.parse(deployment.name, prompt),
        deployment=deployment,
        credential=key,
        stream=recording.stream,
    )
    chunks: list[TokenChunk] = []
    raised: RequestError | None = None
    try:
        if not 200 <= recording.status < 300:
            body = recording.body if pieces is None else b"".join(pieces)
            raise provider.error(call, recording.status, recording.headers, body, now=NOW)
        for chunk in _chunks(provider, call, (recording.body,) if pieces is None else pieces):
            chunks.append(chunk)
    except RequestError as exc:
        raised = exc
    return _reading(chunks, raised)


def _chunks(provider: Provider, call: ProviderCall, pieces: Iterable[bytes]) -> Iterator[TokenChunk]:
    reader = provider.reader(call)
    feed = AnswerFeed(reader, stream=call.stream)
    try:
        for piece in pieces:
            yield from feed.feed(piece)
            if reader.done:
                break
    except RequestError:
        if reader.usage is not None:
            yield TokenChunk(usage=reader.usage)
        raise
    yield from feed.end()


def _reading(chunks: Sequence[TokenChunk], raised: RequestError | None) -> Reading:
    calls: dict[int, list[str]] = {}
    together: list[Any] = []

    def put(kind: Any, piece: str) -> None:
        if together and together[-1][0] == kind:
            together[-1] = (kind, together[-1][1] + piece)
        else:
            together.append((kind, piece))

    for chunk in chunks:
        for kind, piece in (
            ("text", chunk.text_delta),
            ("reasoning", chunk.reasoning_delta),
            ("refusal", chunk.refusal_delta),
        ):
            if piece:
                put(kind, piece)
        for delta in chunk.tool_calls:
            _add_call(calls, delta)
            put(("call", delta.index, delta.id, delta.name), delta.arguments)
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    finishes = [str(chunk.finish_reason) for chunk in chunks if chunk.finish_reason is not None]
    return Reading(
        chunks=tuple(together),
        text="".join(chunk.text_delta for chunk in chunks),
        reasoning="".join(chunk.reasoning_delta for chunk in chunks),
        refusal="".join(chunk.refusal_delta for chunk in chunks),
        tool_calls=tuple((i, n, a) for _, (i, n, a) in sorted(calls.items())),
        finish_reason=finishes[-1] if finishes else None,
        usage=usages[-1].to_wire() if usages else None,
        error="" if raised is None else type(raised).__name__,
        said="" if raised is None else str(raised),
        raised=raised,
    )


def _add_call(calls: dict[int, list[str]], delta: ToolCallDelta) -> None:
    call = calls.setdefault(delta.index, ["", "", ""])
    call[0] = call[0] or delta.id
    call[1] = call[1] or delta.name
    call[2] += delta.arguments
