"""Server-sent events out of a byte stream, by the WHATWG event-stream grammar.

sseclient-py parses the fields. What it gets wrong or leaves open is settled before the bytes reach it: the
byte order mark, mixed line ends, bytes that are not UTF-8, the unfinished last event, `id` and `retry` values
that do not count, `id` in an event without data, and bounds on size. What reaches it is blocks of known
fields with LF ends, each ended by one blank line.

Rules: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import sseclient

__all__ = [
    "DEFAULT_MAX_EVENT_BYTES",
    "DEFAULT_MAX_LINE_BYTES",
    "SseDecoder",
    "SseEvent",
    "SseLimitExceeded",
    "decode_sse_stream",
]

DEFAULT_MAX_LINE_BYTES = 8 * 1024 * 1024
"""Room for one line with an image in base64, the largest thing that providers stream."""

DEFAULT_MAX_EVENT_BYTES = 16 * 1024 * 1024

# sseclient logs each event's type and id, which are somebody's text too.
_SILENT = logging.Logger("sseclient", logging.CRITICAL + 1)

_BOM = b"\xef\xbb\xbf"

# sseclient appends line to line by copying all it has, which is quadratic in the lines of a block.
_MAX_LINES_A_BLOCK = 32

# More digits than a float can hold in seconds, and near the length that int() refuses, are not a time.
_MAX_RETRY_DIGITS = 300


class SseLimitExceeded(ValueError):
    """A line or an event is longer than the reader accepts. What came before it has been handed out.

    Attributes:
        kind: Which bound was passed first, `"line"` or `"event"`.
        limit: The bound, in bytes.
    """

    def __init__(self, kind: Literal["line", "event"], limit: int) -> None:
        super().__init__(kind, limit)
        self.kind = kind
        self.limit = limit

    def __str__(self) -> str:
        return f"event stream: {self.kind} longer than {self.limit} bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class SseEvent:
    """One dispatched event. Its repr leaves the data out, which is somebody's text.

    Attributes:
        event: The event type; `"message"` where the stream names none.
        data: The data lines, joined by LF.
        id: The last event id that the stream has set, in this event or an earlier one; `""` before the first.
        retry: The reconnection time in milliseconds, if the stream has set one since the event before.
    """

    event: str = "message"
    data: str
    id: str = ""
    retry: int | None = None

    def __repr__(self) -> str:
        data = f"<{len(self.data)} chars>"
        return f"SseEvent(event={self.event!r}, data={data}, id={self.id!r}, retry={self.retry!r})"


class SseDecoder:
    """A stream of events, fed as its bytes arrive. However they are cut, the same events come out.

    An event is out when the blank line that ends it has been fed. One that the end of the stream cuts off never is.

    Args:
        max_line_bytes: The longest line accepted, without its end; comments count too.
        max_event_bytes: The most bytes that the lines of one event may have, without their ends and without
            comments.
        lenient: A line ``error: ...`` (llama.cpp) is an event of that kind, and one that begins with a brace is data.
            The standard passes over both.

    Attributes:
        last_id: The last event id that the stream has set; `""` before the first.
        retry: The reconnection time in milliseconds, if it was set since the event before the last.

    Raises:
        ValueError: For a bound below 1.
    """

    def __init__(
        self,
        *,
        max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
        max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES,
        lenient: bool = False,
    ) -> None:
        if max_line_bytes < 1:
            raise ValueError(f"max_line_bytes must be at least 1, not {max_line_bytes}")
        if max_event_bytes < 1:
            raise ValueError(f"max_event_bytes must be at least 1, not {max_event_bytes}")
        self.last_id = ""
        self.retry: int | None = None
        self._blocks = _Blocks(max_line_bytes, max_event_bytes, lenient=lenient)
        self._pieces: list[str] = []

    def feed(self, data: bytes) -> Iterator[tuple[str, str]]:
        """The events that these bytes complete, each as its type and its data. Exhaust it before the next call.

        Raises:
            SseLimitExceeded: As soon as a bound is passed, after the events before it.
        """
        blocks = self._blocks
        if blocks.at_start and _is_bare(data) and len(data) <= blocks.bound:
            # What most servers send, in no need of a parser: whole events of one data line each.
            self.retry = None
            for block in data.decode(errors="replace").split("\n\n")[:-1]:
                yield "message", block[6:] if block[5:6] == " " else block[5:]
            return
        client = sseclient.SSEClient(blocks.feed(data))
        client._logger = _SILENT  # type: ignore[attr-defined]  # not in its types
        for parsed in client.events():
            if blocks.event_continues:
                self._pieces.append(parsed.data)
                continue
            text = parsed.data
            if self._pieces:
                text = "\n".join([*self._pieces, text])
                self._pieces.clear()
            if parsed.id is not None:
                self.last_id = parsed.id
            self.retry = None if parsed.retry is None else int(parsed.retry)
            yield parsed.event, text

    def rest(self) -> Iterator[tuple[str, str]]:
        """The event that the stream's end has cut off, which the standard drops: its last bytes may be missing."""
        return self.feed(b"\n\n")

    def __repr__(self) -> str:
        return f"<SseDecoder {'between events' if self._blocks.at_start else 'within an event'}>"


def decode_sse_stream(
    chunks: Iterable[bytes],
    *,
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
    max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES,
) -> Generator[SseEvent, None, None]:
    """The events of a body that comes in pieces, pulled from it one by one; see `SseDecoder`.

    An event is yielded before another chunk is asked for. Errors that `chunks` raises pass through; closing it is
    the caller's.

    Raises:
        ValueError: At the call, for a bound below 1.
        SseLimitExceeded: From the iteration, as soon as a bound is passed.
    """
    decoder = SseDecoder(max_line_bytes=max_line_bytes, max_event_bytes=max_event_bytes)
    return (
        SseEvent(event=event, data=data, id=decoder.last_id, retry=decoder.retry)
        for chunk in chunks
        for event, data in decoder.feed(chunk)
    )


class _Blocks:
    """Cuts a stream into blocks that sseclient reads as the standard would.

    Every block ends in a blank line, and every event in it has only `data`, `event`, `id` and `retry` lines
    that count (sseclient would log the text of others). An event of very many lines is spread over several
    blocks: `event_continues` says of the block handed out last that more of its event follows. sseclient
    reads a block only after it has handed out all events of the one before, so its reader may rely on that.

    Attributes:
        bound: The bytes below which nothing can pass a bound.
        at_start: Nothing is kept of what was fed before: an event begins with the next byte.
        event_continues: See above.
    """

    def __init__(self, max_line_bytes: int, max_event_bytes: int, *, lenient: bool = False) -> None:
        self._lenient = lenient
        self._max_line_bytes = max_line_bytes
        self._max_event_bytes = max_event_bytes
        self.bound = min(max_line_bytes, max_event_bytes)
        self.at_start = False  # a byte order mark may come
        self.event_continues = False
        self._lines = _Lines()
        self._partial = bytearray()  # a line whose end has not come
        self._data = bytearray()  # data lines of the event that has not ended
        self._fields: dict[bytes, bytes] = {}  # its other lines, the last of each name
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The blocks that these bytes complete."""
        text = self._lines.feed(chunk)
        if text:
            yield from self._cut(text)
        self.at_start = self._lines.plain and not (self._partial or self._data or self._fields or self._size)

    def _cut(self, text: bytes) -> Iterator[bytes]:
        partial, data, fields = self._partial, self._data, self._fields
        if b"\n" not in text:
            partial += text
            self._check(partial, self._size)
            return
        if partial:
            text = bytes(partial) + text
            partial.clear()

        if not self._size and not fields and len(text) <= self.bound:
            end = text.rfind(b"\n\n") + 2
            events = text if end == len(text) else text[:end]
            if _is_plain(events):
                yield _valid_utf8(events)
                text = text[end:]
                if not text:
                    return

        *lines, rest = text.split(b"\n")
        for line in lines:
            if not line:
                if data:
                    yield from self._blocks_of_event(fields, data)
                    fields.clear()
                    data.clear()
                else:
                    # Not dispatched, but its id and retry hold: they go to the next event.
                    fields.pop(b"event", None)
                self._size = 0
                continue
            self._check(line, self._size)
            if line[0] == 0x3A:  # a comment
                continue
            self._size += len(line)
            if self._lenient and line[0] == 0x7B:
                line = b"data: " + line
            name, _, value = line.partition(b":")
            if name == b"data":
                data += line
                data += b"\n"
            elif (
                name == b"event"
                or (name == b"id" and b"\0" not in value)
                or (name == b"retry" and _is_milliseconds(value))
            ):
                fields[name] = line
            elif self._lenient and name == b"error":
                fields[b"event"] = b"event: error"
                data += b"data:" + value + b"\n"
        if rest:
            partial += rest
            self._check(partial, self._size)

    def _check(self, line: bytes | bytearray, size: int) -> None:
        """Raise if a whole or a partial line, after `size` bytes of its event, passes a bound.

        Where it passes both, the one that its earlier byte passes counts: the same for any cut of the stream.
        """
        length = len(line)
        room = self._max_line_bytes if line.startswith(b":") else self._max_event_bytes - size
        if length > self._max_line_bytes <= room:
            raise SseLimitExceeded("line", self._max_line_bytes)
        if length > room:
            raise SseLimitExceeded("event", self._max_event_bytes)

    def _blocks_of_event(self, fields: dict[bytes, bytes], data: bytearray) -> Iterator[bytes]:
        lines = data.splitlines(keepends=True)
        last = (len(lines) - 1) // _MAX_LINES_A_BLOCK * _MAX_LINES_A_BLOCK
        self.event_continues = True
        for start in range(0, last, _MAX_LINES_A_BLOCK):
            yield _valid_utf8(b"".join([*lines[start : start + _MAX_LINES_A_BLOCK], b"\n"]))
        self.event_continues = False
        header = [line + b"\n" for line in fields.values()]
        yield _valid_utf8(b"".join([*header, *lines[last:], b"\n"]))


class _Lines:
    """Strips the byte order mark and makes every line end an LF.

    Attributes:
        plain: The next byte is taken as it is: no byte order mark can come, and no LF that belongs to a CR.
    """

    def __init__(self) -> None:
        self._head: bytes | None = b""
        self._after_cr = False
        self.plain = False

    def feed(self, chunk: bytes) -> bytes:
        if self._head is not None:
            self._head += chunk
            if _BOM.startswith(self._head):
                return b""
            chunk = self._head.removeprefix(_BOM)
            self._head = None
        if chunk:
            if self._after_cr:
                # The CR has ended its line already, so that no event waits for this chunk; an LF is its rest.
                chunk = chunk.removeprefix(b"\n")
                self._after_cr = False
            if b"\r" in chunk:
                self._after_cr = chunk.endswith(b"\r")
                chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self.plain = not self._after_cr
        return chunk


def _is_bare(data: bytes) -> bool:
    """Whether data is whole events of one `data:` line each, with a blank line after it, and no other line end.

    Exact, as `_is_plain` is.
    """
    ends = data.count(b"\n")
    if b"\r" in data or not data.startswith(b"data:") or not data.endswith(b"\n\n"):
        return False
    return ends == 2 or (ends % 2 == 0 and data.count(b"\n\ndata:") == ends // 2 - 1)


def _is_plain(text: bytes) -> bool:
    """Whether text is events of `data:` and `event:` lines only, none of many, and one blank line after each.

    Exact: a line of any other kind, and a blank line more, is a line end that the counts leave over.
    """
    line_ends = text.count(b"\n")
    if line_ends == 2 and text.startswith(b"data:"):  # one event a chunk, as most servers send them
        return text.endswith(b"\n\n")
    blank = text.count(b"\n\n")
    filled = line_ends - blank
    if not blank or filled - blank >= _MAX_LINES_A_BLOCK:
        return False
    known = text.startswith((b"data:", b"event:")) + text.count(b"\ndata:")
    return known == filled or known + text.count(b"\nevent:") == filled


def _is_milliseconds(value: bytes) -> bool:
    digits = value.removeprefix(b" ")
    return digits.isdigit() and len(digits) <= _MAX_RETRY_DIGITS  # of bytes, isdigit() takes ASCII only


def _valid_utf8(block: bytes) -> bytes:
    """The block with U+FFFD for what is not UTF-8, by the standard's count of them, which is Python's too."""
    if block.isascii():
        return block
    try:
        block.decode()
    except UnicodeDecodeError:
        return block.decode(errors="replace").encode()
    return block
