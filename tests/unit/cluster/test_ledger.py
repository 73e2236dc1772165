"""Rights: a bounded counter."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cluster.ledger import AHEAD, CROWDED, SETTLED, Ledger, Peer
from remote_inference.cluster.record import Record, is_news

#        plus minus given taken limit rate hungry free need spare pace waiting outside
RECORD = [100, 0, 20, 5, 600, 1.0, 0, 85, 0, 40, 11.0, 0.0, 0]


def ledger(limit: float = 600.0) -> Ledger:
    made = Ledger("requests", span=60.0, now=0.0)
    made.limit = limit
    return made


def look(it: Ledger, now: float, *peers: Peer, **more: Any) -> int:
    how: dict[str, Any] = {"used": 0, "spent": 0, "expiring": 0, "leads": True, "ready": True} | more
    return it.round(now, "me", 1.0, peers, **how)


def peer(it: Ledger, name: str, **changed: float) -> Peer:
    value: list[Any] = list(RECORD)
    for index, field in enumerate("plus minus given taken limit rate hungry free need spare".split()):
        value[index] = changed.get(field, value[index])
    it.records[name] = Record(value)
    return Peer(name, it.records[name], 1.0, False)


def test_the_leader_takes_what_nobody_holds() -> None:
    it = ledger()
    other = peer(it, "a", given=0, taken=0)
    assert look(it, 0.0, other, leads=False) == 0
    assert look(it, 1.0, other, settle=1.0) == 0
    assert look(it, 2.0, other, settle=1.0, dead=100.0) == 400
    assert look(it, 3.0, other, settle=1.0) == 100
    assert (it.held, it.usable) == (500, 500)


def test_what_was_given_and_not_taken_yet_is_nobody_elses() -> None:
    it = ledger()
    one, other = peer(it, "a", given=20, taken=0), peer(it, "b", plus=0, given=0, taken=0)
    assert look(it, 0.0, one, other) == 600 - 80 - 20, "its record tells of a gift that was not heard"
    it.give_up()
    it.gifts["a"] = {"b": 20}
    assert look(it, 1.0, one, other) == 500
    it.give_up()
    it.receipts["b"] = {"a": 20}
    assert look(it, 2.0, one, other) == 500, "it has taken it, but its record does not say so yet"
    other = peer(it, "b", plus=0, given=0, taken=20)
    it.give_up()
    assert look(it, 3.0, one, other) == 500, "it holds it"


def test_who_is_long_gone_does_not_make_rights_disappear() -> None:
    it = ledger()
    one = peer(it, "a", given=30, taken=30)
    it.gifts["a"] = {"gone": 20, SETTLED: 30}
    it.receipts["a"] = {"gone": 20, SETTLED: 30}
    assert look(it, 0.0, one) == 500


def test_what_it_exchanged_itself_with_one_that_is_gone_stays_counted() -> None:
    it = ledger()
    look(it, 0.0, leads=True)
    taker = peer(it, "a", plus=0, given=0, taken=0, need=50)
    look(it, 1.0, taker)
    given, held = it.given["a"], it.held
    assert given > 0
    assert held == 600 - given
    it.forget("a")
    assert (it.held, it.given) == (held, {SETTLED: given})
    assert it.record(1.0)[2] == given


def test_a_gift_moves_rights_and_creates_none() -> None:
    giver, taker = ledger(), ledger()
    look(giver, 0.0)
    look(giver, 1.0, peer(giver, "b", plus=0, given=0, taken=0, need=60))
    given = giver.given["b"]
    look(taker, 0.0, peer(taker, "me", plus=600, given=given, taken=0), leads=False)
    taker.gifts["me"] = dict(giver.given)
    assert taker.accept("me", "b") == given
    assert taker.accept("me", "b") == 0, "twice heard is taken once"
    assert giver.held + taker.held == 600
    assert taker.usable == given


def test_what_was_given_to_one_in_need_is_not_given_again_before_it_has_said_so() -> None:
    it = ledger()
    look(it, 0.0)
    needy = peer(it, "b", plus=0, given=0, taken=0, hungry=1, need=40, spare=0)
    for second in range(1, 10):  # it may have died, too
        look(it, float(second), needy)
    assert it.given == {"b": 40}
    it.receipts["b"] = {"me": 40}
    look(it, 10.0, peer(it, "b", plus=0, given=0, taken=40, hungry=1, need=10, spare=0))
    assert it.given == {"b": 50}


def test_who_is_served_has_not_waited() -> None:
    it = ledger(6.0)
    look(it, 0.0, used=6)
    for second in range(10):
        it.want(1, float(second), second + 1.0)
        look(it, second + 0.5, used=6, served=0)
    assert it.waiting(9.5) == 9.5
    look(it, 9.6, used=6, served=1)
    assert it.waiting(9.7) == pytest.approx(0.1)


def test_who_wanted_something_still_wants_it_a_moment_after_it_came() -> None:
    it = ledger(6.0)
    look(it, 0.0, used=6)
    it.want(1, 1.0, 1.2)
    look(it, 1.1, used=6, sends=True)
    assert it.hungry
    look(it, 1.3, used=0, sends=True)
    assert it.hungry, "the worker may look only now"
    look(it, 1.9, used=0, sends=True)
    assert not it.hungry


def test_who_has_more_than_its_part_does_not_hurry_while_another_has_less_and_needs_it() -> None:
    it = ledger()
    look(it, 0.0)
    poor = {"plus": 0, "given": 0, "taken": 100, "hungry": 1, "spare": 0}
    for second in range(1, 5):
        it.want(1, float(second), second + 1.0)
        look(it, float(second), peer(it, "b", need=5, **poor), used=600)
    assert it.speed == it.share == 5.0
    look(it, 5.0, peer(it, "b", need=0, **poor), used=600)
    assert it.speed > it.share, "it could not use more"


def test_an_urgent_need_gets_whole_rights_also_of_what_is_kept_back() -> None:
    it = ledger()
    look(it, 0.0)
    taker = peer(it, "b", plus=0, given=0, taken=0, hungry=2, free=0, need=2.5)
    it.spare = 0.0
    look(it, 1.0, taker, used=600 - it.reserve - 3)
    assert it.given == {"b": 3}
    assert all(type(count) is int for count in it.record(1.0)[:4])


@pytest.mark.parametrize("gift", [601, 2**40, 2**53])
def test_no_gift_makes_more_usable_than_the_limit(gift: int) -> None:
    it = ledger()
    look(it, 0.0)
    it.gifts["evil"] = {"me": gift}
    it.accept("evil", "me")
    assert it.usable <= 600
    assert it.record(0.0)[3] <= 2**53


def test_rights_that_are_too_many_count_less_at_once_and_are_given_up_in_the_end() -> None:
    it = ledger()
    look(it, 0.0)
    other = peer(it, "a", plus=600, given=0, taken=0)
    look(it, 1.0, other)
    assert it.usable == 300
    assert it.held == 600
    look(it, 1.1 + CROWDED, other)
    assert it.held == 300


def test_who_does_not_deal_neither_gives_nor_asks() -> None:
    it = ledger()
    look(it, 0.0)
    needy = peer(it, "a", plus=0, given=0, taken=0, need=60)
    look(it, 1.0, needy, deals=False)
    assert (it.held, it.spare, it.given) == (600, 0.0, {})
    poor = ledger()
    poor.want(5, 0.0, 10.0)
    look(poor, 0.0, peer(poor, "a", plus=600), deals=False, leads=False)
    assert poor.need == 0.0


def test_who_needs_something_asks_for_more_than_that_and_then_not_for_a_while() -> None:
    it = ledger()
    rich = peer(it, "a", plus=600, given=0, taken=0)
    look(it, 0.0, rich, leads=False)
    least = 1 + 10.0 * 0.25 / 2  # one for an urgent request, and a quarter of a second of its half
    assert it.need == AHEAD * least
    it.gifts["a"] = {"me": 3}
    assert it.accept("a", "me") == 3
    look(it, 1.0, peer(it, "a", plus=600, given=3, taken=0), leads=False)
    assert it.need == 0.0, "it has enough still"


def test_but_for_no_more_than_it_needs_where_others_go_short() -> None:
    it = ledger()
    it.want(5, 0.0, 10.0)
    look(it, 0.0, peer(it, "a", plus=600, given=0, taken=0), leads=False)
    assert it.wanted
    assert it.need < 2 * 10.0


def test_the_provider_s_word_makes_less_available() -> None:
    it = ledger()
    look(it, 0.0)
    it.hear_left(300.0, 100, 0.0, 1.0)
    look(it, 1.0)
    assert it.usable == 400
    look(it, 12.0)
    assert it.usable == 600


def test_without_a_limit_all_may_be_used() -> None:
    it = ledger(math.inf)
    assert look(it, 0.0) == 0
    assert it.usable == math.inf


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=20)
)
def test_a_record_is_one_or_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not"):
        Record(value)


@given(st.integers(0, 12), st.sampled_from([None, -1, "x", True, math.nan, math.inf, 2**60, [], {}]))
def test_a_record_with_an_impossible_field_is_refused(index: int, value: Any) -> None:
    record: list[Any] = list(RECORD)
    record[index] = value
    if index == 4 and value is None:
        assert Record(record).limit == math.inf
    else:
        with pytest.raises(ValueError, match="not"):
            Record(record)


def test_a_record_of_a_newer_version_has_more() -> None:
    assert Record([*RECORD, "new"]).held == 85


def test_a_record_is_news_if_it_says_anything_that_others_need() -> None:
    told = [600, 0, 340, 25, 600, 4.2, 0, 60, 0, 57, 5.6, 0.0, 0]

    def but(**changes: Any) -> list[Any]:
        places = {"taken": 3, "wish": 6, "free": 7, "need": 8, "spare": 9, "pace": 10}
        return [
            changes.get(next((n for n, i in places.items() if i == at), ""), old)
            for at, old in enumerate(told)
        ]

    assert not is_news(told, list(told), wanted=True)
    assert is_news(told, but(spare=58), wanted=True)
    assert not is_news(told, but(spare=100, free=31), wanted=False)
    for change in (
        {"spare": 120},
        {"spare": 0},
        {"free": 1},
        {"need": 1},
        {"wish": 1},
        {"pace": 5.7},
        {"taken": 26},
    ):
        assert is_news(told, but(**change), wanted=False), change
    assert is_news(but(spare=0), but(spare=1), wanted=False)
    assert is_news(None, told, wanted=False)
    assert is_news(told[:9], told, wanted=False)
