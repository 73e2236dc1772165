"""`AskingKey`: whose turn it is, among a process's threads that wait for a key, to ask the store."""

from __future__ import annotations

import math
import threading

from ...reasons import LimitReason
from ..base import Cost
from ..local.window import Ceilings
from .account import Account

__all__ = ["FIRST_BACKOFF", "AskingDeployment", "AskingKey", "AskingThread"]

FIRST_BACKOFF = 0.5
"""Seconds without a question after the store did not answer; they double."""


class AskingDeployment:
    """A deployment on a key."""

    __slots__ = ("burst", "ceilings", "full_until", "line", "max_concurrent", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ceilings = Ceilings()
        self.burst = 60.0
        self.max_concurrent = math.inf
        self.full_until = -math.inf  # of its own bound, as the store said; monotonic
        self.line: list[tuple[int, int, AskingThread]] = []  # sorted; (-priority, age) is unique


class AskingThread:
    """A thread that waits for a permit."""

    __slots__ = ("code", "cost", "due", "event", "member", "place", "turn")

    def __init__(self, member: AskingDeployment, cost: Cost, place: tuple[int, int]) -> None:
        self.member = member
        self.cost = cost
        self.place = place
        self.event = threading.Event()
        self.turn = -1  # of the key when it last asked
        self.due = -math.inf  # what it was told then
        self.code: str = LimitReason.QUEUE


class AskingKey:
    """A key: its account, and who waits for it here."""

    __slots__ = ("account", "asking", "away_until", "backoff", "count", "members", "turn", "waiting")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.away_until = -math.inf  # the store did not answer; monotonic
        self.backoff = FIRST_BACKOFF
        self.members: dict[str, AskingDeployment] = {}
        self.waiting = 0
        self.count = 0
        self.asking = False
        self.turn = 0  # one more whenever something happened here that may make room

    def heads(self) -> list[AskingThread]:
        return [member.line[0][2] for member in self.members.values() if member.line]

    def may_ask_at(self, waiter: AskingThread, now: float) -> float:
        """When it is this one's turn to ask; infinity: others come first, or nobody knows."""
        if self.asking:
            return math.inf
        member = waiter.member
        if member.line[0][2] is not waiter:
            return math.inf
        if member.full_until > now:
            return member.full_until
        leader = min((w for w in self.heads() if w.member.full_until <= now), key=lambda w: w.place)
        if leader is not waiter:
            return math.inf
        return waiter.due if waiter.turn == self.turn else now

    def stir(self) -> None:
        """Something made room: all that the store said of waiting is out of date."""
        self.turn += 1
        for member in self.members.values():
            member.full_until = -math.inf
        self.wake()

    def wake(self) -> None:
        for waiter in self.heads():
            waiter.event.set()
