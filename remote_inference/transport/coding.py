"""Content codings: a body that was compressed although nobody asked for it, taken apart as it arrives.

Rule: RFC 9110, section 8.4.1. A gzip body is known by its first bytes too: proxies compress and do not say so.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

__all__ = ["ContentDecoder", "UnknownCoding"]

_GZIP_MAGIC = b"\x1f\x8b"
_PIECE = 1024 * 1024  # bytes that come out at a time: a small body can hold gigabytes
_IDENTITY = frozenset({"", "identity", "none", "utf-8", "aws-chunked"})


class UnknownCoding(ValueError):
    """The body is coded in a way that is not known, or breaks its coding. Nothing of the body is in it."""


class ContentDecoder:
    """Feed it what arrived, get what it carries.

    Args:
        codings: of ``Content-Encoding``; the last was applied last.

    Raises:
        UnknownCoding: one of them is not known.
    """

    def __init__(self, codings: str) -> None:
        names = [name.strip().lower() for name in codings.split(",")]
        self._steps = [_step_for(name) for name in reversed(names) if name not in _IDENTITY]
        self._first = b""
        self._looked = bool(self._steps)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What these bytes carry, in pieces none of which is large or empty.

        Raises:
            UnknownCoding: they break the coding.
        """
        if not self._looked:
            data = self._first + data
            if len(data) < len(_GZIP_MAGIC) and _GZIP_MAGIC.startswith(data):
                self._first = data
                return
            self._looked = True
            self._first = b""
            if data.startswith(_GZIP_MAGIC):
                self._steps.append(_Inflater(16 + zlib.MAX_WBITS))
        if not self._steps:
            yield data
            return
        yield from self._through(0, data)

    def rest(self) -> bytes:
        """The body is over: what was held back of it."""
        rest, self._first = self._first, b""
        return rest

    def _through(self, number: int, data: bytes) -> Iterator[bytes]:
        if number == len(self._steps):
            yield data
            return
        for piece in self._steps[number].feed(data):
            yield from self._through(number + 1, piece)


def _step_for(name: str) -> _Inflater:
    if name in ("gzip", "x-gzip"):
        return _Inflater(16 + zlib.MAX_WBITS)
    if name == "deflate":  # some send it without zlib's frame
        return _Inflater(zlib.MAX_WBITS, otherwise=-zlib.MAX_WBITS)
    raise UnknownCoding("not a known coding")


class _Inflater:
    def __init__(self, window: int, otherwise: int | None = None) -> None:
        self._make: Callable[[], zlib._Decompress] = lambda: zlib.decompressobj(window)
        self._inflater = self._make()
        self._otherwise = otherwise
        self._ended = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._ended:  # another member follows (RFC 1952, section 2.2), or padding
                if not data.strip(b"\0"):
                    return
                self._inflater, self._ended = self._make(), False
            try:
                piece = self._inflater.decompress(data, _PIECE)
            except zlib.error as exc:
                if self._otherwise is None:
                    raise UnknownCoding("the coding is broken") from exc
                window, self._otherwise = self._otherwise, None
                self._inflater = zlib.decompressobj(window)
                continue
            self._otherwise = None
            if piece:
                yield piece
            self._ended = self._inflater.eof
            data = self._inflater.unused_data if self._ended else self._inflater.unconsumed_tail
