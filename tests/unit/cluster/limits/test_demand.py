"""What a replica wants, and what it tells of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cluster.limits.demand import (
    LONGEST_WISH,
    PEAK_MEMORY,
    SATED,
    UNMET_MEMORY,
    Demand,
    PeerDemand,
)

SPAN = 60.25


class TestWishes:
    def test_who_waits_for_nothing_wants_nothing(self) -> None:
        demand = Demand(SPAN, 0.0)
        assert not demand.starved(0.0)
        assert demand.claim(0.0) == 0.0

    def test_a_wish_lasts_for_as_long_as_the_request_waits_and_a_second(self) -> None:
        demand = Demand(SPAN, 0.0)
        assert demand.want(5, 10.0, 12.0)
        end = 12.0 + UNMET_MEMORY
        assert demand.starved(end - 0.01)
        assert demand.claim(end - 0.01) == 5
        assert not demand.starved(end)
        assert demand.claim(end) == 0.0

    def test_but_not_for_ever(self) -> None:
        demand = Demand(SPAN, 0.0)
        demand.want(5, 10.0, math.inf)
        assert demand.starved(10.0 + LONGEST_WISH + UNMET_MEMORY - 0.01)
        assert not demand.starved(10.0 + LONGEST_WISH + UNMET_MEMORY)

    def test_the_largest_request_is_the_claim_while_it_waits(self) -> None:
        demand = Demand(SPAN, 0.0)
        demand.want(5, 0.0, 1.0)
        demand.want(2, 0.0, 4.0)
        assert demand.claim(1.0) == 5
        assert demand.claim(4.9) == 5
        demand.want(2, 6.0, 7.0)
        assert demand.claim(6.0) == 2

    def test_that_the_same_is_wanted_again_is_no_news(self) -> None:
        demand = Demand(SPAN, 0.0)
        assert demand.want(5, 0.0, 2.0)
        assert not demand.want(5, 0.1, 2.0)
        assert not demand.want(3, 0.2, 2.0)
        assert demand.want(1, 3.5, 4.0), "in between nothing was wanted"


class TestBeingSated:
    def starved(self) -> Demand:
        demand = Demand(SPAN, 0.0)
        demand.want(5, 0.0, 4.0)
        return demand

    def test_who_has_what_it_wanted_and_leaves_it_wants_it_no_more_after_a_moment(self) -> None:
        demand = self.starved()
        demand.see_free(5.0, True, 1.0)
        assert demand.starved(1.0)
        demand.see_free(5.0, True, 1.0 + SATED - 0.01)
        assert demand.starved(1.5)
        demand.see_free(5.0, True, 1.0 + SATED)
        assert not demand.starved(1.5)
        assert demand.claim(1.5) == 0.0

    @pytest.mark.parametrize(("free", "can_send"), [(4.0, True), (5.0, False)])
    def test_who_has_less_or_cannot_use_it_yet_still_wants_it(self, free: float, can_send: bool) -> None:
        demand = self.starved()
        for tenth in range(30):
            demand.see_free(free, can_send, 1.0 + tenth / 10)
        assert demand.starved(4.0)

    def test_who_wants_something_anew_is_not_sated(self) -> None:
        demand = self.starved()
        demand.see_free(5.0, True, 1.0)
        demand.want(5, 1.2, 4.0)
        demand.see_free(5.0, True, 1.0 + SATED)
        assert demand.starved(1.5)

    def test_who_used_it_meanwhile_is_looked_at_anew(self) -> None:
        demand = self.starved()
        demand.see_free(5.0, True, 1.0)
        demand.see_free(0.0, True, 1.2)
        demand.see_free(5.0, True, 1.0 + SATED)
        assert demand.starved(1.5)


class TestTheRate:
    def test_it_becomes_what_is_spent_in_a_second(self) -> None:
        demand = Demand(SPAN, 0.0)
        for half in range(1, 21):
            demand.measure(0, 5 * half, half / 2)
        assert demand.rate == pytest.approx(10.0, rel=0.01)
        for half in range(21, 41):
            demand.measure(0, 100, half / 2)
        assert demand.rate == pytest.approx(0.0, abs=0.1)

    def test_what_is_given_back_does_not_make_it_negative(self) -> None:
        demand = Demand(SPAN, 0.0)
        demand.measure(0, 100, 1.0)
        demand.measure(0, 20, 2.0)
        assert demand.rate == 0.0

    def test_two_looks_at_the_same_time_do_no_harm(self) -> None:
        demand = Demand(SPAN, 0.0)
        demand.measure(0, 10, 1.0)
        demand.measure(0, 20, 1.0)
        assert demand.rate == 10.0
        demand.measure(0, 20, 2.0)
        assert demand.rate == 10.0, "what was spent at that time is counted by the next look"

    def test_of_concurrency_it_is_the_most_that_ran_lately(self) -> None:
        demand = Demand(0.0, 0.0)
        demand.measure(8, 0, 1.0)
        assert demand.rate == 8.0
        demand.measure(2, 0, 1.0 + PEAK_MEMORY)
        assert demand.rate == pytest.approx(8.0 / math.e)
        demand.measure(2, 0, 100.0)
        assert demand.rate == 2.0

    @given(
        st.sampled_from([0.0, SPAN]),
        st.lists(st.tuples(st.integers(0, 1_000), st.integers(0, 640).map(lambda n: n / 64)), max_size=20),
    )
    def test_it_is_never_more_than_the_most_that_was_seen(
        self, span: float, looks: list[tuple[int, float]]
    ) -> None:
        demand, now, spent, most = Demand(span, 0.0), 0.0, 0, 0.0
        last_spent, last = 0, 0.0
        for amount, passed in looks:
            now += passed
            spent += amount
            demand.measure(amount, spent, now)
            if span and now > last:
                most = max(most, (spent - last_spent) / (now - last))
                last_spent, last = spent, now
            elif not span:
                most = max(most, amount)
            assert 0.0 <= demand.rate <= most * (1 + 1e-9)


AMOUNTS = st.integers(0, 10**12)


class TestTelling:
    @given(
        limit=st.just(math.inf) | AMOUNTS.map(float),
        rate=st.floats(0, 1e9),
        starved=st.booleans(),
        held=AMOUNTS,
        external=st.floats(0, 1e9),
        version=AMOUNTS,
        free=st.integers(-(10**12), 10**12),
        created=st.floats(-1e3, 1e12),
        more=st.lists(st.text(max_size=2), max_size=2),
    )
    def test_what_is_told_is_heard_also_by_an_older_version(self, more: list[str], **told: Any) -> None:
        peer = PeerDemand([*PeerDemand.to_wire(**told), *more], 3.0)
        assert (peer.limit, peer.starved, peer.held, peer.version, peer.weight) == (
            told["limit"],
            told["starved"],
            told["held"],
            told["version"],
            3.0,
        )
        assert peer.free == max(0, told["free"])
        assert peer.rate == pytest.approx(told["rate"], abs=0.06)
        assert peer.external == math.floor(told["external"])
        assert peer.created == pytest.approx(max(0.0, told["created"]), abs=1e-3)

    @pytest.mark.parametrize("index", range(8))
    @pytest.mark.parametrize("value", [-1, "x", True, math.nan, math.inf, 2**60, [], {}, 10**400])
    def test_an_impossible_field_is_refused(self, index: int, value: Any) -> None:
        told = PeerDemand.to_wire(
            limit=600, rate=1.0, starved=False, held=5, external=0, version=3, free=7, created=9.5
        )
        told[index] = value
        with pytest.raises(ValueError, match="not an amount"):
            PeerDemand(told)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=20,
        )
    )
    def test_whatever_is_heard_is_a_demand_or_is_refused(self, value: Any) -> None:
        try:
            peer = PeerDemand(value)
        except ValueError:
            return
        amounts = (peer.rate, peer.held, peer.external, peer.version, peer.free, peer.created)
        assert all(0 <= amount < math.inf for amount in amounts)
        assert peer.limit >= 0
        assert "PeerDemand(" in repr(peer)


class TestNews:
    TOLD = PeerDemand.to_wire(
        limit=600, rate=20.0, starved=False, held=300, external=0, version=8, free=100, created=9.5
    )

    def but(self, **changed: Any) -> list[Any]:
        names = ("limit", "rate", "starved", "held", "external", "version", "free", "created")
        told = dict(zip(names, self.TOLD, strict=True)) | changed
        return [told[name] for name in names]

    @pytest.mark.parametrize(
        "changed",
        [
            {"limit": 500},
            {"limit": None},
            {"starved": 1},
            {"external": 1},
            {"rate": 25.0},
            {"held": 350},
            {"free": 0, "version": 9},
            {"created": 10.0},
        ],
    )
    def test_what_others_plan_by_is_news(self, changed: dict[str, Any]) -> None:
        assert PeerDemand.is_news(self.TOLD, self.but(**changed))
        assert PeerDemand.is_news(self.but(**changed), self.TOLD)

    @pytest.mark.parametrize(
        "changed",
        [{}, {"version": 99}, {"rate": 21.0}, {"held": 310}, {"free": 105, "version": 9}, {"free": 0}],
    )
    def test_small_changes_are_not(self, changed: dict[str, Any]) -> None:
        assert not PeerDemand.is_news(self.TOLD, self.but(**changed))

    @pytest.mark.parametrize("told", [None, [], [600], "x"])
    def test_what_was_never_told_is(self, told: Any) -> None:
        assert PeerDemand.is_news(told, self.TOLD)
