"""`due_of`: of what a replica that has stopped may have spent, nothing comes free too early."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cluster.limits.closing import due_of
from remote_inference.cluster.limits.ledger import TICKS

NOW = 1_000.0
LAST = NOW + 60.0


def test_what_is_known_comes_free_in_its_time_and_the_rest_when_the_last_of_it_may_leave() -> None:
    noted = [(2 * 1_010, 20), (2 * 1_030, 30)]
    assert sorted(due_of(100, noted, [], LAST, NOW)) == [(1_010.0, 20), (1_030.0, 30), (LAST, 50)]


def test_of_what_it_noted_and_what_it_told_that_counts_of_which_there_is_more() -> None:
    told = [(1_020.0, 60)]
    assert sorted(due_of(100, [(2 * 1_010, 20)], told, LAST, NOW)) == [(1_020.0, 60), (LAST, 40)]
    assert sorted(due_of(100, [(2 * 1_010, 70)], told, LAST, NOW)) == [(1_010.0, 70), (LAST, 30)]


def test_if_both_tell_of_the_same_what_it_told_counts_which_is_not_rounded() -> None:
    assert due_of(20, [(2 * 1_030, 20)], [(1_028.7, 20)], LAST, NOW) == [(1_028.7, 20)]


def test_what_has_left_the_window_may_have_been_spent_once_more() -> None:
    assert due_of(100, [(2 * 990, 100)], [(NOW, 100)], LAST, NOW) == [(LAST, 100)]


def test_of_one_of_whom_nothing_is_known_all_comes_free_in_the_end() -> None:
    assert due_of(100, [], [], LAST, NOW) == [(LAST, 100)]


def test_of_one_that_stopped_more_than_a_window_ago_all_is_free() -> None:
    assert due_of(100, [], [], NOW - 0.1, NOW) == []


def test_nothing_is_due_of_one_that_held_nothing() -> None:
    assert due_of(0, [(2 * 1_010, 5)], [(1_020.0, 5)], LAST, NOW) == []


def test_if_it_spent_more_than_it_held_what_it_spent_last_counts() -> None:
    assert due_of(10, [(2 * 1_010, 8), (2 * 1_030, 8)], [], LAST, NOW) == [(1_030.0, 8), (1_010.0, 2)]


def test_a_note_that_is_rounded_up_is_not_due_after_the_last_that_it_can_have_spent() -> None:
    assert due_of(10, [(2 * 1_062, 10)], [], LAST, NOW) == [(LAST, 10)]


AMOUNTS = st.integers(0, 1_000)
TIMES = st.floats(NOW - 30.0, NOW + 70.0)


@given(
    held=st.integers(0, 3_000),
    noted=st.lists(st.tuples(TIMES.map(lambda time: round(time * TICKS)), AMOUNTS), max_size=10),
    told=st.lists(st.tuples(TIMES, AMOUNTS), max_size=10),
    last=TIMES,
)
def test_all_is_accounted_for_and_nothing_is_due_earlier_than_is_known(
    held: int, noted: list[tuple[int, int]], told: list[tuple[float, int]], last: float
) -> None:
    due = due_of(held, noted, told, last, NOW)
    whole = sum(amount for _, amount in due)
    assert whole <= held
    assert all(amount > 0 for _, amount in due)
    assert all(time <= last for time, _ in due)
    if last > NOW:
        assert whole == held, "it may have spent all of it"
        assert all(time > NOW for time, _ in due)
    by_note = [(tick / TICKS, amount) for tick, amount in noted if tick / TICKS > NOW]
    by_word = [(time, amount) for time, amount in told if time > NOW]
    fuller = max(
        by_word, by_note, key=lambda known: sum(amount for _, amount in known)
    )  # what it told is exact
    for moment in {time for time, _ in due} | {NOW, NOW + 20.0, last}:
        left = sum(amount for time, amount in due if time > moment)
        spent = sum(amount for time, amount in fuller if min(time, last) > moment)
        assert left >= min(spent, held)


@given(
    spent=st.lists(st.tuples(st.floats(NOW + 0.5, LAST), st.integers(1, 50)), max_size=10),
    more=st.integers(0, 100),
)
def test_the_more_is_known_of_what_it_spent_the_sooner_all_of_it_is_free(
    spent: list[tuple[float, int]], more: int
) -> None:
    held = sum(amount for _, amount in spent) + more
    for count in range(len(spent)):
        less = due_of(held, [], spent[:count], LAST, NOW)
        known = due_of(held, [], spent[: count + 1], LAST, NOW)
        for moment in (NOW, NOW + 10.0, NOW + 30.0, NOW + 59.0):
            later = sum(amount for time, amount in known if time > moment)
            assert later <= sum(amount for time, amount in less if time > moment)


@pytest.mark.parametrize("last", [NOW - 5.0, NOW])
def test_what_has_been_noted_for_later_than_it_can_be_is_free(last: float) -> None:
    due = due_of(10, [(2 * 1_001, 10)], [], last, NOW)
    assert all(time <= NOW for time, _ in due)
