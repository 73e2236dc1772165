"""HTTP/1.1 for a scripted provider: reads requests and carries out the steps of their answers.

A bare `asyncio.Protocol` without a task for each request, because the benchmarks want thousands of streams
a second from one process; and because the faults (resets, half headers) are below what HTTP
libraries let one do.
"""

from __future__ import annotations

import asyncio
import http
import itertools
import json
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from remote_inference.testing.behaviours import Answer, Pause, Piece, Step, Stop

__all__ = ["Application", "Connection", "ReceivedRequest"]

_MAX_HEAD = 65_536
_MAX_BODY = 256 * 1024 * 1024
_NO_LINGER = struct.pack("ii", 1, 0)  # closing then sends RST instead of FIN


@dataclass(eq=False)
class ReceivedRequest:
    """One request and what became of it. Times are `time.monotonic()`.

    Attributes:
        number: 1 for the server's first request.
        connection: The same for all requests of one connection.
        headers: Names in lower case; the credential is kept, so that a test can look at it.
        body: The JSON body, None if it is not JSON.
        status: Of the answer; 0 as long as none was chosen.
        tokens_sent: So far.
        answered_at: The headers were written.
        finished_at: The answer was written to its end, or broken off by the script.
        client_closed_at: The client closed the connection before that.
    """

    number: int
    connection: int
    method: str
    path: str
    headers: Mapping[str, str]
    data: bytes
    received_at: float
    status: int = 0
    tokens_sent: int = 0
    answered_at: float | None = None
    finished_at: float | None = None
    client_closed_at: float | None = None
    body: Any = field(init=False)

    def __post_init__(self) -> None:
        try:
            self.body = json.loads(self.data) if self.data else None
        except ValueError:
            self.body = None

    @property
    def key(self) -> str:
        """The bearer token, empty without one."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""

    @property
    def model(self) -> str:
        """The model that the body names, empty without one."""
        return str(self.body.get("model", "")) if isinstance(self.body, dict) else ""

    @property
    def open(self) -> bool:
        """Whether it is still being answered."""
        return self.finished_at is None and self.client_closed_at is None

    @property
    def closed_early(self) -> bool:
        """Whether the client closed the connection before the answer's end."""
        return self.client_closed_at is not None

    def __repr__(self) -> str:
        state = "open" if self.open else "closed early" if self.closed_early else "finished"
        sent = f"{self.tokens_sent} tokens"
        return f"<ReceivedRequest {self.number} {self.method} {self.path} {self.status} {sent} {state}>"


@dataclass(frozen=True)
class _Head:
    """The status line and headers; a type of its own, so that the time they went out is known."""

    data: bytes


_Act: TypeAlias = Step | _Head


class Application(Protocol):
    """What a connection asks of the server."""

    def respond(self, request: ReceivedRequest) -> Answer:
        """The answer to a request that has just arrived."""
        ...

    def sent(self, request: ReceivedRequest, tokens: int) -> None:
        """Some tokens were written."""
        ...

    def ended(self, request: ReceivedRequest) -> None:
        """The request is over, well or not."""
        ...

    def late(self, seconds: float) -> None:
        """A step was taken so long after it was due."""
        ...

    def connected(self, connection: Connection) -> int:
        """A connection was opened; returns its number."""
        ...

    def disconnected(self, connection: Connection) -> None:
        """It is closed."""
        ...


class Connection(asyncio.Protocol):
    """One client's connection, one request after the other."""

    def __init__(self, application: Application, numbers: Iterator[int]) -> None:
        self._app = application
        self._numbers = numbers
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._request: ReceivedRequest | None = None
        self._steps: Iterator[_Act] = iter(())
        self._chunked = False
        self._close = False
        self._paused = False
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._number = 0

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._number = self._app.connected(self)

    def data_received(self, data: bytes) -> None:
        """Collect a request; begin it when it is whole."""
        self._buffer += data
        if self._request is None:
            self._next()

    def eof_received(self) -> None:
        """A client that shuts its side down has gone: what is still to be sent would go nowhere."""
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end, by whichever side; an answer under way was broken off by the client."""
        self._stop_timer()
        request, self._request = self._request, None
        if request is not None:
            request.client_closed_at = time.monotonic()
            self._app.ended(request)
        self._app.disconnected(self)

    def pause_writing(self) -> None:
        """The client reads slowly: wait for it."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on, unless a pause of the script's is running."""
        self._paused = False
        if self._request is not None and self._timer is None:
            self._pump()

    def close(self) -> None:
        """Drop the connection, whatever is under way."""
        self._transport.abort()

    # reading

    def _next(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD:
                self._transport.abort()
            return
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        parts = first.split(" ")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        length = headers.get("content-length", "0")
        if (
            len(parts) != 3
            or not length.isdigit()
            or int(length) > _MAX_BODY
            or "transfer-encoding" in headers
        ):
            self._transport.write(
                b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
            self._transport.close()
            return
        total = end + 4 + int(length)
        if len(self._buffer) < total:
            return
        body = bytes(self._buffer[end + 4 : total])
        del self._buffer[:total]
        self._close = headers.get("connection", "").lower() == "close"
        self._request = ReceivedRequest(
            next(self._numbers), self._number, parts[0], parts[1], headers, body, time.monotonic()
        )
        self._begin(self._request)

    # answering

    def _begin(self, request: ReceivedRequest) -> None:
        answer = self._app.respond(request)
        request.status = answer.status
        head, steps = self._render(answer, request)
        request_steps: list[_Act] = [] if not answer.delay else [Pause(answer.delay)]
        if answer.delay is None:
            self._steps = iter([Stop.HANG])
        else:
            self._steps = itertools.chain(request_steps, head, steps)
        self._due = self._loop.time()
        self._pump()

    def _render(self, answer: Answer, request: ReceivedRequest) -> tuple[Iterator[_Act], Iterator[_Act]]:
        steps: Iterator[_Act] = iter(answer.steps)
        headers = {"server": "fake", "x-request-id": f"req-{request.number}", **answer.headers}
        self._chunked = answer.framing == "chunked"
        if answer.framing == "chunked":
            headers["transfer-encoding"] = "chunked"
        elif answer.framing == "length":
            whole = list(steps)
            headers["content-length"] = str(sum(len(step.data) for step in whole if isinstance(step, Piece)))
            steps = iter(whole)
        else:
            self._close = True
        if self._close:
            headers["connection"] = "close"
        try:
            phrase = http.HTTPStatus(answer.status).phrase
        except ValueError:
            phrase = "Unknown"
        lines = [
            f"HTTP/1.1 {answer.status} {phrase}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        head: Iterator[_Act] = iter([_Head(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))])
        if answer.drip_head is not None:
            head = _drip(head, *answer.drip_head)
        framed = (_frame(step) for step in steps) if self._chunked else steps
        if self._chunked:
            framed = itertools.chain(framed, [Piece(b"0\r\n\r\n")])
        if answer.drip_body is not None:
            framed = _drip(framed, *answer.drip_body)
        return head, framed

    def _pump(self) -> None:
        """Take steps until one has to wait. Pauses are counted from when they should have begun: no drift."""
        request = self._request
        assert request is not None
        self._timer = None
        write = self._transport.write
        for step in self._steps:
            if isinstance(step, Piece):
                if step.data:
                    write(step.data)
                if step.tokens:
                    request.tokens_sent += step.tokens
                    self._app.sent(request, step.tokens)
                if self._paused or self._transport.is_closing():
                    return
            elif isinstance(step, Pause):
                self._due += step.seconds
                if self._due > self._loop.time():
                    self._timer = self._loop.call_at(self._due, self._resume)
                    return
            elif isinstance(step, _Head):
                request.answered_at = time.monotonic()
                write(step.data)
            elif step is Stop.HANG:
                return
            else:
                self._break(request, step)
                return
        self._finish(request)

    def _resume(self) -> None:
        self._timer = None
        self._app.late(self._loop.time() - self._due)
        if not self._paused:
            self._pump()

    def _finish(self, request: ReceivedRequest) -> None:
        request.finished_at = time.monotonic()
        self._request = None
        self._app.ended(request)
        if self._close:
            self._transport.close()
        elif self._buffer:
            # Not at once: a client that pipelines must not make this recurse.
            self._loop.call_soon(self._next_if_idle)

    def _next_if_idle(self) -> None:
        if self._request is None and not self._transport.is_closing():
            self._next()

    def _break(self, request: ReceivedRequest, how: Stop) -> None:
        request.finished_at = time.monotonic()
        self._request = None
        self._app.ended(request)
        if how is Stop.RESET:
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._transport.abort()
        else:
            self._transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _frame(step: _Act) -> _Act:
    """A piece as one HTTP chunk. An empty piece would be the end of the body: it is dropped."""
    if isinstance(step, Piece) and step.data:
        return Piece(b"%x\r\n%b\r\n" % (len(step.data), step.data), step.tokens)
    return step


def _drip(steps: Iterator[_Act], size: int, interval: float) -> Iterator[_Act]:
    """The same bytes, `size` at a time and `interval` seconds apart, without the pauses of the steps."""
    for step in steps:
        if isinstance(step, Piece):
            for start in range(0, len(step.data), size):
                yield Piece(step.data[start : start + size], step.tokens if start == 0 else 0)
                yield Pause(interval)
        elif isinstance(step, _Head):
            for start in range(0, len(step.data), size):
                yield Piece(step.data[start : start + size])
                yield Pause(interval)
            yield _Head(b"")
        elif not isinstance(step, Pause):
            yield step
