"""`ReadAhead`: reads all that has come on an AMQP connection with one system call, instead of some 24 a message."""

from __future__ import annotations

import ssl
from typing import Any

__all__ = ["ReadAhead"]

SIZE = 65_536
"""Bytes read at once."""


class _Dry(TimeoutError):
    """There is nothing more to read as yet. (After this kind of error py-amqp goes on where it was.)"""


class ReadAhead:
    """A buffer between py-amqp and its socket.

    A message comes as three frames, of which py-amqp reads each in three parts, and sets the socket's timeout before
    and after each frame; and each system call gives the interpreter away to other threads, who keep it for up to five
    milliseconds.

    Only `drain` reads ahead, and leaves no more than the beginning of a frame, with py-amqp: a method that waits for
    its answer reads as ever, and who waits for the socket to become readable misses nothing.

    Args:
        connection: py-amqp's, connected. To be read by one thread only.
    """

    def __init__(self, connection: Any) -> None:
        transport = connection.transport
        self._read_frame, self._handle = transport.read_frame, connection.on_inbound_frame
        self._sock = transport.sock
        self._recv = transport._quick_recv
        self._came = b""
        self._at = 0
        self._ahead = False
        self._timeout: float | None = None
        transport._quick_recv = self._read

    def drain(self, timeout: float) -> None:
        """Handle what has come; if that is nothing, wait for it at most ``timeout`` seconds.

        Reads the socket once: with a peer who sends without a pause it comes back, too.

        Raises:
            OSError: the connection is lost.
        """
        self._timeout = timeout
        try:
            while True:
                self._ahead = True
                frame = self._read_frame()
                self._ahead = False  # whoever is called now may wait for an answer
                if self._handle(frame) and self._at == len(self._came):
                    return
        except _Dry:  # nothing more, or only the beginning of a frame, which py-amqp keeps
            pass
        finally:
            self._ahead = False

    def _read(self, size: int) -> bytes:
        at = self._at
        if at == len(self._came):
            if not self._ahead:
                return self._recv(size)  # type: ignore[no-any-return]
            self._came, at = self._fill(), 0
        self._at = min(at + size, len(self._came))
        return self._came[at : self._at]

    def _fill(self) -> bytes:
        timeout, self._timeout = self._timeout, None
        if timeout is None:
            raise _Dry
        sock = self._sock
        before = sock.gettimeout()
        sock.settimeout(timeout)
        try:
            return self._recv(SIZE)  # type: ignore[no-any-return]
        except (BlockingIOError, TimeoutError, ssl.SSLWantReadError):
            raise _Dry from None
        finally:
            sock.settimeout(before)

    def __repr__(self) -> str:
        return f"ReadAhead({len(self._came) - self._at} bytes in hand)"
