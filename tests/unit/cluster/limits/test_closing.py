from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cluster.limits.closing import SECOND, due_of
from remote_inference.cluster.limits.ledger import TICKS

NOW = 1_000.0
SPAN = 60.0
NOTED_AT = 995.0


def closed(
    held: int,
    noted: Sequence[tuple[int, int]] = (),
    told: Sequence[tuple[float, int]] = (),
    *,
    noted_at: float = NOTED_AT,
    last: float = NOW + SPAN,
) -> list[tuple[float, int]]:
    return due_of(held, noted=noted, noted_at=noted_at, told=told, span=SPAN, last=last, now=NOW)


def test_what_is_noted_comes_free_in_its_time_and_the_rest_with_the_last() -> None:
    assert closed(100, [(2_020, 30), (2_040, 20)]) == [(1_020.0, 20), (1_010.0, 30), (1_060.0, 50)]


def test_what_it_told_of_the_time_after_its_note_counts_as_well() -> None:
    after = NOTED_AT + SPAN + SECOND
    assert closed(100, [(2_020, 30)], [(after, 10)]) == [(after, 10), (1_010.0, 30), (1_060.0, 60)]


def test_what_it_told_of_the_time_before_may_have_been_handed_over_since() -> None:
    """It is due already then, and what is held may have been spent unheard."""
    assert closed(80, [(2_100, 40)], [(NOW + 40.0, 100)]) == [(1_050.0, 40), (1_060.0, 40)]


def test_what_may_have_left_the_window_may_have_been_spent_again() -> None:
    assert closed(10, [(2_000, 4), (2_001, 6)]) == [(1_060.0, 10)]
    assert closed(10, [(2_002, 4)]) == [(1_001.0, 4), (1_060.0, 6)]
    assert closed(10, told=[(NOW + SECOND, 10)], noted_at=900.0) == [(1_060.0, 10)]


def test_of_one_of_whom_nothing_is_known_all_comes_free_with_the_last() -> None:
    assert closed(100) == [(1_060.0, 100)]


@pytest.mark.parametrize("last", [995.0, NOW])
def test_of_one_that_stopped_more_than_a_window_ago_all_is_free(last: float) -> None:
    assert closed(100, last=last) == []


def test_nothing_is_due_of_one_that_held_nothing() -> None:
    assert closed(0, [(2_020, 30)], [(1_058.0, 3)]) == []


def test_if_it_spent_more_than_it_held_what_it_spent_last_counts() -> None:
    assert closed(50, [(2_020, 30), (2_040, 40)]) == [(1_020.0, 40), (1_010.0, 10)]


PARTS = st.integers(1, 50)


@given(
    held=st.integers(0, 300),
    noted=st.lists(st.tuples(st.integers(1_990, 2_125), PARTS), max_size=6),
    told=st.lists(st.tuples(st.floats(990.0, 1_065.0), PARTS), max_size=6),
    last=st.floats(990.0, 1_060.0),
)
def test_all_that_it_held_is_due_and_nothing_before_it_can_have_left_the_window(
    held: int, noted: list[tuple[int, int]], told: list[tuple[float, int]], last: float
) -> None:
    due = closed(held, noted, told, last=last)
    assert sum(amount for _, amount in due) == held or last <= NOW
    assert all(amount > 0 for _, amount in due)
    assert all(time <= max(last, NOW) for time, _ in due)
    known = {tick / TICKS for tick, _ in noted} | {time for time, _ in told}
    assert all(min(time, last) in {min(at, last) for at in known} | {last} for time, _ in due)


@given(st.lists(st.tuples(st.integers(2_002, 2_120), PARTS), min_size=1, max_size=6), st.integers(0, 50))
def test_the_more_is_noted_of_what_it_spent_the_sooner_all_of_it_is_free(
    noted: list[tuple[int, int]], more: int
) -> None:
    held = sum(amount for _, amount in noted) + more

    def wait(parts: Sequence[tuple[int, int]]) -> float:
        return sum((time - NOW) * amount for time, amount in closed(held, parts))

    assert wait(noted) <= wait(noted[1:]) <= wait(())
