"""Token streams: what a model says is gathered, and nothing of it changes on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import completions, joined, pieces, whole

from remote_inference.errors import ServerError
from remote_inference.messaging.delivery import Delivery, DeliveryState
from remote_inference.messaging.names import chunk_queue, reply_queue
from remote_inference.messaging.streams import ChunkStream, merged, publish_outcome
from remote_inference.messaging.wire import Chunk, Outcome, decode_replies
from remote_inference.testing.clock import VirtualClock
from remote_inference.types import FinishReason, TokenChunk, TokenUsage

CLIENT = "0123456789abcdef"


class FakePublisher:
    """Keeps what it is given. ``ends``: how each published delivery ends."""

    def __init__(self, *ends: DeliveryState | None) -> None:
        self.scheduled: list[tuple[ChunkStream, bool]] = []
        self.watched: dict[str, Callable[[], None]] = {}
        self.published: list[Delivery] = []
        self.withdrawn: list[Delivery] = []
        self.ends = list(ends)

    def schedule(self, source: Any, at_once: bool) -> None:
        self.scheduled.append((source, at_once))

    def flush(self) -> list[Chunk]:
        """What the I/O thread does at its tick."""
        sources, self.scheduled = self.scheduled, []
        found: list[Chunk] = []
        for source, _ in sources:
            taken = source.take()
            if taken is not None:
                assert taken[0] == chunk_queue(CLIENT)
                found += decode_replies(taken[1])  # type: ignore[arg-type]
        return found

    def watch(self, routing_key: str, gone: Callable[[], None]) -> Callable[[], None]:
        self.watched[routing_key] = gone
        return lambda: self.watched.pop(routing_key, None) and None

    def publish(self, delivery: Delivery) -> None:
        self.published.append(delivery)
        end = self.ends.pop(0) if self.ends else None
        if end is not None:
            delivery.finish(end)

    def withdraw(self, delivery: Delivery) -> bool:
        self.withdrawn.append(delivery)
        return True


@pytest.fixture
def publisher() -> FakePublisher:
    return FakePublisher()


def stream_on(publisher: Any, gone: Callable[[], None] | None = None) -> ChunkStream:
    stream = ChunkStream(publisher, "id", CLIENT, gone)
    stream.begin()
    return stream


class TestChunkStream:
    def test_the_first_piece_goes_at_once_and_the_rest_gathers(self, publisher):
        stream = stream_on(publisher)
        stream.push(TokenChunk("a"))
        assert publisher.scheduled == [(stream, True)]
        assert [one.chunk.text_delta for one in publisher.flush()] == ["a"]
        for text in "bcd":
            stream.push(TokenChunk(text))
        assert publisher.scheduled == [(stream, False)], "one wake-up for all that gathers"
        assert [one.chunk.text_delta for one in publisher.flush()] == ["bcd"]

    def test_the_sequence_counts_from_nought_without_gaps(self, publisher):
        stream = stream_on(publisher)
        sent = []
        for text in "abc":
            stream.push(TokenChunk(text))
            sent += publisher.flush()
        assert [one.sequence for one in sent] == [0, 1, 2]
        assert {one.epoch for one in sent} == {stream.epoch}
        assert {one.request_id for one in sent} == {"id"}

    def test_a_new_epoch_drops_what_was_not_sent(self, publisher):
        stream = stream_on(publisher)
        stream.push(TokenChunk("old"))
        first = stream.epoch
        stream.begin()
        stream.push(TokenChunk("new"))
        [sent] = publisher.flush()
        assert sent.chunk.text_delta == "new"
        assert sent.epoch == stream.epoch != first
        assert sent.sequence == 0

    def test_the_first_piece_of_a_new_epoch_goes_at_once_too(self, publisher):
        stream = stream_on(publisher)
        stream.push(TokenChunk("old"))
        publisher.flush()
        stream.begin()
        stream.push(TokenChunk("new"))
        assert publisher.scheduled == [(stream, True)]

    def test_an_epoch_dropped_to_nothing_sends_nothing(self, publisher):
        stream = stream_on(publisher)
        stream.push(TokenChunk("old"))
        stream.begin()
        assert publisher.flush() == []
        stream.push(TokenChunk("new"))
        assert [one.sequence for one in publisher.flush()] == [0]

    def test_what_is_nothing_for_a_reader_is_not_sent(self, publisher):
        stream = stream_on(publisher)
        stream.push(TokenChunk(finish_reason=FinishReason.STOP, usage=TokenUsage(prompt_tokens=1)))
        assert publisher.scheduled == []

    def test_what_is_left_at_the_end_is_left_to_the_outcome(self, publisher):
        stream = stream_on(publisher)
        stream.push(TokenChunk("a"))
        stream.close()
        assert publisher.flush() == []

    def test_a_reader_that_is_gone_is_told_until_the_end(self, publisher):
        told: list[int] = []
        stream = stream_on(publisher, lambda: told.append(1))
        publisher.watched[chunk_queue(CLIENT)]()
        assert told == [1]
        stream.close()
        assert publisher.watched == {}

    def test_nobody_watches_where_the_request_is_to_finish(self, publisher):
        stream_on(publisher).close()
        assert publisher.watched == {}

    def test_no_repr_shows_what_was_said(self, publisher):
        stream = stream_on(publisher)
        stream.push(TokenChunk("MARKED"))
        assert "MARKED" not in repr(stream)

    @given(st.data(), completions)
    def test_gathered_in_any_way_it_is_the_same_answer(self, data, completion):
        publisher = FakePublisher()
        stream = stream_on(publisher)
        sent: list[Chunk] = []
        for piece in data.draw(pieces(completion)):
            stream.push(piece)
            if data.draw(st.booleans()):
                sent += publisher.flush()
        sent += publisher.flush()
        assert [one.sequence for one in sent] == list(range(len(sent)))
        assert joined([one.chunk for one in sent]) == whole(completion)


@given(st.data(), completions)
def test_merged_chunks_say_the_same(data, completion):
    chunks = data.draw(pieces(completion))
    if chunks:
        assert joined([merged(chunks)]) == joined(chunks)


class TestPublishOutcome:
    OUTCOME = Outcome("id", "epoch", error=ServerError("overloaded", status=529))

    def tell(
        self, publisher: FakePublisher, timeout: float = 0.0, keep_on: Callable[[], bool] = lambda: True
    ) -> bool:
        return publish_outcome(
            publisher,  # type: ignore[arg-type]
            CLIENT,
            self.OUTCOME,
            clock=VirtualClock(),
            timeout=timeout,
            keep_on=keep_on,
        )

    def test_is_persistent_confirmed_and_goes_to_the_clients_queue(self):
        publisher = FakePublisher(DeliveryState.CONFIRMED)
        assert self.tell(publisher)
        [delivery] = publisher.published
        assert delivery.routing_key == reply_queue(CLIENT)
        assert delivery.properties == {"correlation_id": "id", "delivery_mode": 2}
        assert delivery.confirm
        assert json.loads(delivery.body)["i"] == "id"

    def test_a_caller_that_is_gone_settles_it(self):
        assert self.tell(FakePublisher(DeliveryState.UNROUTABLE))

    @pytest.mark.parametrize("end", [DeliveryState.REFUSED, DeliveryState.UNCERTAIN, DeliveryState.NOT_SENT])
    def test_is_told_again_until_it_is_confirmed(self, end):
        publisher = FakePublisher(end, end, DeliveryState.CONFIRMED)
        assert self.tell(publisher, timeout=60)
        assert len(publisher.published) == 3
        assert len({delivery.body for delivery in publisher.published}) == 1

    def test_ends_with_its_time(self):
        publisher = FakePublisher(*[DeliveryState.UNCERTAIN] * 100)
        assert not self.tell(publisher, timeout=1.0)
        assert 2 < len(publisher.published) < 100

    def test_ends_where_it_is_of_no_use_any_more(self):
        publisher = FakePublisher(*[DeliveryState.UNCERTAIN] * 5)
        assert not self.tell(publisher, timeout=60, keep_on=lambda: len(publisher.published) < 2)
        assert len(publisher.published) == 2

    def test_one_that_was_not_written_in_time_is_taken_back(self):
        publisher = FakePublisher(None)
        assert not self.tell(publisher, timeout=0.0)
        assert publisher.withdrawn == publisher.published
