"""A model's text on its way to a terminal."""

from __future__ import annotations

__all__ = ["clean"]


def clean(text: str) -> str:
    """The text without the characters that command a terminal: a model may have been told to write them."""
    return "".join(_harmless(character) for character in text)


def _harmless(character: str) -> str:
    if character == "\n" or character.isprintable():
        return character
    return " " if character == "\t" else "\N{REPLACEMENT CHARACTER}"
