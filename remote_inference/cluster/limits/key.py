"""`KeyState`: all that one replica knows of one limit key: the capacity that its wait queue waits for.

A permit looks at this replica's own figures only; what the others say and what the ledger has is worked into them in
between.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator

from ...clock import Clock
from ...reasons import LimitReason
from ..base import Cost, LimitKey
from ..local.pause import Pause
from ..local.token_bucket import TokenBucket
from ..local.wait_queue import QueuedDeployment, WaitQueue
from ..local.window import DIMENSIONS, Ceilings, SlidingWindow, Slot
from ..membership import Replica
from .learned import LearnedLimits
from .peer_spend import PeerSpend
from .share import CONCURRENT, Share, Subject

__all__ = ["GossipPermit", "KeyDeployment", "KeyState"]

_SHORTEST_RETRY, _LONGEST_RETRY = 0.1, 2.0  # seconds, where only the end of another request makes room
_FROM_LEDGER = 0.02  # seconds in which rights that are left over are had
_LONGEST_GUESS = 5.0  # seconds, where others have to give
_HOLD_WEIGHT = 0.1  # of the newest request in the mean time for which permits are held


class KeyDeployment(QueuedDeployment["GossipPermit"]):
    """A deployment on a key.

    Attributes:
        ceilings, burst, learns: what its configuration says of the key.
        in_flight: requests that run here.
        bound: of its ``max_concurrent``; None where it has none.
        capacity: how many may run here.
    """

    __slots__ = ("bound", "burst", "capacity", "ceilings", "in_flight", "learns")

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ceilings = Ceilings()
        self.burst = math.inf
        self.learns = False
        self.in_flight = 0
        self.bound: Subject | None = None
        self.capacity = math.inf

    @property
    def full(self) -> bool:
        return self.in_flight >= self.capacity

    @property
    def digest(self) -> str:
        """What its bound is called among replicas."""
        return hashlib.blake2b(self.name.encode(), digest_size=8, key=b"deployment").hexdigest()


class KeyState:
    """All that is known of one limit key: the capacity that its wait queue waits for."""

    def __init__(
        self, name: LimitKey, replica: Replica, lock: threading.Lock, clock: Clock, span: float, grain: float
    ) -> None:
        self.name = name
        self.replica = replica
        self.lock = lock
        self.clock = clock
        self.window = SlidingWindow(span, grain)
        self.pause = Pause()
        self.epoch = 0
        self.by_deployment: dict[str, KeyDeployment] = {}
        self.queue: WaitQueue[GossipPermit] = WaitQueue(self)
        self.limits = Ceilings()
        self.rights = Ceilings()
        self.usual_rights = Ceilings()
        self.usual_limits = Ceilings()
        """Less than `rights` and `limits` by what is kept back for urgent requests."""
        self.subject = Subject(name.digest, {})
        self.spend = PeerSpend()
        self.buckets: list[tuple[int, TokenBucket]] = []
        self.in_flight = 0
        self.mean_hold = 1.0
        self.mean_tokens = 0.0
        self.untold: dict[int, list[int]] = {}
        """What was spent since the others were told last, by second and dimension."""
        self.spent = [0, 0, 0, 0]
        """All that was spent since the beginning, by dimension."""
        self.next_round = self.next_look = -math.inf
        self.learned: LearnedLimits | None = None

    @property
    def shares(self) -> dict[str, Share]:
        """By dimension."""
        return self.subject.shares

    # -- the wait queue's capacity

    @property
    def full(self) -> bool:
        return self.in_flight >= self.rights.concurrent

    def deployments(self) -> Iterator[KeyDeployment]:
        return iter(self.by_deployment.values())

    def take(
        self, deployment: QueuedDeployment[GossipPermit], cost: Cost, now: float, urgent: bool
    ) -> GossipPermit | None:
        ours: KeyDeployment = deployment  # type: ignore[assignment]  # there are no others
        if self.in_flight >= self.rights.concurrent or ours.in_flight >= ours.capacity:
            return None
        pause = self.pause
        if now < pause.quiet_until and pause.opens_at(now)[0] > now:
            return None
        window = self.window
        if self.subject.shares or ours.bound is not None:
            if not self.replica.may_act(now):
                return None
            window.forget(now)
            if urgent:
                lacking = window.lacking(self.rights, self.limits, cost)
            else:
                lacking = window.lacking(self.usual_rights, self.usual_limits, cost)
            if lacking:
                return None
            buckets = self.buckets
            if buckets:
                amounts = (
                    cost.requests,
                    cost.input_tokens + cost.output_tokens,
                    cost.input_tokens,
                    cost.output_tokens,
                )
                for index, bucket in buckets:
                    if bucket.due(amounts[index], now, ahead=urgent) > now:
                        return None
                for index, bucket in buckets:
                    bucket.take(amounts[index])
        else:
            window.forget(now)
        slot = window.reserve(now, cost)
        self.tell(slot, cost.requests, cost.input_tokens, cost.output_tokens)
        self.mean_tokens += _HOLD_WEIGHT * (cost.input_tokens + cost.output_tokens - self.mean_tokens)
        self.in_flight += 1
        ours.in_flight += 1
        if now < pause.quiet_until:
            pause.admitted += 1
        return GossipPermit(self, ours, cost, slot, now)

    def due(
        self, deployment: QueuedDeployment[GossipPermit], cost: Cost, now: float, urgent: bool
    ) -> tuple[float, LimitReason | None]:
        ours: KeyDeployment = deployment  # type: ignore[assignment]
        at, code = self.pause.opens_at(now)
        if not self.subject.shares and ours.bound is None:
            return at, code
        ready = self.replica.acts_at(now)
        if ready > max(at, now):
            at, code = ready, LimitReason.JOINING
        window = self.window
        window.forget(now)
        rights = (self.rights, self.limits) if urgent else (self.usual_rights, self.usual_limits)
        opens, lacking = window.opens_at(*rights, cost, now)
        if lacking:
            opens = min(opens, self._had_at(lacking, cost, now))
            if opens > at:
                at, code = opens, lacking
        for index, bucket in self.buckets:
            due = bucket.due(_amount(cost, index), now, ahead=urgent)
            if due > at:
                at, code = due, LimitReason(DIMENSIONS[index])
        return at, code

    def _had_at(self, dimension: LimitReason, cost: Cost, now: float) -> float:
        """When what is lacking may be had: soon, if the ledger has it left over; else by this replica's share."""
        if self.replica.alone:
            return math.inf
        share, sight = self.shares[dimension], self.subject.sight
        wanted = _amount(cost, DIMENSIONS.index(dimension)) + share.plan.reserve
        missing = wanted - share.plan.usable + getattr(self.window, dimension)
        if sight is None or sight.free(dimension, self.replica.time.at(now)) >= missing:
            return now + _FROM_LEDGER
        guess = missing / share.plan.share if share.plan.share > 0 else _LONGEST_GUESS
        return now + min(max(guess, _SHORTEST_RETRY), _LONGEST_GUESS)

    def place_due(self, deployment: KeyDeployment, now: float) -> float:
        """When one more request may run: when a running one is likely to end, or the ledger has given a place."""
        running = deployment.in_flight if deployment.full else self.in_flight
        if not running:
            return (
                now + _FROM_LEDGER
                if self.replica.may_act(now)
                else max(self.replica.acts_at(now), now + _FROM_LEDGER)
            )
        return now + min(max(self.mean_hold / running, _SHORTEST_RETRY), _LONGEST_RETRY)

    # -- what is spent

    def tell(self, slot: Slot, requests: int, input_tokens: int, output_tokens: int) -> None:
        """Remember what is to be told of the slot's second."""
        untold = self.untold.get(int(slot.first))
        if untold is None:
            untold = self.untold[int(slot.first)] = [0, 0, 0, 0]
        spent = self.spent
        for index, amount in enumerate((requests, input_tokens + output_tokens, input_tokens, output_tokens)):
            untold[index] += amount
            spent[index] += amount

    def correct(self, slot: Slot, requests: int, input_tokens: int, output_tokens: int) -> None:
        """A reservation turned out to be another."""
        if slot.live:
            self.window.correct(slot, requests, input_tokens, output_tokens)
            self.tell(slot, requests, input_tokens, output_tokens)
        for index, bucket in self.buckets:
            bucket.give_back(-(requests, input_tokens + output_tokens, input_tokens, output_tokens)[index])

    def want(
        self, deployment: KeyDeployment, cost: Cost, code: LimitReason, now: float, until: float
    ) -> list[Subject]:
        """A request has to wait for that; of which subjects the ledger should be asked at once."""
        if code is LimitReason.CONCURRENCY:
            found = []
            for subject in (self.subject, deployment.bound):
                share = subject.shares.get(CONCURRENT) if subject is not None else None
                if subject is not None and share is not None and share.demand.want(1, now, until):
                    found.append(subject)
            return found
        share = self.shares.get(code)
        if share is None:
            return []
        amount = min(_amount(cost, DIMENSIONS.index(code)), share.total)
        return [self.subject] if share.demand.want(amount, now, until) else []

    # -- its limits

    def subjects(self) -> Iterator[Subject]:
        """The key's, and those of its deployments that have a bound of their own."""
        yield self.subject
        for deployment in self.by_deployment.values():
            if deployment.bound is not None:
                yield deployment.bound

    def used(self, subject: Subject, dimension: str) -> int:
        """What this replica has of it in use."""
        if dimension != CONCURRENT:
            used: int = getattr(self.window, dimension)
            return used
        if subject is self.subject:
            return self.in_flight
        return sum(d.in_flight for d in self.by_deployment.values() if d.bound is subject)

    def refresh(self, now: float) -> None:
        """Work the plans into what a permit looks at."""
        shares = {name: share for name, share in self.shares.items() if share.limited}
        usable = {name: float(share.plan.usable) for name, share in shares.items()}
        totals = {name: share.total for name, share in shares.items()}
        kept = {name: share.plan.reserve for name, share in shares.items()}
        self.rights, self.limits = Ceilings(**usable), Ceilings(**totals)
        self.usual_rights = Ceilings(**{name: amount - kept[name] for name, amount in usable.items()})
        self.usual_limits = Ceilings(**{name: total - kept[name] for name, total in totals.items()})
        for name, share in self.shares.items():
            if share.bucket is not None:
                # who wants more than it has is not to save up for a burst
                steady = name == "requests" and share.demand.starved(now)
                share.bucket.set_rate(share.plan.speed if share.limited else math.inf, now, steady=steady)
        for deployment in self.by_deployment.values():
            bound = deployment.bound
            deployment.capacity = math.inf if bound is None else bound.shares[CONCURRENT].plan.usable


class GossipPermit:
    """See `Permit`."""

    __slots__ = ("_cost", "_deployment", "_ended", "_key", "_since", "_slot")

    def __init__(self, key: KeyState, deployment: KeyDeployment, cost: Cost, slot: Slot, now: float) -> None:
        self._key = key
        self._deployment = deployment
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
        self._slot.running -= 1
        self._key.in_flight -= 1
        self._deployment.in_flight -= 1
        if self._key.queue.waiting:
            self._key.queue.hand_out(now)

    def __repr__(self) -> str:
        return f"Permit({self._deployment.name}, {self._cost}, {'ended' if self._ended else 'held'})"


def _amount(cost: Cost, index: int) -> int:
    if index == 0:
        return cost.requests
    if index == 1:
        return cost.input_tokens + cost.output_tokens
    return cost.input_tokens if index == 2 else cost.output_tokens
