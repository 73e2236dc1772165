"""`Demand`: what this replica wants of one dimension of a limit; `PeerDemand`: what another one says that it wants."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["Demand", "PeerDemand"]

UNMET_MEMORY = 1.0
"""Seconds for which an unmet wish is remembered."""
SATED = 0.5
"""Seconds for which a replica may leave unused what it wanted: the worker looks a moment later whether it can send."""
SUSTAINED = 1.2
"""Seconds for which a replica has to want more than it has before the others make way for it: a moment's want is met by
what is left over, and nobody knows how much more is wanted."""
LONGEST_WISH = 5.0
"""Seconds for which a wish is believed at most, if it is not uttered again."""
RATE_MEMORY = 1.0
"""Seconds over which the rate is averaged."""
PEAK_MEMORY = 5.0
"""Seconds after which a peak of requests in flight is forgotten by two thirds."""

_MOST = 1e15
_NUMBERS = frozenset({int, float})


class Demand:
    """One replica's, in one dimension. Not thread-safe; times are monotonic.

    Args:
        span: seconds of the window; 0.0 for concurrency.
        now: the time.
    """

    __slots__ = (
        "_claim",
        "_claim_until",
        "_measured_at",
        "_sated_since",
        "_spent",
        "_starved_since",
        "_unmet_until",
        "rate",
        "span",
    )

    def __init__(self, span: float, now: float) -> None:
        self.span = span
        self.rate = 0.0
        """Units that it spends in a second; of concurrency, how many were in flight at most lately."""
        self._spent = 0
        self._measured_at = now
        self._unmet_until = self._claim_until = -math.inf
        self._starved_since = math.inf
        self._claim = 0.0
        self._sated_since = math.inf

    def want(self, amount: float, now: float, until: float) -> bool:
        """A request of that cost has to wait, until then as it seems; whether that is news."""
        news = now >= self._unmet_until or (self._claim < amount and now >= self._claim_until)
        if now >= self._unmet_until:
            self._starved_since = now
        end = min(until, now + LONGEST_WISH) + UNMET_MEMORY
        self._unmet_until = max(self._unmet_until, end)
        if now >= self._claim_until:
            self._claim = 0.0
        self._claim = max(self._claim, amount)
        self._claim_until = max(self._claim_until, end)
        self._sated_since = math.inf
        return news

    def starved(self, now: float) -> bool:
        """Whether it wants more than it has."""
        return now < self._unmet_until

    def lasting(self, now: float) -> bool:
        """Whether it has wanted more for some time: then as much as it can get."""
        return self.starved(now) and now >= self._starved_since + SUSTAINED

    def claim(self, now: float) -> float:
        """What the largest request that waits wants; 0.0 where none waits."""
        return self._claim if now < self._claim_until else 0.0

    def measure(self, used: int, spent: int, now: float) -> None:
        """Find out the rate.

        Args:
            used: what the window holds, or is in flight.
            spent: what was spent since the beginning.
            now: the time.
        """
        passed = now - self._measured_at
        if self.span == 0.0:
            self.rate = max(float(used), self.rate * math.exp(-max(passed, 0.0) / PEAK_MEMORY))
        elif passed > 0:
            seen = max(0.0, (spent - self._spent) / passed)
            self.rate += min(1.0, passed / RATE_MEMORY) * (seen - self.rate)
        if passed > 0:
            self._spent, self._measured_at = spent, now

    def see_free(self, free: float, can_send: bool, now: float) -> None:
        """So many rights are unused. Whoever has what it wanted, could use it and does not, wants it no more."""
        if not can_send or free < max(self.claim(now), 1.0):
            self._sated_since = math.inf
        elif now - self._sated_since >= SATED:
            self._unmet_until = self._claim_until = -math.inf
        else:
            self._sated_since = min(self._sated_since, now)

    def __repr__(self) -> str:
        return f"Demand({self.rate:.1f}, claim={self._claim:g})"


class PeerDemand:
    """What a replica tells of one dimension.

    Attributes:
        limit: what its configuration allows.
        rate: see `Demand`.
        starved: whether it has wanted more than it has for some time.
        held: the rights that it holds.
        external: what somebody else uses of the key, by the provider's word.
        created, version, free: of the ledger, as it saw it last: how much was free.
        weight: how many requests it can run at once.
    """

    __slots__ = ("created", "external", "free", "held", "limit", "rate", "starved", "version", "weight")

    def __init__(self, value: Any, weight: float = 1.0) -> None:
        """Reads what `to_wire` wrote. Raises ValueError: it is none."""
        try:
            limit, rate, starved, held, external, version, free, created = value[:8]
        except (TypeError, ValueError):
            raise ValueError("not a demand") from None
        for amount in (0 if limit is None else limit, rate, starved, held, external, version, free, created):
            if type(amount) not in _NUMBERS or not 0 <= amount <= _MOST:
                raise ValueError("not an amount")
        self.limit = math.inf if limit is None else limit
        self.rate = rate
        self.starved = starved > 0
        self.held = held
        self.external = external
        self.version = int(version)
        self.free = free
        self.created = created
        self.weight = weight

    @staticmethod
    def to_wire(
        *,
        limit: float,
        rate: float,
        starved: bool,
        held: int,
        external: float,
        version: int,
        free: int,
        created: float,
    ) -> list[Any]:
        """A list, which newer versions lengthen."""
        return [
            None if limit == math.inf else int(limit),
            round(rate, 1),
            int(starved),
            held,
            int(external),
            version,
            max(0, free),
            max(0.0, round(created, 3)),
        ]

    @staticmethod
    def is_news(told: Any, now: list[Any]) -> bool:
        """Whether others have to hear that it has become another: not of each change of what is free or in use."""
        if type(told) is not list or len(told) != len(now):
            return True
        if any(told[index] != now[index] for index in (0, 2, 4, 7)):
            return True
        gradual = (1, 3, 6) if told[5] != now[5] else (1, 3)  # what comes free in time all can reckon
        return any(
            abs(now[index] - told[index]) > 0.1 * max(told[index], now[index], 10.0) for index in gradual
        )

    def __repr__(self) -> str:
        return f"PeerDemand(rate={self.rate:g}, held={self.held}{', starved' if self.starved else ''})"
