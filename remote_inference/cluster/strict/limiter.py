"""`StrictRateLimiter`: the limits of a key, counted exactly in a store that all processes ask.

A permit costs one exchange with the store, and so does its end, unless the next permit takes that along. In the
process, those who wait stand in line by deployment, ordered by priority and then by age; the first of them asks, and
what it cannot have, nobody behind it gets. It asks again at the time that the store named, or when something ended
here; the store keeps the order between the processes. While the store is away nothing is let through.
"""

from __future__ import annotations

import logging
import math
import threading
import uuid
from bisect import bisect_left, insort
from typing import Any

from ...cancel import CancelToken
from ...clock import Clock
from ...config import RateLimits
from ...errors import ConfigurationError, LimitReached
from ...policy.quota import QuotaReport
from ...reasons import LimitReason
from ...types import Priority
from ..base import Cost, LimitKey
from ..local.window import DIMENSIONS, Ceilings
from .account import Account, Holding, Terms
from .asking import FIRST_BACKOFF, AskingDeployment, AskingKey, AskingThread
from .keeper import Keeper
from .store import LimitStore, StoreUnavailable

__all__ = ["StrictRateLimiter"]

logger = logging.getLogger(__name__)

_SHORTEST_RETRY = 0.1  # seconds, for who is told to come again without having been told when by the store
_SHORTEST_WAIT = 0.01  # seconds between two questions of one line; what falls due meanwhile is not lost
_LONGEST_BACKOFF = 5.0  # seconds
_COMPLAIN_EVERY = 60.0  # seconds between two warnings
_ROUNDING = 1e-6  # so that who asks at `retry_at` is not a rounding error early


class _Permit:
    """See `Permit`."""

    __slots__ = ("_ended", "_holding", "_key", "_limiter")

    def __init__(self, limiter: StrictRateLimiter, key: AskingKey, holding: Holding) -> None:
        self._limiter = limiter
        self._key = key
        self._holding = holding
        self._ended = False

    def settle(self, actual: Cost | None = None) -> None:
        """It was sent; the reserved tokens become the real ones."""
        if actual is not None:
            actual = Cost(max(actual.input_tokens, 0), max(actual.output_tokens, 0), self._holding.amounts[0])
        self._end(actual)

    def refund(self) -> None:
        """Nothing was sent; all is given back."""
        self._end(Cost(0, 0, 0))

    def _end(self, actual: Cost | None) -> None:
        with self._limiter._lock:
            if self._ended:
                return
            self._ended = True
            self._key.account.end(self._holding, actual)
            self._key.stir()
        self._limiter._keeper.wake()

    def __repr__(self) -> str:
        return f"Permit({self._holding.deployment}, {'ended' if self._ended else 'held'})"


class StrictRateLimiter:
    """A `RateLimiter` that is exact for all processes that share a store.

    Args:
        clock: Where time comes from and how it is waited for. The limits are counted on the store's clock.
        store: Where they are counted.
        window: Seconds over which the limits count.
        margin: Seconds by which the window is longer here than at the provider: a request reserved later may
            arrive there earlier, relative to one that had to connect first. It costs ``margin / window`` of the limit.
        grain: Seconds within which reservations are kept as one; they leave the window together with the last of them.
        lease: Seconds after which the places of a process that died come back. Its tokens stay reserved as estimated.
    """

    def __init__(
        self,
        clock: Clock,
        store: LimitStore,
        *,
        window: float = 60.0,
        margin: float = 0.25,
        grain: float = 0.1,
        lease: float = 15.0,
    ) -> None:
        self._clock = clock
        self._store = store
        self._terms = Terms(window=window, margin=margin, grain=grain, lease=lease)
        self._who = uuid.uuid4().hex[:12]
        self._lock = threading.Lock()
        self._keys: dict[LimitKey, AskingKey] = {}
        self._complained = -math.inf
        self._keeper = Keeper(self, self._terms.renewal)

    def configure(
        self, key: LimitKey, limits: RateLimits, *, deployment: str, max_concurrent: int | None = None
    ) -> None:
        """See `RateLimiter`.

        A deployment that moves to another key no longer binds the old one; what it has running stays counted there.
        """
        with self._lock:
            for name, other in self._keys.items():
                if name != key and deployment in other.members:
                    other.members[deployment].ceilings = Ceilings()
                    other.members[deployment].burst = 60.0
                    self._agree(other)
            state = self._state(key)
            member = state.members.setdefault(deployment, AskingDeployment(deployment))
            member.ceilings = Ceilings.of(limits)
            member.burst = limits.burst if limits.by_the_minute else 60.0
            member.max_concurrent = math.inf if max_concurrent is None else max_concurrent
            self._agree(state)

    def acquire(
        self,
        key: LimitKey,
        deployment: str,
        cost: Cost,
        *,
        priority: Priority,
        patience: float,
        token: CancelToken,
    ) -> _Permit:
        """See `RateLimiter`. ``code`` may be ``store_unavailable`` too."""
        token.check()
        with self._lock:
            state, member = self._known(key, deployment)
            deadline = self._clock.monotonic() + max(patience, 0.0)
            state.count += 1
            waiter = AskingThread(member, cost, (-int(priority), state.count))
            insort(member.line, (*waiter.place, waiter))
            state.waiting += 1
        try:
            with token.interrupting(waiter.event.set):
                return self._wait(state, waiter, deadline, token)
        finally:  # also when a pool throws something into its threads: nothing may stay behind
            with self._lock:
                line = member.line
                del line[bisect_left(line, waiter.place)]  # a shorter tuple sorts before a longer one
                state.waiting -= 1
                state.wake()

    def _wait(self, state: AskingKey, waiter: AskingThread, deadline: float, token: CancelToken) -> _Permit:
        while True:
            with self._lock:
                now = self._clock.monotonic()
                waiter.event.clear()  # before all that is looked at: what happens after it sets it again
                token.check()
                due = state.may_ask_at(waiter, now)
                if due > now:
                    estimated = waiter.code == LimitReason.CONCURRENCY or waiter.turn != state.turn
                    if now >= deadline or (not estimated and deadline < due < math.inf):
                        raise self._refusal(state, waiter, now)
                else:
                    state.asking = True
                    turn = state.turn
            if due > now:
                self._clock.wait(waiter.event, min(due, deadline) - now)
                continue
            permit = self._ask(state, waiter, turn, max(deadline - now, 0.0))
            if permit is not None:
                if token.cancelled:
                    permit.refund()
                    token.check()
                return permit

    def _ask(self, state: AskingKey, waiter: AskingThread, turn: int, patience: float) -> _Permit | None:
        """Ask the store, by the only one of the line that does so now."""
        member = waiter.member
        answer: Holding | dict[str, Any]
        try:
            away = state.away_until - self._clock.monotonic()
            if away > 0:
                answer = {"code": LimitReason.STORE_UNAVAILABLE, "wait": away}
            else:
                answer = state.account.acquire(
                    member.name,
                    waiter.cost,
                    priority=-waiter.place[0],
                    patience=patience,
                    most=member.max_concurrent,
                )
                self._answered(state)
        except StoreUnavailable as exc:
            answer = {"code": LimitReason.STORE_UNAVAILABLE, "wait": self._unanswered(state, exc)}
        finally:
            with self._lock:
                state.asking = False
                state.wake()
        if isinstance(answer, Holding):
            self._keeper.wake()
            return _Permit(self, state, answer)
        with self._lock:
            now = self._clock.monotonic()
            waiter.code = str(answer["code"])
            waiter.turn = turn
            waiter.due = now + max(float(answer["wait"]), _SHORTEST_WAIT)
            if waiter.code == LimitReason.CONCURRENCY and answer.get("own"):
                member.full_until = waiter.due
                state.wake()  # others need not wait for it
        return None

    def _refusal(self, state: AskingKey, waiter: AskingThread, now: float) -> LimitReached:
        at = waiter.due
        if waiter.turn == -1:  # it never came to ask: those before it know more
            at = max((head.due for head in state.heads()), default=now)
        if at <= now:
            at = now + _SHORTEST_RETRY
        return LimitReached(waiter.code, waiter.member.name, retry_at=self._epoch(at, now))

    # -- pauses, and what the provider says

    def pause(self, key: LimitKey, until: float) -> None:
        """See `RateLimiter`. It stops all processes: whoever asks the store is told."""
        if not math.isfinite(until):
            return
        with self._lock:
            state = self._state(key)
            state.account.pause(self._clock.monotonic() + (until - self._clock.time()))
        self._say(state)
        with self._lock:
            state.stir()

    def resume(self, key: LimitKey) -> None:
        """See `RateLimiter`. The ramp begins here."""
        with self._lock:
            state = self._state(key)
            state.account.resume()
        self._say(state)
        with self._lock:
            state.stir()

    def paused_until(self, key: LimitKey) -> float:
        """See `RateLimiter`. As it was when the store was last asked."""
        with self._lock:
            state = self._keys.get(key)
            now = self._clock.monotonic()
            if state is None or state.account.paused_until <= now:
                return 0.0
            return self._clock.time() + (state.account.paused_until - now)

    def observe(self, key: LimitKey, report: QuotaReport) -> None:
        """See `RateLimiter`. What is left is told to the store with the next permit.

        Used up is a pause, but for what is counted by the minute here: there it only means that no room is left.
        """
        with self._lock:
            account = self._state(key).account
            left = {name: amount for name, amount in report.remaining().items() if name in account.limits}
            if left:
                account.heed(left)
            others = tuple(q for q in report.quotas if q.lasts or q.dimension not in account.limits)
        pause = QuotaReport(others).pause
        if pause is not None:
            self.pause(key, self._clock.time() + pause)

    # -- for a status page

    def opens_at(self, key: LimitKey, deployment: str, cost: Cost) -> float:
        """See `RateLimiter`. Asks the store."""
        with self._lock:
            state, member = self._known(key, deployment)
            now = self._clock.monotonic()
        try:
            wait = state.account.due(deployment, cost, priority=0, most=member.max_concurrent)
        except StoreUnavailable as exc:
            wait = self._unanswered(state, exc)
        return self._epoch(now + wait, now) if wait > 0 else 0.0

    def snapshot(self) -> dict[str, Any]:
        """See `RateLimiter`. The figures are those of all processes; without them where the store is away."""
        with self._lock:
            states = dict(self._keys)
        return {str(key): self._status(key, state) for key, state in states.items()}

    def _status(self, key: LimitKey, state: AskingKey) -> dict[str, Any]:
        answer = self._say(state, look=True)
        running = answer.get("deployments") or {}
        with self._lock:
            status: dict[str, Any] = {
                "limits": dict(state.account.limits),
                "waiting": state.waiting,
                "deployments": {
                    member.name: {
                        "in_flight": running.get(member.name, 0),
                        "waiting": len(member.line),
                        "max_concurrent": None
                        if member.max_concurrent == math.inf
                        else int(member.max_concurrent),
                    }
                    for member in state.members.values()
                },
            }
        used = answer.get("used")
        if used is None:
            status["unavailable"] = True
        else:
            status["used"] = dict(zip(DIMENSIONS, map(int, used), strict=True)) | {
                "concurrent": int(answer["running"])
            }
        return status | {"paused_until": self.paused_until(key)}

    # -- the store

    def _say(self, state: AskingKey, **what: Any) -> dict[str, Any]:
        """Exchange without asking for a permit; nothing where the store is away, and then it is said later."""
        if self._clock.monotonic() < state.away_until:
            return {}
        try:
            answer = state.account.exchange(**what)
        except StoreUnavailable as exc:
            self._unanswered(state, exc)
            return {}
        self._answered(state)
        return answer

    def _answered(self, state: AskingKey) -> None:
        if state.backoff != FIRST_BACKOFF:
            logger.info("%s: the store of the strict limits answers again", state.account.key)
            state.backoff = FIRST_BACKOFF

    def _unanswered(self, state: AskingKey, exc: StoreUnavailable) -> float:
        """Seconds until it is asked again about this key: what ails one key need not ail another."""
        with self._lock:
            now = self._clock.monotonic()
            if now >= self._complained + _COMPLAIN_EVERY:
                self._complained = now
                logger.warning(
                    "%s: the store of the strict limits does not answer (%s): requests wait",
                    state.account.key,
                    exc.reason,
                )
            if now >= state.away_until:
                state.away_until = now + state.backoff
                state.backoff = min(2 * state.backoff, _LONGEST_BACKOFF)
            return max(state.away_until - now, 0.0)

    def keep(self) -> bool:
        """Say what waits to be said, and renew leases; whether there is more to come."""
        with self._lock:
            states = list(self._keys.values())
        more = False
        for state in states:
            account = state.account
            if account.unsaid or (account.lives and account.renewal_due):
                self._say(state)
            more |= account.unsaid or account.lives
        return more

    def close(self) -> None:
        """Say what is left to be said, and let the store go. What still runs keeps its place for a lease."""
        self._keeper.stop()
        self.keep()
        self._store.close()

    # -- what is known of keys; called with the lock held

    def _state(self, key: LimitKey) -> AskingKey:
        state = self._keys.get(key)
        if state is None:
            account = Account(key, self._store, self._terms, self._who, self._clock.monotonic)
            state = self._keys[key] = AskingKey(account)
        return state

    def _known(self, key: LimitKey, deployment: str) -> tuple[AskingKey, AskingDeployment]:
        state = self._keys.get(key)
        member = state.members.get(deployment) if state is not None else None
        if state is None or member is None:
            raise ConfigurationError([f"{deployment}: no limits were configured for {key}"])
        return state, member

    def _agree(self, state: AskingKey) -> None:
        ceilings = Ceilings()
        for member in state.members.values():
            ceilings = ceilings.least(member.ceilings)
        named = {name: getattr(ceilings, name) for name in (*DIMENSIONS, "concurrent")}
        state.account.limits = {name: int(limit) for name, limit in named.items() if limit != math.inf}
        state.account.burst = min(member.burst for member in state.members.values())
        state.stir()

    def _epoch(self, at: float, now: float) -> float:
        return self._clock.time() + (at - now) + _ROUNDING

    def __repr__(self) -> str:
        with self._lock:
            waiting = sum(state.waiting for state in self._keys.values())
            return f"StrictRateLimiter({len(self._keys)} keys, {waiting} waiting)"
