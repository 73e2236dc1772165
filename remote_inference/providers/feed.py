"""`AnswerFeed`: the bytes of an answer in, its chunks out, however the bytes are cut."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ..errors import InvalidResponse, RequestError
from ..transport.sse import SseDecoder, SseLimitExceeded
from ..types import TokenChunk
from .base import AnswerReader

__all__ = ["AnswerFeed"]

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_FIELDS = (b"data", b"event", b"id", b"retry", b":")  # what a line of an event stream begins with


class AnswerFeed:
    """Feed it an answer's body as it arrives.

    Whether the body is a stream of events, JSON, or JSON in lines (an event each) is told by its first bytes: labels
    are wrong, and a server that was asked for the one may send the other.

    Args:
        reader: of the call's answer.
        stream: what was asked for, and is assumed of a body that does not say.

    Attributes:
        events: how many events (or pieces of a body) have come: the data, as opposed to comments.
    """

    def __init__(self, reader: AnswerReader, *, stream: bool = True) -> None:
        self.events = 0
        self._reader = reader
        self._stream = stream
        self._decoder: SseDecoder | None = None
        self._json: _Json | None = None
        self._head = b""

    def feed(self, data: bytes) -> Iterator[TokenChunk]:
        """The chunks in these bytes. Exhaust it before the next call.

        Raises:
            RequestError: the answer is an error, or breaks the format; after the chunks before it.
        """
        decoder = self._decoder
        if decoder is None:
            if self._json is None:
                data = self._begin(data)
            if self._json is not None:
                self.events += 1
                yield from self._events(self._json.feed(data))
                return
            decoder = self._decoder
            if decoder is None:
                return
        reader = self._reader
        event = reader.event
        try:
            for kind, text in decoder.feed(data):
                self.events += 1
                chunk = event(kind, text)
                if chunk is not None:
                    yield chunk
                if reader.done:
                    return
        except SseLimitExceeded as exc:
            raise InvalidResponse(f"{exc.kind}_too_long") from exc

    def end(self) -> Iterator[TokenChunk]:
        """The body is over, or its reader is done: what is left, with the chunk that ends the answer as the last.

        Raises:
            RequestError: the answer is none; after a chunk with the usage where one was told.
        """
        reader = self._reader
        try:
            if self._json is not None and not reader.done:
                yield from self._events(self._json.rest())
                if self._json.is_body:
                    chunk = reader.body(self._json.body())
                    if chunk is not None:
                        yield chunk
            elif self._decoder is not None and not reader.done:
                for kind, text in self._decoder.rest():
                    # Without the blank line after it, an event counts where it is seen to be whole.
                    chunk = reader.event(kind, text) if _is_whole(text) else None
                    if chunk is not None:
                        yield chunk
            elif self._decoder is None and not self._stream:
                reader.body(self._head)
            last = reader.end()
        except RequestError:
            if reader.usage is not None:
                yield TokenChunk(usage=reader.usage)  # it is billed all the same
            raise
        yield last

    def _events(self, lines: Iterator[bytes]) -> Iterator[TokenChunk]:
        for line in lines:
            chunk = self._reader.event("message", line.decode(errors="replace"))
            if chunk is not None:
                yield chunk
            if self._reader.done:
                return

    def _begin(self, data: bytes) -> bytes:
        """Look at the first bytes; what of them is for the decoder or the body."""
        head = self._head + data
        if head.startswith(_BOM) or (head and _BOM.startswith(head)):
            if len(head) < len(_BOM):
                self._head = head
                return b""
            head = head[len(_BOM) :]
        head = head.lstrip(_BLANK)
        self._head = head
        if not head:
            return b""
        if head[:1] == b"<":
            raise InvalidResponse("content_type")  # a login page, a gateway's apology
        if head[:1] in b"{[":
            self._json = _Json()
        elif head.startswith(_FIELDS):
            self._decoder = SseDecoder(lenient=True)
        elif len(head) < 5 and any(field.startswith(head) for field in _FIELDS):
            return b""  # the rest of the word has yet to come
        elif self._stream:
            self._decoder = SseDecoder(lenient=True)
        else:
            self._json = _Json()
        self._head = b""
        return head

    def __repr__(self) -> str:
        kind = "events" if self._decoder else "JSON" if self._json is not None else "nothing yet"
        return f"<AnswerFeed {kind}, {self.events} events>"


class _Json:
    """A body of JSON, which may be one document or a document a line.

    Attributes:
        is_body: It is one document, as far as is known.
    """

    def __init__(self) -> None:
        self.is_body = True
        self._pieces: list[bytes] = []
        self._first_line_ended = False
        self._decided = False
        self._partial = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that these bytes complete, where the body is one of lines."""
        if not self.is_body:
            yield from self._lines(data)
            return
        self._pieces.append(data)
        self._first_line_ended = self._first_line_ended or b"\n" in data
        if self._decided or not self._first_line_ended:
            return
        text = self.body()
        self._pieces = [text]
        first, _, rest = text.partition(b"\n")
        if rest.strip():  # until then, what was a line may have been all
            self._decided = True
            self.is_body = not _is_object(first)
            if not self.is_body:
                self._pieces.clear()
                yield from self._lines(text)

    def rest(self) -> Iterator[bytes]:
        """The last line, where the body is one of lines and no end of line came after it."""
        if not self.is_body and self._partial.strip():
            yield self._partial.strip()
            self._partial = b""

    def body(self) -> bytes:
        """All of it."""
        return b"".join(self._pieces)

    def _lines(self, data: bytes) -> Iterator[bytes]:
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            if line.strip():
                yield line.strip()


def _is_whole(text: str) -> bool:
    return text.strip() == "[DONE]" or _is_object(text)


def _is_object(line: bytes | str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
