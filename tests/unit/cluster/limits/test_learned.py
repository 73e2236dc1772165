"""Limits that nobody named: from headers at once, from refusals by trying."""

from __future__ import annotations

import json
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cluster.limits.learned import LearnedLimits
from remote_inference.cluster.local.window import Ceilings
from remote_inference.policy.quota import DIMENSIONS, Quota, QuotaReport

NOW = 1_760_000_000.0
MINUTE = 60.0


def told(dimension: str = "requests", limit: int | None = 600, **more: float) -> QuotaReport:
    return QuotaReport((Quota(dimension, limit, **more),))  # type: ignore[arg-type]


def test_nothing_is_limited_at_first() -> None:
    learned = LearnedLimits()
    assert learned.ceilings(NOW) == {}
    assert Ceilings(**learned.ceilings(NOW)) == Ceilings()


class TestHeaders:
    def test_they_are_the_limits(self) -> None:
        learned = LearnedLimits()
        report = QuotaReport((Quota("requests", 600), Quota("input_tokens", 30_000)))
        assert learned.observe(report)
        assert learned.ceilings(NOW) == {"requests": 600.0, "input_tokens": 30_000.0}
        assert not learned.observe(report), "nothing new"

    def test_a_change_is_followed_but_not_every_wavering(self) -> None:
        learned = LearnedLimits()
        learned.observe(told(limit=1000))
        assert not learned.observe(told(limit=1005))
        assert learned.observe(told(limit=2000))
        assert learned.observe(told(limit=1999)), "less is always heeded"
        assert learned.ceilings(NOW) == {"requests": 1999.0}

    def test_one_of_seconds_is_as_much_a_minute(self) -> None:
        learned = LearnedLimits()
        learned.observe(told(limit=10, window=10.0))
        assert learned.ceilings(NOW) == {"requests": 60.0}

    def test_one_of_a_day_says_nothing_of_a_minute(self) -> None:
        learned = LearnedLimits()
        assert not learned.observe(told(limit=14_400, window=86_400.0))
        assert learned.ceilings(NOW) == {}

    def test_a_minute_beside_a_day_does(self) -> None:
        learned = LearnedLimits()
        day, minute = Quota("requests", 14_400, window=86_400.0), Quota("requests", 30, window=60.0)
        assert learned.observe(QuotaReport((day, minute)))
        assert learned.ceilings(NOW) == {"requests": 30.0}

    def test_where_only_resets_tell_the_day_most_of_them_decide(self) -> None:
        learned = LearnedLimits()
        for _ in range(3):
            learned.observe(told(limit=14_400, window=86_400.0))
        assert not learned.observe(told(limit=14_400)), "this one only looked like a minute's"
        assert learned.ceilings(NOW) == {}
        for _ in range(3):
            learned.observe(told(limit=600))
        assert learned.ceilings(NOW) == {"requests": 600.0}
        assert not learned.observe(told(limit=600, window=3600.0)), "this one only looked like an hour's"
        assert learned.ceilings(NOW) == {"requests": 600.0}

    def test_a_limit_that_turns_out_to_be_of_a_day_is_forgotten(self) -> None:
        learned = LearnedLimits()
        learned.observe(told(limit=14_400))
        assert not learned.observe(told(limit=14_400, window=86_400.0))
        assert learned.observe(told(limit=14_400, window=86_400.0))
        assert learned.ceilings(NOW) == {}

    def test_what_is_left_does_not_matter_here(self) -> None:
        learned = LearnedLimits()
        assert not learned.observe(told(limit=None, remaining=3))


class TestRefusals:
    def test_a_little_less_than_what_was_too_much(self) -> None:
        learned = LearnedLimits()
        assert learned.refused({"requests": 100, "tokens": 5000.0}, NOW)
        assert learned.ceilings(NOW) == {"requests": pytest.approx(90), "tokens": pytest.approx(4500)}

    def test_it_comes_back_slowly_and_goes_on(self) -> None:
        learned = LearnedLimits()
        learned.refused({"requests": 100}, NOW)
        over_time = [learned.ceilings(NOW + minute * MINUTE)["requests"] for minute in range(30)]
        assert over_time == sorted(over_time)
        assert over_time[1] < 95.2
        assert over_time[5] == pytest.approx(100)
        assert over_time[7] < 101
        assert over_time[10] == pytest.approx(110)
        assert over_time[29] == 200, "no further than this before it is seen to pass"

    def test_what_passes_is_known_to_pass(self) -> None:
        learned = LearnedLimits()
        learned.refused({"requests": 100}, NOW)
        assert not learned.tick({"requests": 95}, NOW + 5 * MINUTE)
        assert not learned.tick({"requests": 150}, NOW + MINUTE), "they were there before the refusal"
        assert learned.tick({"requests": 180}, NOW + 20 * MINUTE)
        assert learned.ceilings(NOW + 20 * MINUTE) == {"requests": 360.0}

    def test_those_that_were_on_their_way_count_as_one(self) -> None:
        learned = LearnedLimits()
        learned.refused({"requests": 100}, NOW)
        assert not learned.refused({"requests": 100}, NOW + 3)
        assert learned.ceilings(NOW + 3)["requests"] > 90
        assert learned.refused({"requests": 88}, NOW + 30)
        assert learned.ceilings(NOW + 30)["requests"] == pytest.approx(79.2)

    def test_one_in_a_quiet_minute_does_not_ruin_everything(self) -> None:
        learned = LearnedLimits()
        learned.refused({"requests": 1000}, NOW)
        learned.refused({"requests": 2}, NOW + 60)
        assert learned.ceilings(NOW + 60)["requests"] > 400

    def test_a_refusal_never_raises_the_limit(self) -> None:
        learned = LearnedLimits()
        learned.refused({"requests": 100}, NOW)
        before = learned.ceilings(NOW + 30)["requests"]
        learned.refused({"requests": 500}, NOW + 30)
        assert learned.ceilings(NOW + 30)["requests"] < before

    def test_nothing_sent_teaches_nothing(self) -> None:
        learned = LearnedLimits()
        assert not learned.refused({"requests": 0}, NOW)
        assert not learned.refused({}, NOW)
        assert learned.ceilings(NOW) == {}

    def test_headers_know_better(self) -> None:
        learned = LearnedLimits()
        learned.observe(told(limit=600))
        assert not learned.refused({"requests": 100}, NOW)
        assert learned.ceilings(NOW) == {"requests": 600.0}
        learned.refused({"requests": 100, "tokens": 1000}, NOW)
        learned.observe(told("tokens", 5000))
        assert learned.ceilings(NOW) == {"requests": 600.0, "tokens": 5000.0}

    def test_where_headers_tell_the_cause_nothing_is_guessed(self) -> None:
        learned = LearnedLimits()
        assert not learned.refused({"requests": 100}, NOW, told("tokens", 5000, remaining=0))
        assert learned.refused({"requests": 100}, NOW, told("tokens", 5000, remaining=900))

    @pytest.mark.parametrize("limit", [60, 600])
    def test_a_provider_without_headers_is_used_well_and_seldom_refuses(self, limit) -> None:
        """Demand far above the limit; the provider counts over sliding 60 s, and tells a time after a refusal."""
        learned, accepted = LearnedLimits(), deque[float]()
        refused = passed = 0
        credit = pause = 0.0
        for tenth in range(36_000):
            now = NOW + tenth / 10
            while accepted and accepted[0] <= now - 60:
                accepted.popleft()
            allowed = learned.ceilings(now).get("requests", 1e9)
            credit = min(credit + allowed / 600, max(1.0, allowed / 60))
            while now >= pause and credit >= 1 and len(accepted) + 1 <= allowed:
                credit -= 1
                if len(accepted) < limit:
                    accepted.append(now)
                    passed += 1
                else:
                    refused += 1
                    learned.refused({"requests": len(accepted) + 1}, now)
                    pause = accepted[0] + 60
            learned.tick({"requests": len(accepted)}, now)
        assert passed / (limit * 60) > 0.9
        assert refused / passed < 0.01


class TestWire:
    def test_what_one_found_the_others_know(self) -> None:
        one, two = LearnedLimits(), LearnedLimits()
        one.observe(told(limit=600))
        one.refused({"requests": 5, "tokens": 1000}, NOW)
        wire = json.loads(json.dumps(one.to_wire()))
        assert two.merge_wire(wire, NOW + 5)
        assert two.ceilings(NOW + 100) == one.ceilings(NOW + 100)
        assert not two.merge_wire(wire, NOW + 6), "nothing new"
        assert two.to_wire() == one.to_wire()

    def test_a_refusal_in_the_future_is_one_of_now(self) -> None:
        learned = LearnedLimits()
        learned.merge_wire({"told": {}, "refused": {"requests": [100, NOW + 1e9]}}, NOW)
        assert learned.ceilings(NOW)["requests"] == pytest.approx(90)
        assert learned.ceilings(NOW + 300)["requests"] == pytest.approx(100)

    def test_more_than_is_known_here_is_passed_over(self) -> None:
        learned = LearnedLimits()
        wire = {
            "told": {"images": 5, "requests": 7},
            "refused": {"tokens": [9, NOW, "more"], "x": 1},
            "new": 1,
        }
        assert learned.merge_wire(wire, NOW)
        assert learned.ceilings(NOW) == {"requests": 7, "tokens": pytest.approx(8.1)}

    @pytest.mark.parametrize(
        "wire",
        [
            None,
            [],
            {},
            {"told": {}},
            {"told": [], "refused": {}},
            {"told": {"requests": 0}, "refused": {}},
            {"told": {"requests": -1}, "refused": {}},
            {"told": {"requests": True}, "refused": {}},
            {"told": {"requests": "5"}, "refused": {}},
            {"told": {"requests": float("nan")}, "refused": {}},
            {"told": {"requests": 1e300}, "refused": {}},
            {"told": {}, "refused": {"requests": 5}},
            {"told": {}, "refused": {"requests": [5]}},
            {"told": {}, "refused": {"requests": [0, NOW]}},
            {"told": {}, "refused": {"requests": [5, float("inf")]}},
            {"told": {}, "refused": {"requests": [5, None]}},
        ],
    )
    def test_what_is_malformed_changes_nothing(self, wire) -> None:
        learned = LearnedLimits()
        learned.observe(told(limit=600))
        assert not learned.merge_wire(wire, NOW)
        assert learned.ceilings(NOW) == {"requests": 600.0}


dimensions = st.sampled_from(DIMENSIONS)
counts = st.dictionaries(dimensions, st.floats(0, 1e15), max_size=4)
steps = st.one_of(
    st.tuples(st.just("refused"), counts),
    st.tuples(st.just("tick"), counts),
    st.tuples(
        st.just("observe"),
        st.builds(
            told, dimensions, st.integers(1, 10**15), window=st.sampled_from([None, 1.0, 60.0, 86_400.0])
        ),
    ),
    st.tuples(
        st.just("merge"),
        st.dictionaries(
            st.sampled_from(["told", "refused"]),
            st.dictionaries(dimensions, st.floats() | st.lists(st.floats(), max_size=3)),
        ),
    ),
)


@given(st.lists(st.tuples(st.floats(0, 1e5), steps), max_size=25))
def test_whatever_comes_a_limit_is_a_limit_and_the_wire_carries_it(history) -> None:
    learned, now = LearnedLimits(), NOW
    for wait, (kind, value) in history:
        now += wait
        before = learned.to_wire()
        if kind == "merge":
            changed = learned.merge_wire(value, now)
        elif kind == "observe":
            changed = learned.observe(value)
        else:
            changed = getattr(learned, kind)(value, now)
        assert changed is (learned.to_wire() != before)
        ceilings = learned.ceilings(now)
        assert set(ceilings) <= set(DIMENSIONS)
        assert all(0 < limit <= 2e12 for limit in ceilings.values())
        other = LearnedLimits()
        other.merge_wire(json.loads(json.dumps(learned.to_wire())), now)
        assert other.ceilings(now + 60) == ceilings or other.ceilings(now) == ceilings
    assert repr(learned).startswith("LearnedLimits(")
