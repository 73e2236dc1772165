"""What the other replicas have spent of a key's limits within the window, as far as it was heard."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..local.window import DIMENSIONS

__all__ = ["PeerSpend"]

_INDEX = {name: index for index, name in enumerate(DIMENSIONS)}


class PeerSpend:
    """By replica and second of its own clock, with what each second holds and when it leaves our window.

    Not thread-safe. A second counts until its last moment is as old as the window is long.
    """

    __slots__ = ("_amounts", "_expiries", "_totals")

    def __init__(self) -> None:
        self._amounts: dict[str, dict[int, tuple[Sequence[int], float]]] = {}
        self._expiries: dict[int, list[tuple[str, int]]] = {}
        self._totals = [0] * len(DIMENSIONS)

    def hear(self, replica: str, second: int, amounts: Sequence[int], expires: float, now: float) -> None:
        """That replica spent so much in that second, in all; of each of the `DIMENSIONS`."""
        if expires <= now:
            return
        totals, seconds = self._totals, self._amounts.setdefault(replica, {})
        known = seconds.get(second)
        if known is None:
            self._expiries.setdefault(math.ceil(expires), []).append((replica, second))
            for index, amount in enumerate(amounts):
                totals[index] += amount
        else:
            before, expires = known
            for index, amount in enumerate(amounts):
                totals[index] += amount - before[index]
        seconds[second] = (amounts, expires)

    def forget(self, now: float) -> None:
        """Drop what has left the window."""
        for due in [due for due in self._expiries if due <= now]:
            for replica, second in self._expiries.pop(due):
                seconds = self._amounts.get(replica, {})
                known = seconds.pop(second, None)
                if known is not None:
                    for index, amount in enumerate(known[0]):
                        self._totals[index] -= amount
                if not seconds:
                    self._amounts.pop(replica, None)

    def total(self, dimension: str) -> int:
        """What all have spent of it, the dead too; 0 for one that is not counted over a window."""
        index = _INDEX.get(dimension)
        return 0 if index is None else self._totals[index]

    def of(self, replicas: Iterable[str], dimension: str, now: float) -> int:
        """What is within the window of what those replicas spent."""
        index = _INDEX[dimension]
        return sum(
            amounts[index]
            for replica in replicas
            for amounts, expires in self._amounts.get(replica, {}).values()
            if expires > now
        )

    def leaving(self, replica: str, dimension: str, now: float) -> list[tuple[float, int]]:
        """When how much of what that replica spent leaves the window."""
        index = _INDEX[dimension]
        return [
            (expires, amounts[index])
            for amounts, expires in self._amounts.get(replica, {}).values()
            if expires > now and amounts[index] > 0
        ]

    def __repr__(self) -> str:
        return f"PeerSpend({self._totals} by {len(self._amounts)} replicas)"
