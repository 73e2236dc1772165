"""Admission: lower priorities are refused first, and nobody lets in more than there is room for."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.messaging.admission import FRESH, SHARES, Admission, threshold
from remote_inference.testing.clock import VirtualClock
from remote_inference.types import Priority

priorities = st.sampled_from(Priority)


def test_the_shares_are_the_designs():
    assert [threshold(1000, priority) for priority in Priority] == [800, 900, 950, 1000]
    assert set(SHARES) == set(Priority)


@given(st.integers(1, 10**6))
def test_a_higher_priority_has_no_less_room_and_every_one_has_some(capacity):
    rooms = [threshold(capacity, priority) for priority in Priority]
    assert rooms == sorted(rooms)
    assert rooms[0] >= 1
    assert rooms[-1] == capacity


def test_nothing_is_let_in_before_the_queue_was_looked_at():
    assert Admission(VirtualClock()).take("q", 100, Priority.NORMAL) is None


def test_a_look_counts_for_a_moment_only():
    clock = VirtualClock()
    admission = Admission(clock)
    admission.seen("q", 0)
    assert admission.take("q", 100, Priority.NORMAL) == 1
    clock.advance(FRESH + 0.01)
    assert admission.take("q", 100, Priority.NORMAL) is None


@pytest.mark.parametrize(
    ("waiting", "let_in"), [(79, 4), (80, 3), (89, 3), (90, 2), (94, 2), (95, 1), (99, 1), (100, 0)]
)
def test_a_fuller_queue_lets_in_fewer_priorities(waiting, let_in):
    admission = Admission(VirtualClock())
    found = []
    for priority in Priority:
        admission.seen("q", waiting)
        found.append(admission.take("q", 100, priority))
    assert [taken for taken in found if taken] == [1] * let_in
    assert found[: 4 - let_in] == [0] * (4 - let_in)


def test_whoever_is_turned_away_was_looked_for():
    """One look turns away one: the next one may find that there is room again."""
    admission = Admission(VirtualClock())
    admission.seen("q", 100)
    assert admission.take("q", 100, Priority.CRITICAL) == 0
    assert admission.take("q", 100, Priority.CRITICAL) is None


def test_queues_are_told_apart():
    admission = Admission(VirtualClock())
    admission.seen("full", 100)
    admission.seen("empty", 0)
    assert admission.take("full", 100, Priority.CRITICAL) == 0
    assert admission.take("empty", 100, Priority.CRITICAL) == 1
    assert "full" in repr(admission)


@given(
    st.integers(1, 400),
    st.lists(st.tuples(priorities, st.integers(1, 300), st.integers(0, 3)), max_size=60),
)
def test_one_process_alone_never_fills_more_than_the_priorities_part(capacity, wishes):
    """``done``: of how many of those that are under way the end becomes known after each wish."""
    admission = Admission(VirtualClock())
    waiting = under_way = 0
    for priority, wanted, done in wishes:
        granted = admission.take("q", capacity, priority, wanted)
        if granted is None:
            admission.seen("q", waiting, admission.looking("q"))
            granted = admission.take("q", capacity, priority, wanted)
            assert granted != 0 or waiting >= threshold(capacity, priority)
        if granted:
            assert granted <= wanted
            under_way += granted
            assert waiting + under_way <= threshold(capacity, priority)
        arrived = min(done, under_way)
        if arrived:
            admission.settled("q", arrived)
            under_way -= arrived
            waiting += arrived


def test_what_was_let_in_while_the_queue_was_looked_at_counts_as_not_seen():
    admission = Admission(VirtualClock())
    admission.seen("q", 0)
    looking = admission.looking("q")
    assert admission.take("q", 1, Priority.CRITICAL) == 1
    admission.settled("q")
    admission.seen("q", 0, looking)  # the figure is from before it arrived
    assert admission.take("q", 1, Priority.CRITICAL) is None
    admission.seen("q", 1, admission.looking("q"))
    assert admission.take("q", 1, Priority.CRITICAL) == 0


def test_threads_share_one_look_and_its_room():
    admission, capacity = Admission(VirtualClock()), 1600
    admission.seen("q", 0)
    granted: list[int] = []
    started = threading.Barrier(8)

    def take() -> None:
        started.wait(10)
        for _ in range(200):
            taken = admission.take("q", capacity, Priority.CRITICAL)
            if not taken:
                return
            granted.append(taken)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert 0 < sum(granted) <= capacity // 8
