"""Characters that come in halves: JSON writes what is beyond the first 65,536 as two escapes, and servers split them.

A half cannot be encoded, so that a chunk with one could not be sent on. It is held back until its other half comes;
what has none becomes U+FFFD.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator

__all__ = ["HalfCharacters", "without_halves"]

_HALF = re.compile("[\ud800-\udfff]")


class HalfCharacters:
    """Puts the halves of one stream together. Each part of the answer (text, reasoning, a call's arguments) has a key.

    Attributes:
        held: the first halves whose second has not come, by key.
    """

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held: dict[Hashable, str] = {}

    def join(self, key: Hashable, text: str) -> str:
        """The text with what was held back before it, and without a half at its end."""
        if not text:
            return text
        before = self.held.pop(key, "")
        if before:
            text = before + text
        if text.isascii() or not _HALF.search(text):
            return text
        if "\ud800" <= text[-1] <= "\udbff":
            self.held[key] = text[-1]
            text = text[:-1]
        return without_halves(text)

    def rest(self) -> Iterator[Hashable]:
        """The keys of which a half is left for good. It stands for a U+FFFD at their end."""
        held, self.held = self.held, {}
        yield from held


def without_halves(text: str) -> str:
    """The text with its pairs of halves as characters, and U+FFFD for each single one."""
    if text.isascii() or not _HALF.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
