"""`Generations`: which orders for a new session this replica knows, and which of them it has missed on the bus.

An order goes over the bus to every worker's main process, which raises a fence in the page that its processes share
(`board`). A worker that was cut off at that moment misses it. So each replica says which orders it has heard of, the
latest few; who finds one there that the bus has not brought rebuilds for it, once.

An order is known by its token and not by a count: two that were given on two sides of a cut are two orders, and the
same one is heard from every side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ..clock import Clock
from ..cluster import Replica, StateListener
from ..cluster.crdt import LwwRegister, Path

__all__ = ["Generations"]

KIND = "generation"

GRACE = 1.0
"""Seconds for the bus to bring an order that the gossip was quicker with: else there would be two rebuilds for it."""

TOLD = 8
"""Orders that are told of; who was away for more is told of as many rebuilds as one."""

REMEMBERED = 256

_LONGEST_TOKEN = 64


class _Orders:
    """Those for one deployment."""

    __slots__ = ("heard", "missed", "rebuilds")

    def __init__(self) -> None:
        self.heard: dict[str, None] = {}  # in the order of their coming
        self.missed: dict[str, float] = {}  # and until when the bus may bring them
        self.rebuilds = 0


class Generations(StateListener):
    """One a process; it listens to its replica.

    Args:
        replica: where it is kept.
        clock: for the grace.
        deployments: their names; others are ignored.
    """

    kinds = frozenset({KIND})

    def __init__(self, replica: Replica, clock: Clock, deployments: Iterable[str]) -> None:
        self._replica = replica
        self._clock = clock
        self._orders = {name: _Orders() for name in deployments}
        self._next_due = math.inf
        replica.attach(self)

    def fence(self, deployment: str) -> int:
        """How many rebuilds the gossip has asked for: another number than before asks for a rebuild. Cheap."""
        if self._clock.monotonic() >= self._next_due:
            self._count_missed()
        orders = self._orders.get(deployment)
        return 0 if orders is None else orders.rebuilds

    def ordered(self, deployment: str, token: str) -> None:
        """The bus has brought an order, and the worker's fence was raised for it."""
        orders = self._orders.get(deployment)
        if orders is None or not 0 < len(token) <= _LONGEST_TOKEN:
            return
        with self._replica.lock:
            orders.missed.pop(token, None)
            if self._remember(orders, token):
                self._say(deployment, orders)

    def _count_missed(self) -> None:
        with self._replica.lock:
            now = self._clock.monotonic()
            for orders in self._orders.values():
                due = [token for token, until in orders.missed.items() if now >= until]
                orders.rebuilds += bool(due)  # one for all of them
                for token in due:
                    del orders.missed[token]
            self._next_due = min(
                (until for orders in self._orders.values() for until in orders.missed.values()),
                default=math.inf,
            )

    # -- a part of the replica; all under its lock

    def merged(self, paths: list[Path]) -> None:
        """Others have told which orders they know."""
        now = self._clock.monotonic()
        # who only listens yet has either not begun, or was away for long: the bus will bring it nothing
        until = now if now < self._replica.life.listening_until else now + GRACE
        for path in paths:
            orders = self._orders.get(path[1]) if len(path) == 3 else None
            if orders is None:
                continue
            register = self._replica.state.get(path, LwwRegister)
            news = [token for token in _tokens(register) if self._remember(orders, token)]
            for token in news:
                orders.missed[token] = until
                self._next_due = min(self._next_due, until)
            if news:
                self._say(path[1], orders)

    def before_send(self, now: float) -> None:
        """All is said when it is known."""

    def rejoined(self, before: str) -> None:
        """Say under the new id what is known."""
        for deployment, orders in self._orders.items():
            if orders.heard:
                self._say(deployment, orders)

    def _remember(self, orders: _Orders, token: str) -> bool:
        """Whether it is news."""
        if token in orders.heard:
            return False
        orders.heard[token] = None
        while len(orders.heard) > REMEMBERED:
            del orders.heard[next(iter(orders.heard))]
        return True

    def _say(self, deployment: str, orders: _Orders) -> None:
        replica = self._replica
        entry: LwwRegister = replica.own((KIND, deployment, replica.id), LwwRegister)
        entry.set(list(orders.heard)[-TOLD:], replica.id)

    def __repr__(self) -> str:
        asked = {name: orders.rebuilds for name, orders in self._orders.items() if orders.rebuilds}
        return f"Generations(rebuilds={asked})"


def _tokens(register: LwwRegister | None) -> list[str]:
    value: Any = None if register is None else register.value
    if not isinstance(value, list):
        return []
    return [token for token in value[-TOLD:] if type(token) is str and 0 < len(token) <= _LONGEST_TOKEN]
