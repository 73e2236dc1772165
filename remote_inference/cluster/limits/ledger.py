"""`Ledger`: who holds how many rights to a limit. One for all replicas: a message in a queue of the broker.

The limit of a minute is so many *rights*. A replica spends, in any window, no more than the rights that it holds; all
that is held, and what is yet to come free, is never more than the limit. (A bounded counter: Balegas et al.,
"Extending Eventually Consistent Cloud Databases for Enforcing Numeric Invariants", 2015; the idea is escrow, O'Neil
1986.) What nobody needs nobody holds: it is what the ledger leaves over.

The broker gives the message to one reader at a time, so two replicas never take the same rights, whatever they know of
each other. A reader changes the ledger in its own name: it takes rights that are free, or gives some back. What it
gives back may still be spent; then it stands among what is *due*, with the time at which it leaves the window.
The entry of a replica that has stopped is *closed* by another: what it may have spent is due, the rest is free.

Times are the cluster's (`membership.cluster_time`), in ticks of half a second, and rounded up.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..membership.cluster_time import Stamp

__all__ = ["DISCARD", "TICKS", "Book", "Entry", "Ledger", "LedgerError", "UnknownLedgerFormat", "digest_of"]

DISCARD = b""
"""In place of a ledger: throw it away."""
FORMAT = 1
"""Raised when an older reader would misread what a newer one writes; what is only added it ignores, and drops."""
TICKS = 2
"""A second."""

_LARGEST = 2**53
_MOST_ENTRIES = 10_000
_LONGEST_NAME = 100


class LedgerError(ValueError):
    """The message is no ledger."""


class UnknownLedgerFormat(Exception):
    """It is a ledger of another format."""

    def __init__(self, format: int) -> None:
        super().__init__(format)
        self.format = format


@dataclass
class Entry:
    """What stands in one replica's name.

    Attributes:
        process: what shows on its host whether it lives.
        held: rights by dimension.
        spent: by dimension, what of them it had spent when it wrote last: (tick in which they leave the window, how
            many).
        noted_at: when that was; cluster time.
    """

    process: str = ""
    held: dict[str, int] = field(default_factory=dict)
    spent: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    noted_at: float = -1e12


@dataclass
class Book:
    """One dimension: its limit, and what comes free of what nobody holds any more, by tick."""

    limit: int
    due: dict[int, int] = field(default_factory=dict)


@dataclass
class Ledger:
    """All dimensions of one subject: a limit key, or a deployment with a limit of its own.

    Attributes:
        created: the cluster time at which it was begun.
        version: one more with each change.
        stamp: when it was written last.
        books: by dimension.
        entries: by replica.
    """

    created: float
    version: int
    stamp: Stamp
    books: dict[str, Book] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)

    # -- what is free

    def held(self, dimension: str) -> int:
        """The rights that replicas hold."""
        return sum(entry.held.get(dimension, 0) for entry in self.entries.values())

    def due(self, dimension: str) -> int:
        """What has yet to come free."""
        book = self.books.get(dimension)
        return sum(book.due.values()) if book is not None else 0

    def free(self, dimension: str) -> int:
        """The rights that may be taken; negative where the limit has fallen."""
        book = self.books.get(dimension)
        return 0 if book is None else book.limit - self.held(dimension) - sum(book.due.values())

    def come_free(self, time: float) -> None:
        """Rights whose time has come are free: nothing of them is in the window any more."""
        tick = math.floor(time * TICKS)
        for book in self.books.values():
            if any(due <= tick for due in book.due):
                book.due = {due: amount for due, amount in book.due.items() if due > tick}

    # -- changes, each in the name of one replica

    def open(self, dimension: str, limit: int, due: Iterable[tuple[float, int]] = ()) -> Book:
        """Begin a dimension, of which so many rights come free at those times."""
        book = self.books[dimension] = Book(limit)
        self.add_due(dimension, due)
        return book

    def take(self, replica: str, dimension: str, amount: int) -> None:
        """Hold so many more."""
        held = self.entries[replica].held
        held[dimension] = held.get(dimension, 0) + amount

    def give(self, replica: str, dimension: str, amount: int, due: Iterable[tuple[float, int]] = ()) -> None:
        """Hold so many less, of which those that are due come free at their times, and the others now."""
        held = self.entries[replica].held
        held[dimension] = held.get(dimension, 0) - amount
        self.add_due(dimension, due)

    def close(self, replica: str, due: dict[str, list[tuple[float, int]]]) -> None:
        """It has stopped: nothing is held in its name any more, and what it may have spent comes free in time."""
        del self.entries[replica]
        for dimension, parts in due.items():
            if dimension in self.books:
                self.add_due(dimension, parts)

    def add_due(self, dimension: str, due: Iterable[tuple[float, int]]) -> None:
        """So many come free at those times."""
        book = self.books[dimension]
        for time, amount in due:
            if amount > 0:
                tick = math.ceil(time * TICKS)
                book.due[tick] = book.due.get(tick, 0) + amount

    # -- the message

    def encode(self) -> bytes:
        """The message's body."""
        value = {
            "format": FORMAT,
            "created": round(self.created, 3),
            "version": self.version,
            "stamp": self.stamp.to_wire(),
            "books": {
                name: [book.limit, [number for item in sorted(book.due.items()) for number in item]]
                for name, book in self.books.items()
            },
            "entries": {
                name: [
                    entry.process,
                    entry.held,
                    {dimension: _profile(spent) for dimension, spent in entry.spent.items() if spent},
                    round(entry.noted_at, 3),
                ]
                for name, entry in self.entries.items()
            },
        }
        text = json.dumps(value, separators=(",", ":")).encode()
        return digest_of(text) + text

    @classmethod
    def decode(cls, body: bytes | str) -> Ledger:
        """Read it.

        Raises:
            LedgerError: it is none.
            UnknownLedgerFormat: it is one of another format, which must be left as it is.
        """
        raw = body.encode("utf-8", "replace") if isinstance(body, str) else bytes(body)
        text = raw[16:]
        if raw[:16] != digest_of(text):
            raise LedgerError("it has no digest of ours")
        try:
            value = json.loads(text)
            if _count(value["format"]) != FORMAT:
                raise UnknownLedgerFormat(value["format"])
            ledger = cls(
                created=_number(value["created"]),
                version=_count(value["version"]),
                stamp=Stamp.from_wire(value["stamp"]),
            )
            for name, book in value["books"].items():
                limit, due = book[:2]
                pairs = zip(due[::2], due[1::2], strict=True)
                ledger.books[_name(name)] = Book(
                    _count(limit), {_tick(tick): _count(amount) for tick, amount in pairs}
                )
            for name, entry in value["entries"].items():
                process, held, spent, noted_at = entry[:4]
                ledger.entries[_name(name)] = Entry(
                    _name(process, 0),
                    {_name(dimension): _count(amount) for dimension, amount in held.items()},
                    {_name(dimension): _from_profile(figures) for dimension, figures in spent.items()},
                    _number(noted_at),
                )
        except (LookupError, TypeError, ArithmeticError, ValueError, AttributeError, RecursionError) as exc:
            raise LedgerError(f"it is malformed: {type(exc).__name__}") from None
        if len(ledger.entries) > _MOST_ENTRIES:
            raise LedgerError("it has too many entries")
        return ledger


def _profile(spent: list[tuple[int, int]]) -> list[int]:
    """[first tick, how many in it, in the next, …]."""
    ticks: dict[int, int] = {}
    for tick, amount in spent:
        ticks[tick] = ticks.get(tick, 0) + amount
    first = min(ticks)
    return [first, *(ticks.get(tick, 0) for tick in range(first, max(ticks) + 1))]


def _from_profile(figures: Any) -> list[tuple[int, int]]:
    first = _tick(figures[0])
    if len(figures) > 10_000:
        raise LedgerError("a profile is too long")
    return [(first + number, _count(amount)) for number, amount in enumerate(figures[1:]) if amount]


def digest_of(text: bytes) -> bytes:
    """Against what was garbled or put there by mistake; it is no protection from one who means it."""
    return hashlib.blake2b(text, digest_size=8, key=b"remote_inference ledger").hexdigest().encode()


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise ValueError("not a count")
    return value


def _tick(value: Any) -> int:
    if type(value) is not int or not -_LARGEST <= value <= _LARGEST:
        raise ValueError("not a time")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("not a number")
    return float(value)


def _name(value: Any, shortest: int = 1) -> str:
    if type(value) is not str or not shortest <= len(value) <= _LONGEST_NAME:
        raise ValueError("not a name")
    return value
