"""`Assumption`: nothing of what is assumed to be spent comes free too early, however it is shared out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cluster.assumption import Assumption, Spent, from_wire, to_wire
from remote_inference.cluster.window import SlidingWindow

SPAN = 60.25


def remaining(window: SlidingWindow, now: float) -> int:
    window.forget(now)
    return window.requests


def line(amount: int, began: float, now: float) -> float:
    """What is left of so much, were it to go little by little."""
    return max(0.0, amount * (began + SPAN - now) / SPAN)


@given(amount=st.integers(0, 10_000), steps=st.lists(st.floats(0.1, 20.0), max_size=8))
def test_it_leaves_the_window_at_the_limit_s_own_pace(amount: int, steps: list[float]) -> None:
    window = SlidingWindow(SPAN)
    Assumption(window, "requests").begin(amount, 100.0, "me", 100.0)
    now = 100.0
    for step in steps:
        now += step
        assert line(amount, 100.0, now) - 1e-6 <= remaining(window, now)
        assert remaining(window, now) <= line(amount, 100.0, now) + amount * 0.25 / SPAN + 1
    assert remaining(window, 100.0 + SPAN + 0.25) == 0


@given(
    amount=st.integers(0, 10_000),
    weights=st.lists(st.floats(0.5, 50.0), min_size=1, max_size=5),
    coming=st.floats(0.0, 50.0),
    waits=st.lists(st.floats(0.1, 15.0), min_size=3, max_size=3),
)
def test_sharing_it_out_frees_nothing(
    amount: int, weights: list[float], coming: float, waits: list[float]
) -> None:
    window, now = SlidingWindow(SPAN), 100.0
    giver = Assumption(window, "requests")
    giver.begin(amount, now, "me", now)
    windows = [window]
    for count, wait in enumerate(waits):
        now += wait
        window.forget(now)
        before = window.requests
        names = {"me": 1.0} | {f"{number}": weight for number, weight in enumerate(weights[: count + 1])}
        parts = giver.deal("me", names, coming, now)
        assert window.requests == before - sum(parts.values()) >= 0
        for name, part in parts.items():
            taker = SlidingWindow(SPAN)
            Assumption(taker, "requests").accept(giver.dealt[name], now)
            assert taker.requests == part
            windows.append(taker)
        for later in (0.0, 7.0, 30.0):
            total = sum(sum(n for at, n in slots(w) if at + SPAN > now + later) for w in windows)
            assert total >= line(amount, 100.0, now + later) - 1e-6
    assert set(giver.dealt) == {"me", *(f"{number}" for number in range(len(weights[:3])))}
    assert giver.deal("me", {"me": 1.0, "0": 1.0}, 0.0, now) == {}, "each has a part of it once"


@given(
    amount=st.integers(0, 10_000),
    weights=st.lists(st.floats(0.5, 50.0), min_size=1, max_size=5),
    coming=st.floats(0.0, 50.0),
    later=st.floats(0.0, 70.0),
)
def test_each_knows_about_how_much_of_it_the_others_have(
    amount: int, weights: list[float], coming: float, later: float
) -> None:
    """The provider counts all of it: what is not known to be the others' would be taken for a stranger's."""
    now = 100.0
    names = {"me": 1.0} | {f"{number}": weight for number, weight in enumerate(weights)}
    giver = Assumption(SlidingWindow(SPAN), "requests")
    giver.begin(amount, now, "me", now)
    giver.deal("me", names, coming, now + 1.0)
    all_of_them = {"me": giver}
    for name in names:
        if name != "me":
            taker = all_of_them[name] = Assumption(SlidingWindow(SPAN), "requests")
            taker.accept(giver.dealt[name], now + 1.0)
            for other, spent in giver.dealt.items():
                taker.hear(other, "me", spent)
    now += 1.0 + later
    exact = {
        name: sum(n for at, n in slots(one._window) if at + SPAN > now) for name, one in all_of_them.items()
    }
    for name, one in all_of_them.items():
        others = sum(n for other, n in exact.items() if other != name)
        rounding = len(names) * (1 + amount * 0.25 / SPAN)
        assert abs(one.of_others(name, now) - others) <= rounding


def slots(window: SlidingWindow) -> list[tuple[float, int]]:
    return [(slot.last, slot.requests) for slot in window.slots]


def test_parts_are_by_weight_and_leave_some_for_those_who_are_about_to_come() -> None:
    giver = Assumption(SlidingWindow(SPAN), "tokens")
    giver.begin(1_000, 100.0, "me", 100.0)
    assert giver.deal("me", {"me": 1.0, "a": 2.0}, 1.0, 100.0) == {"a": 500}
    assert giver.deal("me", {"me": 1.0, "a": 2.0, "b": 1.0}, 0.0, 100.0) == {"b": 250}
    assert [giver.of(name, 100.0) for name in ("me", "a", "b", "c")] == [250, 500, 250, 0]
    giver.forget("a")
    assert giver.of("a", 100.0) == 0
    giver.clear()
    assert not giver.lasts(100.0)
    assert giver.of("me", 100.0) == 0


@given(
    amount=st.integers(1, 10_000),
    first=st.floats(-1e5, 1e5),
    lasts=st.floats(0.0, SPAN),
    offset=st.floats(-1e5, 1e5),
)
def test_what_is_told_is_what_is_heard_on_another_clock(
    amount: int, first: float, lasts: float, offset: float
) -> None:
    spent = Spent(amount, first, first + lasts, amount + 3)
    heard = from_wire(to_wire(spent), offset, spent.last + offset + 1.0, SPAN)
    assert heard is not None
    assert (heard.amount, heard.upto) == (amount, amount + 3)
    assert spent.first <= heard.first - offset + 1e-6 <= spent.first + 0.01
    assert spent.last <= heard.last - offset + 1e-6 <= spent.last + 0.01


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        "abcd",
        {},
        [],
        [1, 2.0, 3.0],
        [1, None, 3.0, 1],
        [-1, 2.0, 3.0, 1],
        [True, 2.0, 3.0, 1],
        [1.5, 2.0, 3.0, 1],
        [1, 2.0, 3.0, -1],
        [1, 2.0, 3.0, "x"],
    ],
)
def test_what_makes_no_sense_is_none(value: Any) -> None:
    assert from_wire(value, 0.0, 100.0, SPAN) is None


def test_a_span_that_is_impossible_is_cut_to_the_window() -> None:
    spent = from_wire([1_000, -1e14, 1e14, 1_000], 0.0, 100.0, SPAN)
    assert spent == Spent(1_000, 100.0 - SPAN, 100.0, 1_000)
    assert len(spent.left(100.0, SlidingWindow(SPAN))) <= SPAN / 0.25 + 1
