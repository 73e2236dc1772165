"""Server-sent events out of a byte stream, by the WHATWG event-stream grammar.

sseclient-py parses the fields. What it gets wrong or leaves open is settled before the bytes reach it: the
byte order mark, mixed line ends, bytes that are not UTF-8, the unfinished last event, `id` and `retry` values
that do not count, `id` in an event without data, and bounds on size. What reaches it is blocks of known
fields with LF ends, each ended by one blank line.

Rules: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import sseclient

__all__ = [
    "DEFAULT_MAX_EVENT_BYTES",
    "DEFAULT_MAX_LINE_BYTES",
    "SseEvent",
    "SseLimitExceeded",
    "decode_sse_stream",
]

DEFAULT_MAX_LINE_BYTES = 8 * 1024 * 1024
"""Room for one line with an image in base64, the largest thing that providers stream."""

DEFAULT_MAX_EVENT_BYTES = 16 * 1024 * 1024

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


def decode_sse_stream(
    chunks: Iterable[bytes],
    *,
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
    max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES,
) -> Generator[SseEvent, None, None]:
    """Decode a stream of events; how the bytes are cut into chunks makes no difference to what comes out.

    An event is yielded when the blank line that ends it has arrived, before another chunk is asked for. An
    event that the end of the stream cuts off is dropped. Errors that `chunks` raises pass through; closing it
    is the caller's.

    Args:
        chunks: The body, in pieces of any size.
        max_line_bytes: The longest line accepted, without its end; comments count too.
        max_event_bytes: The most bytes that the lines of one event may have, without their ends and without
            comments.

    Raises:
        ValueError: At the call, for a bound below 1.
        SseLimitExceeded: From the iteration, as soon as a bound is passed.
    """
    if max_line_bytes < 1:
        raise ValueError(f"max_line_bytes must be at least 1, not {max_line_bytes}")
    if max_event_bytes < 1:
        raise ValueError(f"max_event_bytes must be at least 1, not {max_event_bytes}")
    return _events(_Blocks(chunks, max_line_bytes, max_event_bytes))


def _events(blocks: _Blocks) -> Generator[SseEvent, None, None]:
    last_id = ""
    pieces: list[str] = []
    for parsed in sseclient.SSEClient(iter(blocks)).events():
        if blocks.event_continues:
            pieces.append(parsed.data)
            continue
        data = parsed.data
        if pieces:
            data = "\n".join([*pieces, data])
            pieces.clear()
        if parsed.id is not None:
            last_id = parsed.id
        retry = None if parsed.retry is None else int(parsed.retry)
        yield SseEvent(event=parsed.event, data=data, id=last_id, retry=retry)


class _Blocks:
    """Cuts a stream into blocks that sseclient reads as the standard would.

    Every block ends in a blank line, and every event in it has only `data`, `event`, `id` and `retry` lines
    that count (sseclient would log the text of others). An event of very many lines is spread over several
    blocks: `event_continues` says of the block handed out last that more of its event follows. sseclient
    reads a block only after it has handed out all events of the one before, so its reader may rely on that.
    """

    def __init__(self, chunks: Iterable[bytes], max_line_bytes: int, max_event_bytes: int) -> None:
        self._chunks = chunks
        self._max_line_bytes = max_line_bytes
        self._max_event_bytes = max_event_bytes
        self.event_continues = False

    def __iter__(self) -> Iterator[bytes]:
        within_bounds = min(self._max_line_bytes, self._max_event_bytes)
        partial = bytearray()  # a line whose end has not come
        data = bytearray()  # data lines of the event that has not ended
        fields: dict[bytes, bytes] = {}  # its other lines, the last of each name
        size = 0

        for text in _plain_chunks(self._chunks):
            if b"\n" not in text:
                partial += text
                self._check(partial, size)
                continue
            if partial:
                text = bytes(partial) + text
                partial.clear()

            if not size and not fields and len(text) <= within_bounds:
                end = text.rfind(b"\n\n") + 2
                events = text if end == len(text) else text[:end]
                if _is_plain(events):
                    yield _valid_utf8(events)
                    text = text[end:]
                    if not text:
                        continue

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
                    size = 0
                    continue
                self._check(line, size)
                if line[0] == 0x3A:  # a comment
                    continue
                size += len(line)
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
            if rest:
                partial += rest
                self._check(partial, size)

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


def _plain_chunks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Strip the byte order mark and make every line end an LF; no chunk comes out empty."""
    head: bytes | None = b""
    after_cr = False
    for chunk in chunks:
        if head is not None:
            head += chunk
            if _BOM.startswith(head):
                continue
            chunk = head.removeprefix(_BOM)
            head = None
        if not chunk:
            continue
        if after_cr:
            # The CR has ended its line already, so that no event waits for this chunk; an LF is its rest.
            chunk = chunk.removeprefix(b"\n")
            after_cr = False
        if b"\r" in chunk:
            after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if chunk:
            yield chunk


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
