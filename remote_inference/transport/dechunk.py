"""HTTP/1.1's chunked transfer coding, taken apart as it arrives.

``http.client`` reads one chunk a call, and providers send a chunk a token. This takes whatever the socket
had, however many chunks that is, so that a burst of tokens costs one pass.

Rule: RFC 9112, section 7.1. Chunk extensions and trailers are read over.
"""

from __future__ import annotations

__all__ = ["ChunkedCodingError", "Dechunker"]

_MAX_LINE = 4096
_MAX_TRAILERS = 64
_HEX = frozenset(b"0123456789abcdefABCDEF")


class ChunkedCodingError(ValueError):
    """The body breaks the chunked coding. Nothing of the body is in it."""


class Dechunker:
    """Feed it what arrived, get what it carries.

    Attributes:
        done: the body's end has been read.
        excess: bytes came after the end, which is not allowed: the connection cannot be used again.
    """

    def __init__(self) -> None:
        self.done = False
        self.excess = False
        self._left = 0  # bytes of the present chunk that have not come, with the line end after it
        self._line = b""  # a line whose end has not come
        self._in_trailer = False
        self._trailers = 0

    def feed(self, data: bytes) -> bytes:
        """The content in these bytes of the body; empty when they hold only framing.

        Raises:
            ChunkedCodingError: they are not in the chunked coding.
        """
        pieces: list[bytes] = []
        at, size = 0, len(data)
        while at < size and not self.done:
            if self._left:
                # The chunk's own two bytes of line end are counted in `_left`, and held back here.
                end = at + self._left
                body_end = min(end - 2, size)
                if body_end > at:
                    pieces.append(data[at:body_end])
                if end > size:
                    self._check_end(data[max(at, end - 2) : size], 2 - min(2, self._left))
                    self._left = end - size
                    return b"".join(pieces)
                self._check_end(data[max(at, end - 2) : end], 2 - min(2, self._left))
                self._left = 0
                at = end
                continue
            newline = data.find(b"\n", at)
            if newline < 0:
                self._line += data[at:]
                if len(self._line) > _MAX_LINE:
                    raise ChunkedCodingError("line too long")
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            line = data[at:newline]
            if self._line:
                line = self._line + line
                self._line = b""
            at = newline + 1
            self._take_line(line)
        if self.done and at < size:
            self.excess = True
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @staticmethod
    def _check_end(ending: bytes, seen: int) -> None:
        if ending != b"\r\n"[seen : seen + len(ending)]:
            raise ChunkedCodingError("no line end after a chunk")

    def _take_line(self, line: bytes) -> None:
        if len(line) > _MAX_LINE:
            raise ChunkedCodingError("line too long")
        if not line.endswith(b"\r"):
            raise ChunkedCodingError("a line does not end in CR LF")
        if self._in_trailer:
            self._trailers += 1
            if line == b"\r":
                self.done = True
            elif self._trailers > _MAX_TRAILERS:
                raise ChunkedCodingError("too many trailers")
            return
        digits = line.partition(b";")[0].strip()
        # Not int() alone: it also takes signs, underscores and a "0x".
        if not digits or len(digits) > 15 or not _HEX.issuperset(digits):
            raise ChunkedCodingError("not a chunk size")
        length = int(digits, 16)
        if length:
            self._left = length + 2
        else:
            self._in_trailer = True

    def __repr__(self) -> str:
        return f"Dechunker({'done' if self.done else f'{self._left} bytes left of a chunk'})"
