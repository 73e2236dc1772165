"""`plan`: what a replica makes of one dimension of a limit in one round. A pure function.

It holds what it needs for the next moments, and leaves the rest to the ledger. Where all together want more than there
is, each has its fair part (`allocation.water_fill`): it takes no more than that while others have less than theirs, and
hands over what it holds above it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .allocation import water_fill
from .demand import PeerDemand

__all__ = ["Plan", "Situation", "plan"]

HEADROOM = 1.25
"""A replica that gets all it wants is taken to want so many times what it uses."""
CATCH_UP = 1.25
"""How much faster than its share a replica may go, to use what lay idle: the rights bound it anyway."""
SHORT = 0.95
"""A replica that holds less of its part than this goes short."""
AT_HAND = 0.25
"""Seconds' worth of an equal part that an idle replica keeps, so that a first request finds it."""
AMPLE = 100
"""With room for so many requests a replica, each keeps back what one takes, for the next urgent one."""
STRICTNESS = 1.02
"""What all tell that they have spent, which lags, may pass the limit by so much before it holds up by itself."""
WORTH_IT = 0.02
"""The part of what a replica holds below which it does not hand over what is above its own."""
TOO_MUCH = 2.0
"""A replica gives rights back when it has so many times what it keeps: else it would take and give all the time."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What `plan` looks at.

    Attributes:
        span: seconds of the window; 0.0 for concurrency.
        horizon: seconds for which a replica keeps rights at hand.
        available: the limit, less what somebody else uses of the key.
        holdable: that, less what is yet to come free: what all may hold together.
        held: the rights that this replica holds.
        held_by_all: those that all hold, by the ledger.
        left_over: those that are free, by the ledger.
        used: what this replica's window holds, or what it has in flight.
        used_by_others: what the others have told that they spent within the window.
        expiring: what of the window leaves it within the horizon.
        rate: what it spends in a second; of concurrency, the most in flight lately.
        starved: whether it wants more than it has.
        claim: what the largest request that waits wants.
        typical: what one request takes.
        weight: how many requests it can run at once.
        peers: what the other live replicas want.
    """

    span: float
    horizon: float
    available: float
    holdable: float
    held: int
    held_by_all: float
    left_over: float
    used: int
    used_by_others: int
    expiring: int
    rate: float
    starved: bool
    claim: float
    typical: float
    weight: float
    peers: Sequence[PeerDemand]


@dataclass(frozen=True)
class Plan:
    """What comes of it.

    Attributes:
        share: units a second (in flight, for concurrency) that are this replica's part, were it to want them.
        speed: units a second that it may spend: its share, and a bit more to use what lay idle.
        usable: rights that may be in the window.
        reserve: those of them that are kept back for urgent requests.
        take: rights to take, if so many are free.
        give: rights to give that are not in use.
        hand_over: rights to give that are in use: others go short, and this replica holds more than its part.
        available: see `Situation`.
    """

    share: float
    speed: float
    usable: int
    reserve: int
    take: int = 0
    give: int = 0
    hand_over: int = 0
    available: float = math.inf


def plan(it: Situation) -> Plan:
    """Decide. See the module."""
    flow = it.available / it.span if it.span else it.available
    wants = [(math.inf if peer.starved else peer.rate * HEADROOM, peer.weight) for peer in it.peers]
    share, *theirs = water_fill(flow, [(math.inf, it.weight), *wants])
    stock = it.span or 1.0  # rights that a share of one unit needs
    part = share * stock
    contested = any(peer.starved for peer in it.peers)
    lacking = _lacking(it.peers, [other * stock for other in theirs])
    usable = _usable(it)
    free = max(0, usable - it.used)
    keep, reserve = _keep(it, share, flow, contested)
    take = _take(it, keep - free, part, lacking, contested)
    give = hand_over = 0
    if not take:
        most = keep if contested else max(TOO_MUCH * keep, keep + it.typical)
        give = math.floor(free - keep) if free > most else 0
        if lacking >= 1.0:
            needed = part if it.starved else min(part, it.rate * HEADROOM * stock + keep)
            hand_over = _hand_over(it.held - give, needed, lacking)
    ahead = lacking > 0 and it.held > part
    return Plan(
        share=share,
        speed=share * (1.0 if ahead else CATCH_UP),
        usable=usable,
        reserve=reserve,
        take=take,
        give=give,
        hand_over=hand_over,
        available=it.available,
    )


def _lacking(peers: Sequence[PeerDemand], parts: Sequence[float]) -> float:
    """The rights that others lack of their parts, of those who want all of theirs."""
    lacking: float = sum(
        _whole(part) - peer.held
        for peer, part in zip(peers, parts, strict=True)
        if peer.starved and peer.held < SHORT * _whole(part)
    )
    return lacking


def _usable(it: Situation) -> int:
    usable = it.held
    if it.held_by_all > it.holdable:  # the limit has fallen: each uses the same part of what it holds
        usable = math.floor(it.held * it.holdable / it.held_by_all)
    if it.span:  # requests may turn out to cost more than anybody had reserved
        usable = min(usable, math.floor(it.available * STRICTNESS) - it.used_by_others)
    return max(0, usable)


def _take(it: Situation, missing: float, part: float, lacking: float, contested: bool) -> int:
    take = math.ceil(missing)
    if (contested or lacking) and part >= 1.0 + it.claim:
        # no more than its part, and as much as it needs of what nobody lacks
        take = min(take, max(math.floor(part) - it.held, math.floor(it.left_over - lacking)))
    if it.span == 0.0:  # nobody holds more places than it has slots
        take = min(take, math.ceil(it.weight) - it.held)
    return max(0, take)


def _hand_over(held: int, needed: float, lacking: float) -> int:
    above = held - math.ceil(_whole(needed))
    return min(above, math.ceil(lacking)) if above > WORTH_IT * held else 0


def _whole(part: float) -> float:
    """The rights that a part is worth: whole ones, and one at least."""
    return max(1.0, math.floor(part))


def _keep(it: Situation, share: float, flow: float, contested: bool) -> tuple[float, int]:
    """How many unused rights this replica keeps, and how many of those for urgent requests."""
    idle = contested and not it.starved and not it.used  # what others go short of is not kept for nothing
    everyone = it.weight + sum(peer.weight for peer in it.peers)
    if it.span == 0.0:
        if it.available >= everyone:  # there is enough for all slots: no request need wait for the ledger
            return max(0.0, it.weight - it.used), 0
        if it.starved and not contested:
            return max(0.0, it.weight - it.used), 0
        return max(it.claim, 0.0, 0.0 if idle else min(it.rate + 1.0, it.weight) - it.used), 0
    replicas = len(it.peers) + 1
    reserve = 0 if idle or it.available < AMPLE * replicas * it.typical else math.ceil(it.typical)
    speed = share if it.starved else min(share, it.rate * HEADROOM)
    at_hand = 0.0 if idle else flow * AT_HAND * it.weight / everyone
    return reserve + max(speed * it.horizon - it.expiring, at_hand, it.claim), reserve
