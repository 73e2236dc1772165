"""An answer as it arrives: its body in pieces, and the connection given back or closed with it."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, cast

import urllib3

from ..cancel import CancelToken
from ..errors import InvalidResponse, NetworkError, RequestError, StreamTruncated, Timeout
from .call import Call
from .coding import ContentDecoder, UnknownCoding
from .dechunk import ChunkedCodingError, Dechunker

__all__ = ["MAX_BODY_BYTES", "MAX_ERROR_BYTES", "HttpResponse"]

MAX_BODY_BYTES = 256 * 1024 * 1024
"""The most bytes of one answer, streamed or not: a hundred times the longest answer of any model."""

MAX_ERROR_BYTES = 64 * 1024
"""What is read of an error's body."""

DRAIN_PATIENCE = 0.02
"""Seconds to wait, after the last event, for the few bytes that end the body, so that the connection can be
kept."""

_READ = 16 * 1024  # a TLS record; every waiting reader holds a buffer of this size
_MAX_DRAIN = 64 * 1024


class HttpResponse:
    """An answer, whose body is read as it arrives. A context manager: leaving it gives the connection back.

    Args:
        raw: urllib3's, with the connection.
        call: the call.
        token: the call's.
        on_close: what ends with the call.
        failure: our error for a foreign one (`http.map_failure`), or `Cancelled`, raised.
        stream: whether the answer is one of events.

    Attributes:
        status: HTTP status.
        headers: in any case.
    """

    def __init__(
        self,
        raw: urllib3.HTTPResponse,
        call: Call,
        token: CancelToken,
        on_close: ExitStack,
        failure: Callable[[Exception], RequestError],
        *,
        stream: bool,
    ) -> None:
        self.status = raw.status
        self.headers: Mapping[str, str] = raw.headers
        self._raw = raw
        self._call = call
        self._token = token
        self._on_close = on_close
        self._failure = failure
        self._stream = stream
        self._body = cast(http.client.HTTPResponse, call.response)
        self._dechunker = Dechunker() if self._body.chunked else None
        self._left = self._body.length
        self._ended = self._body.fp is None or self._left == 0
        self._closed = False

    def progress(self, limit: float | None = None) -> None:
        """Data has come (a comment is not data): the clock of the gap between data starts anew.

        Args:
            limit: seconds that the next gap may take, if fewer than the read timeout.
        """
        self._call.progress(limit)

    def chunks(self, limit: int = MAX_BODY_BYTES) -> Iterator[bytes]:
        """The body in the pieces in which it arrives, none of them empty.

        Raises:
            InvalidResponse: more than ``limit`` bytes (``too_large``), a coding that is not known, or a broken
                one.
            StreamTruncated: the connection was closed before the body's end.
            RequestError: from `map_failure`; `Cancelled`; `DeadlineExceeded`.
        """
        try:
            decoder = ContentDecoder(self.headers.get("content-encoding", ""))
            while piece := self._receive():
                for content in decoder.feed(piece):
                    limit -= len(content)
                    if limit < 0:
                        raise InvalidResponse("too_large")
                    yield content
        except UnknownCoding as exc:
            raise InvalidResponse("content_encoding") from exc
        if rest := decoder.rest():
            yield rest

    def read(self, limit: int = MAX_BODY_BYTES) -> bytes:
        """The whole body.

        Raises:
            RequestError: as from `chunks`.
        """
        pieces = []
        for piece in self.chunks(limit):
            pieces.append(piece)
            if not self._stream:
                self.progress()
        return b"".join(pieces)

    def read_error(self, limit: int = MAX_ERROR_BYTES) -> bytes:
        """The beginning of an error's body: what can be read of it, because the status says enough without
        it.

        Raises:
            Cancelled, DeadlineExceeded: they count for more than the error.
        """
        pieces: list[bytes] = []
        left = limit
        try:
            for piece in self.chunks():
                pieces.append(piece)
                left -= len(piece)
                if left <= 0:
                    break
        except (InvalidResponse, NetworkError, Timeout):
            pass
        return b"".join(pieces)[:limit]

    def _receive(self) -> bytes:
        """The next piece of the body as it arrives; empty at the body's end."""
        token, dechunker = self._token, self._dechunker
        while not self._ended:
            if token.cancelled:
                token.check()
            try:
                # Not read(n), which waits for n bytes: tokens would be late.
                data = self._body.fp.read1(_READ if self._left is None else min(_READ, self._left))
                if data and dechunker is not None:
                    content = dechunker.feed(data)
                    self._ended = dechunker.done
                    if content:
                        return content
                    continue
            except (OSError, ValueError) as exc:
                if isinstance(exc, ChunkedCodingError):
                    raise InvalidResponse("chunked_coding") from exc
                raise self._failure(exc) from exc
            if data:
                if self._left is not None:
                    self._left -= len(data)
                    self._ended = not self._left
                return data
            token.check()  # a body that was cut can end cleanly
            self._ended = True
            if dechunker is not None or self._left:
                raise StreamTruncated("incomplete_body")
        return b""

    def finish(self) -> None:
        """Close, and keep the connection if the body's end is here, or about to be."""
        if self._closed:
            return
        keep = False
        if not self._body.will_close and not self._token.cancelled:
            self._call.progress(DRAIN_PATIENCE)
            try:
                limit = _MAX_DRAIN
                while not self._ended and limit > 0:
                    limit -= len(self._receive())
                keep = self._ended and not (self._dechunker and self._dechunker.excess)
            except RequestError:
                pass
        self._close(keep)

    def close(self) -> None:
        """Close, and the connection with it: the server sees at once that nobody reads any more."""
        self._close(keep=False)

    def _close(self, keep: bool) -> None:
        if self._closed:
            return
        self._closed = True
        # First: from here on a cancel must not cut what may be somebody else's connection.
        self._call.over()
        connection: Any = self._raw.connection
        try:
            if not keep or self._token.cancelled:
                connection.close()
            self._body.close()
        finally:
            connection.let_go()
            self._raw.release_conn()
            self._on_close.close()

    def __enter__(self) -> HttpResponse:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is None:
            self.finish()
        else:
            self.close()

    def __repr__(self) -> str:
        return f"<HttpResponse {self.status}{', closed' if self._closed else ''}>"
