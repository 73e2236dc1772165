"""How large a replicated value may be, and of what: what passes these bounds is refused wherever it comes from.

They are far above what a cluster of hundreds of replicas says, and keep a broken or foreign peer from filling the
memory, or from leaving something here at which a later operation would fail: a number that no float can hold, a
string that cannot be encoded, a list where something hashable is asked.
"""

from __future__ import annotations

import json
from typing import Any

__all__ = [
    "DEEPEST",
    "LARGEST",
    "LONGEST_NAME",
    "LONGEST_VALUE",
    "MOST_MEMBERS",
    "canonical",
    "check_members",
    "check_name",
    "check_value",
]

LARGEST = 2**53
"""Greatest number, either side of zero: up to here every JSON reader agrees about an integer. Counters stay there."""

LONGEST_NAME = 300
"""Characters of a replica's id, an element, or one part of a path."""

MOST_MEMBERS = 4_096
"""Replicas in a counter, elements in a set. What comes in and would make it more is refused."""

DEEPEST = 4
"""Lists and objects within each other in a register's value."""

LONGEST_VALUE = 4_000
"""Characters of a register's value, about: a number counts for ten."""


def check_name(name: object) -> None:
    """Check what names a replica, an element or a part of a path.

    Raises:
        ValueError: it is no string, too long, or has lone surrogates, which no encoder would take.
    """
    if type(name) is str and len(name) <= LONGEST_NAME and (name.isascii() or _encodable(name)):
        return
    raise ValueError("not a name")


def check_members(known: dict[str, Any], coming: dict[str, Any]) -> None:
    """Check that both together are not more members than one value may have.

    Raises:
        ValueError: they are.
    """
    if len(known) + len(coming) > MOST_MEMBERS and len(known.keys() | coming.keys()) > MOST_MEMBERS:
        raise ValueError("too many members")


def check_value(value: object) -> None:
    """Check what a register is to hold.

    Raises:
        ValueError: it is not JSON, or deeper than `DEEPEST`, or longer than `LONGEST_VALUE`.
    """
    if _size(value, DEEPEST) > LONGEST_VALUE:
        raise ValueError("not JSON, too deep or too long")


def canonical(value: Any) -> str:
    """The JSON text that is the same for the same value, to order two values by."""
    return json.dumps(value, sort_keys=True)


_TOO_LONG = LONGEST_VALUE + 1
_NUMBERS = frozenset({int, float})


def _size(value: Any, depth: int) -> int:
    """About how many characters a value is long; `_TOO_LONG` or more if it is not JSON or too deep."""
    kind = type(value)
    if kind is list or kind is dict:
        if depth == 0 or len(value) > LONGEST_VALUE:
            return _TOO_LONG
        size, others = 2, 0
        if kind is dict:
            for key in value:
                if type(key) is not str:
                    return _TOO_LONG
                size += len(key) + 2 if key.isascii() else _size(key, 0)
            value = value.values()
        for part in value:
            # most of what is sent are lists of small numbers: not worth a call each, nor a look at each
            if type(part) is list and depth > 1 and _small_numbers(part):
                others += 1
                size += 3 + 11 * len(part)
            elif (
                type(part) not in _NUMBERS or not -LARGEST <= part <= LARGEST
            ):  # nan and infinity are not within
                others += 1
                size += 1 + _size(part, depth - 1)
                if size > LONGEST_VALUE:  # long enough: what follows is not read
                    break
        return size + 11 * (len(value) - others)
    if kind is str:
        return len(value) + 2 if len(value) <= LONGEST_VALUE and _encodable(value) else _TOO_LONG
    if kind in _NUMBERS:
        return 10 if -LARGEST <= value <= LARGEST else _TOO_LONG
    return 4 if value is None or kind is bool else _TOO_LONG


def _small_numbers(values: list[Any]) -> bool:
    """Whether there is nothing in it but numbers from 0 to `LARGEST` (or true and false), which have a small sum."""
    try:
        return bool(min(values) >= 0 and sum(values) <= LARGEST)  # nan and infinity are not
    except (TypeError, ValueError):  # something else, or empty: it is looked at in turn
        return False


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
