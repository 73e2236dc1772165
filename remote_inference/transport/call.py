"""One call on one connection: its clocks, and the socket that a cancel cuts.

Four times bound a call: connecting, the first byte (and, when the answer is a stream, the first data in it),
the gap between data, and the caller's deadline over all of them. A socket's own timeout starts anew with each
byte, so every read is given what is left of the phase: a server that drips its headers, or sends comments for
ever, gains nothing.
"""

from __future__ import annotations

import _socket
import os
import socket
import threading
from typing import TYPE_CHECKING, Protocol

from ..cancel import CancelToken
from ..clock import Clock
from ..config import Timeouts
from ..errors import DeadlineExceeded, RequestError, Timeout

if TYPE_CHECKING:
    import http.client

__all__ = ["UNSTREAMED_LIMIT", "Call"]

UNSTREAMED_LIMIT = 600.0
"""Seconds for a call that is not streamed and has no deadline.

Its first byte comes when the whole answer has been generated, so the first-byte clock would cut long answers,
and they would be paid for again. The official OpenAI client waits as long.
"""


class _Closable(Protocol):
    def close(self) -> None: ...


class Call:
    """The state of one call that the connection, the reader and the canceller share.

    Descriptors are closed and cut under one lock: a cut never hits a descriptor that was closed and given to
    somebody else in between.

    Attributes:
        lock: held while the call's descriptors are closed or cut.
        afresh: an idle connection must not be used: the last one had been closed by the server.
        fresh: a connection was opened for this call.
        received: bytes of the answer so far, headers included.
        response: the answer whose head has arrived.
    """

    def __init__(
        self, timeouts: Timeouts, clock: Clock, token: CancelToken, deadline: float | None, *, stream: bool
    ) -> None:
        self.lock = threading.RLock()
        self.afresh = False
        self.fresh = False
        self.received = 0
        self.response: http.client.HTTPResponse | None = None
        self._timeouts = timeouts
        self._clock = clock
        self._token = token
        self._sock: socket.socket | None = None
        self._dialled: _socket.socket | None = None
        self._own_limit = deadline is None and not stream
        self._deadline = clock.monotonic() + UNSTREAMED_LIMIT if self._own_limit else deadline
        self._stream = stream
        self._phase = "connect"
        self._limit: float | None = timeouts.connect
        self._ends: float | None = None
        self._deadline_binds = False

    # the clocks

    def remaining(self) -> float | None:
        """Seconds that the next wait may take; None: no limit. The phase's clock runs from its first wait.

        Raises:
            TimeoutError: none are left.
        """
        now = self._clock.monotonic()
        ends = self._ends
        if ends is None and self._limit is not None:
            ends = self._ends = now + self._limit
        deadline = self._deadline
        self._deadline_binds = deadline is not None and (ends is None or deadline <= ends)
        if self._deadline_binds:
            ends = deadline
        if ends is None:
            return None
        if ends <= now:
            raise TimeoutError("out of time")
        return ends - now

    def again(self) -> None:
        """The call starts over, on a connection of its own."""
        self.afresh = True
        self._phase, self._ends, self._limit = "connect", None, self._timeouts.connect

    def await_first_byte(self) -> None:
        """The request is about to be sent: the first byte's clock begins."""
        self._phase, self._ends = "first_byte", None
        self._limit = self._timeouts.first_byte if self._stream else None

    def progress(self, limit: float | None = None) -> None:
        """Data has come: the clock of the gap begins with the next wait.

        Args:
            limit: seconds for this gap, if fewer than the read timeout.
        """
        self._phase, self._ends = "read", None
        self._limit = self._timeouts.read if limit is None else min(limit, self._timeouts.read)

    def timed_out(self) -> RequestError:
        """The error for the clock that ran out."""
        if self._deadline_binds and not self._own_limit:
            return DeadlineExceeded("running")
        return Timeout(self._phase)

    # the socket

    def dialling(self, sock: socket.socket) -> None:
        """This socket is being connected.

        Its descriptor moves to another object when TLS begins, so a duplicate is kept until the connection
        stands.
        """
        self.dialled()
        with self.lock:
            self._dialled = _duplicate(sock)
        self._cut_if_cancelled()

    def dialled(self) -> None:
        """Connecting is over, well or not."""
        with self.lock:
            if self._dialled is not None:
                self._dialled.close()
                self._dialled = None

    def attach(self, sock: socket.socket) -> None:
        """The call goes on over this socket."""
        self._sock = sock
        self._cut_if_cancelled()

    def _cut_if_cancelled(self) -> None:
        # An order that came before there was a socket has found nothing to cut.
        if self._token.cancelled:
            self.cut()

    def over(self) -> None:
        """Nothing is left to cut: the connection may go to another call."""
        with self.lock:
            self._sock = None

    def close(self, thing: _Closable) -> None:
        """Close what may hold the descriptor, out of the canceller's way."""
        with self.lock:
            thing.close()

    def cut(self) -> None:
        """End whatever this call waits for, from any thread.

        Both directions, on a duplicate of the bare descriptor: SHUT_RD alone tells the server nothing, and
        ``SSLSocket.shutdown`` would drop the TLS state, so that the reader got ciphertext.
        """
        with self.lock:
            if self._dialled is not None:
                _shut_down(self._dialled)
            elif self._sock is not None and self._sock.fileno() >= 0:
                duplicate = _duplicate(self._sock)
                _shut_down(duplicate)
                duplicate.close()

    def __repr__(self) -> str:
        return f"<Call {self._phase}, {self.received} bytes received>"


def _duplicate(sock: socket.socket) -> _socket.socket:
    # The C socket: the same object whether gevent has replaced socket.socket or not.
    return _socket.socket(fileno=os.dup(sock.fileno()))


def _shut_down(sock: _socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:  # not connected any more, or not yet
        pass
