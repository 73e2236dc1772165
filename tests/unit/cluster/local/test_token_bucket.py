"""The token bucket."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cluster.local.token_bucket import TokenBucket


def test_without_a_rate_all_may_pass() -> None:
    assert TokenBucket(1.0, 0.0).due(1e9, 5.0) == 5.0


def test_a_burst_passes_and_then_the_rate_holds() -> None:
    bucket = TokenBucket(2.0, 0.0)
    bucket.set_rate(10.0, 0.0)
    for _ in range(20):
        assert bucket.due(1, 0.0) == 0.0
        bucket.take(1)
    assert bucket.due(1, 0.0) == pytest.approx(0.1)
    assert bucket.due(20, 0.0) == pytest.approx(2.0)


def test_what_is_larger_than_the_bucket_passes_when_it_is_full_and_is_paid_back() -> None:
    bucket = TokenBucket(1.0, 0.0)
    bucket.set_rate(10.0, 0.0)
    assert bucket.due(100, 0.0) == 0.0
    bucket.take(100)
    assert bucket.due(1, 0.0) == pytest.approx(9.1)
    bucket.give_back(95)
    assert bucket.due(1, 0.0) == 0.0


def test_a_rate_of_nothing_lets_nothing_pass_and_a_new_rate_keeps_what_was_saved() -> None:
    bucket = TokenBucket(1.0, 0.0)
    bucket.set_rate(10.0, 0.0)
    bucket.take(10)
    bucket.set_rate(0.0, 0.0)
    assert bucket.due(1, 100.0) == math.inf
    bucket.set_rate(5.0, 100.0)
    assert bucket.due(1, 100.0) == pytest.approx(100.2)
    bucket.set_rate(math.inf, 100.0)
    assert bucket.due(1e6, 100.0) == 100.0


def test_who_always_has_something_to_send_saves_up_a_quarter_of_a_second_or_two_units() -> None:
    for rate, most in ((100.0, 25.0), (1.0, 2.0)):
        bucket = TokenBucket(10.0, 0.0)
        bucket.set_rate(rate, 0.0, steady=True)
        for _ in range(int(most)):
            assert bucket.due(1, 100.0) == 100.0
            bucket.take(1)
        assert bucket.due(1, 100.0) == pytest.approx(100.0 + 1 / rate)
        bucket.set_rate(rate, 100.0)
        assert bucket.due(10 * rate, 110.0) == 110.0, "now it may save up again"


def test_what_is_urgent_may_pass_by_a_burst_before_its_time() -> None:
    bucket = TokenBucket(2.0, 0.0)
    bucket.set_rate(10.0, 0.0)
    bucket.take(20)
    assert bucket.due(1, 0.0) == pytest.approx(0.1)
    assert bucket.due(1, 0.0, ahead=True) == 0.0
    bucket.take(20)
    assert bucket.due(1, 0.0, ahead=True) == pytest.approx(0.1)


@given(st.floats(0.1, 100), st.floats(1, 10), st.lists(st.floats(0, 3), max_size=50))
def test_no_time_holds_more_than_the_rate_and_a_burst(rate: float, burst: float, gaps: list[float]) -> None:
    bucket, now, passed = TokenBucket(burst, 0.0), 0.0, []
    bucket.set_rate(rate, 0.0)
    for gap in gaps:
        now += gap
        while bucket.due(1, now) <= now:
            bucket.take(1)
            passed.append(now)
    size = max(rate * burst, 1.0)
    for index, begin in enumerate(passed):
        for count, end in enumerate(passed[index:], 1):
            assert count <= size + rate * (end - begin) + 1e-6
