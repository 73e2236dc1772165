"""`Hearing`: what the others say of their limits, worked into this replica's ledgers; see `telling` for where it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..clock import Clock
from .assumption import Spent, from_wire
from .crdt import GCounter, LwwRegister, Path, PNCounter
from .key import KeyState, Share
from .record import Record
from .replica import Replica
from .telling import ASSUMED, GIVEN, KINDS, RIGHTS, SPEND, TAKEN
from .window import DIMENSIONS

__all__ = ["Hearing", "Subject"]

Subject = tuple[KeyState, dict[str, Share]]
"""A key, and its shares or those of one of its deployments."""


class Hearing:
    """Called with both locks held.

    Args:
        clock: where time comes from.
        replica: who hears.
        subjects: by digest.
        span: seconds of the window, with its margin.
    """

    def __init__(self, clock: Clock, replica: Replica, subjects: Mapping[str, Subject], span: float) -> None:
        self._clock = clock
        self._replica = replica
        self._subjects = subjects
        self._span = span

    def hear_all(self, subject: str, now: float, of: str | None = None) -> None:
        """All that was said of a subject before it was known here; or by one replica."""
        for path in list(self._replica.state.entries):
            if path[0] in KINDS and path[1:2] == (subject,) and of in (None, path[-1]):
                self.hear([path], now)

    def hear(self, paths: Iterable[Path], now: float) -> list[KeyState]:
        """What others have spent, hold or have given; the keys of which this replica may do more or less now."""
        replica, subjects, entries = self._replica, self._subjects, self._replica.state.entries
        me, touched = replica.id, []
        for path in paths:
            name = path[-1]
            found = subjects.get(path[1]) if len(path) >= 3 else None
            entry = entries.get(path)
            if found is None or entry is None or name == me:
                continue
            state, shares = found
            kind = path[0]
            if kind == SPEND:
                if isinstance(entry, PNCounter):
                    self._spend(state, path, entry, now)
            elif not replica.knows(name):
                continue
            elif kind == RIGHTS:
                if isinstance(entry, LwwRegister):
                    self._rights(shares, entry.value, name)
            elif kind == ASSUMED:
                if len(path) == 5 and path[2] in shares and (spent := self._assumed(path, now)) is not None:
                    shares[path[2]].assumption.hear(path[3], name, spent)
            elif len(path) == 4 and path[2] in shares and isinstance(entry, GCounter):
                share = shares[path[2]]
                if kind == TAKEN:
                    share.ledger.receipts[name] = entry.counts
                elif kind == GIVEN:
                    share.ledger.gifts[name] = entry.counts
                    if self._gift(state, share, name, now) and state not in touched:
                        touched.append(state)
        return touched

    def sweep(self, now: float) -> None:
        """Drop what was spent before the window, also of keys that are not ours, and what never is in it."""
        replica = self._replica
        for path in [path for path in replica.state.entries if path[0] in (SPEND, ASSUMED)]:
            if not now < self._expires(path) <= now + 2 * self._span:
                replica.forget(path)

    def _gift(self, state: KeyState, share: Share, giver: str, now: float) -> int:
        """Take what that one has given; how much that is."""
        me, ledger = self._replica.id, share.ledger
        gift = ledger.accept(giver, me)
        spent = self._assumed((ASSUMED, state.digest, share.dimension, me, giver), now) if gift else None
        if spent is not None and 0 <= ledger.taken[giver] - spent.upto < gift:
            share.assumption.accept(spent._replace(amount=min(spent.amount, gift)), now)
        return gift

    def _assumed(self, path: Path, now: float) -> Spent | None:
        """What is taken to be spent, in our time."""
        register, offset = self._replica.state.get(path, LwwRegister), self._replica.offset_of(path[-1])
        if register is None or offset is None:
            return None
        return from_wire(register.value, offset, now, self._span)

    def _spend(self, state: KeyState, path: Path, entry: PNCounter, now: float) -> None:
        expires = self._expires(path)
        if expires <= now + 2 * self._span:
            state.spend.hear(path[3], int(path[2]), entry.all_of(DIMENSIONS), expires, now)

    def _rights(self, shares: Mapping[str, Share], value: Any, name: str) -> None:
        if type(value) is not dict:
            return
        for dimension, share in shares.items():
            ledger = share.ledger
            try:
                record = ledger.records[name] = Record(value.get(dimension))
            except ValueError:  # or it has no such limit
                continue
            if record.need >= 1 and (ledger.spare >= 1 or (record.urgent and ledger.held)):
                self._replica.soon()

    def _expires(self, path: Path) -> float:
        """When what a path tells of leaves the window, if it is spending and its writer is known; else never."""
        replica = self._replica
        offset = replica.offset_of(path[-1])
        if offset is None:
            return math.inf
        if path[0] == ASSUMED:
            spent = self._assumed(path, self._clock.monotonic())
            return math.inf if spent is None else spent.last + self._span
        try:
            return int(path[2]) + 1 + offset + self._span if len(path) == 4 else math.inf
        except (ValueError, OverflowError):
            return math.inf

    def __repr__(self) -> str:
        return f"Hearing({len(self._subjects)} subjects)"
