"""When the publisher writes what streams have: the first piece at once, the rest of all of them at one tick."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from remote_inference.messaging.publisher import GATHER, Publisher
from remote_inference.messaging.streams import ChunkStream
from remote_inference.messaging.wire import decode_replies
from remote_inference.testing.clock import VirtualClock
from remote_inference.types import TokenChunk


class Rig:
    """A publisher whose I/O thread is this one."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.line: Any = SimpleNamespace(blocked=False, unconfirmed={})
        self.publisher = Publisher(lambda: None, clock=self.clock)  # type: ignore[arg-type, return-value]
        self.publisher._put = self.publisher._inbox.append  # type: ignore[method-assign]
        self.publisher.schedule = self._schedule  # type: ignore[method-assign]

    def _schedule(self, source: Any, at_once: bool) -> None:
        self.publisher._inbox.append((at_once, source))

    def stream(self, request_id: str, client: str = "client") -> ChunkStream:
        stream = ChunkStream(self.publisher, request_id, client, None)
        stream.begin()
        return stream

    def written(self) -> list[list[str]]:
        """The messages of one turn, by their texts."""
        return [
            [f"{reply.request_id}:{reply.chunk.text_delta}" for reply in decode_replies(delivery.body)]  # type: ignore[union-attr]
            for delivery in self.publisher._collect(self.line)
        ]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def push(stream: ChunkStream, texts: Iterable[str]) -> None:
    for text in texts:
        stream.push(TokenChunk(text))


def test_the_first_piece_goes_at_once(rig):
    push(rig.stream("a"), ["1"])
    assert rig.written() == [["a:1"]]


def test_the_rest_gathers_for_the_tick_and_no_longer(rig):
    stream = rig.stream("a")
    push(stream, "1")
    rig.written()
    push(stream, "23")
    assert rig.written() == []
    push(stream, "4")
    rig.clock.advance(GATHER)
    assert rig.written() == [["a:234"]]
    rig.clock.advance(GATHER)
    assert rig.written() == []
    assert GATHER == 0.025


def test_streams_to_one_client_share_a_message_and_others_do_not(rig):
    streams = [rig.stream("a"), rig.stream("b"), rig.stream("c", "other")]
    for stream in streams:
        push(stream, "1")
    assert rig.written() == [["a:1", "b:1"], ["c:1"]]
    for stream in streams:
        push(stream, "2")
    rig.written()
    rig.clock.advance(GATHER)
    assert rig.written() == [["a:2", "b:2"], ["c:2"]]


def test_a_blocked_connection_loses_nothing_that_was_not_taken(rig):
    stream = rig.stream("a")
    rig.line.blocked = True
    push(stream, "12")
    rig.clock.advance(1)
    assert rig.written() == []
    rig.line.blocked = False
    rig.written()
    rig.clock.advance(GATHER)
    assert rig.written() == [["a:12"]]
