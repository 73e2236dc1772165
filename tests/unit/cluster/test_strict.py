"""What the strict limiter does when its store does not do what it should. The rest is in the contract."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from remote_inference.cancel import CancelToken
from remote_inference.cluster import Cost, LimitKey
from remote_inference.cluster.base import Permit
from remote_inference.cluster.strict import StoreUnavailable, StrictRateLimiter
from remote_inference.config import RateLimits
from remote_inference.errors import LimitReached
from remote_inference.policy.quota import Quota, QuotaReport
from remote_inference.testing.clock import VirtualClock
from remote_inference.types import Priority

KEY = LimitKey("openai", "env:KEY", "gpt-4o")


class Store:
    """Grants all, notes what it hears, and fails when it is told to."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.incarnation = "first"
        self.answer: Callable[[Mapping[str, Any]], dict[str, Any]] = self.grants
        self.closed = False

    def grants(self, message: Mapping[str, Any]) -> dict[str, Any]:
        lost = message["incarnation"] not in ("", self.incarnation)
        if lost:
            return {"lost": True, "incarnation": self.incarnation}
        count = len(self.heard)
        return {"incarnation": self.incarnation, "paused": 0, "seen": count, "slot": count, "wait": 0}

    def fails(self, message: Mapping[str, Any]) -> dict[str, Any]:
        raise StoreUnavailable("gone")

    def exchange(self, key: LimitKey, message: Mapping[str, Any]) -> dict[str, Any]:
        self.heard.append(dict(message))
        return self.answer(message)

    def close(self) -> None:
        self.closed = True


class Bench:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.store = Store()
        self.limiter = StrictRateLimiter(self.clock, self.store, lease=1e6)
        self.limiter.configure(KEY, RateLimits(requests_per_minute=9), deployment="a")

    def take(self, patience: float = 0.0) -> Permit:
        return self.limiter.acquire(
            KEY, "a", Cost(1, 1), priority=Priority.NORMAL, patience=patience, token=CancelToken()
        )

    def refused(self, patience: float = 0.0) -> LimitReached:
        with pytest.raises(LimitReached) as caught:
            self.take(patience)
        return caught.value


@pytest.fixture
def bench() -> Bench:
    return Bench()


def ended(bench: Bench) -> list[str]:
    return [end["id"] for message in bench.store.heard for end in message.get("ends", ())]


class TestAway:
    def test_it_is_asked_again_after_longer_and_longer_times_and_nothing_is_let_through(
        self, bench: Bench
    ) -> None:
        bench.store.answer = bench.store.fails
        times: list[float] = []
        for _ in range(6):
            error = bench.refused()
            assert error.code == "store_unavailable"
            times.append(round(error.retry_at - bench.clock.time(), 3))
            bench.clock.advance(times[-1] + 1e-3)
        assert times == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
        bench.store.answer = bench.store.grants
        bench.take()
        bench.store.answer = bench.store.fails
        assert bench.refused().retry_at == pytest.approx(bench.clock.time() + 0.5, rel=0, abs=1e-3)

    def test_meanwhile_nobody_asks_it(self, bench: Bench) -> None:
        bench.store.answer = bench.store.fails
        for _ in range(50):
            bench.refused()
        assert len(bench.store.heard) == 1

    def test_who_can_wait_for_the_next_question_does(self, bench: Bench) -> None:
        bench.store.answer = bench.store.fails
        bench.refused()
        bench.store.answer = bench.store.grants
        before = bench.clock.time()
        bench.take(patience=1.0)
        assert bench.clock.time() - before == pytest.approx(0.5)

    def test_a_permit_that_may_have_been_granted_is_given_back_with_the_next_exchange(
        self, bench: Bench
    ) -> None:
        bench.store.answer = bench.store.fails
        bench.refused()
        [asked] = [message["acquire"]["id"] for message in bench.store.heard]
        bench.clock.advance(1.0)
        bench.store.answer = bench.store.grants
        bench.take()
        assert ended(bench) == [asked]

    def test_what_ended_is_kept_and_told_later_once(self, bench: Bench) -> None:
        permits = [bench.take() for _ in range(3)]
        bench.store.answer = bench.store.fails
        bench.refused()
        for permit in permits:
            permit.settle(Cost(5, 5))
        bench.clock.advance(1.0)
        bench.store.answer = bench.store.grants
        bench.store.heard.clear()
        bench.take()
        bench.take()
        told = ended(bench)
        assert len(told) == len(set(told)) == 4  # with the one that nobody knows of

    def test_a_pause_is_told_later(self, bench: Bench) -> None:
        bench.store.answer = bench.store.fails
        bench.refused()
        bench.limiter.pause(KEY, bench.clock.time() + 30.0)
        bench.clock.advance(1.0)
        bench.store.answer = bench.store.grants
        bench.store.heard.clear()
        bench.take()
        assert bench.store.heard[0]["pause"] == pytest.approx(29.0)

    def test_one_warning_a_minute(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        bench.store.answer = bench.store.fails
        for _ in range(13):
            bench.refused()
            bench.clock.advance(10.0)
        assert sum(record.levelno == logging.WARNING for record in caplog.records) == 3

    def test_a_status_page_is_served_all_the_same(self, bench: Bench) -> None:
        bench.store.answer = bench.store.fails
        status = bench.limiter.snapshot()[str(KEY)]
        assert (status["unavailable"], status["limits"]) == (True, {"requests": 9})
        assert bench.limiter.opens_at(KEY, "a", Cost(1, 1)) > bench.clock.time()

    def test_what_ails_one_key_does_not_ail_another(self, bench: Bench) -> None:
        bench.store.answer = bench.store.fails
        bench.refused()
        bench.store.answer = bench.store.grants
        other = LimitKey("openai", "env:KEY", "other")
        bench.limiter.configure(other, RateLimits(requests_per_minute=9), deployment="b")
        bench.limiter.acquire(
            other, "b", Cost(1, 1), priority=Priority.NORMAL, patience=0.0, token=CancelToken()
        )
        bench.refused()


class TestWhatTheProviderSays:
    def test_what_is_left_is_told_with_the_next_permit_once(self, bench: Bench) -> None:
        bench.limiter.observe(
            KEY, QuotaReport((Quota("requests", remaining=0, reset=0.5), Quota("tokens", remaining=5)))
        )
        assert bench.store.heard == []
        bench.take()
        bench.take()
        assert [message.get("left") for message in bench.store.heard] == [{"requests": 0}, None]

    @pytest.mark.parametrize(
        ("quota", "seconds"),
        [
            (Quota("requests", remaining=0, reset=3_000.0, window=86_400.0), 3_000.0),
            (Quota("tokens", remaining=0, reset=9.0), 1.0),
        ],
    )
    def test_what_is_used_up_and_not_counted_here_is_a_pause(
        self, bench: Bench, quota: Quota, seconds: float
    ) -> None:
        bench.limiter.observe(KEY, QuotaReport((quota,)))
        assert [message.get("pause") for message in bench.store.heard] == [pytest.approx(seconds)]


class TestStrangeAnswers:
    @pytest.mark.parametrize(
        "answer",
        [
            {},
            {"incarnation": "x"},
            {"incarnation": "x", "paused": "soon", "seen": 1},
            {"incarnation": "x", "paused": 0, "seen": None},
        ],
    )
    def test_one_that_makes_no_sense_lets_nothing_through(self, bench: Bench, answer: dict[str, Any]) -> None:
        bench.store.answer = lambda message: answer
        assert bench.refused().code == "store_unavailable"

    def test_a_store_that_always_loses_its_data_lets_nothing_through(self, bench: Bench) -> None:
        bench.take()
        bench.store.answer = lambda message: {"lost": True, "incarnation": f"{len(bench.store.heard)}"}
        assert bench.refused().code == "store_unavailable"
        assert len(bench.store.heard) < 10


class TestRecall:
    def test_a_store_that_has_lost_its_data_is_told_what_was_spent_and_what_runs(self, bench: Bench) -> None:
        held = bench.take()
        bench.clock.advance(30.0)
        bench.take().settle(Cost(7, 7))
        bench.clock.advance(10.0)
        bench.store.incarnation = "second"
        bench.store.heard.clear()
        bench.take()
        told = bench.store.heard[1]
        assert [(round(slot["age"]), slot["amounts"]) for slot in told["spent"]] == [
            (40, [1, 2, 1, 1]),
            (10, [1, 14, 7, 7]),
        ]
        [running] = told["held"]
        assert (running["slot"], running["amounts"]) == (told["spent"][0]["slot"], [1, 2, 1, 1])
        assert "ends" not in told
        held.settle()

    def test_what_has_left_the_window_is_not_told(self, bench: Bench) -> None:
        held = bench.take()
        bench.clock.advance(61.0)
        bench.store.incarnation = "second"
        bench.store.heard.clear()
        bench.take()
        told = bench.store.heard[1]
        assert told["spent"] == []
        assert [running["slot"] for running in told["held"]] == [""], (
            "no number of a slot that is another's now"
        )
        held.settle()


def test_its_thread_ends_when_nobody_needs_the_limiter() -> None:
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "inference-strict-limits"}

    before = threads()
    other = Bench()
    other.take()
    [running] = threads() - before
    gone = weakref.ref(other.limiter)
    del other
    gc.collect()
    running.join(5.0)
    assert not running.is_alive()
    gc.collect()
    assert gone() is None


def test_closing_tells_what_is_left_and_lets_the_store_go(bench: Bench) -> None:
    bench.take().settle()
    bench.limiter.close()
    assert len(ended(bench)) == 1
    assert bench.store.closed
