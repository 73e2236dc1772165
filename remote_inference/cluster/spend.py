"""What the other replicas have spent of a ledger within the window, as far as it was heard."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["Spend"]


class Spend:
    """By replica and second of its own clock, with what each second holds and when it leaves our window.

    Not thread-safe. A second counts until its last moment is as old as the window is long.
    """

    __slots__ = ("_amounts", "_expiries", "total")

    def __init__(self) -> None:
        self._amounts: dict[str, dict[int, tuple[int, float]]] = {}
        self._expiries: dict[int, list[tuple[str, int]]] = {}
        self.total = 0

    def hear(self, replica: str, second: int, amount: int, expires: float, now: float) -> None:
        """That replica spent so much in that second, in all."""
        if expires <= now:
            return
        seconds = self._amounts.setdefault(replica, {})
        known = seconds.get(second)
        if known is None:
            self._expiries.setdefault(math.ceil(expires), []).append((replica, second))
        else:
            self.total -= known[0]
            expires = known[1]
        seconds[second] = (amount, expires)
        self.total += amount

    def forget(self, now: float) -> Iterable[tuple[str, int]]:
        """Drop what has left the window; what that was, by replica and second."""
        gone: list[tuple[str, int]] = []
        for due in [due for due in self._expiries if due <= now]:
            for replica, second in self._expiries.pop(due):
                seconds = self._amounts.get(replica, {})
                amount = seconds.pop(second, None)
                if amount is not None:
                    self.total -= amount[0]
                    gone.append((replica, second))
                if not seconds:
                    self._amounts.pop(replica, None)
        return gone

    def of(self, replica: str, now: float) -> int:
        """What is within the window of what that replica spent."""
        return sum(amount for amount, expires in self._amounts.get(replica, {}).values() if expires > now)

    def __repr__(self) -> str:
        return f"Spend({self.total} by {len(self._amounts)} replicas)"
