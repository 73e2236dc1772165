"""The replicated types and their map: what they say on the wire, and what they refuse."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from remote_inference.cluster.crdt import CrdtMap, ExpiringSet, GCounter, LwwRegister, PNCounter, bounds
from remote_inference.cluster.crdt import map as crdt_map
from remote_inference.cluster.crdt.bounds import LARGEST, LONGEST_NAME, LONGEST_VALUE


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# --- the types -------------------------------------------------------------------------------------------------


def test_a_g_counter_is_the_sum_over_its_replicas() -> None:
    counter, other = GCounter(), GCounter()
    counter.add("a", 2)
    counter.add("a", 3)
    other.add("b", 10)
    assert counter.merge(other)
    assert not counter.merge(other)
    assert (counter.value, counter.counts) == (15, {"a": 5, "b": 10})


def test_a_g_counter_does_not_go_down() -> None:
    counter = GCounter()
    with pytest.raises(ValueError, match="only grows"):
        counter.add("a", -1)
    assert counter.value == 0


def test_a_pn_counter_goes_up_and_down() -> None:
    counter, other = PNCounter(), PNCounter()
    counter.add("a", 5)
    counter.add("a", -7)
    other.add("b", -1)
    assert counter.merge(other)
    assert not counter.merge(other)
    assert counter.value == -3
    assert counter.full() == {"a": [5, 7], "b": [0, 1]}


def test_a_counter_stays_at_the_greatest_number() -> None:
    counter = PNCounter()
    counter.absorb({"a": [LARGEST, LARGEST - 1]})
    counter.add("a", 5)
    counter.add("a", -5)
    assert counter.full() == {"a": [LARGEST, LARGEST]}


@pytest.mark.parametrize("n", [1.0, LARGEST + 1, -LARGEST - 1, float("nan")])
def test_a_counter_takes_only_whole_numbers(n: Any) -> None:
    with pytest.raises(ValueError, match="cannot count"):
        PNCounter().add("a", n)


def test_a_register_follows_what_its_writer_saw() -> None:
    mine, theirs = LwwRegister(), LwwRegister()
    mine.set("first", "z")
    theirs.merge(mine)
    theirs.set("second", "a")
    assert mine.merge(theirs)
    assert not mine.merge(theirs)
    assert (mine.value, mine.stamp) == ("second", (2, "a"))


def test_of_two_registers_that_did_not_know_of_each_other_the_greater_replica_wins() -> None:
    a, b = LwwRegister(), LwwRegister()
    a.set("from a", "a")
    b.set("from b", "b")
    assert a.merge(b)
    assert not b.merge(a)
    assert a.value == b.value == "from b"


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (0, False), (1, 1.0), (0.0, -0.0), ([1], [True]), ({"a": 1}, {"a": 1.0})]
)
def test_equal_stamps_with_different_values_end_in_the_same_value(one: Any, other: Any) -> None:
    left, right = LwwRegister(), LwwRegister()
    left.set(one, "a")
    right.set(other, "a")
    assert left.merge(right) != right.merge(left)
    assert json.dumps(left.value) == json.dumps(right.value)


def test_the_order_of_an_objects_keys_is_no_difference() -> None:
    left, right = LwwRegister(), LwwRegister()
    left.set({"a": 1, "b": 2}, "a")
    right.set({"b": 2, "a": 1}, "a")
    assert not left.merge(right)
    assert not right.merge(left)


def test_an_empty_register_changes_nothing() -> None:
    register = LwwRegister()
    assert not register.merge(LwwRegister())
    assert register.full() is None


def test_a_register_at_the_greatest_stamp_can_still_be_set() -> None:
    register = LwwRegister()
    register.absorb([LARGEST, "m", "theirs"])
    register.set("lower", "a")
    assert register.value == "theirs"
    register.set("higher", "z")
    assert register.full() == [LARGEST, "z", "higher"]


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        {1: 2},
        {1, 2},
        b"bytes",
        object(),
        float("nan"),
        float("inf"),
        LARGEST + 1,
        "\ud800",
        {"\ud800": 1},
        "x" * LONGEST_VALUE,
        ["x" * 1_000] * 4,
        {"x" * LONGEST_VALUE: 1},
        list(range(1_000)),
        nested(5),
        nested(100_000),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_a_register_holds_only_small_json(value: Any) -> None:
    register = LwwRegister()
    with pytest.raises(ValueError, match="JSON"):
        register.set(value, "a")
    assert register.stamp == (0, "")


@pytest.mark.parametrize("value", [None, True, 1, -1.5, "ünï", [], {}, nested(4), {"a": [{"b": [None]}]}])
def test_a_register_holds_json(value: Any) -> None:
    register = LwwRegister()
    register.set(value, "a")
    assert register.delta() == [1, "a", value]


def test_an_element_is_in_the_set_until_its_latest_end() -> None:
    ours, theirs = ExpiringSet(), ExpiringSet()
    ours.add("x", 10.0)
    ours.add("y", 5.0)
    theirs.add("x", 20.0)
    theirs.add("y", 4.0)
    assert ours.merge(theirs)
    assert not ours.merge(theirs)
    assert ours.live(4.9) == {"x", "y"}
    assert ours.live(5.0) == {"x"}
    ours.forget(5.0)
    assert ours.until == {"x": 20.0}


def test_an_older_end_does_not_shorten() -> None:
    elements = ExpiringSet()
    elements.add("x", 10.0)
    elements.delta()
    elements.add("x", 9.0)
    assert elements.until == {"x": 10.0}
    assert elements.delta() is None


@pytest.mark.parametrize("until", [float("nan"), float("inf"), -float("inf"), True, "1", None, 10**400])
def test_an_end_is_a_number(until: Any) -> None:
    with pytest.raises(ValueError, match="time"):
        ExpiringSet().add("x", until)


@pytest.mark.parametrize("name", ["x" * (LONGEST_NAME + 1), "\ud800", 1, None])
def test_what_the_others_would_refuse_is_refused_at_once(name: Any) -> None:
    with pytest.raises(ValueError, match="name"):
        GCounter().add(name, 1)
    with pytest.raises(ValueError, match="name"):
        PNCounter().add(name, -1)
    with pytest.raises(ValueError, match="name"):
        LwwRegister().set(1, name)
    with pytest.raises(ValueError, match="name"):
        ExpiringSet().add(name, 1.0)
    with pytest.raises(ValueError, match="name"):
        CrdtMap().change(("kind", name), GCounter)


# --- the map ---------------------------------------------------------------------------------------------------


def filled() -> CrdtMap:
    state = CrdtMap()
    state.change(("g", "a"), GCounter).add("a", 1)
    state.change(("p", "a"), PNCounter).add("a", -2)
    state.change(("l", "a"), LwwRegister).set({"open": True}, "a")
    state.change(("s", "a"), ExpiringSet).add("x", 1.5)
    return state


WIRE = [
    ["g", ["g", "a"], {"a": 1}],
    ["p", ["p", "a"], {"a": [0, 2]}],
    ["l", ["l", "a"], [1, "a", {"open": True}]],
    ["s", ["s", "a"], {"x": 1.5}],
]


def test_the_encoding_is_what_other_versions_expect() -> None:
    # A change here is a change of the encoding: older replicas must survive it.
    assert filled().full() == WIRE
    assert filled().delta() == WIRE


def test_a_map_is_rebuilt_from_what_was_sent() -> None:
    state = CrdtMap()
    changed = state.merge(json.loads(json.dumps(WIRE)))
    assert changed == [("g", "a"), ("p", "a"), ("l", "a"), ("s", "a")]
    assert state.full() == WIRE
    assert state.merge(WIRE) == []
    assert state.ignored == 0


def test_only_changed_paths_are_returned_and_each_once() -> None:
    state = filled()
    assert state.merge([*WIRE, ["g", ["g", "a"], {"a": 2}], ["g", ["g", "a"], {"a": 3}]]) == [("g", "a")]


def test_a_delta_has_what_changed_here_since_the_last_one() -> None:
    state = filled()
    state.delta()
    assert state.delta() == []
    assert "0 to send" in repr(state)
    state.merge([["g", ["g", "a"], {"b": 7}], ["g", ["g", "b"], {"b": 7}]])
    assert state.delta() == []
    state.change(("g", "a"), GCounter).add("a", 1)
    state.change(("s", "a"), ExpiringSet).add("y", 2.0)
    state.change(("p", "a"), PNCounter)  # and nothing done with it
    assert state.delta() == [["g", ["g", "a"], {"a": 2}], ["s", ["s", "a"], {"y": 2.0}]]


def test_full_state_can_be_asked_for_by_path() -> None:
    assert filled().full(lambda path: path[0] in "gs") == [WIRE[0], WIRE[3]]


def test_what_was_sent_does_not_change_when_the_map_does() -> None:
    state, other = filled(), CrdtMap()
    message = state.full()
    other.merge(message)
    state.change(("g", "a"), GCounter).add("a", 1)
    other.change(("s", "a"), ExpiringSet).add("z", 1.0)
    assert message == WIRE


def test_what_is_empty_is_not_sent_and_not_kept() -> None:
    state = CrdtMap()
    for cls in (GCounter, PNCounter, LwwRegister, ExpiringSet):
        state.change((cls.__name__,), cls)
    assert state.full() == state.delta() == []
    other = CrdtMap()
    assert other.merge([["g", ["g"], {}], ["g", ["g"], {"a": 0}], ["p", ["p"], {"a": [0, 0]}]]) == []
    assert (len(other), other.ignored) == (0, 0)


def test_a_forgotten_entry_is_not_sent() -> None:
    state = filled()
    state.forget(("g", "a"))
    state.forget(("never", "there"))
    assert state.delta() == state.full() == WIRE[1:]


def test_what_a_newer_replica_adds_at_the_end_is_ignored() -> None:
    newer = [
        ["g", ["g", "a"], {"a": 1}, {"more": 1}],
        ["p", ["p", "a"], {"a": [0, 2, 3]}, 4],
        ["l", ["l", "a"], [1, "a", {"open": True}, "more"]],
        ["z", ["z", "a"], {"a type": "of tomorrow"}],
        ["s", ["s", "a"], {"x": 1.5}],
    ]
    state = CrdtMap()
    assert len(state.merge(newer)) == 4
    assert state.full() == WIRE
    assert state.ignored == 1


JUNK = [None, True, 1, 1.5, "abc", [], {}, [[]], {"a": {}}, float("nan"), 10**400, -1, "\ud800"]


@pytest.mark.parametrize("junk", [junk for junk in JUNK if type(junk) is not list], ids=repr)
def test_a_message_that_is_no_list_is_counted(junk: Any) -> None:
    state = filled()
    assert state.merge(junk) == []
    assert state.ignored == 1


@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_junk_is_counted_wherever_it_stands(junk: Any) -> None:
    state = filled()
    assert state.merge([junk, [junk, ["g", "a"], {"a": 9}], ["g", junk, {"a": 9}]]) == []
    assert state.ignored == 3
    if junk != {}:  # which says nothing, where an object is asked
        values = [[code, [code, "a"], junk] for code in "gpls"]
        state.ignored = 0
        assert state.merge(values) == []
        assert state.ignored == 4
    assert state.full() == WIRE


@pytest.mark.parametrize(
    "entry",
    [
        ["g", ["g", "a"], {"a": True}],
        ["g", ["g", "a"], {"a": 9.0}],
        ["g", ["g", "a"], {"a": LARGEST + 1}],
        ["g", ["g", "a"], {"a": 9, "b": -1}],
        ["g", ["g", "a"], {"x" * 301: 9}],
        ["g", ["g", "a"], {"\udfff": 9}],
        ["p", ["p", "a"], {"a": [9]}],
        ["p", ["p", "a"], {"a": [9, None]}],
        ["p", ["p", "a"], {"a": [9, 2.5]}],
        ["p", ["p", "a"], {"a": 9}],
        ["l", ["l", "a"], [9, "a"]],
        ["l", ["l", "a"], [0, "a", 1]],
        ["l", ["l", "a"], [True, "a", 1]],
        ["l", ["l", "a"], [LARGEST + 1, "a", 1]],
        ["l", ["l", "a"], [9, ["a"], 1]],
        ["l", ["l", "a"], [9, "a", nested(5)]],
        ["l", ["l", "a"], [9, "a", float("nan")]],
        ["s", ["s", "a"], {"x": True}],
        ["s", ["s", "a"], {"x": float("inf")}],
        ["s", ["s", "a"], {"x": "9"}],
        ["p", ["g", "a"], {"a": [9, 9]}],  # there is a counter of the other type
        ["g", [], {"a": 9}],
        ["g", ["x"] * 9, {"a": 9}],
        ["g", ["x" * 301], {"a": 9}],
        ["g", ["g", 1], {"a": 9}],
        ["g", ["g", ["a"]], {"a": 9}],
        ["g", "ga", {"a": 9}],  # a string comes apart to the path of a counter that is there
        ["g", {"g": 1, "a": 1}, {"a": 9}],
        ["g", ["g", "a"]],
        "gab",
    ],
    ids=repr,
)
def test_a_malformed_entry_is_counted_and_leaves_the_others_alone(entry: Any) -> None:
    state = filled()
    assert state.merge([["g", ["new"], {"a": 1}], entry, ["g", ["g", "b"], {"b": 1}]]) == [
        ("new",),
        ("g", "b"),
    ]
    assert state.ignored == 1
    assert state.full() == [*WIRE, ["g", ["new"], {"a": 1}], ["g", ["g", "b"], {"b": 1}]]


def test_an_entry_of_another_type_cannot_keep_the_owner_from_its_own() -> None:
    state = CrdtMap()
    state.merge([["s", ["g", "a"], {"x": 1.0}]])
    assert state.get(("g", "a"), GCounter) is None
    state.change(("g", "a"), GCounter).add("a", 1)
    assert state.delta() == [WIRE[0]]
    found = state.get(("g", "a"), GCounter)
    assert found is not None
    assert found.value == 1


def test_a_full_map_takes_no_new_paths_but_goes_on_with_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crdt_map, "MOST_ENTRIES", 2)
    state = CrdtMap()
    new = [["g", [name], {"a": 1}] for name in "xyz"]
    assert state.merge(new) == [("x",), ("y",)]
    assert state.ignored == 1
    assert state.merge([["g", ["x"], {"a": 2}]]) == [("x",)]
    state.change(("own",), GCounter).add("a", 1)
    assert len(state) == 3


def test_a_value_takes_no_more_members_than_it_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MOST_MEMBERS", 2)
    many: list[list[Any]] = [
        ["g", ["g"], {"a": 1, "b": 1, "c": 1}],
        ["p", ["p"], {"a": [1, 1], "b": [1, 1], "c": [1, 1]}],
        ["s", ["s"], {"a": 1.0, "b": 1.0, "c": 1.0}],
    ]
    state = CrdtMap()
    assert state.merge(many) == []
    assert (state.ignored, len(state)) == (3, 0)
    few = [["g", ["g"], {"a": 1, "b": 1}], ["s", ["s"], {"a": 1.0, "b": 1.0}]]
    assert len(state.merge(few)) == 2
    assert len(state.merge([["g", ["g"], {"a": 2, "b": 2}], ["s", ["s"], {"a": 2.0, "b": 2.0}]])) == 2
    counter = state.change(("g",), GCounter)
    counter.add("own", 1)  # who is there already is not kept out by what came in
    assert counter.value == 5


@pytest.mark.parametrize("path", [(), ("x",) * 9, ("x" * 301,), ("\ud800",)])
def test_a_path_that_the_others_would_refuse_is_refused_at_once(path: tuple[str, ...]) -> None:
    state = CrdtMap()
    with pytest.raises(ValueError, match=r"path|name"):
        state.change(path, GCounter)
    assert len(state) == 0
    assert state.delta() == []


def test_what_is_shown_says_how_much_there_is() -> None:
    state = filled()
    state.merge(None)
    assert repr(state) == "<CrdtMap 4 entries, 4 to send, 1 ignored>"
    assert [repr(entry) for entry in state.entries.values()] == [
        "GCounter({'a': 1})",
        "PNCounter(up={}, down={'a': 2})",
        "LwwRegister({'open': True}, stamp=(1, 'a'))",
        "ExpiringSet({'x': 1.5})",
    ]


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("g", [{"a1b2c3d4": n} for n in range(1, 500)]),
        ("p", [{"a1b2c3d4": [n, n // 2]} for n in range(1, 500)]),
        ("l", [[n, "a1b2c3d4", [n, 12.5, "open"]] for n in range(1, 500)]),
        ("s", [{"a1b2c3d4": float(n)} for n in range(1, 500)]),
    ],
    ids=["g-counter", "pn-counter", "register", "set"],
)
def test_a_delta_of_ten_entries_is_merged_within_50_microseconds(code: str, values: list[Any]) -> None:
    paths = [["spend", "openai/main/gpt-4o", "tokens", str(n), "a1b2c3d4"] for n in range(10)]
    deltas = [[[code, path, value] for path in paths] for value in values]
    best = float("inf")
    for _ in range(5):
        state = CrdtMap()
        start = time.thread_time()
        for delta in deltas:
            assert len(state.merge(delta)) == 10
        best = min(best, (time.thread_time() - start) / len(deltas))
    assert best < 50e-6


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ({"a": [0, 1, 2.5], "b": [LARGEST]}, True),
        ({"a": [-LARGEST, LARGEST, LARGEST]}, True),
        ({"a": [1, float("nan")]}, False),
        ({"a": [float("nan"), 1]}, False),
        ({"a": [1, float("inf")]}, False),
        ({"a": [1, 10**400]}, False),
        ({"a": [1e300, -1e300]}, False),
        ({"a": [1, "\ud800"]}, False),
        ([[[[1]]]], True),
        ([[[[[1]]]]], False),
        ({"a": [1] * (LONGEST_VALUE // 11 - 1)}, True),
        ({"a": [1] * (LONGEST_VALUE // 11 + 1)}, False),
    ],
)
def test_a_list_of_numbers_keeps_the_bounds_as_any_value(value: object, fits: bool) -> None:
    register = LwwRegister()
    if fits:
        register.set(value, "a")
        assert register.value == value
    else:
        with pytest.raises(ValueError, match="not JSON"):
            register.set(value, "a")
