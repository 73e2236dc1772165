"""The breaker opens, probes and closes as its policy says, whatever comes late."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_inference.clock import SystemClock
from remote_inference.config import BreakerPolicy
from remote_inference.errors import CircuitOpen, InvalidRequest
from remote_inference.policy.breaker import Admission, CircuitBreaker
from remote_inference.policy.circuit import CircuitState
from remote_inference.testing.clock import VirtualClock

POLICY = BreakerPolicy(
    failure_threshold=3,
    failure_window=60.0,
    open_duration=30.0,
    max_open_duration=100.0,
    half_open_max_probes=1,
)


def about(when: float) -> object:
    """Equal to a time since the epoch: pytest's own tolerance, a millionth, would be half an hour there."""
    return pytest.approx(when, rel=0.0, abs=1e-5)


class Bench:
    """A breaker on a virtual clock, and what it told."""

    def __init__(self, policy: BreakerPolicy = POLICY) -> None:
        self.clock = VirtualClock()
        self.changes: list[tuple[str, str]] = []
        self.breaker = CircuitBreaker(
            policy,
            endpoint="https://api",
            clock=self.clock,
            on_change=lambda old, new: self.changes.append((old, new)),
        )

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            self.breaker.admit().failure()

    def refused(self) -> CircuitOpen:
        with pytest.raises(CircuitOpen) as caught:
            self.breaker.admit()
        return caught.value

    def open(self) -> None:
        self.fail(POLICY.failure_threshold)
        assert self.breaker.state == "open"


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_failures_in_a_row_open_it_and_it_says_until_when(bench: Bench) -> None:
    bench.fail(2)
    assert bench.breaker.state == "closed"
    bench.fail()
    assert bench.breaker.state == "open"
    error = bench.refused()
    assert error.code == "open"
    assert error.retry_at == about(bench.clock.time() + 30.0)
    assert bench.breaker.retry_at == error.retry_at
    assert bench.changes == [("closed", "open")]


def test_a_success_begins_the_row_anew(bench: Bench) -> None:
    for _ in range(5):
        bench.fail(2)
        bench.breaker.admit().success()
    assert bench.breaker.state == "closed"


def test_neutral_outcomes_change_nothing(bench: Bench) -> None:
    for _ in range(3):
        assert bench.breaker.state == "closed"
        bench.breaker.admit().neutral()
        bench.fail()
    assert bench.breaker.state == "open"


def test_failures_older_than_the_window_do_not_count(bench: Bench) -> None:
    bench.fail(2)
    bench.clock.advance(60.0)
    bench.fail(2)
    assert bench.breaker.state == "closed"
    bench.clock.advance(59.0)
    bench.fail()
    assert bench.breaker.state == "open"


def test_a_probe_that_succeeds_closes_it(bench: Bench) -> None:
    bench.open()
    bench.clock.advance(29.9)
    bench.refused()
    bench.clock.advance(0.1)
    assert bench.breaker.state == "half_open"
    assert bench.breaker.retry_at == 0.0
    probe = bench.breaker.admit()
    assert probe.probe
    assert bench.refused().code == "probing"
    probe.success()
    assert bench.breaker.state == "closed"
    assert bench.changes == [("closed", "open"), ("open", "half_open"), ("half_open", "closed")]
    bench.fail(2)
    assert bench.breaker.state == "closed"


def test_it_may_be_asked_again_at_the_time_it_named(bench: Bench) -> None:
    bench.clock.advance(0.1)
    bench.open()
    error = bench.refused()
    bench.clock.advance(error.retry_at - bench.clock.time())
    bench.breaker.admit().success()


def test_it_stays_open_twice_as_long_while_probes_fail_and_begins_short_again_after_closing(
    bench: Bench,
) -> None:
    bench.open()
    for duration in (30.0, 60.0, 100.0, 100.0):
        assert bench.refused().retry_at == about(bench.clock.time() + duration)
        bench.clock.advance(duration)
        bench.breaker.admit().failure()
    bench.clock.advance(100.0)
    bench.breaker.admit().success()
    bench.open()
    assert bench.refused().retry_at == about(bench.clock.time() + 30.0)


def test_a_neutral_probe_frees_its_slot_and_decides_nothing(bench: Bench) -> None:
    bench.open()
    bench.clock.advance(30.0)
    bench.breaker.admit().neutral()
    assert bench.breaker.state == "half_open"
    bench.breaker.admit().success()
    assert bench.breaker.state == "closed"


def test_late_outcomes_of_calls_from_before_neither_close_nor_prolong_nor_count(bench: Bench) -> None:
    before = [bench.breaker.admit() for _ in range(10)]
    bench.open()
    retry_at = bench.breaker.retry_at
    before[0].success()
    before[1].failure()
    assert (bench.breaker.state, bench.breaker.retry_at) == ("open", about(retry_at))
    bench.clock.advance(30.0)
    probe = bench.breaker.admit()
    before[2].success()
    before[3].failure()
    assert bench.refused().code == "probing"
    probe.success()
    for late in before[4:]:
        late.failure()
    assert bench.breaker.state == "closed"


def test_a_probe_of_an_earlier_round_holds_its_slot_until_it_ends() -> None:
    bench = Bench(BreakerPolicy(failure_threshold=3, open_duration=30.0, half_open_max_probes=2))
    bench.open()
    bench.clock.advance(30.0)
    slow, quick = bench.breaker.admit(), bench.breaker.admit()
    quick.failure()
    bench.clock.advance(60.0)
    second = bench.breaker.admit()
    bench.refused()
    slow.success()
    assert bench.breaker.state == "half_open"
    third = bench.breaker.admit()
    bench.refused()
    second.success()
    third.failure()
    assert bench.breaker.state == "closed"


def test_an_outcome_counts_once(bench: Bench) -> None:
    admission = bench.breaker.admit()
    for _ in range(5):
        admission.failure()
    assert bench.breaker.state == "closed"
    bench.fail(2)
    assert bench.breaker.state == "open"
    bench.clock.advance(30.0)
    probe = bench.breaker.admit()
    probe.neutral()
    probe.neutral()
    probe.success()
    bench.breaker.admit()
    bench.refused()


def test_the_operator_opens_and_closes_it(bench: Bench) -> None:
    running = bench.breaker.admit()
    bench.breaker.force_open(500.0)
    error = bench.refused()
    assert (error.code, error.retry_at) == ("forced", about(bench.clock.time() + 500.0))
    running.success()
    assert bench.breaker.state == "open"
    bench.breaker.force_open(10.0)
    bench.clock.advance(10.0)
    bench.breaker.admit().failure()
    assert bench.refused().retry_at == about(bench.clock.time() + 30.0)
    bench.breaker.force_close()
    bench.fail(2)
    assert bench.breaker.state == "closed"
    assert bench.changes[-1] == ("open", "closed")


@pytest.mark.parametrize("duration", [0.0, -1.0, float("inf"), float("nan")])
def test_a_forced_duration_is_a_positive_number(bench: Bench, duration: float) -> None:
    with pytest.raises(InvalidRequest):
        bench.breaker.force_open(duration)
    assert bench.breaker.state == "closed"


def test_closing_a_closed_one_forgets_failures_and_tells_nobody(bench: Bench) -> None:
    bench.fail(2)
    bench.breaker.force_close()
    bench.fail(2)
    assert bench.breaker.state == "closed"
    assert bench.changes == []


def test_a_broken_listener_costs_no_probe() -> None:
    def broken(old: str, new: str) -> None:
        raise ValueError(old + new)

    clock = VirtualClock()
    breaker = CircuitBreaker(BreakerPolicy(failure_threshold=1), endpoint="x", clock=clock, on_change=broken)
    breaker.admit().failure()
    clock.advance(30.0)
    breaker.admit().success()
    assert breaker.state == "closed"


def test_the_listener_may_ask_the_breaker() -> None:
    seen: list[str] = []
    clock = VirtualClock()
    breaker = CircuitBreaker(
        BreakerPolicy(failure_threshold=1),
        endpoint="x",
        clock=clock,
        on_change=lambda *_: seen.append(breaker.state),
    )
    breaker.admit().failure()
    assert seen == ["open"]


def test_the_repr_tells_what_matters_at_night(bench: Bench) -> None:
    assert repr(bench.breaker) == "CircuitBreaker('https://api', closed, 0 failures, 0 probes running)"
    bench.open()
    assert "open, 30.0 s left" in repr(bench.breaker)


@pytest.mark.parametrize("probes", [1, 4])
def test_fifty_threads_get_exactly_the_configured_number_of_probes(probes: int) -> None:
    policy = BreakerPolicy(failure_threshold=1, open_duration=0.001, half_open_max_probes=probes)
    breaker = CircuitBreaker(policy, endpoint="x", clock=SystemClock())
    for _ in range(20):
        breaker.force_open(0.001)
        time.sleep(0.002)  # the state's own time, not a wait for somebody
        outcomes = _ask_from_fifty_threads(breaker)
        admitted = [outcome for outcome in outcomes if isinstance(outcome, Admission)]
        assert (len(outcomes), len(admitted)) == (50, probes)
        for admission in admitted:
            admission.neutral()


def _ask_from_fifty_threads(breaker: CircuitBreaker) -> list[Admission | CircuitOpen]:
    start, outcomes = threading.Barrier(50), list[Admission | CircuitOpen]()

    def one() -> None:
        start.wait()
        try:
            outcomes.append(breaker.admit())
        except CircuitOpen as exc:
            outcomes.append(exc)

    threads = [threading.Thread(target=one) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_no_lock_is_held_across_a_call() -> None:
    breaker = CircuitBreaker(POLICY, endpoint="x", clock=SystemClock())
    running = [breaker.admit() for _ in range(100)]
    other = threading.Thread(target=lambda: breaker.admit().success())
    other.start()
    other.join(5.0)
    assert not other.is_alive()
    for admission in running:
        admission.success()


def test_its_transitions_are_told_and_can_be_adopted_by_another() -> None:
    told: list[CircuitState] = []
    clock = VirtualClock()
    one = CircuitBreaker(POLICY, endpoint="x", clock=clock, on_transition=told.append, name=lambda: "one")
    two = CircuitBreaker(POLICY, endpoint="x", clock=clock)
    for _ in range(3):
        one.admit().failure()
    opened = CircuitState(
        epoch=1, by="one", open=True, until=clock.monotonic() + 30.0, duration=30.0, next_duration=60.0
    )
    assert told == [opened]
    assert two.adopt(opened)
    assert (two.state, two.shared) == ("open", opened)
    clock.advance(30.0)
    two.admit().failure()
    assert two.retry_at == about(clock.time() + 60.0)
    assert one.adopt(two.shared)
    assert one.retry_at == about(clock.time() + 60.0)
    two.force_close()
    two.force_open(5.0)
    assert one.adopt(two.shared)
    assert (one.shared.epoch, one.shared.forced, one.state) == (4, True, "open")
    assert [state.epoch for state in told] == [1]


def test_an_earlier_state_is_not_adopted_and_of_two_at_once_the_greater_name_holds(bench: Bench) -> None:
    bench.breaker.force_open(10.0)
    bench.breaker.force_close()
    assert not bench.breaker.adopt(CircuitState(epoch=1, by="z", open=True, until=1e9, duration=10.0))
    assert bench.breaker.state == "closed"
    assert bench.breaker.adopt(CircuitState(epoch=2, by="b", open=True, until=1e9, duration=10.0))
    assert not bench.breaker.adopt(CircuitState(epoch=2, by="a"))
    assert not bench.breaker.adopt(CircuitState(epoch=2, by="b"))
    assert bench.breaker.state == "open"
    assert bench.breaker.adopt(CircuitState(epoch=2, by="c"))
    assert bench.breaker.state == "closed"
    assert bench.changes[-2:] == [("closed", "open"), ("open", "closed")]


def test_forcing_is_told_also_where_nothing_changes_here() -> None:
    told: list[CircuitState] = []
    breaker = CircuitBreaker(POLICY, endpoint="x", clock=VirtualClock(), on_transition=told.append)
    breaker.force_close()
    breaker.admit().success()
    assert [(state.epoch, state.open) for state in told] == [(1, False)]


def test_outcomes_of_calls_from_before_an_adopted_state_are_old_news(bench: Bench) -> None:
    running = [bench.breaker.admit() for _ in range(6)]
    bench.breaker.adopt(
        CircuitState(epoch=1, by="b", open=True, until=bench.clock.monotonic() + 9.0, duration=9.0)
    )
    retry_at = bench.breaker.retry_at
    running[0].success()
    running[1].failure()
    assert (bench.breaker.state, bench.breaker.retry_at) == ("open", about(retry_at))
    bench.breaker.adopt(CircuitState(epoch=2, by="b"))
    for late in running[2:]:
        late.failure()
    assert bench.breaker.state == "closed"


def test_an_admission_holds_until_the_circuit_changes(bench: Bench) -> None:
    admission = bench.breaker.admit()
    bench.fail(2)
    bench.breaker.admit().neutral()
    assert admission.holds
    bench.fail()
    assert not admission.holds
    bench.clock.advance(30.0)
    probe = bench.breaker.admit()
    assert probe.holds
    bench.breaker.adopt(CircuitState(epoch=9, by="b"))
    assert not probe.holds


class FakeSlots:
    """Probe slots that are given out as the test says; what happens while one is asked for, too."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.asked = 0
        self.released: list[bool] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def take(self) -> FakeSlots | None:
        self.asked += 1
        self.meanwhile()
        if not self.free:
            return None
        self.free -= 1
        return self

    def release(self, decided: bool) -> None:
        self.free += 1
        self.released.append(decided)


class SlotBench(Bench):
    """With slots that others have too."""

    def __init__(self, free: int, policy: BreakerPolicy = POLICY) -> None:
        super().__init__(policy)
        self.slots = FakeSlots(free)
        self.breaker = CircuitBreaker(
            policy,
            endpoint="https://api",
            clock=self.clock,
            on_change=lambda old, new: self.changes.append((old, new)),
            slots=self.slots,
        )
        self.open()
        self.clock.advance(30.0)


def test_a_probe_needs_a_slot_and_gives_it_back() -> None:
    for outcome, decided in (("success", True), ("failure", True), ("neutral", False)):
        bench = SlotBench(1)
        probe = bench.breaker.admit()
        assert (bench.slots.free, bench.slots.released) == (0, [])
        getattr(probe, outcome)()
        probe.success()
        assert (bench.slots.free, bench.slots.released) == (1, [decided])


def test_without_a_slot_there_is_no_probe_and_the_next_look_is_a_second_later() -> None:
    bench = SlotBench(0)
    error = bench.refused()
    assert (error.code, error.retry_at) == ("probing", about(bench.clock.time() + 1.0))
    assert bench.breaker.state == "half_open"
    bench.refused()
    assert bench.slots.asked == 1
    bench.slots.free = 1
    bench.clock.advance(1.0)
    bench.breaker.admit().success()
    assert bench.breaker.state == "closed"
    assert bench.slots.asked == 2


def test_a_process_asks_for_no_more_slots_than_there_are_probes() -> None:
    bench = SlotBench(5, BreakerPolicy(failure_threshold=3, open_duration=30.0, half_open_max_probes=2))
    bench.breaker.admit()
    bench.breaker.admit()
    assert bench.refused().code == "probing"
    assert bench.slots.asked == 2


def test_a_circuit_that_closes_while_a_slot_is_asked_for_lets_the_request_through_as_an_ordinary_one() -> (
    None
):
    bench = SlotBench(1)
    bench.slots.meanwhile = lambda: bench.breaker.force_close()
    admission = bench.breaker.admit()
    assert not admission.probe
    assert bench.slots.released == [False]
    admission.failure()
    assert "0 probes running" in repr(bench.breaker)


def test_a_circuit_that_opens_while_a_slot_is_asked_for_refuses_the_request() -> None:
    bench = SlotBench(1)
    bench.slots.meanwhile = lambda: bench.breaker.force_open(50.0)
    error = bench.refused()
    assert (error.code, error.retry_at) == ("forced", about(bench.clock.time() + 50.0))
    assert bench.slots.released == [False]
    bench.slots.meanwhile = lambda: None
    bench.clock.advance(50.0)
    assert bench.breaker.admit().probe


def test_slots_that_fail_cost_no_probe_for_ever() -> None:
    def fail() -> None:
        raise OSError("gone")

    bench = SlotBench(1)
    bench.slots.meanwhile = fail
    with pytest.raises(OSError, match="gone"):
        bench.breaker.admit()
    bench.slots.meanwhile = lambda: None
    assert bench.breaker.admit().probe


def test_the_broker_is_asked_without_the_lock() -> None:
    bench = SlotBench(1)
    seen: list[str] = []
    bench.slots.meanwhile = lambda: seen.append(bench.breaker.state)  # would wait for ever
    bench.breaker.admit()
    assert seen == ["half_open"]


class Model:
    """The rules again, written for being read."""

    def __init__(self) -> None:
        self.now, self.state, self.until, self.next, self.failures = 0.0, "closed", 0.0, 30.0, list[float]()
        self.period, self.probes = 0, 0

    def admit(self) -> tuple[int, bool] | None:
        if self.state == "closed":
            return self.period, False
        if (self.state == "open" and self.now < self.until) or self.probes == 2:
            return None
        if self.state == "open":
            self.state, self.period = "half_open", self.period + 1
        self.probes += 1
        return self.period, True

    def settle(self, call: tuple[int, bool], outcome: str) -> None:
        self.probes -= call[1]
        if outcome == "neutral" or call[0] != self.period:
            return
        if outcome == "success":
            self.failures = []
            if self.state == "half_open":
                self.state, self.next, self.period = "closed", 30.0, self.period + 1
            return
        self.failures = [t for t in self.failures if t > self.now - 60.0] + [self.now]
        if self.state == "half_open" or len(self.failures) >= 3:
            self.state, self.until, self.period = "open", self.now + self.next, self.period + 1
            self.next, self.failures = min(2 * self.next, 100.0), []


STEPS = st.one_of(
    st.tuples(st.just("fail"), st.integers(1, 3)),
    st.just(("admit", 0.0)),
    st.tuples(st.sampled_from(["success", "failure", "failure", "neutral"]), st.integers(0, 20)),
    st.tuples(st.just("advance"), st.sampled_from([1.0, 10.0, 30.0, 60.0])),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=80))
def test_it_does_what_the_rules_say_in_any_order_of_things(steps: list[tuple[str, float]]) -> None:
    bench, model = (
        Bench(
            BreakerPolicy(
                failure_threshold=3, open_duration=30.0, max_open_duration=100.0, half_open_max_probes=2
            )
        ),
        Model(),
    )
    running: list[tuple[Admission, tuple[int, bool]]] = []
    for what, number in steps:
        if what == "advance":
            bench.clock.advance(number)
            model.now += number
        elif what in ("admit", "fail"):
            for _ in range(int(number) or 1):
                expected = model.admit()
                if expected is None:
                    bench.refused()
                    continue
                admission = bench.breaker.admit()
                if what == "fail":
                    admission.failure()
                    model.settle(expected, "failure")
                else:
                    running.append((admission, expected))
        elif running:
            admission, call = running.pop(int(number) % len(running))
            getattr(admission, what)()
            model.settle(call, what)
        effective = "half_open" if model.state == "open" and model.now >= model.until else model.state
        assert bench.breaker.state == effective
