"""`Ledger`: no right is lost or made by what is done to it, and no body of a message does harm."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from remote_inference.cluster.limits.ledger import (
    FORMAT,
    TICKS,
    Book,
    Entry,
    Ledger,
    LedgerError,
    UnknownLedgerFormat,
)
from remote_inference.cluster.membership import Stamp

STAMP = Stamp(1_000.0, "host", 50.0, 1_700_000_000.0)
NAMES = st.text(min_size=1, max_size=100)
COUNTS = st.integers(0, 2**53)
TICK = st.integers(-(2**40), 2**40)
SPENT = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 10**6)), max_size=10)

LEDGERS = st.builds(
    Ledger,
    created=st.floats(-1e9, 1e9),
    version=COUNTS,
    stamp=st.builds(
        Stamp, st.floats(-1e11, 1e11), st.text(max_size=64), st.floats(-1e11, 1e11), st.floats(-1e11, 1e11)
    ),
    books=st.dictionaries(
        NAMES, st.builds(Book, COUNTS, st.dictionaries(TICK, st.integers(1, 2**53), max_size=5)), max_size=4
    ),
    entries=st.dictionaries(
        NAMES,
        st.builds(
            Entry,
            st.text(max_size=100),
            st.dictionaries(NAMES, COUNTS, max_size=4),
            st.dictionaries(NAMES, SPENT, max_size=2),
        ),
        max_size=4,
    ),
)


def signed(value: Any) -> bytes:
    """A body that says that it is one of ours."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return hashlib.blake2b(text, digest_size=8, key=b"remote_inference ledger").hexdigest().encode() + text


def example() -> dict[str, Any]:
    """What stands in a message."""
    ledger = Ledger(created=5.0, version=3, stamp=STAMP)
    ledger.open("requests", 600, [(30.0, 50), (31.0, 50)])
    ledger.entries["one"] = Entry("host:1:2", {"requests": 100}, {"requests": [(40, 7), (60, 8)]})
    ledger.entries["two"] = Entry("", {"requests": 200})
    return json.loads(ledger.encode()[16:])  # type: ignore[no-any-return]


class TestTheMessage:
    @given(LEDGERS)
    def test_what_is_written_is_read(self, ledger: Ledger) -> None:
        again = Ledger.decode(ledger.encode())
        assert again.version == ledger.version
        assert again.created == pytest.approx(ledger.created, abs=1e-3)
        assert again.stamp.time == pytest.approx(ledger.stamp.time, abs=1e-3)
        assert again.stamp.host == ledger.stamp.host
        assert again.books == ledger.books
        assert again.entries.keys() == ledger.entries.keys()
        for name, entry in ledger.entries.items():
            assert (again.entries[name].process, again.entries[name].held) == (entry.process, entry.held)
        assert Ledger.decode(again.encode()) == again, "and what was read is written as it was"
        assert Ledger.decode(ledger.encode().decode()) == again, "as text, too"

    @given(SPENT, st.integers(-10_000, 10_000))
    def test_what_was_spent_is_never_read_as_leaving_the_window_earlier_than_it_does(
        self, spent: list[tuple[int, int]], begin: int
    ) -> None:
        spent = [(begin + tick, amount) for tick, amount in spent]
        ledger = Ledger(
            created=0.0, version=1, stamp=STAMP, entries={"me": Entry("", {}, {"requests": spent})}
        )
        again = Ledger.decode(ledger.encode()).entries["me"].spent.get("requests", [])
        assert sum(amount for _, amount in again) == sum(amount for _, amount in spent)
        for tick in range(begin - 1, begin + 401):
            left = sum(amount for at, amount in spent if at > tick)
            told = sum(amount for at, amount in again if at > tick)
            surely = sum(amount for at, amount in spent if at + 1 > tick)
            assert left <= told <= surely, "late, by less than a step"

    def test_a_newer_version_may_add_what_an_older_one_ignores(self) -> None:
        value = example()
        plain = Ledger.decode(signed(value))
        value["new"] = {"x": 1}
        value["stamp"].append("more")
        value["books"]["requests"].append("more")
        value["entries"]["one"].append("more")
        assert Ledger.decode(signed(value)) == plain

    def test_it_is_small(self) -> None:
        """A hundred replicas that have spent evenly, in two dimensions: half a kilobyte for each, and dimension."""
        ledger = Ledger(created=5.0, version=3, stamp=STAMP)
        for dimension in ("requests", "tokens"):
            ledger.open(dimension, 6_000)
        for number in range(100):
            spent = [(2_000 + tick, 100 + tick) for tick in range(120)]
            entry = Entry("8a4b0e0c1d2e:4026531836:12345:99", {}, {"requests": spent, "tokens": spent})
            ledger.entries[f"{number:010x}"] = entry
        assert len(ledger.encode()) < 100 * 2 * 540


class TestWhatIsNone:
    @given(st.binary(max_size=100) | st.text(max_size=100))
    def test_what_has_no_digest_of_ours_is_no_ledger(self, body: bytes | str) -> None:
        with pytest.raises(LedgerError):
            Ledger.decode(body)

    @given(st.integers(0, 1_000), st.integers(1, 255))
    def test_what_was_garbled_is_none(self, at: int, flip: int) -> None:
        body = bytearray(signed(example()))
        body[at % len(body)] ^= flip
        with pytest.raises(LedgerError):
            Ledger.decode(bytes(body))

    @given(st.binary(max_size=60))
    def test_what_is_no_json_is_none(self, text: bytes) -> None:
        try:
            json.loads(text)
        except ValueError:
            with pytest.raises(LedgerError):
                Ledger.decode(signed(text))

    @pytest.mark.parametrize(
        "text",
        [b"[" * 100_000, b'{"format":1,"created":' + b"9" * 5_000 + b"}", b"", b"null", b"[]", b"{}", b"7"],
    )
    def test_nor_is_what_only_looks_like_it(self, text: bytes) -> None:
        with pytest.raises(LedgerError):
            Ledger.decode(signed(text))

    @pytest.mark.parametrize("place", ["format", "created", "version", "stamp", "books", "entries"])
    def test_nothing_may_be_missing(self, place: str) -> None:
        value = example()
        del value[place]
        with pytest.raises(LedgerError):
            Ledger.decode(signed(value))

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            ("created", None),
            ("created", "5"),
            ("created", True),
            ("created", math.nan),
            ("created", math.inf),
            ("created", 10**400),
            ("version", -1),
            ("version", 1.0),
            ("version", True),
            ("version", 2**53 + 1),
            ("stamp", []),
            ("stamp", {}),
            ("stamp", [1.0, "", 1.0, math.nan]),
            ("books", []),
            ("books", {"": [1, []]}),
            ("books", {"x" * 101: [1, []]}),
            ("books", {"requests": 600}),
            ("books", {"requests": [600]}),
            ("books", {"requests": [-1, []]}),
            ("books", {"requests": [None, []]}),
            ("books", {"requests": [600, [1]]}),
            ("books", {"requests": [600, [1, -1]]}),
            ("books", {"requests": [600, [1.5, 1]]}),
            ("books", {"requests": [600, ["1", 1]]}),
            ("books", {"requests": [600, [10**60, 1]]}),
            ("books", {"requests": {"limit": 600}}),
            ("entries", []),
            ("entries", {"": ["", {}, {}]}),
            ("entries", {"one": []}),
            ("entries", {"one": {}}),
            ("entries", {"one": [None, {}, {}]}),
            ("entries", {"one": ["x" * 101, {}, {}]}),
            ("entries", {"one": ["", [], {}]}),
            ("entries", {"one": ["", {"requests": -1}, {}]}),
            ("entries", {"one": ["", {"requests": 1.5}, {}]}),
            ("entries", {"one": ["", {"requests": True}, {}]}),
            ("entries", {"one": ["", {}, []]}),
            ("entries", {"one": ["", {}, {"requests": []}]}),
            ("entries", {"one": ["", {}, {"requests": "ab"}]}),
            ("entries", {"one": ["", {}, {"requests": {"0": 1}}]}),
            ("entries", {"one": ["", {}, {"requests": [1.5, 1]}]}),
            ("entries", {"one": ["", {}, {"requests": [1, -1]}]}),
            ("entries", {"one": ["", {}, {"requests": [1, *[1] * 10_000]}]}),
            ("entries", {f"{number}": ["", {}, {}] for number in range(10_001)}),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, place: str, value: Any) -> None:
        with pytest.raises(LedgerError):
            Ledger.decode(signed(example() | {place: value}))

    @given(st.data())
    def test_whatever_stands_anywhere_in_it_it_is_a_ledger_or_is_refused(self, data: st.DataObject) -> None:
        value = example()
        node: Any = value
        while True:  # walk to some place in it
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = data.draw(st.sampled_from(keys))
            if isinstance(node[key], (dict, list)) and node[key] and data.draw(st.booleans()):
                node = node[key]
                continue
            break
        garbage = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=8,
        )
        node[key] = data.draw(garbage)
        try:
            ledger = Ledger.decode(signed(value))
        except LedgerError:
            return
        except UnknownLedgerFormat:
            assert value["format"] != FORMAT
            return
        assert Ledger.decode(ledger.encode()).books == ledger.books
        ledger.come_free(1e9)
        assert all(type(ledger.free(dimension)) is int for dimension in ledger.books)


class TestOtherFormats:
    @pytest.mark.parametrize("other", [0, FORMAT + 1, 10**9])
    def test_a_ledger_of_another_format_is_told_apart_from_what_is_none(self, other: int) -> None:
        with pytest.raises(UnknownLedgerFormat) as refused:
            Ledger.decode(signed({"format": other, "all": "else"}))
        assert refused.value.format == other
        assert not isinstance(refused.value, LedgerError), "it must be left as it is"

    @pytest.mark.parametrize("none", [None, "2", [], {}, True])
    def test_what_is_no_format_is_none(self, none: Any) -> None:
        """Else a ledger that makes no sense would be left there for ever, and nothing sent on that limit."""
        with pytest.raises(LedgerError):
            Ledger.decode(signed(example() | {"format": none}))


class TestComingFree:
    @given(st.floats(0.0, 1e6), st.floats(0.0, 100.0))
    def test_nothing_comes_free_before_its_time_and_all_by_half_a_second_after_it(
        self, time: float, later: float
    ) -> None:
        ledger = Ledger(created=0.0, version=1, stamp=STAMP)
        ledger.open("requests", 10, [(time + later, 4)])
        ledger.come_free(time)
        assert ledger.due("requests") == 4 or time + later == time
        ledger.come_free(math.nextafter(time + later, 0.0))
        assert ledger.due("requests") == 4 or (time + later) * TICKS % 1 == 0.0 or time + later < 1e-3
        ledger.come_free(time + later + 1 / TICKS)
        assert (ledger.due("requests"), ledger.free("requests")) == (0, 10)

    def test_what_is_not_counted_is_nothing(self) -> None:
        ledger = Ledger(created=0.0, version=1, stamp=STAMP)
        assert (ledger.free("requests"), ledger.due("requests"), ledger.held("requests")) == (0, 0, 0)

    def test_where_the_limit_has_fallen_less_than_nothing_is_free(self) -> None:
        ledger = Ledger(created=0.0, version=1, stamp=STAMP)
        ledger.open("requests", 10)
        ledger.entries["one"] = Entry()
        ledger.take("one", "requests", 8)
        ledger.books["requests"].limit = 5
        assert ledger.free("requests") == -3

    def test_a_dimension_that_is_not_there_any_more_is_not_due_of_one_that_has_stopped(self) -> None:
        ledger = Ledger(created=0.0, version=1, stamp=STAMP)
        ledger.entries["one"] = Entry("", {"tokens": 5})
        ledger.close("one", {"tokens": [(9.0, 5)]})
        assert (ledger.books, ledger.entries) == ({}, {})


REPLICAS = st.sampled_from(["one", "two", "three"])
DIMENSIONS = st.sampled_from(["requests", "concurrent"])


class TheRightsOfALedger(RuleBasedStateMachine):
    """Each right is a token that is free, or held by one, or due at some time: these are counted one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(created=0.0, version=1, stamp=STAMP)
        self.tokens: dict[str, list[str | float | None]] = {}
        self.time = 0.0

    def pick(self, dimension: str, state: str | None, amount: int) -> list[int]:
        found = [number for number, token in enumerate(self.tokens[dimension]) if token == state]
        return found[:amount]

    @rule(
        dimension=DIMENSIONS,
        limit=st.integers(0, 50),
        due=st.lists(st.tuples(st.floats(0.0, 100.0), st.integers(0, 10)), max_size=5),
    )
    def open(self, dimension: str, limit: int, due: list[tuple[float, int]]) -> None:
        if dimension in self.tokens:
            return
        left, parts = limit, []
        for later, amount in due:
            parts.append((self.time + later, min(amount, left)))
            left -= min(amount, left)
        self.ledger.open(dimension, limit, parts)
        self.tokens[dimension] = [time for time, amount in parts for _ in range(amount)]
        self.tokens[dimension] += [None] * left

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), replica=REPLICAS)
    def take(self, data: st.DataObject, replica: str) -> None:
        dimension = data.draw(st.sampled_from(sorted(self.tokens)))
        amount = data.draw(st.integers(0, max(0, self.ledger.free(dimension))))
        self.ledger.entries.setdefault(replica, Entry())
        self.ledger.take(replica, dimension, amount)
        picked = self.pick(dimension, None, amount)
        assert len(picked) == amount, "what is free can be taken"
        for number in picked:
            self.tokens[dimension][number] = replica

    @precondition(lambda self: self.tokens and self.ledger.entries)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        replica = data.draw(st.sampled_from(sorted(self.ledger.entries)))
        dimension = data.draw(st.sampled_from(sorted(self.tokens)))
        held = self.ledger.entries[replica].held.get(dimension, 0)
        amount = data.draw(st.integers(0, held))
        spent = data.draw(st.integers(0, amount))
        leaves = self.time + data.draw(st.floats(0.0, 100.0))
        self.ledger.give(replica, dimension, amount, [(leaves, spent)])
        for index, number in enumerate(self.pick(dimension, replica, amount)):
            self.tokens[dimension][number] = leaves if index < spent else None

    @precondition(lambda self: self.ledger.entries)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        replica = data.draw(st.sampled_from(sorted(self.ledger.entries)))
        due: dict[str, list[tuple[float, int]]] = {}
        for dimension, held in self.ledger.entries[replica].held.items():
            spent, leaves = data.draw(st.integers(0, held)), self.time + data.draw(st.floats(0.0, 100.0))
            due[dimension] = [(leaves, spent)]
            for index, number in enumerate(self.pick(dimension, replica, held)):
                self.tokens[dimension][number] = leaves if index < spent else None
        self.ledger.close(replica, due)
        assert replica not in self.ledger.entries

    @rule(passed=st.floats(0.0, 40.0))
    def come_free(self, passed: float) -> None:
        self.time += passed
        self.ledger.come_free(self.time)
        tick = math.floor(self.time * TICKS)
        for tokens in self.tokens.values():
            for number, token in enumerate(tokens):
                if isinstance(token, float) and math.ceil(token * TICKS) <= tick:
                    assert token <= self.time
                    tokens[number] = None

    @rule()
    def travel(self) -> None:
        self.ledger = Ledger.decode(self.ledger.encode())

    @invariant()
    def all_are_accounted_for(self) -> None:
        for dimension, tokens in self.tokens.items():
            free, held = self.ledger.free(dimension), self.ledger.held(dimension)
            due = self.ledger.due(dimension)
            assert free == tokens.count(None) >= 0
            assert held == sum(isinstance(token, str) for token in tokens)
            assert due == sum(isinstance(token, float) for token in tokens)
            assert free + held + due == self.ledger.books[dimension].limit
            for name, entry in self.ledger.entries.items():
                assert entry.held.get(dimension, 0) == tokens.count(name)


TestTheRightsOfALedger = TheRightsOfALedger.TestCase
