"""`Peers`: what a replica knows of the others: when each was heard, how its clock runs, whose word is lacking."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from .lifecycle import CONNECTED, GUARD, LEASE
from .message import BYE, FULL, HELLO

__all__ = ["ANSWERED", "MEMORY", "Peers", "PeerState", "TELL"]

MEMORY = 100.0
"""Seconds for which a dead member's entries are kept: its lease, and the window in which it has spent."""
TELL = 90.0
"""Seconds for which it matters what a dead member has said: its lease, a window, and some. For so long it is named to
the others, and asked for by those who have not heard it: nobody has forgotten it by then."""
ANSWERED = 5.0
"""Seconds for which somebody's word is asked for: two or three times. Without it nothing that belongs to nobody is
taken."""
OWN_ANSWER = 0.3
"""Seconds for which those who are asked for somebody's word leave it to himself."""
SILENT = 2.0
"""Seconds after which somebody who says nothing may be no more: who is asked tells what he knows of him."""
OFFSET_MEMORY = 60.0
"""Seconds after which a measured offset is replaced: quartz clocks drift by some 50 millionths."""


_WHOLE = frozenset({HELLO, FULL, BYE})


class PeerState:
    """Another member, as heard."""

    __slots__ = (
        "_earlier",
        "_lowest",
        "_since",
        "came",
        "cluster_time",
        "ended",
        "full",
        "gone",
        "heard",
        "joining",
        "name",
        "offset",
        "process",
        "rank",
        "skew",
        "watched",
        "weight",
    )

    def __init__(self, now: float) -> None:
        self.heard = now
        self.came = -math.inf
        """When it was heard first; from the others one may know of it without."""
        self.full = -math.inf
        """When it said all that it has to say, last."""
        self.cluster_time = -math.inf
        """What it took the cluster's clock to show when it was heard last."""
        self.name = ""
        self.weight = 1.0
        self.rank = 0
        self.joining = True
        self.gone = False
        """It is no more, or was given up."""
        self.ended: float | None = None
        """When it was known for certain to do no more: it said good-bye, or its process has ended."""
        self.process = ""
        """What shows on its host whether it still lives."""
        self.watched = False
        """Whether it was asked for that its process be watched."""
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
        if self.came == -math.inf:
            self.came = now
        if head["k"] in _WHOLE:
            self.full = now
        self.weight = head["t"]
        self.rank = head["r"]
        self.joining = bool(head["s"])
        if "n" in head:
            self.name = head["n"]
        if "p" in head:
            self.process = head["p"]
        if "c" in head:
            self.cluster_time = head["c"]
        # However late this message is: how its two clocks differ, against how ours do.
        self.skew = (wall - now) - (head["w"] - head["m"] - self.offset)


class Peers:
    """All others of whom something is remembered, the dead too, by id. Not thread-safe; times are monotonic.

    Attributes:
        states: for reading.
        current: those of them that were not given up; for reading.
        missing: whose word is lacking, and until when that matters: what it holds or has spent must not be taken for
            nobody's.
        asked: whose word others lack, and since when.
    """

    def __init__(self) -> None:
        self.states: dict[str, PeerState] = {}
        self.current: dict[str, PeerState] = {}
        self.missing: dict[str, float] = {}
        self.asked: dict[str, float] = {}
        self._lacked: dict[str, float] = {}  # since when

    def get(self, name: str) -> PeerState | None:
        """What is known of that one."""
        return self.states.get(name)

    def add(self, name: str, heard: float) -> PeerState:
        """Somebody new."""
        state = self.states[name] = self.current[name] = PeerState(heard)
        return state

    def give_up(self, name: str, ended: float | None = None) -> None:
        """It is no more: by its silence, or for certain since that time."""
        state = self.states[name]
        state.gone = True
        if ended is not None and state.ended is None:
            state.ended = ended
        self.current.pop(name, None)

    def forget(self, name: str) -> None:
        """It is of no more use what it has said."""
        self.states.pop(name, None)
        self.current.pop(name, None)

    def heard_all(self, ages: dict[str, float], me: str) -> bool:
        """Whether all have said everything here who were heard a moment ago by whoever told these ages."""
        for name, age in ages.items():
            state = self.states.get(name)
            if (
                age < CONNECTED
                and name != me
                and (state is None or not (state.gone or state.full > -math.inf))
            ):
                return False
        return True

    def of_process(self, process: str) -> list[str]:
        """The ids of those who were that process, and are not known to have ended."""
        return [n for n, state in self.states.items() if state.process == process and state.ended is None]

    def hear_of(self, others: dict[str, Any], teller: PeerState, said: float, me: str) -> Collection[str]:
        """Somebody tells what others have said, who are dead or were not heard here; see `about`.

        Returns:
            The ids of those of whom he may: who is dead here too, was heard later by him than here, or never in full.
        """
        told = []
        for name, (offset, age, left, rank, joining, weight) in others.items():
            known, heard, dead = self.states.get(name), said - age, left or age >= LEASE
            if name == me:
                continue
            if known is None:
                known = self.add(name, heard)
                known.measure(0.0, offset + teller.offset)
                known.rank, known.joining, known.weight = rank, bool(joining), weight
            elif known.full > -math.inf and not (dead and (known.gone or heard > known.heard + GUARD)):
                continue
            known.heard = max(known.heard, heard)
            if dead:
                self.give_up(name, said if left else None)
            told.append(name)
            self.asked.pop(name, None)
        return told

    def about(self, name: str, now: float) -> list[Any]:
        """What `hear_of` reads: the offset of its clock to ours, seconds since it was heard, 1 if it ended; its rank, 1
        if it only listens, its weight."""
        state = self.states[name]
        return [
            round(state.offset, 4),
            round(now - state.heard, 3),
            int(state.ended is not None),
            state.rank,
            int(state.joining),
            state.weight,
        ]

    def ask(self, names: Collection[str], now: float) -> None:
        """Somebody lacks the word of these."""
        for name in names:
            if name in self.states:
                self.asked.setdefault(name, now)

    def to_tell(self, now: float) -> list[str]:
        """Of whom to tell to those who asked, as they do not do so themselves."""
        due = [name for name, asked in self.asked.items() if now >= asked + OWN_ANSWER]
        found = []
        for name in due:
            state = self.states.get(name)
            del self.asked[name]
            if state is not None and now >= state.heard + SILENT and self._can_tell(name, state, now):
                found.append(name)
        return sorted(found)

    def last_words(self, now: float) -> list[str]:
        """Of whom to tell before one leaves: who has not said all since the latest came, who then has nobody to ask."""
        latest = max((state.came for state in self.current.values()), default=-math.inf)
        if now > latest + ANSWERED:
            return []
        return sorted(
            name
            for name, state in self.states.items()
            if state.full < latest and self._can_tell(name, state, now)
        )

    def _can_tell(self, name: str, state: PeerState, now: float) -> bool:
        return state.offset < math.inf and name not in self.missing and now < state.heard + TELL

    def note_missing(
        self, head: dict[str, Any], told: Collection[str], said: float, me: str, now: float
    ) -> None:
        """Whose word is lacking after that message: somebody who was never heard in full, or somebody whom others have
        heard later than this replica."""
        if head["k"] in _WHOLE:
            self.missing.pop(head["i"], None)
        elif self.states[head["i"]].full == -math.inf:
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
        """Seconds since each was heard, for the others: of those for whom it matters, and who are not known to have
        ended."""
        ages = {
            name: round(now - state.heard, 2) for name, state in self.states.items() if state.ended is None
        }
        return {name: age for name, age in ages.items() if age < TELL}

    def skew(self) -> float:
        """Seconds by which our wall clock is ahead of the middle of all; of two halves that differ, the one that is
        behind takes itself for right."""
        skews = sorted([0.0, *(state.skew for state in self.current.values())])
        return skews[len(skews) // 2]

    def __repr__(self) -> str:
        return f"Peers({len(self.states)} known, {len(self.missing)} missing)"
