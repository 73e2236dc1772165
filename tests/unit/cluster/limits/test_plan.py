"""`plan`: what one replica makes of a limit, whatever the others want."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cluster.limits.allocation import water_fill
from remote_inference.cluster.limits.demand import PeerDemand
from remote_inference.cluster.limits.plan import (
    AT_HAND,
    CATCH_UP,
    HEADROOM,
    SHORT,
    STRICTNESS,
    Plan,
    Situation,
    plan,
)

SPAN = 60.0


def peer(held: int = 0, rate: float = 0.0, *, starved: bool = False, weight: float = 1.0) -> PeerDemand:
    told = PeerDemand.to_wire(
        limit=math.inf, rate=rate, starved=starved, held=held, external=0, version=1, free=0, created=0.0
    )
    return PeerDemand(told, weight)


def situation(**changed: Any) -> Situation:
    """Of a replica that is by itself, and idle, with a limit of 600 a minute."""
    peers = changed.get("peers", ())
    held = changed.get("held", 0)
    by_all = held + sum(other.held for other in peers)
    available = changed.get("available", 600.0)
    usual: dict[str, Any] = {
        "span": SPAN,
        "horizon": 1.0,
        "available": available,
        "holdable": available,
        "held": held,
        "held_by_all": by_all,
        "left_over": max(0.0, available - by_all),
        "used": 0,
        "used_by_others": 0,
        "expiring": 0,
        "rate": 0.0,
        "starved": False,
        "claim": 0.0,
        "typical": 1.0,
        "weight": 1.0,
        "peers": peers,
    }
    return Situation(**usual | changed)


AMOUNTS = st.integers(0, 2_000)
PEERS = st.builds(
    peer,
    AMOUNTS,
    st.floats(0.0, 100.0),
    starved=st.booleans(),
    weight=st.sampled_from([0.5, 1.0, 2.0, 8.0, 32.0]),
)


@st.composite
def situations(draw: st.DrawFn, spans: tuple[float, ...] = (0.0, SPAN)) -> Situation:
    """Whatever may be seen, also what does not go together: what is heard lags."""
    span = draw(st.sampled_from(spans))
    peers = tuple(draw(st.lists(PEERS, max_size=5)))
    held = draw(AMOUNTS)
    available = float(draw(st.integers(0, 5_000)))
    due = draw(st.integers(0, 500))
    by_all = float(held + sum(other.held for other in peers) + draw(st.integers(0, 50)))
    starved = draw(st.booleans())
    weight = draw(st.sampled_from([0.5, 1.0, 2.0, 8.0, 32.0]))
    used = draw(st.integers(0, held + 10 if span else min(held + 1, int(weight))))
    rate = draw(st.floats(0.0, 100.0))
    return Situation(
        span=span,
        horizon=1.0,
        available=available,
        holdable=max(0.0, available - due),
        held=held,
        held_by_all=by_all,
        left_over=max(0.0, available - by_all - due),
        used=used,
        used_by_others=draw(AMOUNTS) if span else 0,
        expiring=draw(st.integers(0, 20)) if span else 0,
        rate=rate if span else max(rate, used),  # the most that ran lately
        starved=starved,
        claim=(float(draw(st.integers(1, 50))) if span else 1.0) if starved else 0.0,
        typical=draw(st.sampled_from([1.0, 20.0, 500.0])) if span else 1.0,
        weight=weight,
        peers=peers,
    )


def parts(it: Situation) -> tuple[float, list[float]]:
    """Of how many rights the replica's fair part is, and those of its peers, if it wants all there is."""
    flow = it.available / it.span if it.span else it.available
    wants = [(math.inf if other.starved else other.rate * HEADROOM, other.weight) for other in it.peers]
    mine, *theirs = (share * (it.span or 1.0) for share in water_fill(flow, [(math.inf, it.weight), *wants]))
    return mine, theirs


def lacking(it: Situation) -> float:
    """How many rights its starved peers hold less than their parts."""
    missing = 0.0
    for other, part in zip(it.peers, parts(it)[1], strict=True):
        least = max(1.0, math.floor(part))
        if other.starved and other.held < SHORT * least:
            missing += least - other.held
    return missing


class TestWhateverIsSeen:
    @given(situations())
    def test_never_more_is_usable_than_is_held(self, it: Situation) -> None:
        made = plan(it)
        assert 0 <= made.usable <= it.held
        assert made.usable * it.held_by_all <= it.held * max(it.holdable, it.held_by_all), (
            "nor of what is too much"
        )
        if it.span:
            assert made.usable <= max(0.0, it.available * STRICTNESS - it.used_by_others)

    @given(situations())
    def test_it_never_takes_and_gives_at_once(self, it: Situation) -> None:
        made = plan(it)
        assert min(made.take, made.give, made.hand_over) >= 0
        assert made.take == 0 or made.give == made.hand_over == 0

    @given(situations())
    def test_it_takes_only_when_it_is_short(self, it: Situation) -> None:
        made = plan(it)
        free = max(0, made.usable - it.used)
        flow = it.available / it.span if it.span else it.available
        if made.take and it.span:
            wanted = max(made.share * it.horizon, flow * AT_HAND, it.claim) + made.reserve
            assert free + made.take < wanted + 1
        elif made.take:
            assert free + made.take < max(it.weight, it.claim) + 1

    @given(situations())
    def test_it_gives_only_what_is_not_in_use(self, it: Situation) -> None:
        made = plan(it)
        assert made.give <= max(0, it.held - it.used)
        assert made.give + made.hand_over <= it.held

    @pytest.mark.parametrize("starved", [False, True])
    @pytest.mark.parametrize("held", [0, 5, 10])
    def test_who_runs_more_than_it_has_slots_gives_nothing_that_is_in_use(
        self, held: int, starved: bool
    ) -> None:
        it = situation(
            span=0.0,
            available=40.0,
            held=held,
            used=10,
            rate=10.0,
            weight=8.0,
            starved=starved,
            claim=float(starved),
        )
        assert plan(it).give == 0

    @given(situations())
    def test_what_it_needs_for_a_request_that_waits_is_not_given(self, it: Situation) -> None:
        if not it.span and it.used + it.claim > it.weight:
            return  # who waits has a slot, too
        made = plan(it)
        if made.give and it.claim:
            assert made.usable - it.used - made.give >= it.claim

    @given(situations((0.0,)))
    def test_of_concurrency_it_never_takes_above_its_slots(self, it: Situation) -> None:
        made = plan(it)
        assert made.take == 0 or it.held + made.take <= math.ceil(it.weight)
        assert made.reserve == 0

    @given(situations())
    def test_its_share_is_of_what_is_there_and_it_may_go_a_bit_faster(self, it: Situation) -> None:
        made = plan(it)
        flow = it.available / it.span if it.span else it.available
        assert 0.0 <= made.share <= flow
        assert made.share <= made.speed <= made.share * CATCH_UP
        everyone = it.weight + sum(other.weight for other in it.peers)
        assert made.share >= flow * it.weight / everyone * (1 - 1e-9), "never less than an equal part"


class TestWhereThereIsEnough:
    @given(situations())
    def test_it_hands_nothing_over(self, it: Situation) -> None:
        peers = tuple(peer(other.held, other.rate, weight=other.weight) for other in it.peers)
        assert plan(replace(it, peers=peers)).hand_over == 0

    def test_it_leaves_the_rest_to_the_ledger(self) -> None:
        made = plan(situation(rate=2.0))
        assert 0 < made.take < 20

    def test_a_first_request_finds_something_at_hand(self) -> None:
        assert plan(situation()).take >= 1
        assert plan(situation(peers=[peer() for _ in range(9)])).take >= 1

    def test_it_takes_no_more_when_it_has_what_it_needs(self) -> None:
        first = plan(situation(rate=2.0))
        again = plan(situation(rate=2.0, held=first.take))
        assert (again.take, again.give) == (0, 0)

    def test_a_large_request_gets_what_it_wants(self) -> None:
        made = plan(situation(starved=True, claim=500.0))
        assert made.take >= 500

    def test_what_is_far_too_much_is_given_back_and_it_does_not_waver(self) -> None:
        it = situation(held=500, rate=1.0)
        made = plan(it)
        assert made.give > 400
        again = plan(replace(it, held=500 - made.give, held_by_all=500.0 - made.give))
        assert (again.take, again.give) == (0, 0)

    @pytest.mark.parametrize("used", [0, 3])
    def test_of_concurrency_each_holds_all_its_slots_where_that_is_possible(self, used: int) -> None:
        it = situation(
            span=0.0, available=40.0, weight=8.0, used=used, held=used, peers=[peer(8, 8.0, weight=8.0)] * 3
        )
        assert plan(it).take == 8 - used

    def test_where_the_limit_is_large_one_request_is_kept_back_for_urgent_ones(self) -> None:
        assert plan(situation(available=600.0, held=20)).reserve == 1
        assert plan(situation(available=600.0, held=20, typical=5.0)).reserve == 5
        assert plan(situation(available=50.0, held=20)).reserve == 0


class TestWhereOthersGoShort:
    @given(situations())
    def test_it_takes_no_more_than_its_part_while_others_lack_theirs(self, it: Situation) -> None:
        it = replace(it, peers=(*it.peers, peer(0, starved=True)))
        part, missing, made = parts(it)[0], lacking(it), plan(it)
        assert missing >= 1.0
        if part < 1.0 + it.claim:
            return  # of so little its request would never be sent
        if made.take:
            assert it.held + made.take <= part or made.take <= it.left_over - missing

    @given(situations())
    def test_it_hands_over_only_what_others_lack_and_not_below_its_part(self, it: Situation) -> None:
        it = replace(it, peers=(*it.peers, peer(0, starved=True)))
        made, part, missing = plan(it), parts(it)[0], lacking(it)
        if made.hand_over:
            assert made.hand_over <= math.ceil(missing)
            kept = it.held - made.give - made.hand_over
            if it.starved:
                assert kept >= max(1.0, math.floor(part))
            else:
                assert kept >= math.floor(min(part, it.rate * HEADROOM * (it.span or 1.0)))

    def test_who_holds_above_its_part_hands_over_also_what_is_in_use(self) -> None:
        it = situation(held=600, used=600, rate=10.0, starved=True, claim=1.0, peers=[peer(0, starved=True)])
        made = plan(it)
        assert made.hand_over == pytest.approx(300, abs=2)
        assert made.give == made.take == 0

    def test_who_holds_its_part_hands_nothing_over(self) -> None:
        it = situation(
            held=300, used=300, rate=5.0, starved=True, claim=1.0, peers=[peer(300, 5.0, starved=True)]
        )
        assert plan(it) == replace(plan(it), take=0, give=0, hand_over=0)

    def test_what_is_idle_is_given_up_for_others(self) -> None:
        made = plan(situation(held=100, peers=[peer(500, 8.0, starved=True)]))
        assert made.give == 100 - made.reserve

    def test_who_needs_little_goes_on_with_what_it_needs(self) -> None:
        it = situation(held=80, used=60, rate=1.0, peers=[peer(500, 9.0, starved=True)])
        made = plan(it)
        assert it.held - made.give - made.hand_over >= 60

    def test_who_is_above_its_part_does_not_hurry(self) -> None:
        it = situation(held=500, used=500, starved=True, claim=1.0, peers=[peer(100, 2.0, starved=True)])
        made = plan(it)
        assert made.speed == made.share == 5.0
        fair = plan(replace(it, held=300, held_by_all=600.0, used=300, peers=(peer(300, 5.0, starved=True),)))
        assert fair.speed == 5.0 * CATCH_UP

    def test_parts_are_by_weight(self) -> None:
        it = situation(
            held=600,
            used=600,
            starved=True,
            claim=1.0,
            weight=1.0,
            peers=[peer(0, starved=True, weight=2.0), peer(0, starved=True, weight=3.0)],
        )
        assert plan(it).share == pytest.approx(10.0 / 6)
        assert plan(it).hand_over == pytest.approx(500, abs=3)

    def test_of_a_limit_smaller_than_the_crowd_each_that_wants_one_is_worth_one(self) -> None:
        it = situation(
            span=0.0,
            available=2.0,
            held=2,
            used=2,
            starved=True,
            claim=1.0,
            peers=[peer(0, starved=True) for _ in range(4)],
        )
        made = plan(it)
        assert made.hand_over == 1, "it keeps one itself"


class TestWhereTooMuchIsHeld:
    def test_each_may_use_its_part_of_what_may_be_held(self) -> None:
        """The limit has fallen, or the provider says that somebody else uses it."""
        it = situation(available=300.0, held=400, peers=[peer(200)])
        assert plan(it).usable == 200

    def test_what_the_others_are_known_to_have_spent_is_not_spent_again(self) -> None:
        it = situation(held=300, used_by_others=500, peers=[peer(300)])
        assert plan(it).usable == math.floor(600 * STRICTNESS) - 500

    def test_of_a_limit_of_nothing_nothing_is_usable(self) -> None:
        made = plan(situation(available=0.0, held=50))
        assert (made.usable, made.share, made.speed) == (0, 0.0, 0.0)


class TestWhatIsMore:
    """One thing changes, all else is the same."""

    @given(situations(), st.integers(1, 500))
    def test_a_higher_limit_never_makes_its_share_or_what_is_usable_smaller(
        self, it: Situation, more: int
    ) -> None:
        higher = replace(it, available=it.available + more, holdable=it.holdable + more)
        assert plan(higher).share >= plan(it).share * (1 - 1e-9)
        assert plan(higher).usable >= plan(it).usable

    @given(situations(), PEERS)
    def test_one_more_peer_never_makes_its_share_larger(self, it: Situation, newcomer: PeerDemand) -> None:
        crowded = replace(it, peers=(*it.peers, newcomer))
        assert plan(crowded).share <= plan(it).share * (1 + 1e-9)

    @given(situations(), st.integers(1, 100))
    def test_the_more_it_has_unused_the_less_it_takes(self, it: Situation, more: int) -> None:
        richer = replace(it, held=it.held + more, held_by_all=it.held_by_all + more)
        if plan(richer).usable >= plan(it).usable + more:  # else it is none the richer
            assert plan(richer).take <= plan(it).take

    @given(situations((SPAN,)), st.integers(1, 100))
    def test_the_more_others_have_spent_the_less_is_usable(self, it: Situation, more: int) -> None:
        assert plan(replace(it, used_by_others=it.used_by_others + more)).usable <= plan(it).usable


def test_a_plan_of_nothing_to_do_is_the_usual_one() -> None:
    assert Plan(share=1.0, speed=1.0, usable=1, reserve=0) == Plan(
        share=1.0, speed=1.0, usable=1, reserve=0, take=0, give=0, hand_over=0, available=math.inf
    )
