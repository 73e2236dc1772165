"""What every limiter must do, whichever it is."""

from __future__ import annotations

import json
import math
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis_database import flush
from strict_holder import VirtualStore

from remote_inference.cancel import CancelToken
from remote_inference.clock import Clock, SystemClock
from remote_inference.cluster import Cost, GossipRateLimiter, LimitKey, Permit, RateLimiter
from remote_inference.cluster.strict import StrictRateLimiter
from remote_inference.config import RateLimits
from remote_inference.errors import Cancelled, ConfigurationError, LimitReached
from remote_inference.testing.clock import VirtualClock
from remote_inference.types import Priority

KEY = LimitKey("openai", "env:KEY", "gpt-4o")
SMALL = Cost(1, 1)

Factory = Callable[[Clock], RateLimiter]


def alone(clock: Clock) -> RateLimiter:
    return GossipRateLimiter(clock, margin=0.0)


@pytest.fixture(scope="module", params=["gossip", "strict"])
def factory(request: pytest.FixtureRequest) -> Iterator[Factory]:
    """Makes limiters on the clock that it is given; each begins with nothing spent."""
    if request.param == "gossip":
        yield alone
        return
    url, made = request.getfixturevalue("redis_database"), list[StrictRateLimiter]()

    def strict(clock: Clock) -> RateLimiter:
        while made:
            made.pop().close()
        store = VirtualStore(url, f"test-{uuid4().hex}", clock)
        # A virtual minute is over in no time, and a lease of it before anybody could renew it.
        made.append(StrictRateLimiter(clock, store, margin=0.0, lease=1e6))
        return made[-1]

    yield strict
    flush(url)


def about(when: float) -> object:
    """Equal to a time since the epoch: pytest's own tolerance, a millionth, would be half an hour there."""
    return pytest.approx(when, rel=0.0, abs=1e-5)


def whole_minute(**limits: int) -> RateLimits:
    """Limits whose minute's worth may go at once: what is paced does not show the window's edge."""
    return RateLimits(**limits, burst=60.0 if any("per_minute" in name for name in limits) else 1.0)


class Bench:
    """A limiter on a virtual clock, with one deployment on `KEY`."""

    def __init__(self, factory: Factory, max_concurrent: int | None = None, **limits: int) -> None:
        self.clock = VirtualClock()
        self.limiter = factory(self.clock)
        self.limits = whole_minute(**limits)
        self.limiter.configure(KEY, self.limits, deployment="a", max_concurrent=max_concurrent)

    def add(self, deployment: str, max_concurrent: int | None = None, **limits: int) -> None:
        self.limiter.configure(
            KEY, whole_minute(**limits), deployment=deployment, max_concurrent=max_concurrent
        )

    def take(
        self,
        cost: Cost = SMALL,
        *,
        patience: float = 0.0,
        priority: Priority = Priority.NORMAL,
        deployment: str = "a",
        token: CancelToken | None = None,
    ) -> Permit:
        return self.limiter.acquire(
            KEY, deployment, cost, priority=priority, patience=patience, token=token or CancelToken()
        )

    def refused(self, cost: Cost = SMALL, **how: Any) -> LimitReached:
        with pytest.raises(LimitReached) as caught:
            self.take(cost, **how)
        return caught.value

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.limiter.snapshot()[str(KEY)]
        return status

    @property
    def used(self) -> dict[str, int]:
        used: dict[str, int] = self.status["used"]
        return used

    def later(self, seconds: float, action: Callable[[], Any]) -> Callable[[], None]:
        def do() -> None:
            self.clock.sleep(seconds)
            action()

        return do


@pytest.fixture(scope="module")
def bench(factory: Factory) -> Callable[..., Bench]:
    return lambda max_concurrent=None, **limits: Bench(factory, max_concurrent, **limits)


Make = Callable[..., Bench]


class TestWindow:
    @pytest.mark.parametrize(
        ("limits", "cost", "code"),
        [
            ({"requests_per_minute": 3}, Cost(1, 1), "requests"),
            ({"tokens_per_minute": 30}, Cost(4, 6), "tokens"),
            ({"input_tokens_per_minute": 30}, Cost(10, 1), "input_tokens"),
            ({"output_tokens_per_minute": 30}, Cost(1, 10), "output_tokens"),
        ],
    )
    def test_each_limit_holds_for_sixty_seconds(
        self, bench: Make, limits: Any, cost: Cost, code: str
    ) -> None:
        b = bench(**limits)
        begin = b.clock.time()
        for _ in range(3):
            b.take(cost).settle(cost)
            b.clock.advance(1.0)
        error = b.refused(cost)
        assert (error.code, error.deployment) == (code, "a")
        assert error.retry_at == about(begin + 60.0)
        b.clock.advance(error.retry_at - b.clock.time())
        b.take(cost).settle()
        b.refused(cost)

    def test_no_limits_is_no_limit(self, bench: Make) -> None:
        b = bench()
        for _ in range(1_000):
            b.take(Cost(10**6, 10**6))
        assert b.used["concurrent"] == 1_000

    def test_deployments_on_one_key_share_its_limits_and_the_least_holds(self, bench: Make) -> None:
        b = bench(requests_per_minute=5)
        b.add("b", requests_per_minute=3)
        b.take()
        b.take(deployment="b")
        b.take()
        assert b.refused().code == "requests"
        assert b.refused(deployment="b").code == "requests"

    def test_keys_do_not_share(self, bench: Make) -> None:
        b = bench(requests_per_minute=1)
        other = LimitKey("openai", "env:OTHER", "gpt-4o")
        b.limiter.configure(other, whole_minute(requests_per_minute=1), deployment="other")
        b.take()
        b.limiter.acquire(other, "other", SMALL, priority=Priority.NORMAL, patience=0.0, token=CancelToken())
        b.refused()

    def test_limits_may_change(self, bench: Make) -> None:
        b = bench(requests_per_minute=1)
        b.take()
        b.refused()
        b.limiter.configure(KEY, whole_minute(requests_per_minute=2), deployment="a")
        b.take()
        b.limiter.configure(KEY, whole_minute(requests_per_minute=1), deployment="a")
        b.clock.advance(59.0)
        b.refused()
        b.clock.advance(1.0)
        b.take()

    def test_a_deployment_that_moved_does_not_bind_its_old_key(self, bench: Make) -> None:
        b = bench(requests_per_minute=9)
        b.add("b", requests_per_minute=1)
        b.limiter.configure(LimitKey("openai", "env:NEW", "m"), RateLimits(), deployment="b")
        b.take()
        b.take()

    def test_what_was_never_configured_is_refused(self, bench: Make) -> None:
        b = bench()
        with pytest.raises(ConfigurationError):
            b.take(deployment="unknown")
        with pytest.raises(ConfigurationError):
            b.limiter.acquire(
                LimitKey("x", "y", "z"),
                "a",
                SMALL,
                priority=Priority.NORMAL,
                patience=0.0,
                token=CancelToken(),
            )

    def test_a_cost_over_the_whole_limit_goes_alone(self, bench: Make) -> None:
        b = bench(tokens_per_minute=100)
        b.take(Cost(10, 0)).settle()
        begin = b.clock.time()
        b.clock.advance(1.0)
        assert b.refused(Cost(500, 0)).retry_at == about(begin + 60.0)
        permit = b.take(Cost(500, 0), patience=60.0)
        assert b.clock.time() == about(begin + 60.0)
        permit.settle()
        assert b.refused(Cost(1, 0)).retry_at == about(begin + 120.0)


class TestSettling:
    def test_less_than_reserved_makes_room_at_once(self, bench: Make) -> None:
        b = bench(tokens_per_minute=100)
        permit = b.take(Cost(20, 80))
        b.refused()
        permit.settle(Cost(20, 10))
        assert b.used["tokens"] == 30
        b.take(Cost(20, 50))

    def test_more_than_reserved_takes_room(self, bench: Make) -> None:
        b = bench(tokens_per_minute=100)
        b.take(Cost(20, 10)).settle(Cost(30, 65))
        assert b.used == {
            "requests": 1,
            "tokens": 95,
            "input_tokens": 30,
            "output_tokens": 65,
            "concurrent": 0,
        }
        b.refused(Cost(3, 3))
        b.take(Cost(3, 2))

    def test_a_correction_leaves_the_window_with_its_reservation(self, bench: Make) -> None:
        b = bench(tokens_per_minute=100)
        permit = b.take(Cost(50, 0))
        b.clock.advance(59.0)
        permit.settle(Cost(100, 0))
        b.refused()
        b.clock.advance(1.0)
        b.take(Cost(100, 0))

    def test_a_correction_that_comes_after_the_window_changes_nothing(self, bench: Make) -> None:
        b = bench(tokens_per_minute=100)
        permits = [b.take(Cost(50, 0)), b.take(Cost(50, 0))]
        b.clock.advance(61.0)
        permits[0].settle(Cost(0, 0))
        b.take(Cost(1, 0))
        permits[1].settle(Cost(1_000, 0))
        assert b.used["tokens"] == 1

    def test_an_unknown_usage_stays_as_estimated(self, bench: Make) -> None:
        b = bench()
        b.take(Cost(7, 9)).settle(None)
        assert b.used["tokens"] == 16

    def test_a_refund_gives_everything_back(self, bench: Make) -> None:
        b = bench(max_concurrent=1, requests_per_minute=1, tokens_per_minute=10)
        for _ in range(5):
            b.take(Cost(5, 5)).refund()
        assert set(b.used.values()) == {0}

    def test_the_first_end_wins(self, bench: Make) -> None:
        b = bench(requests_per_minute=9, concurrent_requests=9)
        permit = b.take(Cost(5, 5))
        permit.settle(Cost(5, 6))
        permit.refund()
        permit.settle(Cost(50, 60))
        assert (b.used["requests"], b.used["tokens"], b.used["concurrent"]) == (1, 11, 0)
        permit = b.take(Cost(1, 1))
        permit.refund()
        permit.settle(Cost(50, 60))
        assert (b.used["requests"], b.used["tokens"], b.used["concurrent"]) == (1, 11, 0)


class TestConcurrency:
    def test_a_deployment_has_its_own_bound_and_the_key_one_over_all(self, bench: Make) -> None:
        b = bench(max_concurrent=1, concurrent_requests=2)
        b.add("b")
        held = b.take()
        error = b.refused()
        assert error.code == "concurrency"
        assert 0.0 < error.retry_at - b.clock.time() <= 5.0
        b.take(deployment="b")
        assert b.refused(deployment="b").code == "concurrency"
        held.settle()
        b.take(deployment="b")

    def test_a_freed_place_wakes_the_next(self, bench: Make) -> None:
        b = bench(max_concurrent=1)
        held = b.take()
        permit, _ = b.clock.run(lambda: b.take(patience=10.0), b.later(2.5, held.settle))
        assert b.clock.time() == 1_700_000_002.5
        permit.settle()

    def test_who_waits_for_a_full_deployment_stands_in_nobodys_way(self, bench: Make) -> None:
        b = bench(max_concurrent=1)
        b.add("b")
        b.take()
        others: list[float] = []

        def other() -> None:
            b.take(deployment="b", priority=Priority.BACKGROUND)
            others.append(b.clock.time())

        with pytest.raises(LimitReached):
            b.clock.run(lambda: b.take(patience=5.0, priority=Priority.CRITICAL), b.later(1.0, other))
        assert others == [1_700_000_001.0]


class TestWaiting:
    def test_no_patience_is_no_wait(self, bench: Make) -> None:
        b = bench(requests_per_minute=1)
        b.take()
        before = b.clock.time()
        b.refused()
        assert b.clock.time() == before

    def test_a_permit_due_within_the_patience_is_waited_for(self, bench: Make) -> None:
        b = bench(requests_per_minute=1)
        b.take()
        b.clock.advance(59.5)
        b.take(patience=1.0)
        assert b.clock.time() == 1_700_000_060.0

    def test_one_that_is_not_due_is_not_waited_for(self, bench: Make) -> None:
        b = bench(requests_per_minute=1)
        b.take()
        assert b.refused(patience=30.0).retry_at == about(1_700_000_060.0)
        assert b.clock.time() == 1_700_000_000.0

    def test_patience_ends(self, bench: Make) -> None:
        b = bench(max_concurrent=1)
        b.take()
        assert b.refused(patience=3.0).code == "concurrency"
        assert b.clock.time() == 1_700_000_003.0
        assert b.status["waiting"] == 0

    def test_the_highest_priority_is_next_and_the_oldest_within_one(self, bench: Make) -> None:
        b = bench(max_concurrent=1)
        held, order = b.take(), list[str]()

        def one(name: str, priority: Priority, begins: float) -> Callable[[], None]:
            def do() -> None:
                b.clock.sleep(begins)
                permit = b.take(priority=priority, patience=100.0)
                order.append(name)
                b.clock.sleep(1.0)
                permit.settle()

            return do

        b.clock.run(
            one("background", Priority.BACKGROUND, 0.1),
            one("normal 1", Priority.NORMAL, 0.2),
            one("normal 2", Priority.NORMAL, 0.3),
            one("high", Priority.HIGH, 0.4),
            one("critical", Priority.CRITICAL, 10.5),
            b.later(10.0, held.settle),
        )
        assert order == ["high", "critical", "normal 1", "normal 2", "background"]

    def test_a_waiting_critical_takes_the_next_permit_of_the_window(self, bench: Make) -> None:
        b = bench(requests_per_minute=10)
        for _ in range(10):
            b.take().settle()
            b.clock.advance(1.0)
        order: list[Priority] = []

        def one(priority: Priority) -> Callable[[], None]:
            def do() -> None:
                b.take(priority=priority, patience=58.0).settle()
                order.append(priority)

            return do

        critical = one(Priority.CRITICAL)
        b.clock.run(*[one(Priority.BACKGROUND) for _ in range(5)], b.later(49.5, critical))
        assert order[0] == Priority.CRITICAL
        assert len(order) == 6

    def test_a_big_request_at_the_head_is_not_starved_by_small_ones(self, bench: Make) -> None:
        b = bench(tokens_per_minute=100)
        for _ in range(10):
            b.take(Cost(10, 0)).settle()
            b.clock.advance(2.0)
        begin, big = b.clock.time(), list[float]()

        def large() -> None:
            b.take(Cost(90, 0), patience=120.0).settle()
            big.append(b.clock.time() - begin)

        def small() -> None:
            b.clock.sleep(0.5)
            for _ in range(200):
                try:
                    b.take(Cost(1, 0), patience=2.0).settle()
                except LimitReached:
                    b.clock.sleep(0.1)

        b.clock.run(large, small, small)
        # Ninety are free when nine of the ten have left: the first does after 40 s, the ninth 16 s later.
        assert big == [about(56.0)]

    def test_two_that_fit_are_both_let_in_when_room_comes(self, bench: Make) -> None:
        b = bench(requests_per_minute=4)
        for _ in range(4):
            b.take().settle()
        b.clock.run(*[lambda: b.take(patience=100.0).settle() for _ in range(4)])
        assert b.clock.time() == 1_700_000_060.0

    def test_who_gives_up_leaves_no_trace_and_does_not_block_the_next(self, bench: Make) -> None:
        b = bench(max_concurrent=1, tokens_per_minute=100)
        held = b.take(Cost(50, 0))
        outcomes: list[str] = []

        def impatient() -> None:
            with pytest.raises(LimitReached):
                b.take(Cost(50, 0), patience=1.0, priority=Priority.HIGH)
            outcomes.append("gave up")

        def patient() -> None:
            b.take(Cost(50, 0), patience=10.0).settle()
            outcomes.append("got it")

        b.clock.run(impatient, patient, b.later(5.0, held.settle))
        assert outcomes == ["gave up", "got it"]
        assert (b.status["waiting"], b.used["concurrent"], b.used["tokens"]) == (0, 0, 100)

    def test_when_the_head_gives_up_those_behind_are_looked_at_again(self, bench: Make) -> None:
        b = bench(tokens_per_minute=100)
        b.take(Cost(60, 0)).settle()
        b.clock.advance(50.0)
        b.take(Cost(30, 0)).settle()
        token = CancelToken()

        def head() -> None:
            with pytest.raises(Cancelled):
                b.take(Cost(80, 0), patience=100.0, token=token)

        def behind() -> None:
            b.clock.sleep(0.5)
            b.take(Cost(10, 0), patience=60.0).settle()
            assert b.clock.time() == 1_700_000_051.0

        b.clock.run(head, behind, b.later(1.0, lambda: token.cancel()))

    def test_a_correction_that_makes_room_later_but_sooner_than_before_is_noticed(self, bench: Make) -> None:
        b = bench(tokens_per_minute=100)
        b.take(Cost(30, 0)).settle()
        b.clock.advance(10.0)
        held = b.take(Cost(70, 0))
        b.clock.run(
            lambda: b.take(Cost(50, 0), patience=100.0).settle(),
            b.later(10.0, lambda: held.settle(Cost(45, 0))),
        )
        assert b.clock.time() == 1_700_000_060.0

    def test_a_correction_downwards_wakes_the_head_earlier(self, bench: Make) -> None:
        b = bench(tokens_per_minute=100)
        held = b.take(Cost(90, 0))
        b.clock.run(
            lambda: b.take(Cost(50, 0), patience=100.0).settle(),
            b.later(3.0, lambda: held.settle(Cost(40, 0))),
        )
        assert b.clock.time() == 1_700_000_003.0


class TestCancelling:
    def test_a_cancelled_request_takes_nothing(self, bench: Make) -> None:
        b, token = bench(), CancelToken()
        token.cancel("reader_gone")
        with pytest.raises(Cancelled) as caught:
            b.take(token=token)
        assert caught.value.code == "reader_gone"
        assert b.used["requests"] == 0

    def test_a_waiter_is_woken_at_once(self, bench: Make) -> None:
        b, token, ended = bench(max_concurrent=1), CancelToken(), list[float]()
        b.take()

        def waits() -> None:
            with pytest.raises(Cancelled):
                b.take(patience=100.0, token=token)
            ended.append(b.clock.time())

        b.clock.run(waits, b.later(7.0, lambda: token.cancel()))
        assert ended == [1_700_000_007.0]
        assert b.status["waiting"] == 0

    def test_a_permit_that_came_together_with_the_cancel_is_given_back(self, bench: Make) -> None:
        b, token = bench(max_concurrent=1, requests_per_minute=9), CancelToken()
        held = b.take()

        def both() -> None:
            held.settle()
            token.cancel()

        def waits() -> None:
            with pytest.raises(Cancelled):
                b.take(patience=100.0, token=token)

        b.clock.run(waits, b.later(1.0, both))
        assert (b.used["requests"], b.used["concurrent"], b.status["waiting"]) == (1, 0, 0)

    def test_whatever_is_thrown_into_a_waiting_thread_leaves_nothing_behind(self, factory: Factory) -> None:
        class Thrown(BaseException):
            pass

        class Throwing(VirtualClock):
            def wait(self, event: threading.Event, timeout: float | None) -> bool:
                raise Thrown

        limiter = factory(Throwing())
        limiter.configure(KEY, RateLimits(), deployment="a", max_concurrent=1)
        how: Any = {"priority": Priority.NORMAL, "patience": 5.0}
        held = limiter.acquire(KEY, "a", SMALL, token=CancelToken(), **how)
        with pytest.raises(Thrown):
            limiter.acquire(KEY, "a", SMALL, token=CancelToken(), **how)
        held.settle()
        assert limiter.snapshot()[str(KEY)]["waiting"] == 0
        limiter.acquire(KEY, "a", SMALL, token=CancelToken(), **how)


class TestPause:
    def test_a_paused_key_lets_nothing_through_until_the_time(self, bench: Make) -> None:
        b = bench()
        until = b.clock.time() + 20.0
        b.limiter.pause(KEY, until)
        assert b.limiter.paused_until(KEY) == until
        error = b.refused(patience=5.0)
        assert (error.code, error.retry_at) == ("paused", about(until))
        b.clock.advance(20.0)
        assert b.limiter.paused_until(KEY) == 0.0
        b.take()

    def test_the_latest_end_wins(self, bench: Make) -> None:
        b = bench()
        begin = b.clock.time()
        for seconds in (20.0, 50.0, 5.0, -3.0):
            b.limiter.pause(KEY, begin + seconds)
        assert b.limiter.paused_until(KEY) == begin + 50.0

    @pytest.mark.parametrize("until", [math.inf, math.nan, 0.0])
    def test_a_time_that_is_none_pauses_nothing(self, bench: Make, until: float) -> None:
        b = bench()
        b.limiter.pause(KEY, until)
        b.take()

    def test_those_whom_it_makes_wait_too_long_leave_at_once(self, bench: Make) -> None:
        b = bench(max_concurrent=1)
        b.take()
        left: list[tuple[float, str]] = []

        def waits() -> None:
            error = b.refused(patience=10.0)
            left.append((b.clock.time() - 1_700_000_000.0, error.code))

        b.clock.run(waits, waits, b.later(2.0, lambda: b.limiter.pause(KEY, b.clock.time() + 60.0)))
        assert left == [(2.0, "paused"), (2.0, "paused")]

    def test_after_it_requests_come_one_by_one_and_then_more(self, bench: Make) -> None:
        b, times = bench(), list[float]()
        b.limiter.pause(KEY, b.clock.time() + 20.0)

        def one() -> None:
            b.take(patience=60.0)
            times.append(b.clock.time() - 1_700_000_020.0)

        b.clock.run(*[one] * 64)
        assert len(times) == 64
        assert times[:2] == [about(0.0), about(0.5)]
        for number, at in enumerate(times):
            assert number + 1 <= 2 ** (at / 0.5) + 0.001
        assert times[-1] == about(3.0)
        b.clock.advance(2.1)
        for _ in range(1_000):
            b.take()

    def test_a_refusal_on_the_ramp_says_when(self, bench: Make) -> None:
        b = bench()
        b.limiter.pause(KEY, b.clock.time() + 20.0)
        b.clock.advance(20.0)
        b.take()
        error = b.refused()
        assert (error.code, error.retry_at) == ("ramp", about(b.clock.time() + 0.5))

    def test_it_may_be_ended_early_with_the_same_ramp(self, bench: Make) -> None:
        b, times = bench(), list[float]()
        b.limiter.pause(KEY, b.clock.time() + 20.0)

        def one() -> None:
            b.take(patience=60.0)
            times.append(b.clock.time() - 1_700_000_000.0)

        b.clock.run(one, one, b.later(4.0, lambda: b.limiter.resume(KEY)))
        assert times == [4.0, 4.5]
        assert b.limiter.paused_until(KEY) == 0.0

    def test_a_key_may_be_paused_before_it_is_known_and_resumed_when_it_is_not(self, bench: Make) -> None:
        b = bench()
        key = LimitKey("openai", "env:NEW", "m")
        b.limiter.resume(key)
        assert b.limiter.paused_until(key) == 0.0
        b.limiter.pause(key, b.clock.time() + 9.0)
        b.limiter.configure(key, RateLimits(), deployment="new")


def test_the_snapshot_is_json_and_tells_what_is_going_on(bench: Make) -> None:
    b = bench(max_concurrent=4, requests_per_minute=10)
    b.take(Cost(3, 4))
    (told,) = json.loads(json.dumps(b.limiter.snapshot())).items()
    expected = {
        "used": {"requests": 1, "tokens": 7, "input_tokens": 3, "output_tokens": 4, "concurrent": 1},
        "limits": {"requests": 10},
        "paused_until": 0.0,
        "waiting": 0,
        "deployments": {"a": {"in_flight": 1, "waiting": 0, "max_concurrent": 4}},
    }
    assert told[0] == "openai/env:KEY/gpt-4o"
    assert {name: told[1][name] for name in expected} == expected


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "take", "settle", "refund", "advance", "pause"]),
        st.integers(0, 50),
        st.integers(0, 50),
        st.sampled_from([0.0, 0.0, 0.125, 0.25, 1.0, 7.5, 30.0]),
    ),
    max_size=120,
)


@settings(max_examples=300, deadline=None)
@given(actions=ACTIONS)
def test_no_sixty_seconds_and_no_moment_hold_more_than_the_limits(
    factory: Factory, actions: list[tuple[str, int, int, float]]
) -> None:
    b = Bench(factory, max_concurrent=3, requests_per_minute=6, tokens_per_minute=120, concurrent_requests=4)
    b.add("b")
    log: dict[int, tuple[float, Cost]] = {}
    held: list[tuple[int, Permit, str]] = []
    paused_until, refusals = 0.0, list[float]()
    for number, (action, first, second, seconds) in enumerate(actions):
        cost = Cost(first, second)
        if action == "take":
            deployment = "ab"[number % 2]
            try:
                permit = b.take(cost, deployment=deployment, patience=seconds)
            except LimitReached as exc:
                refusals.append(exc.retry_at - b.clock.time())
                continue
            now = b.clock.time()
            inside = [c for t, c in log.values() if t > now - 60.0]
            tokens = sum(c.tokens for c in inside)
            assert len(inside) + 1 <= 6
            assert tokens == 0 or tokens + cost.tokens <= 120
            assert len(held) + 1 <= 4
            assert deployment == "b" or sum(d == "a" for _, _, d in held) + 1 <= 3
            assert now >= paused_until
            log[number] = (now, cost)
            held.append((number, permit, deployment))
        elif action == "advance":
            b.clock.advance(seconds)
        elif action == "pause":
            b.limiter.pause(KEY, b.clock.time() + seconds)
            paused_until = max(paused_until, b.clock.time() + seconds)
        elif held:
            taken, permit, _ = held.pop(first % len(held))
            if action == "settle":
                permit.settle(cost)
                log[taken] = (log[taken][0], cost)
            else:
                permit.refund()
                del log[taken]
    assert all(after > 0.0 for after in refusals)
    for _, permit, _ in held:
        permit.settle()
    b.clock.advance(61.0)
    assert set(b.used.values()) == {0}
    assert b.status["waiting"] == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 40),
            st.integers(0, 40),
            st.sampled_from(list(Priority)),
            st.sampled_from([0.0, 0.5, 3.0, 70.0]),
            st.sampled_from([0.0, 0.25, 2.0, 45.0]),
            st.sampled_from(["settle", "refund", "cancel"]),
        ),
        min_size=2,
        max_size=8,
    )
)
def test_threads_keep_the_limits_and_leave_nothing_behind(
    factory: Factory, work: list[tuple[int, int, Priority, float, float, str]]
) -> None:
    b = Bench(factory, max_concurrent=2, requests_per_minute=3, tokens_per_minute=100)
    log: list[tuple[float, Cost]] = []

    def one(inputs: int, outputs: int, priority: Priority, patience: float, hold: float, end: str) -> None:
        token, cost = CancelToken(), Cost(inputs, outputs)
        if end == "cancel":
            b.clock.call_later(hold, lambda: token.cancel())
        for _ in range(3):
            try:
                permit = b.take(cost, priority=priority, patience=patience, token=token)
            except LimitReached:
                b.clock.sleep(1.0)
                continue
            except Cancelled:
                return
            now = b.clock.time()
            if end != "refund":
                inside = [c for t, c in log if t > now - 60.0]
                tokens = sum(c.tokens for c in inside)
                assert len(inside) + 1 <= 3
                assert tokens == 0 or tokens + cost.tokens <= 100
                log.append((now, cost))
            b.clock.sleep(hold)
            permit.refund() if end == "refund" else permit.settle()

    b.clock.run(*[lambda w=w: one(*w) for w in work])  # type: ignore[misc]
    assert (b.used["concurrent"], b.status["waiting"]) == (0, 0)


def test_real_threads_never_pass_the_bound_and_every_place_comes_back(factory: Factory) -> None:
    limiter = factory(SystemClock())
    limiter.configure(KEY, RateLimits(), deployment="a", max_concurrent=4)
    lock, running, most, done = threading.Lock(), [0], [0], [0]

    def one(number: int) -> None:
        for turn in range(40):
            permit = limiter.acquire(
                KEY, "a", SMALL, priority=Priority(number % 4), patience=60.0, token=CancelToken()
            )
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            with lock:
                running[0] -= 1
                done[0] += 1
            permit.settle() if turn % 3 else permit.refund()

    threads = [threading.Thread(target=one, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert done == [24 * 40]
    assert most[0] <= 4
    status = limiter.snapshot()[str(KEY)]
    assert (status["used"]["concurrent"], status["waiting"]) == (0, 0)


def test_real_threads_that_give_up_or_are_cancelled_at_any_moment_leave_nothing_behind(
    factory: Factory,
) -> None:
    limiter = factory(SystemClock())
    limiter.configure(KEY, RateLimits(), deployment="a", max_concurrent=2)
    tokens: list[CancelToken] = []
    ended, done = threading.Event(), [0, 0]

    def one(number: int) -> None:
        rng = random.Random(number)
        for _ in range(150):
            token = CancelToken()
            tokens.append(token)
            try:
                permit = limiter.acquire(
                    KEY, "a", SMALL, priority=Priority.NORMAL, patience=rng.random() * 0.002, token=token
                )
            except (Cancelled, LimitReached) as exc:
                done[isinstance(exc, Cancelled)] += 1
                continue
            rng.random() < 0.2 and ended.wait(0.0005)
            permit.settle()

    def cancels() -> None:
        while not ended.is_set():
            if tokens:
                tokens.pop().cancel()

    canceller = threading.Thread(target=cancels)
    threads = [threading.Thread(target=one, args=(n,)) for n in range(16)]
    for thread in (canceller, *threads):
        thread.start()
    for thread in threads:
        thread.join(60.0)
    ended.set()
    canceller.join(5.0)
    assert all(done), "both ways out were tried"
    status = limiter.snapshot()[str(KEY)]
    assert (status["used"]["concurrent"], status["waiting"], status["deployments"]["a"]["waiting"]) == (
        0,
        0,
        0,
    )
