"""`Ledger`: the rights to one dimension of a limit, of which the cluster's replicas hold parts.

A bounded counter (Balegas et al., "Extending Eventually Consistent Cloud Databases for Enforcing Numeric Invariants",
2015; the idea is escrow, O'Neil 1986): the rights of all live replicas together never exceed the limit, and a replica
spends, in any window, no more than the rights that it holds. So the limit holds whatever gossip is lost, late or cut
off; gossip only moves rights to where they are wanted, and only such as are free.

What a replica holds it tells in its `Record`, which only it writes. To give, it counts ``given[taker]`` up; the taker,
when it hears that, counts ``taken[giver]`` up: two G-counters. Records and counters may be heard late, in any order or
not at all; whoever adds up what all hold counts a right at most once too often then, never too rarely. What nobody
holds (at the first start, after a death) is taken by one of them, who has known the ledger longest, less what the
dead have spent within the window and may have spent unheard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .record import LARGEST, Record, to_wire
from .sharing import deal, water_fill

__all__ = ["Ledger", "Peer"]

HEADROOM = 1.25
"""A replica that gets all it wants is taken to want so much more than it uses."""
CATCH_UP = 1.25
"""How much faster than its share a replica may go, to use what lay idle: the rights bound it anyway."""
AHEAD = 4.0
"""Where nobody goes short, who needs something asks for so many times as much, and then not for a while."""
SHORT = 0.95
"""Who holds less of its part than this goes short."""
RESERVE = 0.25
"""Seconds' worth of an equal part that an idle replica keeps, so that a first request need not ask for it."""
AMPLE = 100
"""With room for so many requests a replica, each keeps back what one takes, for the next urgent one."""
STRICTNESS = 1.02
"""The merged count, which lags, may pass the limit by so much before it holds up by itself."""
HUNGRY = 1.0
"""Seconds for which an unmet wish is remembered."""
SATED = 0.5
"""Seconds for which a replica may leave unused what it wanted: the worker looks a moment later whether it can send."""
CROWDED = 2.0
"""Seconds after which rights that are too many are given up; until then they only count less. What is heard of a gift
before its giver's word looks like too many for a moment."""
URGENT_MEMORY = 0.3
"""Seconds for which the unmet wish of an urgent request is remembered: it is met in a few milliseconds, if at all."""
PATIENCE = 2.0
"""Seconds after which a request that waits is served before younger ones elsewhere."""
OUTSIDE = 10.0
"""Seconds for which the provider's word on what is left holds, if it does not say it again."""
SETTLED = ""
"""Stands, where replicas are counted by, for all those that are long gone."""
_RATE_MEMORY = 1.0
_NOTHING: Mapping[str, int] = {}


@dataclass
class Peer:
    """Another replica as a ledger sees it in one round."""

    name: str
    record: Record
    weight: float
    joining: bool


class Ledger:
    """One replica's part. Not thread-safe; times are monotonic.

    Args:
        name: of the dimension and what it limits.
        span: seconds of the window; 0.0 for concurrency.
        now: the time.
        horizon: seconds for which a replica keeps rights in hand: two rounds of gossip.
    """

    def __init__(self, name: str, *, span: float, now: float, horizon: float = 1.0) -> None:
        self.name = name
        self.span = span
        self.horizon = horizon
        self.limit = math.inf
        """What this replica's configuration allows."""
        self.total = math.inf
        """What the cluster's allows: the least of all."""
        self.usable: float = 0
        """Rights that may be used: those held, or fewer while all together are too many."""
        self.share = math.inf
        """Units a second (in flight, for concurrency) that are this replica's part, were it to want them."""
        self.speed = math.inf
        """Units a second that it may spend: its share, and a bit more to use what lay idle."""
        self.records: dict[str, Record] = {}
        """What the others say of theirs."""
        self.gifts: dict[str, Mapping[str, int]] = {}
        """What each of the others has given to whom, in all."""
        self.receipts: dict[str, Mapping[str, int]] = {}
        """What each of the others has taken from whom, in all."""
        self.given: dict[str, int] = {}
        """What this replica has given to whom."""
        self.taken: dict[str, int] = {}
        """What this replica has taken from whom."""
        self.merged = 0
        """What the others have spent within the window."""
        self.rate = 0.0
        self.need = 0.0
        self.spare = 0.0
        self.wanted = False
        """Whether anybody wanted more than he has, as of the last round."""
        self._leads_since = math.inf
        self.outside = 0.0
        self._outside_until = now
        self._plus = self._minus = self._given = self._taken = 0
        self._spent = self._served = 0
        self._looked = now
        self.hungry = False
        """Whether it wants more than it has, as of the last round."""
        self._hungry_until = self._urgent_until = -math.inf
        self._claim = 0.0
        self._claimed_at = self._claim_until = -math.inf
        self._owed = 0
        self._part = 1.0
        self._sated_since = math.inf
        self._crowded_at = math.inf
        self.reserve = 0
        """Rights that are kept back for urgent requests."""
        self.free = 0.0

    @property
    def held(self) -> int:
        """The rights that this replica holds."""
        return self._plus - self._minus - self._given + self._taken

    @property
    def unknown(self) -> bool:
        """Whether nobody, as far as is known, has ever held any of it."""
        return not self._plus and not any(record.touched for record in self.records.values())

    # -- what happens between two rounds

    def want(self, amount: float, now: float, until: float, *, urgent: bool = False) -> bool:
        """A request of that cost had to wait, until then as it seems. Whether the others should hear of it at once."""
        news = now >= self._hungry_until or (self._claim < amount and now >= self._claim_until)
        news = news and any(record.spare >= 1 for record in self.records.values())
        if urgent:
            news |= now >= self._urgent_until and any(record.held for record in self.records.values())
            self._urgent_until = now + URGENT_MEMORY
        self._hungry_until = max(self._hungry_until, min(until, now + 5.0) + HUNGRY)
        if now >= self._claim_until:
            self._claimed_at, self._claim = now, 0.0
        if amount >= self._claim:
            self._claim = amount
        self._claim_until = max(self._claim_until, min(until, now + 5.0) + HUNGRY)
        return news

    def claim(self, now: float) -> float:
        """What the largest request that waits wants, or any would."""
        return max(1.0, self._claim) if now < self._claim_until else 1.0

    def accept(self, giver: str, me: str) -> int:
        """Take what that replica has given to us; how much that is."""
        gift = self.gifts.get(giver, _NOTHING).get(me, 0) - self.taken.get(giver, 0)
        if gift <= 0 or self._taken + gift > LARGEST // 2:
            return 0
        self._taken += gift
        self.taken[giver] = self.taken.get(giver, 0) + gift
        if self.total < math.inf:
            self._minus += max(0, gift - int(self.total))  # there cannot be more: the limit has fallen since
            self.usable = self._bounded() - self._owed
        return gift

    def hear_left(self, left: float, used: float, slack: float, now: float) -> None:
        """The provider says how much is left, when the cluster has used so much.

        Where that is less than there should be, somebody else uses the key, or the provider's limit is lower than the
        configured one: the rest is theirs, for as long as the provider says so.
        """
        if self.total == math.inf:
            return
        amount = max(0.0, self.total - used - left - slack)
        self.outside = amount if amount > self.outside else self.outside + 0.2 * (amount - self.outside)
        self._outside_until = now + OUTSIDE

    def give_up(self) -> None:
        """Own nothing any more: the lease is over."""
        self._plus = self._minus = self._given = self._taken = 0
        self.given, self.taken = {}, {}
        self._leads_since = math.inf
        self.usable = 0
        self.need = self.spare = self.free = 0.0

    # -- a round

    def round(
        self,
        now: float,
        me: str,
        weight: float,
        peers: Sequence[Peer],
        *,
        used: int,
        spent: int,
        expiring: int,
        served: int = 0,
        leads: bool,
        typical: float = 1.0,
        ready: bool,
        sends: bool = False,
        deals: bool = True,
        settle: float = 0.0,
        dead: float = 0.0,
    ) -> int:
        """Look at what all have said: take what nobody holds, give, and find out what is needed.

        Args:
            now: the time.
            me, weight: this replica.
            peers: the other live ones that know this ledger.
            used: what this replica's window holds, or what it has in flight.
            spent: what this replica has spent since its beginning.
            expiring: what of the window goes within the ``horizon``.
            served: how many requests this replica has let through since its beginning.
            leads: whether this replica is the one to take what nobody holds.
            typical: what one request takes.
            ready: whether a request that waits could be sent before the next round, had it the rights.
            sends: whether it could be sent at once.
            deals: whether this replica gives rights, and asks for them.
            settle: seconds for which it must have been so: time for another one to hear that it is not it any more.
            dead: what those that are no more have spent within the window.

        Returns:
            Rights that were taken because nobody held them.
        """
        self._measure(now, used, spent)
        if served > self._served:  # the first in line was, or one before it: nobody else is
            self._served, self._claimed_at = served, now
        self._leads_since = min(self._leads_since, now) if leads else math.inf
        if now >= self._outside_until:
            self.outside = 0.0
        self.total = min([self.limit, *(peer.record.limit for peer in peers)])
        if self.total == math.inf:
            self.usable = math.inf
            return 0
        total = int(self.total)
        held = self.held + sum(peer.record.held for peer in peers)
        taken, unknown = 0, self.unknown
        if held <= total:
            self._crowded_at = math.inf
            if leads and now - self._leads_since >= settle:
                taken = max(0, math.floor(total - held - dead - self._on_the_way(me, peers)))
                self._plus += taken
                held += taken
        elif self._crowded_at == math.inf:
            self._crowded_at = now
        elif now - self._crowded_at > CROWDED:
            self._minus += min(self.held, math.ceil(self.held * (held - total) / held))
            self._crowded_at = now
        outside = max([self.outside, *(peer.record.outside for peer in peers)])
        available = max(0.0, total - outside)
        self._part = min(1.0, available / held) if held > available else 1.0
        if taken and unknown:  # what has been spent of it is to be found out first
            deals = False
        self._share_out(now, me, weight, peers, available, used, expiring, typical, ready, sends, deals)
        return taken

    def most_held(self, name: str, me: str) -> int:
        """The rights that another one may have held since it was heard: with what was on the way to it."""
        held: int = self.records[name].held
        return held + self._coming(name, me)

    def _coming(self, taker: str, me: str) -> int:
        """What was given to it, and is not among what it has taken as yet."""
        taken = self.taken if taker == me else self.receipts.get(taker, _NOTHING)
        all_gifts: list[tuple[str, Mapping[str, int]]] = [(me, self.given), *self.gifts.items()]
        return sum(max(0, gifts[taker] - taken.get(giver, 0)) for giver, gifts in all_gifts if taker in gifts)

    def _measure(self, now: float, used: int, spent: int) -> None:
        passed = now - self._looked
        if passed > 0:
            seen = max(0.0, (spent - self._spent) / passed) if self.span else float(used)
            self.rate += min(1.0, passed / _RATE_MEMORY) * (seen - self.rate)
            self._spent, self._looked = spent, now

    def _on_the_way(self, me: str, peers: Sequence[Peer]) -> int:
        """What was given to one that lives, and is not among what it holds yet."""
        records = {peer.name: peer.record for peer in peers}
        total = sum(self._coming(taker, me) for taker in (me, *records))
        for name, record in records.items():  # a record and its counters need not be heard together
            total += max(0, record.given - self._sum(self.gifts, name, me))
            total += max(0, self._sum(self.receipts, name, me) - record.taken)
        return total

    def _sum(self, heard: Mapping[str, Mapping[str, int]], name: str, me: str) -> int:
        """What its counter says, without those that are long gone here: its word may be older than that."""
        counts = heard.get(name, _NOTHING)
        return sum(n for who, n in counts.items() if who in self.records or who in (me, SETTLED))

    def _share_out(
        self,
        now: float,
        me: str,
        weight: float,
        peers: Sequence[Peer],
        available: float,
        used: int,
        expiring: int,
        typical: float,
        ready: bool,
        sends: bool,
        deals: bool,
    ) -> None:
        self.usable = self._bounded()
        free = max(0.0, self.usable - used)
        if not sends or free - self._owed < self.reserve + self.claim(now):
            self._sated_since = math.inf
        elif now - max(self._sated_since, self._claimed_at) >= SATED:
            self._hungry_until = self._claim_until = -math.inf  # it has what it wanted, and does not use it
        else:
            self._sated_since = min(self._sated_since, now)
        hungry = self.hungry = now < self._hungry_until
        flow = available / self.span if self.span else available
        wants = [(math.inf if p.record.hungry else p.record.rate * HEADROOM, p.weight) for p in peers]
        self.share, *theirs = water_fill(flow, [(math.inf, weight), *wants])
        self.speed = self.share * (1.0 if self._ahead(peers, theirs) else CATCH_UP)
        mine = self.share if hungry else min(self.share, self.rate * HEADROOM)
        claim = self._claim if ready and now < self._claim_until else 0.0
        # who does not need any keeps nothing back while others go short
        idle = not hungry and not used and any(peer.record.hungry for peer in peers)
        replicas = len(peers) + 1
        if self.span:
            self.reserve = 0 if idle or available < AMPLE * replicas * typical else math.ceil(typical)
            part = weight / (weight + sum(peer.weight for peer in peers))
            at_hand = 0.0 if idle else flow * RESERVE * part
            keep = self.reserve + max(mine * self.horizon - expiring, at_hand, claim)
        else:
            keep = max(claim, 0.0 if idle or available < 2 * replicas else 1.0)
        self.wanted = hungry or any(peer.record.hungry for peer in peers)
        self.need = 0.0
        if peers and deals and free < keep:
            ahead = self.span and not self.wanted  # what nobody wants it may ask for before it needs it
            self.need = (AHEAD * keep if ahead else keep) - free
        self.spare = max(0.0, free - keep) if deals else 0.0
        self._owed = 0
        if peers and deals and free + self.held > 0:
            free -= self._give(now, me, peers, free)
        self.free = max(0.0, free - self._owed)
        self.usable = self._bounded() - self._owed

    def _ahead(self, peers: Sequence[Peer], theirs: Sequence[float]) -> bool:
        """Whether it holds more than its part while others hold less than theirs and need more than it can spare.

        It does not hurry then, so that more is left over for them.
        """
        span = self.span or 1.0
        if self.held <= self.share * span:
            return False
        short: float = sum(
            peer.record.need
            for peer, part in zip(peers, theirs, strict=True)
            if peer.record.hungry and peer.record.held < SHORT * part * span
        )
        return short > self.spare

    def _bounded(self) -> int:
        """The rights that may be used: all that are held, if those of all are not too many by what is known."""
        usable = self.held if self._part == 1.0 else int(self.held * self._part)
        usable = min(usable, int(self.total))
        if self.span:
            usable = min(usable, int(self.total * STRICTNESS - self.merged))
        return max(0, usable)

    def _give(self, now: float, me: str, peers: Sequence[Peer], free: float) -> int:
        """Give what can be spared to those that need it; how much that was."""
        needy = [peer for peer in peers if peer.record.need > 0 and not peer.joining]
        if not needy:
            return 0
        given = 0
        if now >= self._urgent_until:  # what is kept back for urgent requests is for those elsewhere, too
            for peer in needy:
                if peer.record.urgent and given < int(free):
                    lacking = self._lacking(peer, me)
                    if peer.record.free < lacking:
                        given += self.hand(peer.name, min(int(free) - given, lacking))
        if given:
            return given
        if self.spare >= 1:
            givers = sorted([(me, int(self.spare)), *((peer.name, int(peer.record.spare)) for peer in peers)])
            needy.sort(key=lambda peer: peer.name)
            gifts = deal(
                [spare for _, spare in givers],
                [name for name, _ in givers].index(me),
                [self._lacking(peer, me) for peer in needy],
            )
            for peer, amount in zip(needy, gifts, strict=True):
                given += self.hand(peer.name, amount)
        else:
            # Nobody can spare anything: then by age. Who has waited for longer than its part would need is served
            # first, by all, as soon as they have something: else a large request could never gather its rights.
            oldest = max(needy, key=lambda peer: peer.record.waiting)
            if oldest.record.waiting > max(self.waiting(now), self._patience(oldest)):
                owed = math.ceil(self._lacking(oldest, me) / len(peers))
                given = self.hand(oldest.name, min(int(free), owed))
                self._owed = min(owed - given, self.held)
        if given:
            self.spare = max(0.0, self.spare - given)
        return given

    def _lacking(self, peer: Peer, me: str) -> int:
        """What it needs, less what is on its way to it.

        Else it is given that again until it has said that it got it; and one that died in need all that is to spare.
        """
        needed: int = math.ceil(peer.record.need)
        return max(0, needed - self._coming(peer.name, me))

    def _patience(self, peer: Peer) -> float:
        if not self.span or self.share <= 0:
            return PATIENCE
        return max(PATIENCE, float(1.5 * peer.record.need / self.share))

    def hand(self, taker: str, amount: int) -> int:
        """Give that; how much it was."""
        if amount > 0:
            self._given += amount
            self.given[taker] = self.given.get(taker, 0) + amount
        return amount

    def waiting(self, now: float) -> float:
        """For how long the request that waits has waited."""
        return now - self._claimed_at if now < self._claim_until else 0.0

    def record(self, now: float) -> list[Any]:
        """What to tell the others, see `Record`."""
        return to_wire(
            plus=self._plus,
            minus=self._minus,
            given=self._given,
            taken=self._taken,
            limit=self.limit,
            rate=self.rate,
            hungry=now < self._hungry_until,
            urgent=now < self._urgent_until,
            free=self.free,
            need=self.need,
            spare=self.spare,
            pace=min(self.share, 1e12) * CATCH_UP,
            waiting=self.waiting(now),
            outside=self.outside,
        )

    def forget(self, replica: str) -> None:
        """It is long gone: what was exchanged with it is settled."""
        for heard in (self.records, self.gifts, self.receipts):
            heard.pop(replica, None)
        for counts in (self.given, self.taken):
            if replica in counts:
                counts[SETTLED] = counts.get(SETTLED, 0) + counts.pop(replica)

    def __repr__(self) -> str:
        return f"Ledger({self.name}, {self.held} of {self.total:g}, need={self.need:g}, spare={self.spare:g})"
