"""`ReadAhead` over py-amqp's own transport: what came at once is read at once, in any pieces, and nothing is lost."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.transport import TCPTransport
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.messaging.read_ahead import SIZE, ReadAhead

SOON = 0.01


def frame(payload: bytes, channel: int = 1) -> bytes:
    return struct.pack(">BHI", 1, channel, len(payload)) + payload + b"\xce"


class Pieces:
    """A socket whose reads give what they are told to; `b""` is the end of the connection."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self.pieces = list(pieces)
        self.reads = 0
        self.timeouts: list[float | None] = []
        self.timeout: float | None = 7.0

    def recv(self, size: int) -> bytes:
        self.reads += 1
        self.timeouts.append(self.timeout)
        if not self.pieces:
            raise TimeoutError("timed out")
        piece = self.pieces.pop(0)
        if isinstance(piece, Exception):
            raise piece
        if len(piece) > size:
            self.pieces.insert(0, piece[size:])
        return piece[:size]

    sendall = None

    def gettimeout(self) -> float | None:
        return self.timeout

    def settimeout(self, timeout: float | None) -> None:
        self.timeout = timeout


class Peer:
    """py-amqp's transport on such a socket, and what its frames were."""

    def __init__(self, sock: Any) -> None:
        self.heard: list[bytes] = []
        transport = TCPTransport("nowhere:1")
        transport.sock = sock
        transport._setup_transport()
        self.transport = transport
        self.read_ahead = ReadAhead(SimpleNamespace(transport=transport, on_inbound_frame=self.hear))

    def hear(self, read: tuple[int, int, bytes]) -> bool:
        """As py-amqp's: whether a method is complete; heartbeats and the first frames of a message are none."""
        self.heard.append(bytes(read[2]))
        return not read[2].startswith(b"-")


def test_all_that_came_is_read_at_once_and_handled() -> None:
    sock = Pieces(b"".join(frame(b"%d" % i) for i in range(200)))
    peer = Peer(sock)
    peer.read_ahead.drain(1.0)
    assert peer.heard == [b"%d" % i for i in range(200)]
    assert sock.reads == 1
    assert sock.timeouts == [1.0]
    assert sock.timeout == 7.0


def test_the_socket_is_read_once_however_much_there_is() -> None:
    sock = Pieces(*[frame(b"x" * 100)] * 3)
    peer = Peer(sock)
    peer.read_ahead.drain(1.0)
    assert len(peer.heard) == 1
    sock = Pieces(frame(b"-the first part of a message"), frame(b"the last"))
    peer = Peer(sock)
    peer.read_ahead.drain(1.0)
    assert (sock.reads, len(peer.heard)) == (1, 1)
    peer.read_ahead.drain(1.0)
    assert (sock.reads, len(peer.heard)) == (2, 2)


@pytest.mark.parametrize(
    "nothing", [TimeoutError("timed out"), BlockingIOError(11, "again"), ssl.SSLWantReadError()]
)
def test_nothing_came_in_time(nothing: Exception) -> None:
    sock = Pieces(nothing, frame(b"later"))
    peer = Peer(sock)
    peer.read_ahead.drain(0.0)
    assert peer.heard == []
    peer.read_ahead.drain(0.5)
    assert peer.heard == [b"later"]
    assert sock.timeouts == [0.0, 0.5]


@given(
    payloads=st.lists(st.binary(max_size=40), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 600), max_size=30),
    gaps=st.sets(st.integers(0, 40)),
)
def test_in_whatever_pieces_it_comes(payloads: list[bytes], cuts: list[int], gaps: set[int]) -> None:
    whole = b"".join(map(frame, payloads))
    bounds = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    pieces: list[bytes | Exception] = []
    for number, (begin, end) in enumerate(pairwise(bounds)):
        if number in gaps:
            pieces.append(TimeoutError("timed out"))
        pieces.append(whole[begin:end])
    sock = Pieces(*pieces)
    peer = Peer(sock)
    while sock.pieces:
        peer.read_ahead.drain(0.0)
    assert peer.heard == payloads


def test_the_end_of_the_connection_is_an_error() -> None:
    peer = Peer(Pieces(frame(b"last") + frame(b"cut off")[:-3], b""))
    peer.read_ahead.drain(1.0)
    assert peer.heard == [b"last"]
    with pytest.raises(OSError, match="closed connection"):
        peer.read_ahead.drain(1.0)


def test_what_breaks_breaks_through() -> None:
    peer = Peer(Pieces(ConnectionResetError(104, "reset")))
    with pytest.raises(ConnectionResetError):
        peer.read_ahead.drain(1.0)


def test_who_waits_for_an_answer_while_a_frame_is_handled_gets_it() -> None:
    # py-amqp does so when the broker closes a channel: it opens another one before it raises.
    sock = Pieces(frame(b"closed") + frame(b"of another channel"), frame(b"open-ok"), frame(b"next"))
    peer = Peer(sock)
    answers = []

    def hear(read: tuple[int, int, bytes]) -> bool:
        if read[2] == b"closed":
            answers.extend(bytes(peer.transport.read_frame()[2]) for _ in range(2))
        else:
            peer.hear(read)
        return True

    peer.read_ahead._handle = hear
    peer.read_ahead.drain(1.0)
    peer.read_ahead.drain(1.0)
    assert answers == [b"of another channel", b"open-ok"]
    assert peer.heard == [b"next"]


def test_reading_otherwise_reads_no_further_than_it_must() -> None:
    sock = Pieces(frame(b"answer") + frame(b"more"))
    peer = Peer(sock)
    assert peer.transport.read_frame()[2] == b"answer"
    assert sock.pieces == [frame(b"more")]  # who waits for the socket to become readable is told


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    yield here, there
    here.close()
    there.close()


def test_on_a_socket(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    peer = Peer(here)
    began = time.monotonic()
    peer.read_ahead.drain(SOON)
    assert SOON <= time.monotonic() - began < 5.0
    peer.read_ahead.drain(0.0)
    assert peer.heard == []
    large = frame(b"y" * 3 * SIZE)
    there.setblocking(False)
    sent = 0
    while len(peer.heard) < 1:
        if sent < len(large):
            sent += there.send(large[sent : sent + SIZE])
        peer.read_ahead.drain(SOON)
    assert peer.heard == [b"y" * 3 * SIZE]
    assert here.gettimeout() is None
    there.close()
    with pytest.raises(OSError, match="closed connection"):
        peer.read_ahead.drain(1.0)
