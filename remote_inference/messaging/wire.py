"""The JSON of what travels beside the request: the message header, the replies, the commands on the bus.

A request's id tells who waits for it: its first 16 hexadecimal digits are the client process's, the rest counts.
So whoever knows an id can reach the caller, an operator's revoke too.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InferenceError, InvalidRequest, UndecodableMessage, error_from_wire, error_to_wire
from ..types import WIRE_VERSION, Completion, TokenChunk
from ..value import Value
from .names import HEADER

__all__ = [
    "Answer",
    "Chunk",
    "ClientIdentity",
    "Envelope",
    "Command",
    "Outcome",
    "client_of",
    "decode_replies",
    "dumps",
    "loads",
    "reply_to_of",
]


_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
_STRICT = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def dumps(value: Any, *, strict: bool = False) -> bytes:
    """Compact JSON in UTF-8; half a surrogate pair, which is no UTF-8, is escaped.

    Raises:
        TypeError, ValueError: it is no JSON. With ``strict``, NaN and the infinities are none.
    """
    text = (_STRICT if strict else _ENCODER).encode(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"), allow_nan=not strict).encode()


def loads(body: bytes | str | memoryview) -> Any:
    """Read JSON; ValueError when it is none."""
    if isinstance(body, memoryview):
        body = bytes(body)
    if isinstance(body, bytes):
        body = body.decode("utf-8", "surrogatepass")
    try:
        return json.loads(body)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


class ClientIdentity:
    """Makes the request ids of one client process."""

    def __init__(self) -> None:
        self.token = os.urandom(8).hex()
        self.pid = os.getpid()
        self._count = itertools.count(int.from_bytes(os.urandom(5), "big"))

    def new_id(self) -> str:
        """A request id that looks like a UUID and begins with this client's digits."""
        digits = f"{self.token}{next(self._count) & 0xFFFFFFFFFFFFFFFF:016x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

    def __repr__(self) -> str:
        return f"ClientIdentity({self.token})"


def client_of(request_id: str) -> str:
    """The client's digits in an id (of a foreign id: digits that nobody listens to)."""
    return request_id.replace("-", "")[:16]


def reply_to_of(value: Any) -> str:
    """Who is to be told of a message whose header (`HEADER`) is perhaps of no version that is known here."""
    return str(value.get("reply") or "") if isinstance(value, Mapping) else ""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Envelope(Value):
    """The header of a request's message.

    Attributes:
        reply_to: the client's digits, or "" when nobody reads chunks and outcome.
        sent: the sender's clock, seconds since the epoch.
        deadline: on the sender's clock too, or None.
        on_disconnect: ``cancel`` or ``finish``: what happens when the reader is gone.
        tokens: the estimate to reserve.
    """

    reply_to: str = ""
    sent: float = 0.0
    deadline: float | None = None
    on_disconnect: str = "cancel"
    tokens: int = 0

    def to_headers(self) -> dict[str, Any]:
        """The message header."""
        value: dict[str, Any] = {"v": WIRE_VERSION, "sent": self.sent, "tokens": self.tokens}
        if self.reply_to:
            value["reply"] = self.reply_to
            value["gone"] = self.on_disconnect
        if self.deadline is not None:
            value["deadline"] = self.deadline
        return {HEADER: value}

    @classmethod
    def from_headers(cls, headers: Mapping[str, Any] | None) -> Envelope:
        """Read the header; a message without one (of plain Celery) has no reader and no deadline.

        Raises:
            UndecodableMessage: a version that is not known, or wrong types.
        """
        value = (headers or {}).get(HEADER)
        if value is None:
            return cls()
        if not isinstance(value, Mapping):
            raise UndecodableMessage("the header is not a mapping")
        version = value.get("v")
        if not isinstance(version, int) or version > WIRE_VERSION:
            raise UndecodableMessage(f"message version {version!r}; this worker reads up to {WIRE_VERSION}")
        try:
            return cls(
                reply_to=str(value.get("reply", "")),
                sent=_seconds(value.get("sent", 0.0)),
                deadline=None if value.get("deadline") is None else _seconds(value["deadline"]),
                on_disconnect=str(value.get("gone", "cancel")),
                tokens=int(value.get("tokens", 0)),
            )
        except (TypeError, ValueError, OverflowError) as exc:
            raise UndecodableMessage("a field of the header has a wrong type") from exc

    def local_deadline(self, now: float) -> float | None:
        """The deadline on the reader's clock, which may run apart from the sender's.

        The message cannot have arrived before it was sent: a sender's clock that is ahead is corrected by that. One
        that is behind cannot be told from a long wait in the queue, and errs on the short side.
        """
        if self.deadline is None:
            return None
        return self.deadline + min(0.0, now - self.sent) if self.sent else self.deadline


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not math.isfinite(seconds):  # a deadline that is no number would never pass
        raise ValueError("not a time")
    return seconds


@dataclass(frozen=True, eq=False, repr=False)
class Chunk(Value):
    """A chunk as it travels: the output since the last one."""

    request_id: str
    epoch: str
    sequence: int
    chunk: TokenChunk

    def encode(self) -> bytes:
        """JSON."""
        return dumps({"i": self.request_id, "e": self.epoch, "s": self.sequence, **self.chunk.to_wire()})


@dataclass(frozen=True, eq=False, repr=False)
class Outcome(Value):
    """How a request ended: a completion, or an error."""

    request_id: str
    epoch: str
    completion: Completion | None = None
    error: InferenceError | None = None
    notice: bool = False
    """Only word of a cancel, from a worker that does not run the request (see `client.handle`)."""

    def encode(self) -> bytes:
        """JSON."""
        wire: dict[str, Any] = {"i": self.request_id, "e": self.epoch, "v": WIRE_VERSION}
        if self.completion is not None:
            wire["completion"] = self.completion.to_wire()
        if self.error is not None:
            wire["error"] = error_to_wire(self.error)
        if self.notice:
            wire["notice"] = True
        return dumps(wire)


@dataclass(frozen=True, eq=False, repr=False)
class Answer(Value):
    """A worker's answer to a `Command`; ``token`` is the command's."""

    token: str
    worker: str
    value: dict[str, Any]

    def encode(self) -> bytes:
        """JSON."""
        return dumps({"i": self.token, "e": "", "worker": self.worker, "answer": self.value})


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Command(Value):
    """What goes to every worker over the bus.

    ``kind``: ``cancel`` (``subject``: the request's id), ``rebuild``, ``open_circuit`` (for ``seconds``),
    ``close_circuit``, ``urgent`` (``subject``: the deployment) or ``status``. ``reply_to``: where an answer is
    wanted. ``token``: the answer's, and what the command is known by, whoever tells of it.
    """

    kind: str
    subject: str = ""
    reason: str = ""
    reply_to: str = ""
    token: str = ""
    seconds: float = 0.0

    def encode(self) -> bytes:
        """JSON."""
        wire: dict[str, Any] = {
            "v": WIRE_VERSION,
            "kind": self.kind,
            "subject": self.subject,
            "reason": self.reason,
        }
        if self.seconds:
            wire["seconds"] = self.seconds
        if self.reply_to:
            wire["reply"] = self.reply_to
        if self.token:
            wire["token"] = self.token
        return dumps(wire)

    @classmethod
    def decode(cls, body: bytes | str | memoryview) -> Command:
        """Read `encode`.

        Raises:
            ValueError, KeyError, TypeError: it is no command of a version that is known.
        """
        wire = loads(body)
        if not isinstance(wire["v"], int) or wire["v"] > WIRE_VERSION:
            raise ValueError(f"version {wire['v']!r}")
        texts = {key: str(wire.get(name, "")) for key, name in _COMMAND_FIELDS}
        return cls(**texts, seconds=float(wire.get("seconds", 0.0)))


_COMMAND_FIELDS = (
    ("kind", "kind"),
    ("subject", "subject"),
    ("reason", "reason"),
    ("reply_to", "reply"),
    ("token", "token"),
)


def decode_replies(body: bytes | str | memoryview) -> list[Chunk | Outcome | Answer]:
    """Read a reply as the three ``encode`` wrote it, or a list of chunks (of several streams to one client).

    Raises:
        ValueError, KeyError, TypeError: it is none of them.
    """
    wire = loads(body)
    return [_reply(one) for one in wire] if isinstance(wire, list) else [_reply(wire)]


def _reply(wire: dict[str, Any]) -> Chunk | Outcome | Answer:
    request_id, epoch = wire["i"], wire["e"]
    if not isinstance(request_id, str) or not isinstance(epoch, str):
        raise TypeError("id and epoch of a reply are strings")
    sequence = wire.get("s")
    if sequence is not None:
        return Chunk(request_id, epoch, sequence, TokenChunk.from_wire(wire, request_id, epoch, sequence))
    if "answer" in wire:
        return Answer(request_id, wire["worker"], wire["answer"])
    completion, error = wire.get("completion"), wire.get("error")
    try:
        return Outcome(
            request_id,
            epoch,
            Completion.from_wire(completion) if completion is not None else None,
            error_from_wire(error) if error is not None else None,
            bool(wire.get("notice")),
        )
    except (AttributeError, InvalidRequest) as exc:  # what should be an object is none
        raise ValueError("not an outcome of ours") from exc
