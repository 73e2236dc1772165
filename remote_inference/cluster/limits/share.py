"""`Share`: this replica's part in one dimension of a limit; `Subject`: all dimensions that one ledger keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..local.token_bucket import TokenBucket
from .demand import Demand, PeerDemand
from .ledger import TICKS, Ledger
from .plan import Plan, Situation, plan
from .rights import Rights

__all__ = ["CONCURRENT", "Share", "Sight", "Subject"]

CONCURRENT = "concurrent"

EXTERNAL_MEMORY = 10.0
"""Seconds for which the provider's word on what is left holds, if it does not say it again."""

_EVERYTHING = Plan(share=math.inf, speed=math.inf, usable=0, reserve=0)


class Sight:
    """What was in a ledger when this replica saw it last."""

    __slots__ = (
        "_due",
        "_free",
        "_left",
        "_passed",
        "_tick",
        "created",
        "held",
        "holders",
        "limits",
        "version",
        "written_at",
    )

    def __init__(self, ledger: Ledger, written_at: float) -> None:
        self.version = ledger.version
        self.created = ledger.created
        self.written_at = written_at
        """When this replica wrote it last; monotonic."""
        self.limits: Mapping[str, int] = {name: book.limit for name, book in ledger.books.items()}
        self.held: Mapping[str, int] = {name: ledger.held(name) for name in ledger.books}
        self.holders = frozenset(ledger.entries)
        self._free = {name: ledger.free(name) for name in ledger.books}
        self._due = {name: dict(book.due) for name, book in ledger.books.items()}
        self._tick = -1
        self._passed: dict[str, int] = {}
        self._left: dict[str, int] = {}

    def free(self, dimension: str, time: float) -> int:
        """What is left over at that cluster time, if nobody has taken any since."""
        self._look(math.floor(time * TICKS))
        return self._free.get(dimension, 0) + self._passed.get(dimension, 0)

    def due(self, dimension: str, time: float) -> int:
        """What is yet to come free."""
        self._look(math.floor(time * TICKS))
        return self._left.get(dimension, 0)

    def _look(self, tick: int) -> None:
        if tick == self._tick:
            return
        self._tick = tick
        for name, due in self._due.items():
            self._passed[name] = sum(amount for at, amount in due.items() if at <= tick)
            self._left[name] = sum(due.values()) - self._passed[name]


class Share:
    """One dimension. Not thread-safe; times are monotonic.

    Args:
        dimension: its name.
        span: seconds of the window; 0.0 for concurrency.
        bucket: how quickly it may be used; None: as quickly as there is room.
        now: when it began to be counted.
    """

    __slots__ = (
        "_external",
        "_external_until",
        "bucket",
        "demand",
        "dimension",
        "limit",
        "peers",
        "plan",
        "rights",
        "since",
        "span",
        "total",
    )

    def __init__(self, dimension: str, span: float, bucket: TokenBucket | None, now: float) -> None:
        self.dimension = dimension
        self.span = span
        self.bucket = bucket
        self.since = now
        self.limit = math.inf
        """What this replica's configuration allows."""
        self.total = math.inf
        """What the cluster's allows: the least of all."""
        self.rights = Rights()
        self.demand = Demand(span, now)
        self.peers: dict[str, PeerDemand] = {}
        """What the others say, also of those that are no more."""
        self.plan = _EVERYTHING
        self._external = 0.0
        self._external_until = -math.inf

    @property
    def limited(self) -> bool:
        """Whether there is a limit as yet: one that is to be learned is counted all the same."""
        return self.total < math.inf

    def external_use(self, now: float) -> float:
        """What somebody else uses of the key, by the provider's word."""
        return self._external if now < self._external_until else 0.0

    def hear_left(self, left: float, used: float, slack: float, now: float) -> None:
        """The provider says how much is left, when the cluster has used so much.

        Where that is less than there should be, somebody else uses the key, or the provider's limit is lower than the
        configured one: the rest is theirs, for as long as the provider says so.
        """
        if not self.limited:
            return
        amount, known = max(0.0, self.total - used - left - slack), self.external_use(now)
        self._external = amount if amount > known else known + 0.2 * (amount - known)
        self._external_until = now + EXTERNAL_MEMORY

    def agree(self, live: list[str]) -> list[PeerDemand]:
        """Of all limits that are told the least holds; returns what the live others want."""
        peers = [self.peers[name] for name in live if name in self.peers]
        self.total = min([self.limit, *(peer.limit for peer in peers)])
        return peers

    def decide(
        self,
        now: float,
        *,
        weight: float,
        peers: list[PeerDemand],
        used: int,
        used_by_others: int,
        expiring: int,
        typical: float,
        horizon: float,
        held_by_all: float,
        due: float,
        left_over: float,
    ) -> Plan:
        """Make the plan of this round; see `Situation`."""
        external = max([self.external_use(now), *(peer.external for peer in peers)])
        self.plan = plan(
            Situation(
                span=self.span,
                horizon=horizon,
                available=max(0.0, self.total - external),
                holdable=max(0.0, self.total - external - due),
                held=self.rights.held,
                held_by_all=held_by_all,
                left_over=left_over,
                used=used,
                used_by_others=used_by_others,
                expiring=expiring,
                rate=self.demand.rate,
                starved=self.demand.starved(now),
                claim=self.demand.claim(now),
                typical=typical,
                weight=weight,
                peers=peers,
            )
        )
        return self.plan

    def everything(self) -> None:
        """There is nobody to share with."""
        self.rights.adopt(0 if self.total == math.inf else int(self.total))
        usable = self.rights.held
        share = self.total / self.span if self.span else self.total
        reserve = self.plan.reserve
        self.plan = Plan(share=share, speed=share, usable=usable, reserve=reserve)

    def __repr__(self) -> str:
        return f"Share({self.dimension}, {self.rights!r} of {self.total:g})"


class Subject:
    """What one ledger is about: the limits of a key, or the bound of one of its deployments.

    Attributes:
        digest: what it is called among replicas.
        shares: by dimension.
        sight: the ledger as it was seen last.
        asked: whether the ledger was asked for and has not come yet.
        missing_since: since when there was none where one was looked for; monotonic.
    """

    __slots__ = (
        "asked",
        "changing",
        "cleared",
        "digest",
        "given_up",
        "known_created",
        "known_version",
        "left",
        "looked_at",
        "lost",
        "missing_since",
        "refused_format",
        "shares",
        "sight",
        "told",
    )

    def __init__(self, digest: str, shares: dict[str, Share]) -> None:
        self.digest = digest
        self.shares = shares
        self.sight: Sight | None = None
        self.asked = False
        self.looked_at = -math.inf
        self.missing_since = math.inf
        self.lost = False
        """Whether the ledger that is read was begun by this replica, and others have spent what nobody has told."""
        self.changing: Change | None = None
        self.cleared: set[str] = set()
        """The dead of which nothing stands in the ledger any more."""
        self.known_created = 0.0
        """When the latest ledger was begun that any replica has seen; cluster time."""
        self.known_version = 0
        """The latest that any replica has seen."""
        self.told: tuple[int, dict[str, float]] = (0, {})
        """By another replica: version, and what was free."""
        self.left = False
        """Whether nothing stands in this replica's name in the ledger any more."""
        self.given_up = False
        """Whether the others have closed this replica's entry."""
        self.refused_format = 0

    def __repr__(self) -> str:
        return f"Subject({self.digest}, {list(self.shares.values())})"


class Change:
    """A change of a ledger that the broker has not confirmed yet."""

    __slots__ = ("handed", "leaves", "ledger")

    def __init__(self, ledger: Ledger, leaves: bool) -> None:
        self.ledger = ledger
        self.leaves = leaves
        self.handed: list[tuple[str, list[tuple[float, int]]]] = []
        """By dimension: what was handed over while it was still in the window."""
