"""Who gets how much."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cluster.sharing import deal, water_fill

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


COUNTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=8)


@given(COUNTS, COUNTS)
def test_all_givers_together_give_what_there_is_or_all_that_is_needed(
    spares: list[int], needs: list[int]
) -> None:
    gifts = [deal(spares, giver, needs) for giver in range(len(spares))]
    assert all(0 <= sum(given) <= spare for given, spare in zip(gifts, spares, strict=True))
    got = [sum(given) for given in zip(*gifts, strict=True)]
    assert all(part <= need for part, need in zip(got, needs, strict=True))
    assert sum(got) == min(sum(spares), sum(needs))
    assert sum(1 for given in gifts for amount in given if amount) <= len(spares) + len(needs)


def test_who_can_spare_most_gives_first_and_who_needs_more_gets_more() -> None:
    assert [deal([10, 0, 30], giver, [10, 10]) for giver in range(3)] == [[0, 0], [0, 0], [10, 10]]
    assert [deal([10, 0, 30], giver, [20, 15]) for giver in range(3)] == [[0, 5], [0, 0], [20, 10]]
    assert deal([10], 0, [30, 10, 10]) == [6, 2, 2]
    assert deal([0, 0], 0, [5]) == deal([3, 5], 1, [0]) == [0]


def test_the_first_gives_what_is_too_little_to_be_shared() -> None:
    assert [deal([5, 5, 5], giver, [1]) for giver in range(3)] == [[1], [0], [0]]
