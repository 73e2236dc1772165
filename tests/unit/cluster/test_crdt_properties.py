"""The laws of the replicated state, over random histories, random networks and random junk."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from remote_inference.cluster.crdt import CrdtMap, ExpiringSet, GCounter, LwwRegister, Path, PNCounter

REPLICAS = ("a", "b", "c")
TYPES = (GCounter, PNCounter, LwwRegister, ExpiringSet)

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.0, -0.0, 1.0, 2.5])
    | st.sampled_from("xyzé")
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
    max_leaves=4,
)
NAMES = st.sampled_from(REPLICAS)
COUNTS = st.integers(0, 4)
SOME = {
    "g": st.dictionaries(NAMES, COUNTS, max_size=3),
    "p": st.dictionaries(NAMES, st.lists(COUNTS, min_size=2, max_size=3), max_size=3),
    # few stamps and many values: two writers with the same stamp are common here
    "l": st.tuples(st.integers(1, 2), NAMES, VALUES).map(list),
    "s": st.dictionaries(
        st.sampled_from("xyz"), COUNTS | st.sampled_from([0.0, -0.0, 1.5, -2.5]), max_size=3
    ),
}
# A path has one type for ever: the type is in the path.
ENTRIES = st.sampled_from("gpls").flatmap(
    lambda code: st.tuples(st.just(code), st.sampled_from([[code], [code, "x"]]), SOME[code]).map(list)
)
STATES = st.lists(ENTRIES, max_size=6)


def text(state: CrdtMap) -> str:
    """All that a map holds, with 1, 1.0 and True apart."""
    return json.dumps(sorted(state.full(), key=lambda entry: str(entry[1])), sort_keys=True, allow_nan=False)


def wire(message: Any) -> Any:
    return json.loads(json.dumps(message))


def merged(*messages: list[list[Any]]) -> CrdtMap:
    state = CrdtMap()
    for message in messages:
        state.merge(wire(message))
    assert state.ignored == 0
    return state


@settings(max_examples=300, deadline=None)
@given(STATES, STATES, STATES)
def test_merge_is_commutative_associative_and_idempotent(
    one: list[list[Any]], two: list[list[Any]], three: list[list[Any]]
) -> None:
    expected = text(merged(one, two, three))
    for order in itertools.permutations((one, two, three)):
        assert text(merged(*order)) == expected
    assert text(merged(merged(one, two).full(), three)) == expected
    assert text(merged(one, merged(two, three).full())) == expected
    all_of_it = merged(one, two, three)
    for message in (one, two, three, all_of_it.full()):
        assert all_of_it.merge(wire(message)) == []
    assert text(all_of_it) == expected


@settings(max_examples=200, deadline=None)
@given(STATES, STATES)
def test_what_changed_is_returned_and_nothing_else(one: list[list[Any]], two: list[list[Any]]) -> None:
    state = merged(one)
    before = {path: json.dumps(entry.full(), sort_keys=True) for path, entry in state.entries.items()}
    changed = state.merge(wire(two))
    after = {path: json.dumps(entry.full(), sort_keys=True) for path, entry in state.entries.items()}
    assert len(set(changed)) == len(changed)
    assert set(changed) == {path for path in after if before.get(path) != after[path]}


@settings(max_examples=200, deadline=None)
@given(st.sampled_from("gpls").flatmap(lambda code: st.tuples(st.just(code), SOME[code], SOME[code])))
def test_the_types_merge_each_other_as_they_merge_messages(case: tuple[str, Any, Any]) -> None:
    code, one, two = case
    cls = next(cls for cls in TYPES if cls.code == code)
    left, right, sent = cls(), cls(), cls()
    left.absorb(one)
    right.absorb(two)
    sent.absorb(one)
    assert left.merge(right) == sent.absorb(two)  # type: ignore[arg-type]
    assert json.dumps(left.full(), sort_keys=True) == json.dumps(sent.full(), sort_keys=True)


# --- a cluster -------------------------------------------------------------------------------------------------

CHANGE = st.tuples(
    st.just("change"),
    st.integers(0, 2),
    st.integers(0, 7),
    st.integers(-5, 5),
    st.sampled_from("xyz"),
)
SEND = st.tuples(st.just("send"), st.integers(0, 2))
DELIVER = st.tuples(st.just("deliver"), st.integers(0, 2), st.integers(0, 30))
STEPS = st.lists(CHANGE | CHANGE | SEND | DELIVER, max_size=40)


class Cluster:
    """Three replicas, all the deltas that were ever sent, and what the sums must be in the end."""

    def __init__(self) -> None:
        self.states = [CrdtMap() for _ in REPLICAS]
        self.sent: list[str] = []
        self.sums: dict[Path, int] = {}
        self.ends: dict[Path, dict[str, float]] = {}
        self.stamps: dict[Path, tuple[tuple[int, str], Any]] = {}

    def run(self, steps: list[Any]) -> None:
        for step in steps:
            if step[0] == "change":
                self.change(*step[1:])
            elif step[0] == "send":
                self.send(step[1])
            elif self.sent:
                self.deliver(step[1], step[2] % len(self.sent))

    def change(self, who: int, where: int, n: int, element: str) -> None:
        cls = TYPES[where % 4]
        path = (cls.code, str(where))
        entry = self.states[who].change(path, cls)
        if isinstance(entry, GCounter):
            entry.add(REPLICAS[who], abs(n))
            self.sums[path] = self.sums.get(path, 0) + abs(n)
        elif isinstance(entry, PNCounter):
            entry.add(REPLICAS[who], n)
            self.sums[path] = self.sums.get(path, 0) + n
        elif isinstance(entry, LwwRegister):
            entry.set([n, element], REPLICAS[who])
            assert entry.value == [n, element]
            self.stamps[path] = max(self.stamps.get(path, ((0, ""), None)), (entry.stamp, entry.value))
        elif isinstance(entry, ExpiringSet):
            entry.add(element, float(n))
            ends = self.ends.setdefault(path, {})
            ends[element] = max(ends.get(element, float(n)), float(n))

    def send(self, who: int) -> None:
        self.sent.append(json.dumps(self.states[who].delta()))

    def deliver(self, to: int, number: int) -> None:
        """Any delta that was sent, in any order, as often as one likes; one's own comes back too."""
        self.states[to].merge(json.loads(self.sent[number]))

    def check(self) -> None:
        assert len({text(state) for state in self.states}) == 1
        for state in self.states:
            assert state.ignored == 0
            for path, entry in state.entries.items():
                if isinstance(entry, (GCounter, PNCounter)):
                    assert entry.value == self.sums[path]
                elif isinstance(entry, LwwRegister):
                    assert (entry.stamp, entry.value) == self.stamps[path]
                elif isinstance(entry, ExpiringSet):
                    assert entry.until == self.ends[path]


@settings(max_examples=300, deadline=None)
@given(STEPS, st.permutations([(to, of) for to in range(3) for of in range(3)]))
def test_deltas_in_any_order_repeated_or_lost_and_then_full_state_give_what_full_state_gives(
    steps: list[Any], last: list[tuple[int, int]]
) -> None:
    cluster = Cluster()
    cluster.run(steps)
    full = [json.dumps(state.full()) for state in cluster.states]
    for to, of in last:
        cluster.states[to].merge(json.loads(full[of]))
    cluster.check()
    assert text(merged(*map(json.loads, full))) == text(cluster.states[0])


@settings(max_examples=300, deadline=None)
@given(STEPS, st.randoms(use_true_random=False))
def test_deltas_that_all_arrive_need_no_full_state(steps: list[Any], random: Any) -> None:
    cluster = Cluster()
    cluster.run(steps)
    for who in range(3):
        cluster.send(who)
    deliveries = [(to, number) for to in range(3) for number in range(len(cluster.sent))]
    random.shuffle(deliveries)
    for to, number in deliveries:
        cluster.deliver(to, number)
    cluster.check()


# --- junk ------------------------------------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=4) | st.sampled_from(
    ["g", "p", "l", "s", "x" * 301]
)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**53, 2**53 + 1, -(2**53), 10**400])
    | st.floats()
    | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=12,
)


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    """A good entry in which one thing, at any depth, was replaced."""
    entry = copy.deepcopy(draw(ENTRIES))
    holder: Any = entry
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return entry
        key = draw(st.sampled_from(keys))
        if isinstance(holder[key], (list, dict)) and holder[key] and draw(st.booleans()):
            holder = holder[key]
            continue
        holder[key] = draw(ANYTHING)
        return entry


MESSAGES = ANYTHING | st.lists(damaged() | ENTRIES | ANYTHING, max_size=6)


@settings(max_examples=500, deadline=None)
@given(STATES, st.lists(MESSAGES, min_size=1, max_size=4))
def test_no_message_raises_or_touches_what_it_does_not_name_or_spoils_a_later_operation(
    known: list[list[Any]], messages: list[Any]
) -> None:
    state = merged(known)
    for message in messages:
        before = {path: json.dumps(entry.full(), sort_keys=True) for path, entry in state.entries.items()}
        ignored = state.ignored
        changed = state.merge(message)
        parts = message if isinstance(message, list) else []
        named = [e[1] for e in parts if isinstance(e, list) and len(e) >= 3 and e[0] in ("g", "p", "l", "s")]
        assert all(list(path) in named for path in changed)
        for path, entry in state.entries.items():
            if path not in changed:
                assert json.dumps(entry.full(), sort_keys=True) == before[path]
        assert state.ignored - ignored <= max(len(parts), 1)
        assert state.ignored - ignored >= len(parts) - len(named) + (not isinstance(message, list))

    # What is in it now can be encoded by the strictest, and the others take it as it is.
    sent = json.dumps(state.full(), allow_nan=False, ensure_ascii=False).encode()
    assert text(merged(json.loads(sent))) == text(state)
    # And everything can be done with it.
    for path in [*state.entries, ("own",)]:
        for cls in TYPES:
            entry = state.change(path, cls)
            if isinstance(entry, (GCounter, PNCounter)):
                entry.add("a", 1)
                assert entry.value <= 2**55
            elif isinstance(entry, LwwRegister):
                entry.set([1], "a")
            elif isinstance(entry, ExpiringSet):
                entry.add("x", 1.0)
                assert "x" in entry.live(0.0)
                entry.forget(1e300)
            repr(entry)
    assert state.merge(wire(state.delta())) == []
    for path in list(state):
        state.forget(path)
    assert len(state) == 0
