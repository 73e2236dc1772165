"""The gossip's messages on the wire: a digest, then a JSON object: who speaks, when, and the entries.

``v`` version, ``k`` kind, ``i`` the speaker's id, ``m`` and ``w`` its monotonic and wall clock, ``s`` 1 while it only
listens, ``t`` its weight, ``r`` its rank, ``n`` its name for people, ``d`` those of whom it knows, with the
seconds since they were heard, ``q`` those of whom it has to hear, ``c`` the cluster's time as it knows it, ``p`` what
shows on its host whether its process lives, ``y`` seconds for which it still refuses to send beside an older format,
``x`` those whose processes have ended for certain, ``o`` those whose last words it tells: [offset of their clock to the
speaker's, seconds since they were heard, 1 if they have ended, their rank, 1 if they only listened, their weight],
``e`` the entries (`crdt`). What is added an older reader ignores.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from .lifecycle import LEASE

__all__ = [
    "ARCHIVE",
    "BYE",
    "DELTA",
    "FULL",
    "Foreign",
    "HELLO",
    "Incompatible",
    "VERSION",
    "decode",
    "encode",
]

VERSION = 2
"""Raised when replicas of two formats would misread each other, or each take the limit for its own."""
HELLO, DELTA, FULL, ARCHIVE, BYE = "h", "d", "f", "a", "b"

_DIGEST = 8
_MOST_ENDED = 1000
_KEYED = hashlib.blake2b(digest_size=_DIGEST, key=b"remote_inference gossip")
_DECODE = json.JSONDecoder().raw_decode  # `decode` also looks for blanks, of which there are none
_ENCODE = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


class Foreign(Exception):
    """A message that is none of ours."""


class Incompatible(Exception):
    """A message of ours in another format."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version


def encode(head: dict[str, Any], entries: list[Any]) -> bytes:
    """A message."""
    text = _ENCODE({"v": VERSION, **head, "e": entries}).encode()
    return _digest(text) + text


def decode(body: bytes | str) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Head, entries (whatever they are) and whom else it speaks of.

    Raises:
        Foreign: it is no message of ours, or was garbled.
        Incompatible: it is one in another format.
    """
    raw = body.encode("utf-8", "replace") if isinstance(body, str) else bytes(body)
    text = raw[2 * _DIGEST :]
    if raw[: 2 * _DIGEST] != _digest(text):
        raise Foreign("it has no digest of ours")
    try:
        json_text = text.decode()
        head, end = _DECODE(json_text)
    except (ValueError, RecursionError):
        raise Foreign("it is no JSON") from None
    if end != len(json_text) or not isinstance(head, dict) or not _is_head(head):
        raise Foreign("its head is not understood")
    if head["v"] != VERSION:
        raise Incompatible(head["v"])
    entries = head.pop("e", None)
    ended = head.get("x")
    head["x"] = (
        [name for name in ended if type(name) is str and 0 < len(name) <= 64][:_MOST_ENDED]
        if isinstance(ended, list)
        else ()
    )
    if "c" in head and not _number(head["c"]):
        del head["c"]
    if "y" in head and not (_number(head["y"]) and 0 <= head["y"] <= LEASE):
        del head["y"]
    if "p" in head and not (type(head["p"]) is str and len(head["p"]) <= 100):
        del head["p"]
    dead, wanted, others = head.get("d"), head.get("q"), head.get("o")
    head["q"] = [name for name in wanted if type(name) is str] if isinstance(wanted, list) else ()
    rank = head.get("r", 0)
    head["r"] = rank if type(rank) is int and 0 <= rank <= 2**53 else 0
    head["d"] = (
        {name: age for name, age in dead.items() if len(name) <= 64 and _number(age)}
        if isinstance(dead, dict)
        else {}
    )
    return head, entries, _others(others) if isinstance(others, dict) else {}


def _digest(text: bytes) -> bytes:
    """Against what was garbled or meant for somebody else; it is no protection from one who means it."""
    digest = _KEYED.copy()
    digest.update(text)
    return digest.hexdigest().encode()


_KINDS = frozenset({HELLO, DELTA, FULL, ARCHIVE, BYE})


_NUMBERS = frozenset({int, float})
_MOST = 1e15


def _number(value: Any) -> bool:
    return type(value) in _NUMBERS and -_MOST < value < _MOST


def _is_head(head: dict[str, Any]) -> bool:
    try:
        name, person, weight = head["i"], head.get("n", ""), head["t"]
        for number in (head["m"], head["w"], head["s"], weight):
            if type(number) not in _NUMBERS or not -_MOST < number < _MOST:
                return False
        return (
            type(head["v"]) is int
            and head["v"] >= 1
            and head["k"] in _KINDS
            and type(name) is str
            and 0 < len(name) <= 64
            and type(person) is str
            and len(person) <= 300
            and 0 < weight <= 1e6
        )
    except (KeyError, TypeError):
        return False


def _others(told: dict[str, Any]) -> dict[str, Any]:
    """Of whom, besides itself, a message speaks; see `Peers.about`."""
    return {
        name: values[:6]
        for name, values in told.items()
        if len(name) <= 64
        and isinstance(values, list)
        and len(values) >= 6
        and all(_number(v) for v in values[:6])
        and values[3] >= 0
        and 0 < values[5] <= 1e6
    }
