"""`KeyState`: all that one replica knows of one limit key: the room that its line waits for.

A permit looks at this replica's own figures only; what the others say is worked into them in between.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

from ..clock import Clock
from .assumption import Assumption
from .base import Cost, LimitKey
from .learned import LearnedLimits
from .ledger import Ledger
from .line import Line, Standing
from .pace import Pace
from .pause import Pause
from .replica import Replica
from .spend import Spend
from .window import DIMENSIONS, Ceilings, SlidingWindow, Slot

__all__ = ["CONCURRENT", "JOINING", "GossipPermit", "KeyState", "Member", "Share"]

CONCURRENT = "concurrent"
JOINING = "joining"
"""`LimitReached.code` while this process does not know yet, or no more, what the others spend."""

_SHORTEST_RETRY, _LONGEST_RETRY = 0.1, 2.0  # seconds, where only the end of another request makes room
_LONGEST_GUESS = 5.0  # seconds, where others have to give
_HOLD_WEIGHT = 0.1  # of the newest request in the mean time for which permits are held


class Member(Standing["GossipPermit"]):
    """A deployment on a key."""

    __slots__ = ("burst", "ceilings", "in_flight", "learns", "room", "share")

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ceilings = Ceilings()
        self.burst = math.inf
        self.learns = False
        self.in_flight = 0
        self.share: Share | None = None
        """Of its ``max_concurrent``."""
        self.room = math.inf

    @property
    def full(self) -> bool:
        return self.in_flight >= self.room


class Share:
    """The part in one dimension of a limit: a ledger, and the pace at which it is used."""

    __slots__ = ("assumption", "dimension", "ledger", "pace", "since", "unheard")

    def __init__(
        self, dimension: str, ledger: Ledger, pace: Pace | None, assumption: Assumption, since: float
    ) -> None:
        self.dimension = dimension
        self.ledger = ledger
        self.pace = pace
        self.assumption = assumption
        self.since = since
        """When it began to be counted."""
        self.unheard: dict[str, float] = {}
        """What those that died could have spent at most after they were heard last."""


class KeyState:
    """All that is known of one limit key: the room that its line waits for."""

    def __init__(
        self, name: LimitKey, replica: Replica, lock: threading.Lock, clock: Clock, span: float, grain: float
    ) -> None:
        self.name = name
        self.digest = name.digest
        self.replica = replica
        self.lock = lock
        self.clock = clock
        self.window = SlidingWindow(span, grain)
        self.pause = Pause()
        self.epoch = 0
        self.members: dict[str, Member] = {}
        self.line: Line[GossipPermit] = Line(self)
        self.limits = Ceilings()
        self.rights = Ceilings()
        self.usual_rights = Ceilings()
        self.usual_limits = Ceilings()
        """Less than `rights` and `limits` by what is kept back for urgent requests."""
        self.shares: dict[str, Share] = {}
        self.spend = Spend()
        """Of the others."""
        self.paces: list[tuple[int, Pace]] = []
        self.in_flight = 0
        self.mean_hold = 1.0
        self.mean_tokens = 0.0
        self.unsaid: dict[int, list[int]] = {}
        self.spent = [0, 0, 0, 0]
        """All that was spent since the beginning, by dimension."""
        self.next_round = self.next_look = -math.inf
        self.learned: LearnedLimits | None = None

    # -- the line's room

    @property
    def full(self) -> bool:
        return self.in_flight >= self.rights.concurrent

    def standings(self) -> Iterator[Member]:
        return iter(self.members.values())

    def take(
        self, standing: Standing[GossipPermit], cost: Cost, now: float, urgent: bool
    ) -> GossipPermit | None:
        member: Member = standing  # type: ignore[assignment]  # there are no others
        if self.in_flight >= self.rights.concurrent or member.in_flight >= member.room:
            return None
        pause = self.pause
        if now < pause.quiet_until and pause.opens_at(now)[0] > now:
            return None
        window = self.window
        if self.shares:
            replica = self.replica
            if now >= replica.lease_until or now < replica.listening_until:
                return None
            window.forget(now)
            if urgent:
                lacking = window.lacking(self.rights, self.limits, cost)
            else:
                lacking = window.lacking(self.usual_rights, self.usual_limits, cost)
            if lacking:
                return None
            paces = self.paces
            if paces:
                amounts = (
                    cost.requests,
                    cost.input_tokens + cost.output_tokens,
                    cost.input_tokens,
                    cost.output_tokens,
                )
                for index, pace in paces:
                    if pace.due(amounts[index], now, ahead=urgent) > now:
                        return None
                for index, pace in paces:
                    pace.take(amounts[index])
        else:
            window.forget(now)
        slot = window.reserve(now, cost)
        self.say(slot, cost.requests, cost.input_tokens, cost.output_tokens)
        self.mean_tokens += _HOLD_WEIGHT * (cost.input_tokens + cost.output_tokens - self.mean_tokens)
        self.in_flight += 1
        member.in_flight += 1
        if now < pause.quiet_until:
            pause.admitted += 1
        return GossipPermit(self, member, cost, slot, now)

    def due(
        self, standing: Standing[GossipPermit], cost: Cost, now: float, urgent: bool
    ) -> tuple[float, str]:
        at, code = self.pause.opens_at(now)
        if not self.shares:
            return at, code
        ready = self.replica.ready_at(now)
        if ready > at:
            at, code = ready, JOINING
        window = self.window
        window.forget(now)
        rights = (self.rights, self.limits) if urgent else (self.usual_rights, self.usual_limits)
        opens, lacking = window.opens_at(*rights, cost, now)
        if lacking:
            opens = min(opens, self._given_at(lacking, cost, now))
            if opens > at:
                at, code = opens, lacking
        for index, pace in self.paces:
            due = pace.due(_amount(cost, index), now, ahead=urgent)
            if due > at:
                at, code = due, DIMENSIONS[index]
        return at, code

    def _given_at(self, dimension: str, cost: Cost, now: float) -> float:
        """When others may have given what is lacking: soon, if they can spare it; else by this replica's share."""
        if self.replica.alone:
            return math.inf
        ledger = self.shares[dimension].ledger
        wanted = _amount(cost, DIMENSIONS.index(dimension)) + ledger.reserve
        missing = wanted - ledger.usable + getattr(self.window, dimension)
        if sum(record.spare for record in ledger.records.values()) >= missing:
            return now + _SHORTEST_RETRY
        guess = missing / ledger.share if ledger.share > 0 else _LONGEST_GUESS
        return now + min(max(guess, _SHORTEST_RETRY), _LONGEST_GUESS)

    def room_due(self, member: Member, now: float) -> float:
        """When a running request is likely to end, by how long they take."""
        running = member.in_flight if member.full else self.in_flight
        return now + min(max(self.mean_hold / max(running, 1), _SHORTEST_RETRY), _LONGEST_RETRY)

    # -- what is spent

    def say(self, slot: Slot, requests: int, input_tokens: int, output_tokens: int) -> None:
        """Remember what is to be told of the slot's second."""
        said = self.unsaid.get(int(slot.first))
        if said is None:
            said = self.unsaid[int(slot.first)] = [0, 0, 0, 0]
        spent = self.spent
        for index, amount in enumerate((requests, input_tokens + output_tokens, input_tokens, output_tokens)):
            said[index] += amount
            spent[index] += amount

    def correct(self, slot: Slot, requests: int, input_tokens: int, output_tokens: int) -> None:
        """A reservation turned out to be another."""
        if slot.live:
            self.window.correct(slot, requests, input_tokens, output_tokens)
            self.say(slot, requests, input_tokens, output_tokens)
        for index, pace in self.paces:
            pace.give_back(-(requests, input_tokens + output_tokens, input_tokens, output_tokens)[index])

    def wanted(
        self, member: Member, cost: Cost, code: str, now: float, until: float, *, urgent: bool
    ) -> bool:
        """A request has to wait for that; whether the others should hear of it at once."""
        if code == "concurrency":
            news = False
            for share in (self.shares.get(CONCURRENT), member.share):
                if share is not None:
                    news |= share.ledger.want(1, now, until, urgent=urgent)
            return news
        share = self.shares.get(code)
        if share is None:
            return False
        amount = min(_amount(cost, DIMENSIONS.index(code)), share.ledger.total)
        return share.ledger.want(amount, now, until, urgent=urgent)

    # -- its limits

    def refresh(self, now: float) -> None:
        """Work the ledgers' figures into what a permit looks at."""
        usable = {name: float(share.ledger.usable) for name, share in self.shares.items()}
        totals = {name: share.ledger.total for name, share in self.shares.items()}
        self.rights = Ceilings(**usable)
        kept = {name: share.ledger.reserve for name, share in self.shares.items()}
        self.usual_rights = Ceilings(**{name: amount - kept[name] for name, amount in usable.items()})
        self.usual_limits = Ceilings(**{name: total - kept[name] for name, total in totals.items()})
        for name, share in self.shares.items():
            if share.pace is not None:
                # who wants more than it has is not to save up for a burst
                share.pace.set_rate(
                    share.ledger.speed, now, steady=name == "requests" and share.ledger.hungry
                )
        for member in self.members.values():
            member.room = math.inf if member.share is None else member.share.ledger.usable

    def all_shares(self) -> Iterator[tuple[Share, int]]:
        """The ledgers with what this replica has of each in use."""
        window = self.window
        for name, share in self.shares.items():
            yield share, self.in_flight if name == CONCURRENT else getattr(window, name)
        for member in self.members.values():
            if member.share is not None:
                yield member.share, member.in_flight


class GossipPermit:
    """See `Permit`."""

    __slots__ = ("_cost", "_ended", "_key", "_member", "_since", "_slot")

    def __init__(self, key: KeyState, member: Member, cost: Cost, slot: Slot, now: float) -> None:
        self._key = key
        self._member = member
        self._cost = cost
        self._slot = slot
        self._since = now
        self._ended = False

    def settle(self, actual: Cost | None = None) -> None:
        """It was sent; the reserved tokens become the real ones."""
        key, cost = self._key, self._cost
        with key.lock:
            if self._ended:
                return
            if actual is not None:
                inputs = max(actual.input_tokens, 0) - cost.input_tokens
                key.correct(self._slot, 0, inputs, max(actual.output_tokens, 0) - cost.output_tokens)
            now = key.clock.monotonic()
            key.mean_hold += _HOLD_WEIGHT * (now - self._since - key.mean_hold)
            self._end(now)

    def refund(self) -> None:
        """Nothing was sent; all is given back."""
        key, cost = self._key, self._cost
        with key.lock:
            if not self._ended:
                key.correct(self._slot, -cost.requests, -cost.input_tokens, -cost.output_tokens)
                self._end(key.clock.monotonic())

    def _end(self, now: float) -> None:
        self._ended = True
        self._key.in_flight -= 1
        self._member.in_flight -= 1
        if self._key.line.waiting:
            self._key.line.hand_out(now)

    def __repr__(self) -> str:
        return f"Permit({self._member.name}, {self._cost}, {'ended' if self._ended else 'held'})"


def _amount(cost: Cost, index: int) -> int:
    if index == 0:
        return cost.requests
    if index == 1:
        return cost.input_tokens + cost.output_tokens
    return cost.input_tokens if index == 2 else cost.output_tokens
