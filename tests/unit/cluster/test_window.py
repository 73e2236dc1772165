"""The sliding window, against a log that forgets nothing."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from remote_inference.cluster.base import Cost
from remote_inference.cluster.window import Ceilings, SlidingWindow, Slot
from remote_inference.config import RateLimits

CEILINGS = Ceilings(requests=5, tokens=100, input_tokens=80, output_tokens=60)
COSTS = st.builds(Cost, st.integers(0, 120), st.integers(0, 120))
# 64ths of a second are exact in floating point, so that both sides agree about the edge.
GAPS = st.one_of(
    st.just(0.0), st.integers(0, 64).map(lambda n: n / 64), st.integers(0, 60 * 64).map(lambda n: n / 64)
)


def fits(window: SlidingWindow, cost: Cost) -> bool:
    return not window.lacking(CEILINGS, CEILINGS, cost)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(GAPS, COSTS, st.none() | st.tuples(st.integers(0, 9), COSTS)), max_size=60))
def test_no_sixty_seconds_hold_more_than_the_limits(
    steps: list[tuple[float, Cost, tuple[int, Cost] | None]],
) -> None:
    window, now = SlidingWindow(), 1_000.0
    log: list[tuple[float, Cost]] = []
    held: list[tuple[int, Slot, Cost]] = []
    for gap, cost, correction in steps:
        now += gap
        window.forget(now)
        if fits(window, cost):
            inside = [c for t, c in log if t > now - 60.0]
            for used, asked, ceiling in (
                (len(inside), 1, CEILINGS.requests),
                (sum(c.tokens for c in inside), cost.tokens, CEILINGS.tokens),
                (sum(c.input_tokens for c in inside), cost.input_tokens, CEILINGS.input_tokens),
                (sum(c.output_tokens for c in inside), cost.output_tokens, CEILINGS.output_tokens),
            ):
                assert used == 0 or used + asked <= ceiling
            held.append((len(log), window.reserve(now, cost), cost))
            log.append((now, cost))
        elif held and correction:
            number, slot, old = held.pop(correction[0] % len(held))
            new = correction[1]
            window.correct(
                slot, 0, new.input_tokens - old.input_tokens, new.output_tokens - old.output_tokens
            )
            log[number] = (log[number][0], new)
        assert len(window.slots) <= 60.0 / window.grain + 2
    window.forget(now + 61.0)
    assert (window.requests, window.input_tokens, window.output_tokens, len(window.slots)) == (0, 0, 0, 0)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(GAPS, COSTS), min_size=1, max_size=40), COSTS)
def test_it_opens_exactly_when_it_says(steps: list[tuple[float, Cost]], asked: Cost) -> None:
    window, now = SlidingWindow(), 1_000.0
    for gap, cost in steps:
        now += gap
        window.forget(now)
        if fits(window, cost):
            window.reserve(now, cost)
    at, lacking = window.opens_at(CEILINGS, CEILINGS, asked, now)
    assert (at == now) == (not lacking) == fits(window, asked)
    if at > now:
        window.forget(math.nextafter(at, 0.0))
        assert not fits(window, asked)
        window.forget(at)
        assert fits(window, asked)


def test_the_window_is_at_most_a_grain_too_long() -> None:
    window = SlidingWindow()
    for n in range(5):
        window.reserve(n * 0.05, Cost(1, 1))
    assert window.opens_at(CEILINGS, CEILINGS, Cost(1, 1), 0.2) == (60.2, "requests")
    window.forget(60.19)
    assert window.requests == 5
    window.forget(60.2)
    assert window.requests == 0


def test_a_cost_above_the_limit_counts_as_the_limit_but_not_as_the_rights() -> None:
    window, huge = SlidingWindow(), Cost(1_000, 0)
    limits = Ceilings(requests=5, tokens=100)
    assert window.lacking(limits, limits, huge) == ""
    assert window.lacking(Ceilings(requests=5, tokens=99), limits, huge) == "tokens"
    assert window.opens_at(Ceilings(requests=5, tokens=99), limits, huge, 7.0) == (math.inf, "tokens")
    window.reserve(0.0, Cost(1, 0))
    assert window.opens_at(limits, limits, huge, 7.0) == (60.0, "tokens")


def test_input_and_output_are_counted_apart_from_the_sum() -> None:
    window = SlidingWindow()
    window.reserve(0.0, Cost(30, 40))
    assert (window.requests, window.tokens, window.input_tokens, window.output_tokens) == (1, 70, 30, 40)
    for rights, lacking in (
        (Ceilings(requests=1), "requests"),
        (Ceilings(tokens=71), "tokens"),
        (Ceilings(input_tokens=30), "input_tokens"),
        (Ceilings(output_tokens=40), "output_tokens"),
        (Ceilings(2, 72, 31, 41), ""),
    ):
        assert window.lacking(rights, Ceilings(), Cost(1, 1)) == lacking


def test_what_is_assumed_leaves_the_window_in_its_time() -> None:
    window = SlidingWindow()
    window.reserve(50.0, Cost(5, 0))
    window.assume("tokens", [(-8.0, 3), (20.0, 4), (49.0, 2)])
    assert (window.requests, window.tokens, window.input_tokens) == (1, 14, 5)
    limits = Ceilings(tokens=14)
    assert window.opens_at(limits, limits, Cost(4, 0), 50.0) == (80.0, "tokens")
    window.forget(52.0)
    assert window.tokens == 11
    window.forget(110.0)
    assert (window.requests, window.tokens, window.input_tokens, len(window.slots)) == (0, 0, 0, 0)


def test_what_expires_soon_is_known() -> None:
    window = SlidingWindow()
    for at in (0.0, 1.0, 2.0):
        window.reserve(at, Cost(10, 1))
    assert [window.expiring("tokens", at) for at in (59.9, 60.0, 61.5, 62.0)] == [0, 11, 22, 33]
    assert window.expiring("requests", 61.0) == 2


def test_what_was_cleared_cannot_be_corrected() -> None:
    window = SlidingWindow()
    slot = window.reserve(0.0, Cost(10, 1))
    window.clear()
    window.correct(slot, -1, -10, -1)
    assert not slot.live
    assert (window.requests, window.tokens, window.input_tokens, window.output_tokens) == (0, 0, 0, 0)


def test_many_reservations_take_bounded_memory() -> None:
    window, cost = SlidingWindow(), Cost(1, 1)
    for n in range(200_000):
        now = n / 1_000.0
        window.forget(now)
        window.reserve(now, cost)
    assert len(window.slots) <= 242


def test_limits_that_are_not_named_are_none() -> None:
    assert Ceilings.of(RateLimits()) == Ceilings()
    named = RateLimits(
        requests_per_minute=1,
        tokens_per_minute=2,
        input_tokens_per_minute=2,
        output_tokens_per_minute=1,
        concurrent_requests=5,
    )
    assert Ceilings.of(named) == Ceilings(1, 2, 2, 1, 5)
    assert Ceilings(requests=7).least(Ceilings(requests=9, tokens=3)) == Ceilings(requests=7, tokens=3)
