"""Characters that come in halves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remote_inference.providers.surrogates import HalfCharacters, without_halves


def halves_of(text: str) -> list[str]:
    """The text in UTF-16's units, each as a character."""
    data = text.encode("utf-16-le")
    return [chr(int.from_bytes(data[at : at + 2], "little")) for at in range(0, len(data), 2)]


@given(st.lists(st.text(max_size=6), min_size=1, max_size=3), st.data())
def test_texts_split_anywhere_come_whole_also_side_by_side(texts: list[str], data: st.DataObject) -> None:
    halves = HalfCharacters()
    waiting = {key: halves_of(text) for key, text in enumerate(texts)}
    found = dict.fromkeys(waiting, "")
    while any(waiting.values()):
        key = data.draw(st.sampled_from([key for key, left in waiting.items() if left]))
        count = data.draw(st.integers(1, len(waiting[key])))
        piece, waiting[key] = "".join(waiting[key][:count]), waiting[key][count:]
        out = halves.join(key, piece)
        out.encode()
        found[key] += out
    assert [found[key] for key in sorted(found)] == texts
    assert list(halves.rest()) == []


@given(st.text(st.characters(codec=None), max_size=20))
def test_whatever_comes_can_be_encoded_and_no_other_character_is_lost(text: str) -> None:
    for out in (without_halves(text), HalfCharacters().join("k", text)):
        out.encode()
    plain = [c for c in text if not "\ud800" <= c <= "\udfff"]
    kept = iter(without_halves(text))
    assert all(c in kept for c in plain), "in their order"


def test_a_half_that_is_left_is_told_by_its_key() -> None:
    halves = HalfCharacters()
    assert halves.join("text", "a\ud83d") == "a"
    assert list(halves.rest()) == ["text"]
    assert list(halves.rest()) == []
