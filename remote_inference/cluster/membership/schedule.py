"""`Schedule`: when a replica has to say what, and ask whom: as often as needed, and less where many cannot keep up."""

from __future__ import annotations

import math
import random

from .congestion import Congestion
from .lifecycle import LISTEN
from .peers import ANSWERED, OWN_ANSWER

__all__ = ["ANSWER_GAP", "KEEPALIVE", "LONGEST_ASK", "PERIOD", "URGENT_GAP", "Schedule"]

PERIOD = 0.5
"""Seconds between deltas while something changes, where there are no more than `CROWD` members."""
CROWD = 32
KEEPALIVE = 4.0
"""Seconds between full records of a member that has nothing to say, at most: 50 of them make 14 messages a second."""
KEEPALIVE_SPREAD = 0.2
"""The part of it that is random: those who have answered together shall not go on speaking together."""
URGENT_GAP = 0.02
"""Seconds between two messages, however urgent."""
LONGEST_ASK = 8.0
"""Times `LISTEN`, at most, between two questions; twice as long each time that nobody answers."""
ANSWER_DELAY = 0.1
"""Seconds within which a newcomer is answered, at random: many newcomers at once are answered together."""
ANSWER_GAP = 0.9
"""Seconds between two answers at least: newcomers that come one after the other are answered together, too."""


class Schedule:
    """One replica's. Not thread-safe; times are monotonic, in seconds, and infinite for what is not to be said.

    Args:
        period: see `PERIOD`.
        rng: for phases and answers.
        congestion: by how much what is said at leisure waits longer.

    Attributes:
        delta: when to say what has changed.
        soon: what has changed and should not wait.
        full: all that it has to say.
        hello: a greeting.
        question: what it lacks.
        archive: the last words of others.
        last_sent: when it said something last.
    """

    def __init__(self, period: float, rng: random.Random, congestion: Congestion) -> None:
        self.period = period
        self._rng = rng
        self._congestion = congestion
        self.delta = self.soon = self.full = self.hello = self.question = self.archive = math.inf
        self.last_sent = self._last_full = self._asked_at = -math.inf
        self._asked = 0  # how often in a row

    @property
    def due(self) -> float:
        """When the first of it is due."""
        return min(self.delta, self.full, self.asks, self.archive, self.soon)

    @property
    def whole(self) -> float:
        """When all that it has to say is said next."""
        return min(self.full, self.asks)

    @property
    def asks(self) -> float:
        """When it greets or asks next."""
        return min(self.hello, self.question)

    def begin(self, now: float) -> None:
        """There is a connection, perhaps a new one."""
        self.delta = now + self._rng.random() * self.period
        self.full = now + KEEPALIVE * (0.5 + self._rng.random() / 2)

    def greet(self, at: float) -> None:
        """Begin with a greeting at that time, and say nothing before it."""
        self.hello, self.soon = at, math.inf
        self.full, self.delta = max(self.full, at + self.period), max(self.delta, at + self.period)

    def sent(self, now: float) -> None:
        """Something was said."""
        self.last_sent = now

    # -- what it says by itself

    def hasten(self, now: float) -> None:
        """Something should be said as soon as may be."""
        self.soon = min(self.soon, max(now, self.last_sent + URGENT_GAP))

    def too_soon(self, now: float) -> bool:
        """Whether something was said a moment ago."""
        return now - self.last_sent < URGENT_GAP

    def said_changes(self, now: float, members: int) -> None:
        """The delta was said, or there was none."""
        crowd = max(1.0, members / CROWD)
        self.delta = now + min(self.period * crowd * self._congestion.factor, KEEPALIVE)

    def said_all(self, now: float, members: int) -> None:
        """The full record was said."""
        self._last_full = now
        self.full = now + KEEPALIVE * (1.0 - KEEPALIVE_SPREAD * self._rng.random())
        self.soon = math.inf
        self.said_changes(now, members)

    # -- what it asks

    def asked(self, now: float, *, heard: bool) -> None:
        """It has greeted or asked; again later, if nobody hears it, ourselves included."""
        self._asked += 1
        self._asked_at = now
        self.question = math.inf
        self.hello = math.inf if heard else self._next_question

    def answered(self) -> None:
        """Nothing is lacking any more: what was to be asked need not be."""
        self._asked = 0
        self.question = math.inf

    def heard_itself(self, now: float, *, greeting: bool) -> None:
        """What it says is heard; if that was no greeting, nobody may have heard one as yet."""
        self._asked = min(self._asked, 1)
        self.hello = math.inf if greeting else now

    def ask(self, now: float) -> None:
        """Something is lacking: ask, or ask again.

        A bit later: what is lacking may be on its way, and so may be the answers to a greeting.
        """
        if self.question == math.inf:
            earliest = max(now + OWN_ANSWER, self._next_question)
            self.question = earliest + self._rng.random() * ANSWER_DELAY

    @property
    def _next_question(self) -> float:
        """Seldom, if all are busy; but once within the time for which somebody's word is asked for."""
        wait = LISTEN * min(2.0 ** max(self._asked - 1, 0), LONGEST_ASK) * self._congestion.factor
        return self._asked_at + (wait if self._asked > 1 else min(wait, ANSWERED / 2))

    # -- what it answers

    def answer(self, now: float) -> None:
        """Somebody wants to hear all that there is to say."""
        gap = ANSWER_GAP * self._congestion.factor
        self.full = min(self.full, max(now + self._rng.random() * ANSWER_DELAY, self._last_full + gap))
        self.soon = min(self.soon, self.full)

    def tell_of_others(self, now: float, before: int) -> None:
        """Somebody asks for what others have said; so many have been here for longer, and may answer first.

        One after the other: who hears that another one has answered does not.
        """
        wait = OWN_ANSWER + ANSWER_DELAY * (before + self._rng.random())
        self.archive = now + wait * self._congestion.factor

    def __repr__(self) -> str:
        return f"Schedule(delta={self.delta:.2f}, full={self.full:.2f}, asks={self.asks:.2f})"
