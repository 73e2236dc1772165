"""urllib3's connections, taught to obey a `Call`: its clocks for every read, its cut in every state.

The call reaches them through a context variable, because urllib3 hands nothing of the caller's through to
the connection that it picks.
"""

from __future__ import annotations

import functools
import io
import socket
from contextvars import ContextVar
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.connection import allowed_gai_family

from .call import Call
from .http_head import HeadReader

__all__ = ["CURRENT", "POOL_CLASSES", "SOCKET_OPTIONS", "Connection", "FreshFirst"]

CURRENT: ContextVar[Call] = ContextVar("remote_inference_call")
"""The call for which a connection is being asked."""

# Headers are read through it; bodies go past it.
_BUFFER = 4096


def _socket_options() -> list[tuple[int, int, int]]:
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, seconds in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), seconds))
    return options


SOCKET_OPTIONS = _socket_options()
"""A peer that vanished (a cable, a NAT that forgot) is noticed after a minute, also where no read timeout
runs."""


class _ClockedReader(io.RawIOBase):
    """The socket as a raw stream; each read may take what the call's clocks leave."""

    def __init__(self, sock: socket.socket, call: Call) -> None:
        self._sock = sock
        self._call = call
        # It holds the socket open when http.client closes the connection under a body without a length.
        self._hold = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        call = self._call
        self._sock.settimeout(call.remaining())
        count = self._sock.recv_into(buffer)
        call.received += count
        return count

    def close(self) -> None:
        if not self.closed:
            self._call.close(self._hold)
            super().close()


class _Source:
    """What `http.client.HTTPResponse` wants of a socket."""

    def __init__(self, sock: socket.socket, call: Call) -> None:
        self._reader = _ClockedReader(sock, call)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._reader, _BUFFER)


class _Response(HeadReader):
    def __init__(self, call: Call, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(_Source(sock, call), *args, **kwargs)  # type: ignore[arg-type]  # makefile() does
        call.response = self


class Connection(HTTPConnection):
    """A connection that serves one call at a time."""

    call: Call | None = None
    _outgoing: list[bytes] | None = None

    def serve(self) -> Call:
        """Take on the call for which the connection is being asked."""
        call = CURRENT.get()
        self.call = call
        self.response_class = functools.partial(_Response, call)  # type: ignore[assignment]  # is called
        return call

    def let_go(self) -> None:
        """The call is over; the connection may go back to its pool."""
        self.call = None
        self.__dict__.pop("response_class", None)

    def connect(self) -> None:
        call = self.serve()
        call.fresh = True
        try:
            super().connect()
        finally:
            call.dialled()

    def _new_conn(self) -> socket.socket:
        """Like urllib3's, but all addresses share one limit, and the socket can be cut while it connects."""
        call = self.serve()
        host = self._dns_host.strip("[]")
        try:
            found = socket.getaddrinfo(host, self.port, allowed_gai_family(), socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as exc:
            error = exc if isinstance(exc, socket.gaierror) else socket.gaierror("not a host name")
            raise NameResolutionError(self.host, self, error) from exc
        failure: OSError = OSError("no address")
        for number, (family, kind, protocol, _, address) in enumerate(found):
            sock = socket.socket(family, kind, protocol)
            try:
                for option in SOCKET_OPTIONS:
                    sock.setsockopt(*option)
                call.dialling(sock)
                remaining = call.remaining()
                # A dead first address must leave time for the second.
                sock.settimeout(remaining and remaining / (len(found) - number))
                sock.connect(address)
                sock.settimeout(call.remaining())
            except OSError as exc:
                failure = exc
                call.close(sock)
            else:
                return sock
        if isinstance(failure, TimeoutError):
            raise ConnectTimeoutError(self, "connecting took too long") from failure
        raise NewConnectionError(self, "not connected") from failure

    def request(self, *args: Any, **kwargs: Any) -> None:
        call = self.serve()
        if self.sock is None:
            self.connect()
        call.await_first_byte()
        call.attach(self.sock)
        self.timeout = call.remaining()
        self._outgoing = []
        try:
            super().request(*args, **kwargs)
        finally:
            outgoing, self._outgoing = self._outgoing, None
        super().send(b"".join(outgoing))

    def send(self, data: Any) -> None:
        """Head and body in one write: urllib3 would make two, of a system call and a packet each."""
        if self._outgoing is None:
            super().send(data)
        else:
            self._outgoing.append(data)

    def close(self) -> None:
        if self.call is None:
            super().close()
        else:
            with self.call.lock:
                super().close()


class _TLSConnection(Connection, HTTPSConnection):
    pass


class FreshFirst(HTTPConnectionPool):
    """A pool that opens a connection anew for a call that asks for it."""

    def _get_conn(self, timeout: float | None = None) -> Any:
        conn = super()._get_conn(timeout)
        if CURRENT.get().afresh:
            conn.close()  # it opens again when it is used
        return conn


class _Pool(FreshFirst):
    ConnectionCls = Connection


class _TLSPool(FreshFirst, HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


POOL_CLASSES = {"http": _Pool, "https": _TLSPool}
"""For ``PoolManager.pool_classes_by_scheme``."""
