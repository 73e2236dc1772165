"""`Peers`: what a replica knows of the others: when each was heard, how its clock runs, whose word is lacking."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from .message import BYE, FULL, HELLO

__all__ = ["ANSWERED", "GUARD", "LEASE", "MEMORY", "Peers", "PeerState", "TELL"]

LEASE = 15.0
"""Seconds for which a member lives after its last message."""
GUARD = 1.0
"""Seconds by which a member that hears no echo of its own stops before the others take it for dead."""
MEMORY = 100.0
"""Seconds for which a dead member's entries are kept: its lease, and the window in which it has spent."""
TELL = 90.0
"""Seconds for which it matters what a dead member has said: its lease, a window, and some. For so long it is named to
the others, and asked for by those who have not heard it: nobody has forgotten it by then."""
ANSWERED = 5.0
"""Seconds for which somebody's word is asked for: five times. Without it nothing that belongs to nobody is taken."""
OFFSET_MEMORY = 60.0
"""Seconds after which a measured offset is replaced: quartz clocks drift by some 50 millionths."""


class PeerState:
    """Another member, as heard."""

    __slots__ = (
        "_earlier",
        "_lowest",
        "_since",
        "gone",
        "heard",
        "joining",
        "left",
        "name",
        "offset",
        "rank",
        "skew",
        "weight",
    )

    def __init__(self, now: float) -> None:
        self.heard = now
        self.name = ""
        self.weight = 1.0
        self.rank = 0
        self.joining = True
        self.gone = False
        """It is no more, or was given up."""
        self.left = False
        """It said good-bye: what it has said is all."""
        self.skew = 0.0
        self.offset = math.inf
        """What to add to its monotonic times; infinite before the first was heard."""
        self._lowest = self._earlier = math.inf
        self._since = now

    def measure(self, sent: float, now: float) -> None:
        """It was that time there, when its message was sent."""
        if now - self._since > OFFSET_MEMORY:
            self._earlier, self._lowest, self._since = self._lowest, math.inf, now
        self._lowest = min(self._lowest, now - sent)
        self.offset = min(self._lowest, self._earlier)

    def hear(self, head: dict[str, Any], now: float, wall: float) -> None:
        """It has spoken. ``wall`` is our wall clock."""
        self.measure(head["m"], now)
        self.heard = now
        self.weight = head["t"]
        self.rank = head["r"]
        self.joining = bool(head["s"])
        if "n" in head:
            self.name = head["n"]
        ahead = wall - head["w"]  # too much by the time of the way
        self.skew = min(ahead, self.skew + 0.05 * (ahead - self.skew) + 0.001) if self.skew else ahead


class Peers:
    """All others of whom something is remembered, the dead too, by id. Not thread-safe; times are monotonic.

    Attributes:
        states: for reading.
        missing: whose word is lacking, and until when that matters: what it holds or has spent must not be taken for
            nobody's.
    """

    def __init__(self) -> None:
        self.states: dict[str, PeerState] = {}
        self.missing: dict[str, float] = {}
        self._lacked: dict[str, float] = {}  # since when

    def get(self, name: str) -> PeerState | None:
        """What is known of that one."""
        return self.states.get(name)

    def add(self, name: str, heard: float) -> PeerState:
        """Somebody new."""
        state = self.states[name] = PeerState(heard)
        return state

    def tell_of_dead(
        self, others: dict[str, Any], teller: PeerState, said: float, me: str
    ) -> Collection[str]:
        """Somebody tells of the dead: [offset of their clock to his, seconds since they were heard, 1 if they left].

        Returns:
            The ids of those of whom he may: who is dead here too, or was heard later by him than here.
        """
        told = []
        for name, (offset, age, left) in others.items():
            known, heard = self.states.get(name), said - age
            if name == me or not (left or age >= LEASE):
                continue
            if known is None:
                known = self.add(name, heard)
                known.measure(0.0, offset + teller.offset)
            elif not known.gone and heard <= known.heard + GUARD:
                continue
            known.heard = max(known.heard, heard)
            known.left |= bool(left)
            known.gone |= known.left or age >= LEASE
            told.append(name)
        return told

    def note_missing(
        self, head: dict[str, Any], new: bool, told: Collection[str], said: float, me: str, now: float
    ) -> None:
        """Whose word is lacking after that message: somebody new who was not heard in full, or somebody whom others
        have heard later than this replica."""
        if head["k"] in (HELLO, FULL, BYE):
            self.missing.pop(head["i"], None)
        elif new:
            self._lacks(head["i"], said + TELL, now)
        for name in told:
            self.missing.pop(name, None)
        for name, age in head["d"].items():
            known = self.states.get(name)
            if name != me and (known is None or said - age > known.heard + GUARD) and age < TELL:
                self._lacks(name, said - age + TELL, now)

    def _lacks(self, name: str, until: float, now: float) -> None:
        """Its word is lacking, for as long as that matters; but not for ever: if nobody answers, nobody knows it."""
        first = self._lacked.setdefault(name, now)
        self.missing[name] = min(until, first + ANSWERED)

    def still_missing(self, now: float) -> bool:
        """Whether somebody's word is lacking; what is too old to matter is dropped."""
        if self.missing:
            self.missing = {name: until for name, until in self.missing.items() if now < until}
            self._lacked = {name: first for name, first in self._lacked.items() if now < first + MEMORY}
        return bool(self.missing)

    def ages(self, now: float) -> dict[str, float]:
        """Seconds since each was heard, for the others: of those for whom it matters."""
        ages = {name: round(now - state.heard, 2) for name, state in self.states.items()}
        return {name: age for name, age in ages.items() if age < TELL}

    def skew(self) -> float:
        """Seconds by which our wall clock is ahead of the middle of all; of two halves that differ, the one that is
        behind takes itself for right."""
        skews = sorted([0.0, *(state.skew for state in self.states.values() if not state.gone)])
        return skews[len(skews) // 2]

    def __repr__(self) -> str:
        return f"Peers({len(self.states)} known, {len(self.missing)} missing)"
