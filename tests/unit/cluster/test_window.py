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
        if window.fits(CEILINGS, cost):
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
        if window.fits(CEILINGS, cost):
            window.reserve(now, cost)
    at, lacking = window.opens_at(CEILINGS, asked, now)
    assert (at == now) == (not lacking) == window.fits(CEILINGS, asked)
    if at > now:
        window.forget(math.nextafter(at, 0.0))
        assert not window.fits(CEILINGS, asked)
        window.forget(at)
        assert window.fits(CEILINGS, asked)


def test_the_window_is_at_most_a_grain_too_long() -> None:
    window = SlidingWindow()
    for n in range(5):
        window.reserve(n * 0.05, Cost(1, 1))
    assert window.opens_at(CEILINGS, Cost(1, 1), 0.2) == (60.2, "requests")
    window.forget(60.19)
    assert window.requests == 5
    window.forget(60.2)
    assert window.requests == 0


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
