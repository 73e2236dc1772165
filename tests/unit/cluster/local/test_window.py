"""The sliding window, against a log that forgets nothing."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from remote_inference.cluster.base import Cost
from remote_inference.cluster.local.window import Ceilings, SlidingWindow, Slot
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
    assert window.lacking(limits, limits, huge) is None
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
        (Ceilings(2, 72, 31, 41), None),
    ):
        assert window.lacking(rights, Ceilings(), Cost(1, 1)) == lacking


SPENT = st.lists(
    st.tuples(st.integers(0, 128).map(lambda n: n / 64), st.integers(0, 30), st.booleans()), max_size=30
)


def filled(steps: list[tuple[float, int, bool]]) -> tuple[SlidingWindow, float]:
    """A window, and the time; which of the requests have ended is told."""
    window, now = SlidingWindow(), 1_000.0
    for gap, tokens, ended in steps:
        now += gap
        slot = window.reserve(now, Cost(tokens, 0))
        slot.running -= ended
    return window, now


@given(SPENT, st.integers(0, 300))
def test_what_is_handed_over_is_counted_no_more_and_all_of_it_is_told_when_it_leaves(
    steps: list[tuple[float, int, bool]], amount: int
) -> None:
    window, now = filled(steps)
    before, settled = dict(window.leaving("tokens")), sum(s.tokens for s in window.slots if not s.running)
    count, running = window.tokens, [(s.last, s.tokens) for s in window.slots if s.running]
    handed = window.hand_over("tokens", amount)
    assert sum(n for _, n in handed) == min(amount, settled)
    assert window.tokens == sum(s.tokens for s in window.slots) == count - min(amount, settled)
    assert all(0 < n <= before[at] and now < at <= now + window.span for at, n in handed)
    assert [(s.last, s.tokens) for s in window.slots if s.running] == running, "it will be corrected"
    assert all(s.tokens >= 0 for s in window.slots)


@given(SPENT, st.integers(0, 300))
def test_what_could_not_be_handed_over_is_counted_as_before(
    steps: list[tuple[float, int, bool]], amount: int
) -> None:
    window, now = filled(steps)
    checks = [now + later for later in (0.0, 1.0, 30.0, 59.0, 60.5)]
    before, expiring = window.tokens, [window.expiring("tokens", at) for at in checks]
    window.restore("tokens", window.hand_over("tokens", amount))
    assert window.tokens == before
    assert [window.expiring("tokens", at) for at in checks] == expiring
    window.forget(now + 61.0)
    assert (window.requests, window.tokens, len(window.slots)) == (0, 0, 0)


def test_of_each_moment_the_same_part_is_handed_over() -> None:
    window = SlidingWindow()
    for at in (0.0, 1.0, 2.0, 3.0):
        window.reserve(at, Cost(100, 0)).running -= 1
    assert window.hand_over("tokens", 200) == [(60.0, 50), (61.0, 50), (62.0, 50), (63.0, 50)]
    assert window.leaving("tokens") == [(60.0, 50), (61.0, 50), (62.0, 50), (63.0, 50)]
    assert window.requests == 4, "of the other dimensions nothing is"
    assert window.hand_over("tokens", 0) == []


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
