"""The event-stream decoder against the WHATWG grammar, a reference parser written from it, and its bounds."""

from __future__ import annotations

import dataclasses
import logging
import pickle
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import sseclient
from hypothesis import example, given
from hypothesis import strategies as st

from remote_inference.transport.sse import SseDecoder, SseEvent, SseLimitExceeded, decode_sse_stream

MESSAGE = "message"


def event(data: str, event: str = MESSAGE, id: str = "", retry: int | None = None) -> SseEvent:
    return SseEvent(event=event, data=data, id=id, retry=retry)


def reference(stream: bytes) -> list[SseEvent]:
    """The standard's algorithm, step by step, on a stream that is there as a whole."""
    text = stream.decode("utf-8", errors="replace")
    if text.startswith("\ufeff"):
        text = text[1:]
    lines = re.split("\r\n|\n|\r", text)[:-1]  # what follows the last line end is not a line yet
    events: list[SseEvent] = []
    data_buffer = type_buffer = id_buffer = ""
    retry: int | None = None
    for line in lines:
        if line == "":
            if data_buffer != "":
                data = data_buffer[:-1] if data_buffer.endswith("\n") else data_buffer
                events.append(event(data, type_buffer or MESSAGE, id_buffer, retry))
                retry = None
            data_buffer = type_buffer = ""
            continue
        if line.startswith(":"):
            continue
        field, colon, value = line.partition(":")
        if colon and value.startswith(" "):
            value = value[1:]
        if field == "event":
            type_buffer = value
        elif field == "data":
            data_buffer += value + "\n"
        elif field == "id" and "\0" not in value:
            id_buffer = value
        elif field == "retry" and re.fullmatch("[0-9]+", value):
            retry = int(value)
    return events


def decode(*chunks: bytes, **bounds: int) -> list[SseEvent]:
    return list(decode_sse_stream(chunks, **bounds))


def byte_by_byte(stream: bytes) -> list[bytes]:
    return [stream[at : at + 1] for at in range(len(stream))]


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """The stream cut at these places (modulo its length), where equal places give an empty chunk."""
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


CASES: dict[str, tuple[bytes, list[SseEvent]]] = {
    "one event": (b"data: a\n\n", [event("a")]),
    "two events": (b"data: a\n\ndata: b\n\n", [event("a"), event("b")]),
    "data lines are joined by LF": (b"data: a\ndata:b\ndata\ndata: \n\n", [event("a\nb\n\n")]),
    "data without a value is an event with empty data": (
        b"data\n\ndata\ndata\n\ndata:",
        [event(""), event("\n")],
    ),
    "only one space is removed": (
        b"data:  a\n\ndata:a \n\ndata:\ta\n\n",
        [event(" a"), event("a "), event("\ta")],
    ),
    "further colons belong to the value": (b"data: a: b:c\n\n", [event("a: b:c")]),
    "a byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [event("a")]),
    "a byte order mark before a comment": (b"\xef\xbb\xbf: x\ndata: a\n\n", [event("a")]),
    "only the first of two byte order marks": (
        b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n",
        [event("b")],
    ),
    "a byte order mark later on": (
        b"data: a\n\n\xef\xbb\xbfdata: b\n\ndata: \xef\xbb\xbf\n\n",
        [event("a"), event("\ufeff")],
    ),
    "part of a byte order mark": (b"\xef\xbbdata: a\n\ndata: b\n\n", [event("b")]),
    "CR": (b"data: a\r\rdata: b\r\r", [event("a"), event("b")]),
    "CRLF": (b"data: a\r\n\r\ndata: b\r\n\r\n", [event("a"), event("b")]),
    "LF and CRLF": (b"data: a\n\r\ndata: b\n\r\n", [event("a"), event("b")]),
    "LF and CR": (b"data: a\n\rdata: b\n\r", [event("a"), event("b")]),
    "CR and CRLF": (b"data: a\r\r\ndata: b\r\r\n", [event("a"), event("b")]),
    "CRLF and CR": (b"data: a\r\n\rdata: b\r\n\r", [event("a"), event("b")]),
    "CRLF and LF": (b"data: a\r\n\ndata: b\r\n\n", [event("a"), event("b")]),
    "one CRLF is one line end": (b"data: a\r\ndata: b\r\n\r\n", [event("a\nb")]),
    "blank lines at the start and between": (
        b"\n\r\n\r\rdata: a\n\n\n\n\ndata: b\n\n",
        [event("a"), event("b")],
    ),
    "line separators of Unicode are text": (
        "data: a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei\n\n".encode(),
        [event("a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei")],
    ),
    "bytes that are not UTF-8": (
        b"data: \xff \xc3( \xe2\x82 \xed\xa0\x80 \xf0\x9f\n\ndata: b\n\n",
        [event("\ufffd \ufffd( \ufffd \ufffd\ufffd\ufffd \ufffd"), event("b")],
    ),
    "a character cut off by a line end": (b"data: \xe2\x82\ndata: \xac\n\n", [event("\ufffd\n\ufffd")]),
    "UTF-8": ("data: tökén 🙂\n\nevent: é\ndata: x\n\n".encode(), [event("tökén 🙂"), event("x", "é")]),
    "NUL in data stays": (b"data: a\0b\n\n", [event("a\0b")]),
    "the unfinished last event": (b"data: a\n\ndata: b\n", [event("a")]),
    "the unfinished last line": (b"data: a\n\ndata: b\n\ndata: {", [event("a"), event("b")]),
    "comments": (b": x\n:\ndata: a\n:data: b\ndata: c\n: y\n\n: z\n\n", [event("a\nc")]),
    "unknown fields": (
        b"data: a\nDATA: b\n data: c\ndata : d\nfoo: e\nfoo\nretry x: 1\n\xff\n \n\n",
        [event("a")],
    ),
    "the event type": (b"event: x\ndata: a\n\ndata: b\n\n", [event("a", "x"), event("b")]),
    "the last event type counts": (b"event: x\nevent:y\ndata: a\nevent: z\n\n", [event("a", "z")]),
    "an empty event type": (b"event: x\nevent:\ndata: a\n\nevent\ndata: b\n\n", [event("a"), event("b")]),
    "an event type without data is forgotten": (b"event: x\n\ndata: a\n\n", [event("a")]),
    "an id stays": (
        b"id: 1\ndata: a\n\ndata: b\n\nid:2\ndata: c\n\n",
        [event("a", id="1"), event("b", id="1"), event("c", id="2")],
    ),
    "an id without data stays": (
        b"id: 1\n\ndata: a\n\nid: 2\n\n\nid: 3\n\ndata: b\n\n",
        [event("a", id="1"), event("b", id="3")],
    ),
    "an id in between is overruled": (b"id: 1\n\nid: 2\ndata: a\n\n", [event("a", id="2")]),
    "an empty id resets": (
        b"id: 1\ndata: a\n\nid\ndata: b\n\nid: 2\n\nid:\n\ndata: c\n\n",
        [event("a", id="1"), event("b"), event("c")],
    ),
    "an id with NUL": (
        b"id: 1\nid: 2\0\ndata: a\n\nid: \0\ndata: b\n\n",
        [event("a", id="1"), event("b", id="1")],
    ),
    "an id that is not UTF-8": (b"id: \xff\ndata: a\n\n", [event("a", id="\ufffd")]),
    "the id keeps its spaces": (b"id:  1 \ndata: a\n\n", [event("a", id=" 1 ")]),
    "retry": (
        b"retry: 3000\ndata: a\n\ndata: b\n\nretry:0010\ndata: c\n\n",
        [event("a", retry=3000), event("b"), event("c", retry=10)],
    ),
    "retry without data is told with the next event": (
        b"retry: 3000\n\ndata: a\n\ndata: b\n\n",
        [event("a", retry=3000), event("b")],
    ),
    "retry that is not ASCII digits": (
        "retry: 5\nretry: -1\nretry: 1.5\nretry:  7\nretry: 7 \nretry: ٣\n"
        "retry: ²\nretry: 1_0\nretry:\nretry\ndata: a\n\n".encode(),
        [event("a", retry=5)],
    ),
    "retry of more digits than int() takes": (b"retry: " + b"9" * 5000 + b"\ndata: a\n\n", [event("a")]),
    "nothing": (b"", []),
}


@pytest.mark.parametrize(("stream", "expected"), CASES.values(), ids=CASES)
def test_the_grammar_holds_however_the_stream_is_cut(stream: bytes, expected: list[SseEvent]) -> None:
    assert decode(stream) == expected
    assert decode(*byte_by_byte(stream)) == expected
    for place in range(min(len(stream), 200) + 1):
        assert decode(stream[:place], b"", stream[place:]) == expected


@pytest.mark.parametrize(
    ("stream", "expected"), [case for name, case in CASES.items() if "more digits" not in name]
)
def test_the_reference_parser_agrees_with_the_cases(stream: bytes, expected: list[SseEvent]) -> None:
    assert reference(stream) == expected


# Soup of what has a meaning, whole lines and splinters of them, so that most streams have events in them.
line_ends = st.sampled_from([b"\n", b"\r", b"\r\n"])
names = st.sampled_from(
    [b"data", b"event", b"id", b"retry", b"", b"foo", b"Data", b" data", b"\xef\xbb\xbfdata"]
)
colons = st.sampled_from([b":", b": ", b":  ", b"", b" :"])
values = st.one_of(
    st.sampled_from(
        [
            b"",
            b"a",
            b"[DONE]",
            b'{"id":1}',
            b"12",
            b"007",
            b"1\0",
            b"\xff",
            b"\xe2\x82",
            "é\u2028\u0085🙂".encode(),
        ]
    ),
    st.binary(max_size=6),
    st.text(max_size=6).map(str.encode),
)
field_lines = st.tuples(names, colons, values, line_ends).map(b"".join)
plain_events = st.sampled_from(
    [b"data: x\n\n", b"data: y\ndata: z\n\n", b"event: e\ndata: x\n\n", b"event: e\n\n"]
)
splinters = st.sampled_from(
    [b"\n", b"\r", b"\r\n", b"\xef\xbb\xbf", b"\xef", b"\xbb", b"data: a", b": c", b"\0"]
)
soup = st.lists(st.one_of(field_lines, line_ends, plain_events, splinters), max_size=24).map(b"".join)
places = st.lists(st.integers(min_value=0, max_value=400), max_size=12)


@given(stream=soup, places=places)
@example(stream=b"data: a\r\r\ndata: b\n\n", places=[8])
def test_any_cut_of_any_soup_gives_what_the_reference_gives(stream: bytes, places: list[int]) -> None:
    expected = reference(stream)
    assert decode(stream) == expected
    assert decode(*cut(stream, places)) == expected
    assert decode(*byte_by_byte(stream)) == expected


@given(stream=st.binary(max_size=60), places=places)
def test_any_cut_of_any_bytes_gives_what_the_reference_gives(stream: bytes, places: list[int]) -> None:
    assert decode(*cut(stream, places)) == reference(stream)


@given(stream=soup, places=places)
def test_every_event_is_out_before_another_chunk_is_asked_for(stream: bytes, places: list[int]) -> None:
    out: list[SseEvent] = []
    arrived = b""
    seen: list[tuple[int, int]] = []

    def feed() -> Iterator[bytes]:
        nonlocal arrived
        for chunk in cut(stream, places):
            yield chunk
            arrived += chunk
            seen.append((len(out), len(reference(arrived))))

    for decoded in decode_sse_stream(feed()):
        out.append(decoded)
    assert len(seen) == len(places) + 1
    assert [got for got, _ in seen] == [due for _, due in seen]


@pytest.mark.parametrize(
    "end", [b"\r\r", b"\n\n", b"\r\n\r", b"\r\n\n", b"\n\r", b"\r\r\n", b"\n\r\n", b"\r\n\r\n"]
)
def test_an_event_is_out_when_its_blank_line_has_come_and_a_late_lf_ends_no_second_line(end: bytes) -> None:
    pulled: list[bytes] = []

    def feed() -> Iterator[bytes]:
        for chunk in [b"data: a" + end, b"\n", b"data: b\r", b"\n", b"data: c\r", b"\r"]:
            pulled.append(chunk)
            yield chunk

    events = decode_sse_stream(feed())
    assert next(events) == event("a")
    assert pulled == [b"data: a" + end]
    assert next(events) == event("b\nc")
    assert list(events) == []


def test_the_last_byte_order_mark_byte_may_come_late() -> None:
    assert decode(b"\xef", b"", b"\xbb", b"\xbf", b"\xef\xbb\xbf\n\ndata: a\n\n") == [event("a")]


def test_an_error_of_the_source_comes_through_after_the_events_before_it() -> None:
    def feed() -> Iterator[bytes]:
        yield b"data: a\n\ndata: b\n"
        raise ConnectionResetError("gone")

    events = decode_sse_stream(feed())
    assert next(events) == event("a")
    with pytest.raises(ConnectionResetError, match="gone"):
        next(events)


def test_closing_early_asks_for_nothing_more() -> None:
    pulled = 0

    def feed() -> Iterator[bytes]:
        nonlocal pulled
        while True:
            pulled += 1
            yield b"data: a\n\ndata: b\n\n"

    events = decode_sse_stream(feed())
    assert next(events) == event("a")
    events.close()
    assert pulled == 1
    assert list(events) == []


@pytest.mark.parametrize("chunk_bytes", [1, 7, 4096, 10**9])
def test_a_line_at_its_bound_passes_and_one_byte_more_is_refused(chunk_bytes: int) -> None:
    def chunks(stream: bytes) -> list[bytes]:
        return [stream[at : at + chunk_bytes] for at in range(0, len(stream), chunk_bytes)]

    fits = b"data: ok\n\ndata:" + b"x" * 95 + b"\r\n\r\n"
    assert decode(*chunks(fits), max_line_bytes=100) == [event("ok"), event("x" * 95)]
    for long in (b"data:" + b"x" * 96, b":" + b"x" * 100, b"x" * 101, b"id:" + b"x" * 5000):
        for end in (b"", b"\n\n"):
            events = decode_sse_stream(chunks(b"data: ok\n\n" + long + end), max_line_bytes=100)
            assert next(events) == event("ok")
            with pytest.raises(SseLimitExceeded) as caught:
                next(events)
            assert (caught.value.kind, caught.value.limit) == ("line", 100)


@pytest.mark.parametrize("chunk_bytes", [1, 7, 4096, 10**9])
def test_an_event_at_its_bound_passes_and_one_byte_more_is_refused(chunk_bytes: int) -> None:
    def chunks(stream: bytes) -> list[bytes]:
        return [stream[at : at + chunk_bytes] for at in range(0, len(stream), chunk_bytes)]

    fits = (b"data:" + b"x" * 5 + b"\n") * 10
    assert decode(*chunks((fits + b"\n") * 3), max_event_bytes=100) == [event("\n".join(["x" * 5] * 10))] * 3
    for more in (b"d", b"data\n\n", b"unknown\n\n"):
        events = decode_sse_stream(chunks(b"data: ok\n\n" + fits + more), max_event_bytes=100)
        assert next(events) == event("ok")
        with pytest.raises(SseLimitExceeded) as caught:
            next(events)
        assert (caught.value.kind, caught.value.limit) == ("event", 100)


def test_a_line_without_end_is_refused_while_it_comes() -> None:
    pulled = 0

    def feed() -> Iterator[bytes]:
        nonlocal pulled
        while True:
            pulled += 1
            yield b"x" * 1000

    with pytest.raises(SseLimitExceeded):
        list(decode_sse_stream(feed(), max_line_bytes=10_000))
    assert pulled == 11


def test_comments_for_ever_do_not_fill_an_event() -> None:
    stream = b"data: a\n" + b": ping\n" * 1000 + b": " + b"x" * 100 + b"\ndata: b\n\n"
    assert decode(stream, max_event_bytes=30) == [event("a\nb")]
    assert decode(*byte_by_byte(stream), max_event_bytes=30) == [event("a\nb")]


def outcome(chunks: Iterable[bytes], **bounds: int) -> tuple[list[SseEvent], tuple[Any, ...] | None]:
    events: list[SseEvent] = []
    try:
        for decoded in decode_sse_stream(chunks, **bounds):
            events.append(decoded)
    except SseLimitExceeded as error:
        return events, error.args
    return events, None


@given(
    stream=soup,
    places=places,
    max_line_bytes=st.integers(min_value=1, max_value=20),
    max_event_bytes=st.integers(min_value=1, max_value=40),
)
def test_the_bounds_fall_at_the_same_place_for_any_cut(
    stream: bytes, places: list[int], max_line_bytes: int, max_event_bytes: int
) -> None:
    bounds = {"max_line_bytes": max_line_bytes, "max_event_bytes": max_event_bytes}
    whole = outcome([stream], **bounds)
    assert outcome(cut(stream, places), **bounds) == whole
    assert outcome(byte_by_byte(stream), **bounds) == whole
    events, error = whole
    expected = reference(stream)
    assert events == (expected if error is None else expected[: len(events)])


@pytest.mark.parametrize("name", ["max_line_bytes", "max_event_bytes"])
def test_a_bound_below_one_is_refused_at_the_call(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        decode_sse_stream([], **{name: 0})


def test_sseclient_parses_the_fields_and_never_gets_a_block_of_very_many_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It copies what it has for every line of a block: an event of a million short lines would take hours."""
    blocks: list[bytes] = []

    class Recorder(sseclient.SSEClient):
        def __init__(self, event_source: Iterator[bytes]) -> None:
            super().__init__(self._recorded(event_source))

        def _recorded(self, event_source: Iterator[bytes]) -> Iterator[bytes]:
            for block in event_source:
                blocks.append(block)
                yield block

    monkeypatch.setattr(sseclient, "SSEClient", Recorder)
    numbers = [str(number) for number in range(1000)]
    many = "".join(f"data: {number}\n" for number in numbers)
    streams = [f"event: e\nid: 1\nretry: 2\n{many}\ndata: next\n\n", f"{many}\nid: 2\n\n{many}event: f\n\n"]
    for stream in streams:
        assert decode(stream.encode()) == decode(*byte_by_byte(stream.encode())) == reference(stream.encode())
    for count in range(1, 130):
        for line in (b"data\n", b"data:\n", b"event: e\n"):
            stream_of_one_field = (line * count + b"\n") * 2 + b"data: x\n\n"
            assert decode(stream_of_one_field) == reference(stream_of_one_field)
    assert b"data: next\n\n" in blocks
    for block in blocks:
        assert max(len(lines.split(b"\n")) for lines in block.split(b"\n\n")) <= 40


@given(count=st.integers(min_value=1, max_value=200), places=places)
def test_an_event_of_many_lines_is_one_event(count: int, places: list[int]) -> None:
    stream = (
        b"id: 7\n" + b"".join(b"data: %d\n" % number for number in range(count)) + b"event: e\n\ndata: b\n\n"
    )
    expected = [event("\n".join(map(str, range(count))), "e", "7"), event("b", id="7")]
    assert decode(*cut(stream, [place * 7 for place in places])) == expected


def test_no_text_of_the_stream_is_logged_or_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    stream = (
        b"data: marked\n\nmarked\nmarked: x\n: marked\ndata: marked\n\n" + b"data: marked\n" * 100 + b"\n"
    )
    events = decode(stream)
    assert len(events) == 3
    assert caplog.records, "sseclient logs at this level; if it stopped, this test may go"
    assert "marked" not in caplog.text
    assert "marked" not in repr(events)
    assert repr(events[0]) == "SseEvent(event='message', data=<6 chars>, id='', retry=None)"


def test_a_type_and_an_id_are_not_logged_either(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert decode(b"event: marked\nid: marked\ndata: x\n\n") == [event("x", "marked", "marked")]
    assert "marked" not in caplog.text


def test_events_are_frozen_values_with_slots() -> None:
    decoded = decode(b"data: a\n\n")[0]
    assert not hasattr(decoded, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        decoded.data = "b"  # type: ignore[misc]
    assert len({decoded, event("a")}) == 1


def test_the_error_survives_pickle_and_names_its_bound() -> None:
    error: SseLimitExceeded = pickle.loads(pickle.dumps(SseLimitExceeded("line", 5)))
    assert isinstance(error, ValueError)
    assert (error.kind, error.limit, error.args) == ("line", 5, ("line", 5))
    assert str(error) == "event stream: line longer than 5 bytes"


def test_lenient_an_error_line_is_an_event_and_a_brace_begins_data() -> None:
    stream = b'data: 1\n\nerror: {"code": 500}\n\n{"a": 1}\n\n'
    for size in range(1, len(stream) + 1):
        decoder = SseDecoder(lenient=True)
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert [event for piece in pieces for event in decoder.feed(piece)] == [
            ("message", "1"),
            ("error", '{"code": 500}'),
            ("message", '{"a": 1}'),
        ]
    assert list(SseDecoder().feed(stream)) == [("message", "1")]


def test_the_rest_is_the_event_that_was_cut_off() -> None:
    decoder = SseDecoder()
    assert list(decoder.feed(b"data: 1\n\ndata: 2")) == [("message", "1")]
    assert list(decoder.rest()) == [("message", "2")]
