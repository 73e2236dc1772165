"""The chunked coding: any cut of the bytes gives the same content, and what breaks the rules is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.transport.dechunk import ChunkedCodingError, Dechunker

bodies = st.lists(st.binary(min_size=1, max_size=40), max_size=8)


def encoded(chunks: list[bytes], extension: bytes = b"", trailer: bytes = b"") -> bytes:
    return (
        b"".join(b"%x%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
        + b"0\r\n"
        + trailer
        + b"\r\n"
    )


def decoded(data: bytes, cuts: list[int]) -> tuple[bytes, Dechunker]:
    dechunker, content, at = Dechunker(), b"", 0
    for cut in [*sorted(cut for cut in cuts if cut < len(data)), len(data)]:
        content += dechunker.feed(data[at:cut])
        at = cut
    return content, dechunker


@given(
    bodies,
    st.lists(st.integers(0, 400)),
    st.sampled_from([b"", b";a=b", b" "]),
    st.sampled_from([b"", b"X: y\r\n"]),
)
def test_any_cut_gives_the_content(
    chunks: list[bytes], cuts: list[int], extension: bytes, trailer: bytes
) -> None:
    content, dechunker = decoded(encoded(chunks, extension, trailer), cuts)
    assert content == b"".join(chunks)
    assert dechunker.done
    assert not dechunker.excess


@given(bodies, st.integers(0, 400), st.lists(st.integers(0, 400)))
def test_a_body_cut_short_is_never_done(chunks: list[bytes], end: int, cuts: list[int]) -> None:
    whole = encoded(chunks)
    content, dechunker = decoded(whole[: min(end, len(whole) - 1)], cuts)
    assert not dechunker.done
    assert b"".join(chunks).startswith(content)


@given(st.binary(max_size=100), st.lists(st.integers(0, 100)))
def test_nonsense_gives_an_error_or_waits_for_more(data: bytes, cuts: list[int]) -> None:
    outcomes = set()
    for way in ([], cuts):
        try:
            content, dechunker = decoded(data, way)
            outcomes.add((content, dechunker.done))
        except ChunkedCodingError:
            outcomes.add((b"", None))
    assert len(outcomes) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"zz\r\n",
        b"-1\r\n",
        b"0x5\r\n",
        b"1_0\r\n",
        b"\r\n",
        b"5\n",
        b"2\r\nabX\r\n",
        b"2\r\nab\rX",
        b"f" * 20 + b"\r\n",
    ],
)
def test_what_is_not_the_coding_is_refused(data: bytes) -> None:
    with pytest.raises(ChunkedCodingError):
        Dechunker().feed(data)


def test_lines_and_trailers_are_bounded() -> None:
    with pytest.raises(ChunkedCodingError):
        Dechunker().feed(b"1;" + b"x" * 5000)
    with pytest.raises(ChunkedCodingError):
        Dechunker().feed(b"0\r\n" + b"X: y\r\n" * 100)


def test_bytes_after_the_end_are_noticed() -> None:
    dechunker = Dechunker()
    assert dechunker.feed(encoded([b"a"]) + b"HTTP/1.1 200 OK") == b"a"
    assert dechunker.excess
