"""The gossip's messages: what is none of ours, what another version says, and what of a head is believed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cluster.membership.message import (
    BYE,
    DELTA,
    VERSION,
    Foreign,
    Incompatible,
    decode,
    encode,
)

HEAD = {"k": DELTA, "i": "one", "m": 5.0, "w": 1_700_000_000.0, "s": 0, "t": 1.0}

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


def head(**more: Any) -> dict[str, Any]:
    """Of a message with those fields, as it is read."""
    return decode(encode(HEAD | more, []))[0]


class TestVersions:
    @pytest.mark.parametrize("version", [1, VERSION + 1, 10**9])
    def test_a_message_of_another_version_is_refused_and_says_of_which(self, version: int) -> None:
        with pytest.raises(Incompatible) as refused:
            decode(encode(HEAD | {"v": version}, [["anything"]]))
        assert refused.value.version == version

    @pytest.mark.parametrize("version", [0, -1, 1.0, 2.0, True, None, "2", [2]])
    def test_what_has_no_version_is_none_of_ours(self, version: Any) -> None:
        with pytest.raises(Foreign):
            decode(encode(HEAD | {"v": version}, []))

    def test_our_own_is_written_without_being_asked_for(self) -> None:
        assert head()["v"] == VERSION

    def test_what_a_newer_one_of_this_version_adds_is_ignored(self) -> None:
        found, entries, others = decode(encode(HEAD | {"new": {"x": [1]}}, [["y"]]))
        assert found["i"] == "one"
        assert (entries, others) == ([["y"]], {})


class TestFraming:
    @given(st.binary(max_size=60) | st.text(max_size=60))
    def test_whatever_has_no_digest_of_ours_is_foreign(self, body: bytes | str) -> None:
        with pytest.raises(Foreign):
            decode(body)

    @given(st.integers(0, 400), st.integers(1, 255))
    def test_what_was_garbled_is_foreign(self, at: int, flip: int) -> None:
        body = bytearray(encode(HEAD | {"n": "a name"}, [["a", "b"]]))
        body[at % len(body)] ^= flip
        with pytest.raises(Foreign):
            decode(bytes(body))

    @given(JSON)
    def test_of_whatever_we_may_have_said_by_mistake_a_head_is_made_or_it_is_refused(
        self, value: Any
    ) -> None:
        for head in (
            {"k": value},
            {"i": value},
            {"m": value},
            {"w": value},
            {"s": value},
            {"t": value},
            {"n": value},
        ):
            try:
                found, _, _ = decode(encode(HEAD | head, []))
            except Foreign:
                continue
            assert {**found, **head} == found

    def test_it_is_read_as_text_too(self) -> None:
        assert decode(encode(HEAD | {"n": "ä"}, []).decode())[0]["n"] == "ä"

    def test_what_follows_a_message_is_not_read_over(self) -> None:
        body = encode(HEAD, [])
        with pytest.raises(Foreign):
            decode(body + b" ")


class TestTheClustersTime:
    def test_it_is_read(self) -> None:
        assert head(c=1_700_000_000.5)["c"] == 1_700_000_000.5
        assert "c" not in head()

    @pytest.mark.parametrize("time", [None, True, "5", [5], {}, 1e15, -1e15, 10**400])
    def test_what_is_no_time_is_dropped_and_the_rest_is_heard(self, time: Any) -> None:
        assert "c" not in head(c=time)
        assert head(c=time)["i"] == "one"


class TestTheProcess:
    def test_it_is_read(self) -> None:
        assert head(p="boot:12:34")["p"] == "boot:12:34"
        assert head(p="")["p"] == ""
        assert "p" not in head()

    @pytest.mark.parametrize("process", [None, 5, True, ["x"], {}, "x" * 101])
    def test_what_is_none_is_dropped_and_the_rest_is_heard(self, process: Any) -> None:
        assert "p" not in head(p=process)


class TestThoseWhoHaveEnded:
    def test_they_are_read(self) -> None:
        assert list(head(x=["a", "b"])["x"]) == ["a", "b"]

    @pytest.mark.parametrize("ended", [None, 5, True, "ab", {"a": 1}])
    def test_what_is_no_list_names_nobody(self, ended: Any) -> None:
        assert list(head(x=ended)["x"]) == []
        assert list(head()["x"]) == []

    def test_what_is_no_name_among_them_is_left_out(self) -> None:
        assert head(x=["a", 5, None, ["b"], {"c": 1}, True, "x" * 65, "d"])["x"] == ["a", "d"]


class TestTheOtherFields:
    @pytest.mark.parametrize("rank", [-1, 2**53 + 1, 1.5, "1", None, True])
    def test_a_rank_that_is_none_is_that_of_a_newcomer(self, rank: Any) -> None:
        assert head(r=rank)["r"] == 0
        assert head(r=7)["r"] == 7

    def test_ages_and_questions_are_read_where_they_are_well_formed(self) -> None:
        found = head(d={"a": 1.5, "b": "x", "c" * 65: 1.0, "e": None}, q=["a", 5])
        assert found["d"] == {"a": 1.5}
        assert list(found["q"]) == ["a"]

    @pytest.mark.parametrize("garbage", [None, 5, "x", [], [1], {"a": []}])
    def test_ages_questions_and_last_words_that_are_malformed_are_none(self, garbage: Any) -> None:
        found, _, others = decode(encode(HEAD | {"d": garbage, "q": garbage, "o": garbage}, []))
        assert found["d"] == {}
        assert list(found["q"]) == []
        assert others == {}

    def test_whose_last_words_are_told_is_read_where_it_is_well_formed(self) -> None:
        good = [0.5, 20.0, 1, 3, 0, 2.0]
        others = decode(
            encode(
                HEAD
                | {
                    "k": BYE,
                    "o": {
                        "good": [*good, "more"],
                        "short": good[:5],
                        "weightless": [*good[:5], 0],
                        "text": [*good[:5], "x"],
                        "n" * 65: good,
                    },
                },
                [],
            )
        )[2]
        assert others == {"good": good}

    @given(st.sampled_from("cpxdqrone"), JSON)
    def test_whatever_an_optional_field_holds_the_message_is_heard_or_is_foreign(
        self, name: str, value: Any
    ) -> None:
        body = encode(HEAD | {name: value}, [])
        try:
            found, _, others = decode(body)
        except Foreign:
            assert name == "n"
            return
        assert found["i"] == "one"
        assert all(type(other) is str for other in (*found["x"], *found["q"], *found["d"], *others))
        assert type(found["r"]) is int


def test_a_message_is_json_behind_its_digest() -> None:
    body = encode(HEAD, [["a", 1]])
    assert json.loads(body[16:]) == HEAD | {"v": VERSION, "e": [["a", 1]]}
