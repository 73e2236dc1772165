"""Who gets how much."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cluster.limits.allocation import water_fill

WANTS = st.lists(
    st.tuples(st.one_of(st.floats(0, 1e6), st.just(math.inf)), st.floats(0.1, 100)), min_size=1, max_size=8
)


@given(st.floats(0, 1e6), WANTS)
def test_water_fill_gives_nobody_more_than_it_wants_and_all_that_is_wanted(
    total: float, wants: list[tuple[float, float]]
) -> None:
    shares = water_fill(total, wants)
    assert all(0 <= share <= wanted for share, (wanted, _) in zip(shares, wants, strict=True))
    assert sum(shares) == pytest.approx(min(total, sum(wanted for wanted, _ in wants)), abs=1e-6)


def test_who_wants_little_gets_it_and_the_rest_is_shared_by_weight() -> None:
    assert water_fill(100.0, [(10.0, 1.0), (math.inf, 1.0), (math.inf, 2.0)]) == [10.0, 30.0, 60.0]
    assert water_fill(0.0, [(5.0, 1.0)]) == [0.0]
