"""The token bucket."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cluster.pace import Pace


def test_without_a_rate_all_may_pass() -> None:
    assert Pace(1.0, 0.0).due(1e9, 5.0) == 5.0


def test_a_burst_passes_and_then_the_rate_holds() -> None:
    pace = Pace(2.0, 0.0)
    pace.set_rate(10.0, 0.0)
    for _ in range(20):
        assert pace.due(1, 0.0) == 0.0
        pace.take(1)
    assert pace.due(1, 0.0) == pytest.approx(0.1)
    assert pace.due(20, 0.0) == pytest.approx(2.0)


def test_what_is_larger_than_the_bucket_passes_when_it_is_full_and_is_paid_back() -> None:
    pace = Pace(1.0, 0.0)
    pace.set_rate(10.0, 0.0)
    assert pace.due(100, 0.0) == 0.0
    pace.take(100)
    assert pace.due(1, 0.0) == pytest.approx(9.1)
    pace.give_back(95)
    assert pace.due(1, 0.0) == 0.0


def test_a_rate_of_nothing_lets_nothing_pass_and_a_new_rate_keeps_what_was_saved() -> None:
    pace = Pace(1.0, 0.0)
    pace.set_rate(10.0, 0.0)
    pace.take(10)
    pace.set_rate(0.0, 0.0)
    assert pace.due(1, 100.0) == math.inf
    pace.set_rate(5.0, 100.0)
    assert pace.due(1, 100.0) == pytest.approx(100.2)
    pace.set_rate(math.inf, 100.0)
    assert pace.due(1e6, 100.0) == 100.0


@given(st.floats(0.1, 100), st.floats(1, 10), st.lists(st.floats(0, 3), max_size=50))
def test_no_time_holds_more_than_the_rate_and_a_burst(rate: float, burst: float, gaps: list[float]) -> None:
    pace, now, passed = Pace(burst, 0.0), 0.0, []
    pace.set_rate(rate, 0.0)
    for gap in gaps:
        now += gap
        while pace.due(1, now) <= now:
            pace.take(1)
            passed.append(now)
    size = max(rate * burst, 1.0)
    for index, begin in enumerate(passed):
        for count, end in enumerate(passed[index:], 1):
            assert count <= size + rate * (end - begin) + 1e-6
