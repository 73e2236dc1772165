"""The handle: nobody sees text twice unawares, and whoever waits gets an end."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import completions, joined, pieces, whole

from remote_inference.client.handle import CANCEL_PATIENCE, DEADLINE_GRACE, InferenceHandle
from remote_inference.clock import SystemClock
from remote_inference.errors import Cancelled, DeadlineExceeded, InferenceError, ServerError, StreamRestarted
from remote_inference.messaging.wire import Chunk, Outcome
from remote_inference.testing.clock import VirtualClock
from remote_inference.types import Completion, FinishReason, TokenChunk

ID = "01234567-89ab-cdef-0123-456789abcdef"
Reply = Chunk | Outcome


class Waiting(threading.Condition):
    """Where a handle would wait for a reply, ``meanwhile`` is called: so everything is in one thread."""

    def __init__(self, meanwhile: Callable[[float | None], None]) -> None:
        super().__init__()
        self._meanwhile = meanwhile

    def wait(self, timeout: float | None = None) -> bool:
        self._meanwhile(timeout)
        return True


def make_handle(clock: Any = None, **options: Any) -> InferenceHandle:
    options.setdefault("cancel", lambda request_id: None)
    return InferenceHandle(ID, "gpt", clock=clock or SystemClock(), **options)


def fed(handle: InferenceHandle, batches: Iterator[list[Reply]]) -> InferenceHandle:
    """A handle that gets the next batch whenever its reader would wait."""

    def feed(timeout: float | None) -> None:
        for reply in next(batches):
            handle.feed(reply)

    handle._changed = Waiting(feed)
    return handle


def chunk(text: str, sequence: int, epoch: str = "a") -> Chunk:
    return Chunk(ID, epoch, sequence, TokenChunk(text, request_id=ID, epoch=epoch, sequence=sequence))


def done(text: str, epoch: str = "a") -> Outcome:
    return Outcome(ID, epoch, Completion(request_id=ID, deployment="gpt", text=text))


def failed(error: InferenceError, epoch: str = "a") -> Outcome:
    return Outcome(ID, epoch, error=error)


@st.composite
def histories(draw: st.DrawFn) -> tuple[Completion, list[list[Reply]]]:
    """A completion, and replies in any order, lost, doubled and late, of its epoch and of others."""
    completion = draw(completions)
    replies: list[Reply] = []
    for epoch in draw(st.permutations(["winner", "x", "y"]))[: draw(st.integers(1, 3))]:
        answer = completion if epoch == "winner" else draw(completions)
        sent: list[Reply] = [
            Chunk(ID, epoch, number, TokenChunk.from_wire(piece.to_wire(), ID, epoch, number))
            for number, piece in enumerate(draw(pieces(answer)))
        ]
        kept = [one for one in sent if draw(st.integers(0, 9))]  # one in ten is lost
        replies += kept
    if draw(st.booleans()):
        replies = list(draw(st.permutations(replies)))
    if replies:
        replies += draw(st.lists(st.sampled_from(replies), max_size=4))
    replies.insert(
        draw(st.integers(0, len(replies))) if draw(st.booleans()) else len(replies),
        Outcome(ID, "winner", completion),
    )
    batches = []
    while replies:
        size = draw(st.integers(1, 4))
        batches.append(replies[:size])
        replies = replies[size:]
    return completion, batches


def check_one_attempt(chunks: list[TokenChunk]) -> None:
    """Between two restarts a reader gets one attempt's chunks, from its beginning and without a gap."""
    numbered = [one for one in chunks if one.finish_reason is None]
    assert len({one.epoch for one in numbered}) <= 1
    assert [one.sequence for one in numbered] == list(range(len(numbered)))


class TestAnyHistory:
    @settings(max_examples=50)
    @given(histories())
    def test_a_loop_hands_out_the_text_exactly_or_says_that_it_began_anew(self, history):
        completion, batches = history
        handle = fed(make_handle(), iter(batches))
        read: list[TokenChunk] = []
        while True:
            try:
                for one in handle:
                    assert not one.restarted
                    read.append(one)
                break
            except StreamRestarted:
                assert read, "nothing was handed out that could be void"
                check_one_attempt(read)
                read = []
        check_one_attempt(read)
        assert joined(read) == whole(completion)
        assert handle.result() == completion

    @settings(max_examples=50)
    @given(histories())
    def test_so_does_one_that_asked_for_announcements(self, history):
        completion, batches = history
        handle = fed(make_handle(announce_restarts=True), iter(batches))
        read: list[TokenChunk] = []
        for one in handle:
            if one.restarted:
                assert read, "nothing was handed out that could be void"
                assert not one.has_output
                check_one_attempt(read)
                read = []
            else:
                read.append(one)
        assert joined(read) == whole(completion)

    @settings(max_examples=50)
    @given(histories())
    def test_so_does_one_in_asyncio(self, history):
        completion, batches = history

        async def read() -> list[TokenChunk]:
            handle = make_handle()

            async def feed() -> None:
                for batch in batches:
                    for reply in batch:
                        handle.feed(reply)
                    for _ in range(3):
                        await asyncio.sleep(0)

            feeding = asyncio.ensure_future(feed())
            while True:
                found: list[TokenChunk] = []
                try:
                    async for one in handle:
                        found.append(one)
                    break
                except StreamRestarted:
                    assert found
            await feeding
            assert await handle == completion
            return found

        assert joined(asyncio.run(read())) == whole(completion)

    @settings(max_examples=50)
    @given(histories())
    def test_the_result_never_notices(self, history):
        completion, batches = history
        assert fed(make_handle(), iter(batches)).result() == completion

    @settings(max_examples=50)
    @given(histories())
    def test_a_loop_that_begins_at_the_end_gets_all_of_it(self, history):
        completion, batches = history
        handle = fed(make_handle(), iter(batches))
        handle.result()
        assert joined(list(handle)) == whole(completion)
        assert joined(list(handle)) == whole(completion)


class TestReading:
    def test_a_restart_names_the_request(self):
        handle = make_handle()
        handle.feed(chunk("a", 0))
        loop = iter(handle)
        next(loop)
        handle.feed(chunk("b", 0, "b"))
        with pytest.raises(StreamRestarted) as caught:
            next(loop)
        assert (caught.value.request_id, caught.value.epoch) == (ID, "b")

    def test_chunks_come_as_they_are_fed(self):
        batches = iter([[chunk("a", 0)], [chunk("b", 1)], [done("abc")]])
        loop = iter(fed(make_handle(), batches))
        assert [next(loop).text_delta for _ in range(3)] == ["a", "b", "c"]
        with pytest.raises(StopIteration):
            next(loop)

    def test_a_late_chunk_of_an_attempt_that_is_void_changes_nothing(self):
        handle = make_handle(announce_restarts=True)
        for reply in (chunk("a", 0), chunk("b", 0, "b"), chunk("a", 1), chunk("c", 1, "b"), done("bc", "b")):
            handle.feed(reply)
        assert "".join(one.text_delta for one in handle) == "bc"
        assert handle._generation == 1

    def test_the_last_chunk_brings_finish_reason_and_usage(self):
        handle = make_handle()
        handle.feed(done("abc"))
        [last] = handle
        assert (last.text_delta, last.finish_reason) == ("abc", FinishReason.STOP)
        assert last.usage is not None

    def test_an_error_is_raised_after_what_came_before_it(self):
        handle = make_handle()
        handle.feed(chunk("a", 0))
        handle.feed(failed(ServerError("overloaded", "gpt", ID, 4, status=529)))
        read = []
        with pytest.raises(ServerError, match="529 overloaded") as caught:
            read.extend(one.text_delta for one in handle)
        assert read == ["a"]
        with pytest.raises(ServerError):
            handle.result()
        assert caught.value.attempt == 4

    def test_what_comes_after_the_end_changes_nothing(self):
        handle = make_handle()
        handle.feed(done("abc"))
        handle.feed(chunk("x", 0, "b"))
        handle.feed(failed(ServerError("x")))
        assert handle.text == "abc"
        assert joined(list(handle))[0] == "abc"

    def test_one_that_was_not_sent_has_ended_with_its_error(self):
        handle = make_handle()
        handle.fail(ServerError("x"))
        assert handle.done
        with pytest.raises(ServerError):
            handle.result(0)

    def test_a_result_that_does_not_come_in_time_is_a_timeout_and_the_request_goes_on(self):
        handle = make_handle()
        with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
            handle.result(timeout=0.01)
        assert not handle.done
        handle.feed(done("abc"))
        assert handle.result(timeout=0).text == "abc"

    def test_likewise_in_asyncio(self):
        async def main() -> None:
            handle = make_handle()
            with pytest.raises(TimeoutError):
                await handle.aresult(timeout=0.01)
            handle.feed(done("abc"))
            assert (await handle.aresult(timeout=0)).text == "abc"

        asyncio.run(main())

    def test_many_readers_in_threads_and_loops_get_all_of_it(self):
        handle, texts, started = make_handle(), [], threading.Barrier(7)

        def read() -> None:
            started.wait(10)
            texts.append("".join(one.text_delta for one in handle))

        async def aread() -> None:
            texts.append("".join([one.text_delta async for one in handle]))

        def loop() -> None:
            started.wait(10)
            asyncio.run(aread())

        threads = [threading.Thread(target=target) for target in (read, read, read, loop, loop, loop)]
        for thread in threads:
            thread.start()
        started.wait(10)
        for number in range(200):
            handle.feed(chunk(str(number % 10), number))
        handle.feed(done("0123456789" * 20 + "!"))
        for thread in threads:
            thread.join(20)
        assert texts == ["0123456789" * 20 + "!"] * 6

    def test_a_loop_that_was_closed_meanwhile_is_no_harm(self):
        handle = make_handle()

        async def give_up() -> None:
            waiting = asyncio.ensure_future(handle.aresult())
            await asyncio.sleep(0)
            waiting.cancel()

        asyncio.run(give_up())
        handle.feed(done("abc"))
        assert handle.text == "abc"

    def test_no_repr_shows_the_answer(self):
        handle = make_handle()
        handle.feed(chunk("MARKED", 0))
        assert "MARKED" not in repr(handle)
        assert "waiting" in repr(handle)
        handle.feed(done("MARKED"))
        assert "MARKED" not in repr(handle)
        assert "completed" in repr(handle)


class Ordered:
    """A handle on a virtual clock that moves while it waits, and the cancels that it sent."""

    def __init__(self, **options: Any) -> None:
        self.clock = VirtualClock()
        self.sent: list[str] = []
        if "deadline" in options:
            options["deadline"] += self.clock.time()
        self.handle = make_handle(self.clock, cancel=self.sent.append, **options)
        self.handle._changed = Waiting(self._wait)

    def _wait(self, timeout: float | None) -> None:
        assert timeout is not None, "it would wait for ever"
        self.clock.advance(timeout)


class TestCancel:
    def test_whoever_waits_gets_it_soon_whatever_the_workers_do(self):
        on = Ordered()
        on.handle.cancel()
        began = on.clock.monotonic()
        with pytest.raises(Cancelled) as caught:
            on.handle.result()
        assert (caught.value.code, caught.value.request_id) == ("caller", ID)
        assert on.clock.monotonic() - began == pytest.approx(CANCEL_PATIENCE)
        assert CANCEL_PATIENCE < 1.0
        assert on.sent == [ID]

    def test_it_ends_a_loop_too(self):
        on = Ordered()
        on.handle.feed(chunk("a", 0))
        loop = iter(on.handle)
        assert next(loop).text_delta == "a"
        on.handle.cancel()
        with pytest.raises(Cancelled):
            next(loop)

    def test_and_a_loop_in_asyncio(self):
        async def main() -> None:
            handle = make_handle()
            waiting = asyncio.ensure_future(handle.aresult())
            await asyncio.sleep(0)
            handle.cancel()
            with pytest.raises(Cancelled):
                await asyncio.wait_for(waiting, 10)

        asyncio.run(main())

    def test_a_workers_word_with_the_usage_comes_first_where_it_comes_in_time(self):
        on = Ordered()
        on.handle.cancel()
        on.clock.advance(CANCEL_PATIENCE / 2)
        on.handle.feed(failed(Cancelled("caller", "gpt", ID, 1, {"prompt_tokens": 3})))
        with pytest.raises(Cancelled) as caught:
            on.handle.result()
        assert caught.value.usage == {"prompt_tokens": 3}

    def test_a_completion_that_was_faster_stays(self):
        on = Ordered()
        on.handle.cancel()
        on.handle.feed(done("abc"))
        assert on.handle.result().text == "abc"

    def test_is_sent_once_and_not_after_the_end(self):
        on = Ordered()
        on.handle.cancel()
        on.handle.cancel()
        assert on.sent == [ID]
        other = Ordered()
        other.handle.feed(done("abc"))
        other.handle.cancel()
        assert other.sent == []
        assert other.handle.result().text == "abc"

    def test_a_notice_of_a_revoke_ends_it_likewise_and_sends_nothing(self):
        on = Ordered()
        on.handle.feed(Outcome(ID, "", notice=True))
        with pytest.raises(Cancelled):
            on.handle.result()
        assert on.sent == []

    def test_a_notice_does_not_prolong_a_cancel(self):
        on = Ordered()
        on.handle.cancel()
        on.clock.advance(CANCEL_PATIENCE * 0.9)
        on.handle.feed(Outcome(ID, "", notice=True))
        on.clock.advance(CANCEL_PATIENCE * 0.2)
        assert on.handle.done

    def test_without_a_reader_it_is_sent_all_the_same(self):
        on = Ordered()
        on.handle.cancel()
        del on.handle
        gc.collect()
        assert on.sent == [ID]


class TestDeadline:
    def test_nobodys_word_after_it_ends_the_request_and_cancels_it(self):
        on = Ordered(deadline=30.0)
        with pytest.raises(DeadlineExceeded) as caught:
            on.handle.result()
        assert (caught.value.deployment, caught.value.request_id) == ("gpt", ID)
        assert on.clock.monotonic() - 10_000 == pytest.approx(30 + DEADLINE_GRACE)
        assert on.sent == [ID]

    def test_the_workers_word_comes_first_within_the_grace(self):
        on = Ordered(deadline=30.0)
        on.clock.advance(30.5)
        on.handle.feed(failed(DeadlineExceeded("running", "gpt", ID, 1, {"prompt_tokens": 3})))
        with pytest.raises(DeadlineExceeded) as caught:
            on.handle.result()
        assert caught.value.code == "running"
        assert on.sent == []

    def test_a_shorter_timeout_of_the_reader_comes_before_it(self):
        on = Ordered(deadline=30.0)
        with pytest.raises(TimeoutError):
            on.handle.result(timeout=5)
        assert not on.handle.done

    def test_is_seen_by_whoever_asks_whether_it_is_done(self):
        on = Ordered(deadline=30.0)
        on.clock.advance(30 + DEADLINE_GRACE)
        assert on.handle.done
