"""The limiter of one process: every decision under one lock, every wait outside it.

Waiters stand in line by deployment, ordered by priority and then by age. The first of those whose deployment
has room under ``max_concurrent`` is the *leader*; only it waits for a time, all others for their event, so
that what falls due wakes one thread and not all. What the leader cannot have, nobody behind it gets, however
little they ask for: so a big request is not starved by small ones.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, insort
from typing import Any

from ..cancel import CancelToken
from ..clock import Clock
from ..config import RateLimits
from ..errors import ConfigurationError, LimitReached
from ..types import Priority
from .base import Cost, LimitKey
from .pause import Pause
from .window import Ceilings, SlidingWindow, Slot

__all__ = ["LocalRateLimiter"]

_SHORTEST_RETRY, _LONGEST_RETRY = 0.1, 2.0  # seconds, where only the end of another request makes room
_ROUNDING = 1e-6  # so that who asks at `retry_at` is not a rounding error early
_HOLD_WEIGHT = 0.1  # of the newest request in the mean time for which permits are held


class _Member:
    """A deployment on a key."""

    __slots__ = ("ceilings", "in_flight", "line", "max_concurrent", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ceilings = Ceilings()
        self.max_concurrent = math.inf
        self.in_flight = 0
        self.line: list[tuple[int, int, _Waiter]] = []  # sorted; (-priority, age) is unique

    @property
    def full(self) -> bool:
        return self.in_flight >= self.max_concurrent


class _Key:
    """All that is known of one limit key."""

    __slots__ = (
        "ceilings",
        "count",
        "in_flight",
        "leader",
        "mean_hold",
        "members",
        "name",
        "pause",
        "waiting",
        "window",
    )

    def __init__(self, name: LimitKey, window: SlidingWindow) -> None:
        self.name = name
        self.window = window
        self.pause = Pause()
        self.members: dict[str, _Member] = {}
        self.ceilings = Ceilings()
        self.in_flight = 0
        self.waiting = 0
        self.count = 0
        self.leader: _Waiter | None = None
        self.mean_hold = 1.0

    def due(self, cost: Cost, now: float) -> tuple[float, str]:
        """When window and pause let the cost through, and what it is that does not now."""
        self.window.forget(now)
        at, code = self.window.opens_at(self.ceilings, cost, now)
        open_again, why = self.pause.opens_at(now)
        return (open_again, why) if open_again > at else (at, code)

    def room_due(self, member: _Member, now: float) -> float:
        """When a running request is likely to end, by how long they take."""
        running = member.in_flight if member.full else self.in_flight
        return now + min(max(self.mean_hold / max(running, 1), _SHORTEST_RETRY), _LONGEST_RETRY)


class _Waiter:
    """A thread that waits for a permit."""

    __slots__ = ("cost", "event", "member", "permit", "place", "wake_at")

    def __init__(self, member: _Member, cost: Cost, place: tuple[int, int]) -> None:
        self.member = member
        self.cost = cost
        self.place = place
        self.event = threading.Event()
        self.permit: _LocalPermit | None = None
        self.wake_at = math.inf


class _LocalPermit:
    """See `Permit`."""

    __slots__ = ("_cost", "_ended", "_key", "_limiter", "_member", "_since", "_slot")

    def __init__(
        self, limiter: LocalRateLimiter, key: _Key, member: _Member, cost: Cost, slot: Slot, now: float
    ) -> None:
        self._limiter = limiter
        self._key = key
        self._member = member
        self._cost = cost
        self._slot = slot
        self._since = now
        self._ended = False

    def settle(self, actual: Cost | None = None) -> None:
        """It was sent; the reserved tokens become the real ones."""
        limiter, key, cost = self._limiter, self._key, self._cost
        with limiter._lock:
            if self._ended:
                return
            if actual is not None:
                inputs = max(actual.input_tokens, 0) - cost.input_tokens
                key.window.correct(self._slot, 0, inputs, max(actual.output_tokens, 0) - cost.output_tokens)
            now = limiter._clock.monotonic()
            key.mean_hold += _HOLD_WEIGHT * (now - self._since - key.mean_hold)
            self._end(now)

    def refund(self) -> None:
        """Nothing was sent; all is given back."""
        key, cost = self._key, self._cost
        with self._limiter._lock:
            if not self._ended:
                key.window.correct(self._slot, -cost.requests, -cost.input_tokens, -cost.output_tokens)
                self._end(self._limiter._clock.monotonic())

    def _end(self, now: float) -> None:
        self._ended = True
        self._key.in_flight -= 1
        self._member.in_flight -= 1
        if self._key.waiting:
            self._limiter._hand_out(self._key, now)

    def __repr__(self) -> str:
        return f"Permit({self._member.name}, {self._cost}, {'ended' if self._ended else 'held'})"


class LocalRateLimiter:
    """A `RateLimiter` for one process, with what its own requests spend.

    Args:
        clock: Where time comes from and how it is waited for.
        window: Seconds over which the limits count.
        margin: Seconds by which the window is longer here than at the provider: a request reserved later may
            arrive there earlier, relative to one that had to connect first. It costs ``margin / window`` of
            the limit.
        grain: Seconds within which reservations are kept as one; see `SlidingWindow`.
    """

    def __init__(
        self, clock: Clock, *, window: float = 60.0, margin: float = 0.25, grain: float = 0.25
    ) -> None:
        self._clock = clock
        self._span = window + margin
        self._grain = grain
        self._lock = threading.Lock()
        self._keys: dict[LimitKey, _Key] = {}

    def configure(
        self, key: LimitKey, limits: RateLimits, *, deployment: str, max_concurrent: int | None = None
    ) -> None:
        """See `RateLimiter`.

        A deployment that moves to another key no longer binds the old one; what it has running stays counted
        there.
        """
        with self._lock:
            for other in self._keys.values():
                if other.name != key and deployment in other.members:
                    other.members[deployment].ceilings = Ceilings()
                    self._recompute(other)
            state = self._state(key)
            member = state.members.setdefault(deployment, _Member(deployment))
            member.ceilings = Ceilings.of(limits)
            member.max_concurrent = math.inf if max_concurrent is None else max_concurrent
            self._recompute(state)

    def acquire(
        self,
        key: LimitKey,
        deployment: str,
        cost: Cost,
        *,
        priority: Priority,
        patience: float,
        token: CancelToken,
    ) -> _LocalPermit:
        """See `RateLimiter`."""
        token.check()
        with self._lock:
            state = self._keys.get(key)
            member = state.members.get(deployment) if state is not None else None
            if state is None or member is None:
                raise ConfigurationError([f"{deployment}: no limits were configured for {key}"])
            now = self._clock.monotonic()
            if not state.waiting:
                permit = self._try(state, member, cost, now)
                if permit is not None:
                    return permit
            state.count += 1
            waiter = _Waiter(member, cost, (-int(priority), state.count))
            insort(member.line, (*waiter.place, waiter))
            state.waiting += 1
        try:
            with token.interrupting(waiter.event.set):
                return self._wait(state, waiter, now + max(patience, 0.0), token)
        except BaseException:  # also what a pool throws into its threads: nothing may stay behind
            self._leave(state, waiter)
            raise

    def _wait(self, state: _Key, waiter: _Waiter, deadline: float, token: CancelToken) -> _LocalPermit:
        while True:
            with self._lock:
                now = self._clock.monotonic()
                waiter.event.clear()  # before all that is looked at: what happens after it sets it again
                self._hand_out(state, now)
                token.check()
                if waiter.permit is not None:
                    return waiter.permit
                due, _ = state.due(waiter.cost, now)
                if now >= deadline or due > deadline:
                    raise self._refusal(state, waiter, now)
                until = min(deadline, waiter.wake_at) if state.leader is waiter else deadline
            self._clock.wait(waiter.event, until - now)

    def _leave(self, state: _Key, waiter: _Waiter) -> None:
        with self._lock:
            if waiter.permit is None:
                line = waiter.member.line
                del line[bisect_left(line, waiter.place)]  # a shorter tuple sorts before a longer one
                state.waiting -= 1
                self._hand_out(state, self._clock.monotonic())
        if waiter.permit is not None:  # it came between the decision to leave and now
            waiter.permit.refund()

    def pause(self, key: LimitKey, until: float) -> None:
        """See `RateLimiter`."""
        if not math.isfinite(until):
            return
        with self._lock:
            state = self._state(key)
            now = self._clock.monotonic()
            if state.pause.extend(now + (until - self._clock.time()), until, now):
                for member in state.members.values():
                    for entry in member.line:  # those whom it makes wait too long leave at once
                        entry[2].event.set()

    def resume(self, key: LimitKey) -> None:
        """See `RateLimiter`. The ramp begins here."""
        with self._lock:
            state = self._keys.get(key)
            if state is not None:
                now = self._clock.monotonic()
                state.pause.end(now)
                self._hand_out(state, now)

    def paused_until(self, key: LimitKey) -> float:
        """See `RateLimiter`."""
        with self._lock:
            state = self._keys.get(key)
            return state.pause.until_epoch if state and state.pause.active(self._clock.monotonic()) else 0.0

    def opens_at(self, key: LimitKey, deployment: str, cost: Cost) -> float:
        """See `RateLimiter`."""
        with self._lock:
            state = self._keys.get(key)
            member = state.members.get(deployment) if state is not None else None
            if state is None or member is None:
                raise ConfigurationError([f"{deployment}: no limits were configured for {key}"])
            now = self._clock.monotonic()
            at, _ = state.due(cost, now)
            if member.full or state.in_flight >= state.ceilings.concurrent:
                at = max(at, state.room_due(member, now))
            return self._epoch(at, now) if at > now else 0.0

    def snapshot(self) -> dict[str, Any]:
        """See `RateLimiter`."""
        with self._lock:
            now = self._clock.monotonic()
            return {str(key): self._status(state, now) for key, state in self._keys.items()}

    def _status(self, state: _Key, now: float) -> dict[str, Any]:
        window, ceilings = state.window, state.ceilings
        window.forget(now)
        used = {
            "requests": (window.requests, ceilings.requests),
            "tokens": (window.input_tokens + window.output_tokens, ceilings.tokens),
            "input_tokens": (window.input_tokens, ceilings.input_tokens),
            "output_tokens": (window.output_tokens, ceilings.output_tokens),
            "concurrent": (state.in_flight, ceilings.concurrent),
        }
        return {
            "used": {name: value for name, (value, _) in used.items()},
            "limits": {name: int(limit) for name, (_, limit) in used.items() if limit != math.inf},
            "paused_until": state.pause.until_epoch if state.pause.active(now) else 0.0,
            "waiting": state.waiting,
            "deployments": {
                member.name: {
                    "in_flight": member.in_flight,
                    "waiting": len(member.line),
                    "max_concurrent": None
                    if member.max_concurrent == math.inf
                    else int(member.max_concurrent),
                }
                for member in state.members.values()
            },
        }

    # What follows is called with the lock held.

    def _state(self, key: LimitKey) -> _Key:
        state = self._keys.get(key)
        if state is None:
            state = self._keys[key] = _Key(key, SlidingWindow(self._span, self._grain))
        return state

    def _recompute(self, state: _Key) -> None:
        ceilings = Ceilings()
        for member in state.members.values():
            ceilings = ceilings.least(member.ceilings)
        state.ceilings = ceilings
        self._hand_out(state, self._clock.monotonic())

    def _try(self, state: _Key, member: _Member, cost: Cost, now: float) -> _LocalPermit | None:
        if state.in_flight >= state.ceilings.concurrent or member.in_flight >= member.max_concurrent:
            return None
        if now < state.pause.quiet_until and state.pause.opens_at(now)[0] > now:
            return None
        window = state.window
        window.forget(now)
        if not window.fits(state.ceilings, cost):
            return None
        permit = _LocalPermit(self, state, member, cost, window.reserve(now, cost), now)
        state.in_flight += 1
        member.in_flight += 1
        if now < state.pause.quiet_until:
            state.pause.admitted += 1
        return permit

    def _hand_out(self, state: _Key, now: float) -> None:
        """Give permits to those first in line while there are any, and find the leader."""
        while state.waiting and state.in_flight < state.ceilings.concurrent:
            heads = [m.line[0] for m in state.members.values() if m.line and not m.full]
            if not heads:
                break
            waiter = min(heads)[2]
            permit = self._try(state, waiter.member, waiter.cost, now)
            if permit is None:
                at, _ = state.due(waiter.cost, now)
                if state.leader is not waiter or at < waiter.wake_at:
                    waiter.event.set()  # it has to wait for another time than it does
                state.leader, waiter.wake_at = waiter, at
                return
            del waiter.member.line[0]
            state.waiting -= 1
            waiter.permit = permit
            waiter.event.set()
        state.leader = None  # only the end of a running request changes anything, and that calls this

    def _refusal(self, state: _Key, waiter: _Waiter, now: float) -> LimitReached:
        at, code = state.due(waiter.cost, now)
        if at <= now:
            if waiter.member.full or state.in_flight >= state.ceilings.concurrent:
                at, code = state.room_due(waiter.member, now), "concurrency"
            else:  # it would fit, but others come first
                ahead = state.leader.wake_at if state.leader is not None else now
                at, code = max(ahead, now + _SHORTEST_RETRY), "queue"
        return LimitReached(code, waiter.member.name, retry_at=self._epoch(at, now))

    def _epoch(self, at: float, now: float) -> float:
        return self._clock.time() + (at - now) + _ROUNDING

    def __repr__(self) -> str:
        with self._lock:
            running = sum(state.in_flight for state in self._keys.values())
            waiting = sum(state.waiting for state in self._keys.values())
            return f"LocalRateLimiter({len(self._keys)} keys, {running} running, {waiting} waiting)"
