"""`Assumption`: what was spent of a limit before anybody counted it, as far as anybody can know: all, evenly.

The first that knows a limit cannot know what was spent just before, by workers that were restarted, say. So it takes
all rights as spent, one after the other over the window that has passed, and they come free at the limit's own pace.
It shares them with the others while they are not free yet: else nearly all that comes free for a minute would be its
own, and would be lost with it for a lease if it were killed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from .window import SlidingWindow, Slot

__all__ = ["Assumption", "Spent", "from_wire", "to_wire"]


class Spent(NamedTuple):
    """So much, spent evenly between two times. As part of a gift: of that with which ``upto`` were given in all."""

    amount: int
    first: float
    last: float
    upto: int = 0

    def left(self, now: float, window: SlidingWindow) -> list[tuple[float, int]]:
        """What of it is within the window: (when, how much), never earlier than it was."""
        if self.last + window.span <= now:
            return []
        steps = max(1, math.ceil((self.last - self.first) / window.grain))
        step = (self.last - self.first) / steps
        amounts, told = [], 0
        for number in range(1, steps + 1):
            upto = self.amount * number // steps
            at = self.first + number * step
            if upto > told and at + window.span > now:
                amounts.append((at, upto - told))
            told = upto
        return amounts

    def about(self, now: float, span: float) -> float:
        """How much of it is within a window that long, but for a grain: what is cheap enough for each response."""
        if self.first + span > now:
            return self.amount
        return self.amount * max(0.0, self.last + span - now) / max(self.last - self.first, 1e-9)


class Assumption:
    """One replica's part of it, in one dimension, and what it knows of the others'. Not thread-safe.

    Times are monotonic, seconds.

    Args:
        window: this replica's.
        dimension: what is assumed to be spent.
    """

    __slots__ = ("_dimension", "_end", "_others", "_slots", "_window", "dealt")

    def __init__(self, window: SlidingWindow, dimension: str) -> None:
        self._window = window
        self._dimension = dimension
        self._slots: list[Slot] = []
        self._end = -math.inf
        self.dealt: dict[str, Spent] = {}
        """What of it each has, of those that this replica gave any; its own too."""
        self._others: dict[str, dict[str, Spent]] = {}

    def begin(self, amount: int, since: float, me: str, now: float) -> None:
        """So much has been spent in a window's time, at the end of which it began to be counted."""
        self._end = since
        self.dealt = {}
        self._keep(Spent(amount, since - self._window.span, since), me, now)

    def lasts(self, now: float) -> bool:
        """Whether some of it is not free yet."""
        return now < self._end + self._window.span

    def deal(self, me: str, weights: Mapping[str, float], coming: float, now: float) -> dict[str, int]:
        """Part with a fair part for each that has had none as yet.

        Args:
            me: this replica.
            weights: of all that know the limit, by id.
            coming: the weight of those that may be about to.
            now: the time.

        Returns:
            What each of them is to be given, to take as spent.
        """
        takers = {name: weight for name, weight in weights.items() if name not in self.dealt}
        if not takers:
            return {}
        left = sum(getattr(slot, self._dimension) for slot in self._slots if slot.live)
        whole = weights[me] + coming + sum(takers.values())
        parts = {name: int(left * weight / whole) for name, weight in takers.items()}
        first = now - self._window.span
        for name, part in parts.items():
            self.dealt[name] = Spent(part, first, self._end)
        for slot in self._slots:
            self._window.unassume(self._dimension, slot)
        self._keep(Spent(left - sum(parts.values()), first, self._end), me, now)
        return parts

    def _keep(self, spent: Spent, me: str, now: float) -> None:
        self.dealt[me] = spent
        self._slots = self._window.assume(self._dimension, spent.left(now, self._window))

    def accept(self, spent: Spent, now: float) -> None:
        """Another one gives that much of its part."""
        self._window.assume(self._dimension, spent.left(now, self._window))

    def hear(self, taker: str, giver: str, spent: Spent) -> None:
        """That one was given that by that one; or has it itself."""
        self._others.setdefault(taker, {})[giver] = spent

    def of(self, name: str, now: float) -> int:
        """What is within the window of what that one takes as spent; or would, had it heard of it."""
        heard = [*self._others.get(name, {}).values(), *([self.dealt[name]] if name in self.dealt else [])]
        return sum(amount for spent in heard for _, amount in spent.left(now, self._window))

    def of_others(self, me: str, now: float) -> float:
        """About what is within the window of what all others take as spent."""
        span = self._window.span
        mine = sum(spent.about(now, span) for name, spent in self.dealt.items() if name != me)
        theirs = 0.0
        for taker, heard in list(self._others.items()):
            for giver, spent in list(heard.items()):
                if spent.last + span <= now:
                    del heard[giver]
                elif taker != me:
                    theirs += spent.about(now, span)
            if not heard:
                del self._others[taker]
        return mine + theirs

    def clear(self) -> None:
        """Begin anew, owning nothing."""
        self._slots, self._end, self.dealt = [], -math.inf, {}

    def forget(self, replica: str) -> None:
        """It is long gone."""
        self.dealt.pop(replica, None)
        self._others.pop(replica, None)
        for givers in self._others.values():
            givers.pop(replica, None)

    def __repr__(self) -> str:
        return f"Assumption({self._dimension}, dealt to {len(self.dealt)})"


def to_wire(spent: Spent) -> list[Any]:
    """What `from_wire` reads."""
    return [spent.amount, math.ceil(spent.first * 1e3) / 1e3, math.ceil(spent.last * 1e3) / 1e3, spent.upto]


def from_wire(value: Any, offset: float, now: float, span: float) -> Spent | None:
    """What another one says, whose times need that offset; None if it makes no sense."""
    try:
        amount, first, last, upto = value[:4]
        last = min(last + offset, now)  # it was spent before it was told of
        first = min(max(first + offset, last - span), last)
    except (TypeError, ValueError, KeyError):
        return None
    if type(amount) is not int or type(upto) is not int or amount < 0 or upto < 0:
        return None
    return Spent(amount, first, last, upto)
