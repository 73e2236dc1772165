"""`Account`: what a process knows and still has to say of one key that is counted in a store.

One exchange carries everything: permits that ended since the last one, those that run (so that their places are kept
for another lease), a pause, and the wish for one more permit. What could not be said is said with the next exchange.

The account also remembers what this process spent in the last minute. When the store has lost its data (restarted
without persistence, flushed, replaced by a copy that is behind), every process tells it anew, and nothing is handed
out for as long as that may take.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..base import Cost, LimitKey
from ..local.pause import RAMP, RAMP_STEP
from .store import LimitStore, StoreUnavailable

__all__ = ["Account", "Holding", "Terms"]

_MOST_ENDS = 500  # in one exchange
_MOST_UNSAID = 50_000  # ends that wait for a store that is away; a lost one only makes the count too high
_TRIES = 3  # a store may lose its data between two exchanges, but hardly twice
_RECALL = 1.2  # of the time between two renewals: by then everybody has noticed that the data are lost


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How a limiter counts; seconds. See `StrictRateLimiter`."""

    window: float
    margin: float
    grain: float
    lease: float

    @property
    def renewal(self) -> float:
        """Between two renewals of the leases."""
        return self.lease / 3


class _Spent:
    """What was reserved within one grain of time, as it stands; ``slot`` is the store's name for it."""

    __slots__ = ("amounts", "first", "last", "slot")

    def __init__(self, now: float, slot: str) -> None:
        self.first = self.last = now
        self.slot = slot
        self.amounts = [0, 0, 0, 0]

    def add(self, amounts: list[int]) -> None:
        for index, amount in enumerate(amounts):
            self.amounts[index] += amount


class Holding:
    """A permit that runs, as its account knows it."""

    __slots__ = ("amounts", "deployment", "id", "since", "spent")

    def __init__(self, id: str, deployment: str, amounts: list[int], spent: _Spent, since: float) -> None:
        self.id = id
        self.deployment = deployment
        self.amounts = amounts
        self.spent = spent
        self.since = since


def _amounts(cost: Cost) -> list[int]:
    """The order is that of the script: requests, tokens, input tokens, output tokens."""
    return [cost.requests, cost.tokens, cost.input_tokens, cost.output_tokens]


class Account:
    """One key in one process. Safe to use from threads; exchanges happen one after the other.

    Args:
        key: The key.
        store: Where it is counted.
        terms: How.
        who: This process, for the others in the line.
        monotonic: Seconds.
    """

    def __init__(
        self, key: LimitKey, store: LimitStore, terms: Terms, who: str, monotonic: Callable[[], float]
    ) -> None:
        self.key = key
        self.limits: dict[str, int] = {}
        self.burst = 60.0
        self.paused_until = -math.inf  # monotonic, as last heard
        self._store = store
        self._terms = terms
        self._who = who
        self._monotonic = monotonic
        self._exchanging = threading.Lock()
        self._lock = threading.Lock()  # for what follows; never held during an exchange
        self._count = 0
        self._holdings: dict[str, Holding] = {}
        self._spent: deque[_Spent] = deque()
        self._ends: deque[dict[str, Any]] = deque(maxlen=_MOST_UNSAID)
        self._left: dict[str, int] = {}
        self._pause = -math.inf
        self._resume = False
        self._incarnation = ""
        self._seen = 0
        self._recalling = False
        self._renewed = -math.inf

    # -- what is to be said

    def pause(self, until: float) -> None:
        """Say with the next exchange that nothing is to be handed out until then (monotonic)."""
        with self._lock:
            self._pause = max(self._pause, until)
            self._resume = False

    def resume(self) -> None:
        """Say with the next exchange that the pause is over."""
        with self._lock:
            self._pause, self._resume = -math.inf, True

    def heed(self, left: Mapping[str, int]) -> None:
        """Say with the next exchange how much the provider says is left."""
        with self._lock:
            self._left = dict(left)

    def end(self, holding: Holding, actual: Cost | None) -> None:
        """A permit ended: what it cost really; None: as reserved. Said with the next exchange."""
        with self._lock:
            now = self._monotonic()
            self._holdings.pop(holding.id, None)
            ended: dict[str, Any] = {"id": holding.id, "held": now - holding.since}
            if actual is not None:
                amounts = _amounts(actual)
                change = [is_ - was for is_, was in zip(amounts, holding.amounts, strict=True)]
                holding.spent.add(change)
                ended["actual"] = amounts
                if any(more > 0 for more in change):
                    ended |= {"slot": holding.spent.slot, "over": [max(more, 0) for more in change]}
            self._ends.append(ended)

    @property
    def unsaid(self) -> bool:
        """Whether something waits for an exchange that nobody has asked for."""
        with self._lock:
            return bool(self._ends or self._resume or self._pause > self._monotonic())

    @property
    def lives(self) -> bool:
        """Whether the store has to be asked now and then: for the permits that run and for what was spent."""
        with self._lock:
            self._forget(self._monotonic())
            return bool(self._holdings or self._spent)

    @property
    def renewal_due(self) -> bool:
        """Whether the leases are to be renewed."""
        return self._monotonic() >= self._renewed + self._terms.renewal

    # -- exchanges

    def acquire(
        self, deployment: str, cost: Cost, *, priority: int, patience: float, most: float
    ) -> Holding | dict[str, Any]:
        """Ask for a permit. Gives it, or the answer: ``wait`` (seconds), ``code``, ``own`` (by the deployment's bound).

        Raises:
            StoreUnavailable: the store is away. Should it have granted the permit, that is taken back.
        """
        amounts = _amounts(cost)
        with self._lock:
            self._count += 1
            id = f"{self._who}.{self._count}"
        wanted = self._wanted(deployment, amounts, priority, patience, most) | {"id": id}
        try:
            answer = self.exchange(acquire=wanted)
        except BaseException:
            with self._lock:
                self._ends.append({"id": id, "held": 0.0, "actual": [0, 0, 0, 0]})
            raise
        if "slot" not in answer:
            return answer
        with self._lock:
            now = self._monotonic()
            spent = self._reserved(now, str(answer["slot"]), amounts)
            holding = self._holdings[id] = Holding(id, deployment, amounts, spent, now)
            return holding

    def due(self, deployment: str, cost: Cost, *, priority: int, most: float) -> float:
        """Seconds until a permit of that cost is due, if nobody else comes.

        Raises:
            StoreUnavailable: the store is away.
        """
        return float(self.exchange(due=self._wanted(deployment, _amounts(cost), priority, 0.0, most))["wait"])

    def exchange(self, **what: Any) -> dict[str, Any]:
        """Say what is to be said, and ask.

        Raises:
            StoreUnavailable: the store is away; what was to be said is kept.
        """
        with self._exchanging:
            for _ in range(_TRIES):
                message, said = self._message(what)
                answer = self._store.exchange(self.key, message)
                try:
                    if self._heard(answer, message, said):
                        return answer
                except (KeyError, TypeError, ValueError):
                    raise StoreUnavailable("an answer that makes no sense") from None
            raise StoreUnavailable("it keeps losing its data")

    def _message(self, what: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The message, and those parts of it that are never to be said again."""
        terms = self._terms
        with self._lock:
            now = self._monotonic()
            self._forget(now)
            if not self._spent and not self._holdings:  # it has nothing to tell, whatever was lost
                self._incarnation, self._seen = "", 0
            said: dict[str, Any] = {}
            if self._ends:
                said["ends"] = [self._ends[index] for index in range(min(len(self._ends), _MOST_ENDS))]
            if self._pause > now:
                said["pause"] = self._pause - now
            if self._resume:
                said["resume"] = True
            if self._left:
                said["left"] = self._left
            message = {
                "who": self._who,
                "incarnation": self._incarnation,
                "seen": self._seen,
                "window": terms.window,
                "span": terms.window + terms.margin,
                "grain": terms.grain,
                "lease": terms.lease,
                "recall": _RECALL * terms.renewal,
                "ramp": RAMP,
                "ramp_step": RAMP_STEP,
                "limits": self.limits,
                "burst": self.burst,
                **said,
                **what,
            }
            if self._recalling or now >= self._renewed + terms.renewal:
                message["held"] = [
                    {"id": h.id, "deployment": h.deployment, "slot": h.spent.slot, "amounts": h.amounts}
                    for h in self._holdings.values()
                ]
            if self._recalling:
                message["spent"] = [
                    {"slot": spent.slot, "age": now - spent.last, "amounts": spent.amounts}
                    for spent in self._spent
                ]
            return message, said

    def _heard(self, answer: dict[str, Any], message: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
        """Take the answer in; whether it was one to what was asked."""
        with self._lock:
            now = self._monotonic()
            self._incarnation = str(answer["incarnation"])
            if answer.get("lost"):
                self._recalling = True
                self._seen = 0
                self._forget(now)
                self._ends.clear()  # what it does not know cannot end; what it cost is in `_spent`
                for holding in self._holdings.values():
                    holding.spent.slot = ""  # its number may come again
                for spent in self._spent:
                    self._count += 1
                    spent.slot = f"{self._who}.{self._count}"
                return False
            self._seen = max(self._seen, int(answer["seen"]))
            for ended in said.get("ends", ()):
                if self._ends and self._ends[0] is ended:  # else the bound has dropped it
                    self._ends.popleft()
            if "pause" in said and now + said["pause"] >= self._pause:
                self._pause = -math.inf
            if "resume" in said:
                self._resume = False
            if "left" in said and self._left is said["left"]:
                self._left = {}
            if "held" in message:
                self._renewed = now
            self._recalling = False
            paused = float(answer["paused"])
            self.paused_until = now + paused if paused > 0 else -math.inf
            return True

    def _wanted(
        self, deployment: str, amounts: list[int], priority: int, patience: float, most: float
    ) -> dict[str, Any]:
        wanted = {"deployment": deployment, "amounts": amounts, "priority": priority, "patience": patience}
        return wanted if most == math.inf else wanted | {"max": int(most)}

    def _reserved(self, now: float, slot: str, amounts: list[int]) -> _Spent:
        spent = self._spent[-1] if self._spent else None
        if spent is None or spent.slot != slot:
            spent = _Spent(now, slot)
            self._spent.append(spent)
        spent.last = now
        spent.add(amounts)
        self._forget(now)
        return spent

    def _forget(self, now: float) -> None:
        while self._spent and self._spent[0].last + self._terms.window + self._terms.margin <= now:
            self._spent.popleft()

    def __repr__(self) -> str:
        return f"Account({self.key}, {len(self._holdings)} running, {len(self._ends)} to be told)"
