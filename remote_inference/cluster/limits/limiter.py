"""`GossipRateLimiter`: the limits of a key, kept by all replicas together, with no server but the broker.

Of each dimension of a limit a replica holds rights (`rights`, `ledger`), and spends them within its own sliding window
(`local.window`), not quicker than its share (`local.token_bucket`). Every decision is made under one lock, every wait
outside it. A permit looks at this replica's own figures only; what the others say is worked in between, twice a second.
"""

from __future__ import annotations

import math
from typing import Any

from ...cancel import CancelToken
from ...clock import Clock
from ...config import RateLimits
from ...errors import ConfigurationError, LimitReached
from ...policy.quota import QuotaReport
from ...reasons import LimitReason
from ...types import Priority
from ..base import Cost, LimitKey
from ..local.wait_queue import URGENT, Waiter
from ..local.window import DIMENSIONS, Ceilings
from ..membership import Replica
from .key import GossipPermit, KeyDeployment, KeyState
from .share import CONCURRENT, Subject
from .shared import SharedLimits
from .transfer import Transfers

__all__ = ["GossipRateLimiter"]

SLACK = 0.03
"""The part of a limit by which the provider's count may be ahead of ours without meaning anything."""

_SHORTEST_RETRY = 0.1
_ROUNDING = 1e-6  # so that who asks at `retry_at` is not a rounding error early


class GossipRateLimiter:
    """A `RateLimiter` over all replicas that hear each other; for one process alone, without a broker, too.

    Args:
        clock: Where time comes from and how it is waited for.
        replica: This process among the others; left out: it is alone.
        window: Seconds over which the limits count.
        margin: Seconds by which the window is longer here than at the provider: a request reserved later may
            arrive there earlier, relative to one that had to connect first. It costs ``margin / window`` of
            the limit.
        grain: Seconds within which reservations are kept as one; see `SlidingWindow`.
    """

    def __init__(
        self,
        clock: Clock,
        replica: Replica | None = None,
        *,
        window: float = 60.0,
        margin: float = 0.25,
        grain: float = 0.25,
    ) -> None:
        self.replica = replica or Replica(clock)
        self._clock = clock
        self._span = window + margin
        self._shared = SharedLimits(clock, self.replica, window=window, span=self._span, grain=grain)
        self._lock = self._shared.lock
        self._keys = self._shared.keys

    # -- a RateLimiter

    def configure(
        self, key: LimitKey, limits: RateLimits, *, deployment: str, max_concurrent: int | None = None
    ) -> None:
        """See `RateLimiter`.

        A deployment that moves to another key no longer binds the old one; what it has running stays counted
        there.
        """
        with self.replica.lock, self._lock:
            shared, now = self._shared, self._clock.monotonic()
            for other in self._keys.values():
                if other.name != key and deployment in other.by_deployment:
                    other.by_deployment[deployment].ceilings = Ceilings()
                    other.by_deployment[deployment].bound = None
                    shared.set_limits(other, now)
            state = shared.state(key)
            ours = state.by_deployment.setdefault(deployment, KeyDeployment(deployment))
            ours.ceilings = Ceilings.of(limits)
            ours.burst = limits.burst
            ours.learns = limits.learn
            shared.set_bound(state, ours, math.inf if max_concurrent is None else max_concurrent, now)
            shared.set_limits(state, now)

    @property
    def ledgers(self) -> Transfers:
        """For what brings the ledgers from the broker and back."""
        return self._shared.transfers

    def acquire(
        self,
        key: LimitKey,
        deployment: str,
        cost: Cost,
        *,
        priority: Priority,
        patience: float,
        token: CancelToken,
    ) -> GossipPermit:
        """See `RateLimiter`."""
        token.check()
        if self.replica.alone:
            self._look_after(key)
        with self._lock:
            state, ours = self._known(key, deployment)
            now = self._clock.monotonic()
            deadline = now + max(patience, 0.0)
            queue, urgent, refused = state.queue, int(priority) >= URGENT, None
            if not queue.waiting:
                permit = state.take(ours, cost, now, urgent)
                if permit is not None:
                    return permit
                due = state.due(ours, cost, now, urgent)
                if now >= deadline or due[0] > deadline:
                    refused = self._refusal(state, ours, cost, due, now)
            if refused is None:
                waiter = queue.join(ours, cost, priority)
        if refused is None:
            try:
                with token.interrupting(waiter.event.set):
                    return self._wait(state, waiter, deadline, token)
            except BaseException as exc:  # also what a pool throws into its threads: nothing may stay behind
                self._leave(state, waiter)
                if not isinstance(exc, _Refused):
                    raise
                refused = exc
        self._hurry(state, refused.wanted)
        raise refused.error from None

    def _wait(
        self, state: KeyState, waiter: Waiter[GossipPermit], deadline: float, token: CancelToken
    ) -> GossipPermit:
        ours: KeyDeployment = waiter.deployment  # type: ignore[assignment]  # there are no others
        told = False
        while True:
            wanted: list[Subject] = []
            with self._lock:
                now = self._clock.monotonic()
                waiter.event.clear()  # before all that is looked at: what happens after it sets it again
                state.queue.hand_out(now)
                token.check()
                if waiter.permit is not None:
                    return waiter.permit
                due, code = state.due(ours, waiter.cost, now, waiter.urgent)
                if now >= deadline or due > deadline:
                    raise self._refusal(state, ours, waiter.cost, (due, code), now)
                until = min(deadline, waiter.wake_at) if state.queue.leader is waiter else deadline
                if not told:
                    if not code and (ours.full or state.full):
                        code = LimitReason.CONCURRENCY
                    wanted = state.want(ours, waiter.cost, code, now, due) if code else []
            if wanted:
                told = True
                self._hurry(state, wanted)
            self._clock.wait(waiter.event, until - now)

    def _hurry(self, state: KeyState, wanted: list[Subject]) -> None:
        """A request waits: the ledger may have what it needs; if not, the others are to know."""
        if not wanted or self.replica.alone:
            return
        with self.replica.lock, self._lock:
            now = self._clock.monotonic()
            self._shared.round(state, now)
            for subject in wanted:
                self._shared.transfers.hurry(subject, now)

    def _refusal(
        self,
        state: KeyState,
        ours: KeyDeployment,
        cost: Cost,
        due: tuple[float, LimitReason | None],
        now: float,
    ) -> _Refused:
        at, code = due
        if at <= now or code is None:
            if ours.full or state.full:
                at, code = state.place_due(ours, now), LimitReason.CONCURRENCY
            else:  # it would fit, but others come first
                leader = state.queue.leader
                at = max(leader.wake_at if leader is not None else now, now + _SHORTEST_RETRY)
                code = LimitReason.QUEUE
        wanted = state.want(ours, cost, code, now, at)
        if at == math.inf:
            at = now + self._span
        return _Refused(LimitReached(code, ours.name, retry_at=self._epoch(at, now)), wanted)

    def _leave(self, state: KeyState, waiter: Waiter[GossipPermit]) -> None:
        with self._lock:
            if waiter.permit is None:
                state.queue.leave(waiter, self._clock.monotonic())
        if waiter.permit is not None:  # it came between the decision to leave and now
            waiter.permit.refund()

    def observe(self, key: LimitKey, report: QuotaReport) -> None:
        """See `RateLimiter`. What was learned the others hear at once."""
        with self.replica.lock:
            with self._lock:
                shared, state = self._shared, self._shared.state(key)
                now, epoch = self._clock.monotonic(), self._clock.time()
                learned = state.learned
                news = False
                if learned is not None:
                    news = learned.observe(report)
                    if report.refused:
                        news |= learned.refused(shared.used(state, now), epoch, report)
                    if news:
                        shared.set_limits(state, now)
                self._hear_left(state, report, now)
            if learned is not None and news:
                shared.publish_learned(state, learned)
        if news:
            self.replica.urgent()
        if report.pause is not None:
            self.pause(key, epoch + report.pause)

    def pause(self, key: LimitKey, until: float) -> None:
        """See `RateLimiter`. The others hear of it at once."""
        if not math.isfinite(until):
            return
        with self.replica.lock:
            with self._lock:
                state = self._shared.state(key)
                now = self._clock.monotonic()
                end = now + (until - self._clock.time())
                if not self._shared.pauses.extend(state, end, now):
                    return
            self._shared.pauses.publish(state, end)
        self.replica.urgent()

    def resume(self, key: LimitKey) -> None:
        """See `RateLimiter`. The ramp begins here."""
        with self.replica.lock:
            with self._lock:
                state = self._keys.get(key)
                now = self._clock.monotonic()
                if state is None or not state.pause.active(now):
                    return
                state.epoch += 1
                state.pause.end(now)
                state.queue.hand_out(now)
            self._shared.pauses.publish(state, now)
        self.replica.urgent()

    def paused_until(self, key: LimitKey) -> float:
        """See `RateLimiter`."""
        with self._lock:
            state = self._keys.get(key)
            return state.pause.until_epoch if state and state.pause.active(self._clock.monotonic()) else 0.0

    def snapshot(self) -> dict[str, Any]:
        """See `RateLimiter`."""
        with self._lock:
            now = self._clock.monotonic()
            return {str(key): self._status(state, now) for key, state in self._keys.items()}

    def _status(self, state: KeyState, now: float) -> dict[str, Any]:
        window = state.window
        window.forget(now)
        used = {name: getattr(window, name) for name in DIMENSIONS} | {CONCURRENT: state.in_flight}
        return {
            "used": used,
            "limits": {name: int(share.total) for name, share in state.shares.items() if share.limited},
            "rights": {name: share.rights.held for name, share in state.shares.items()},
            "left_over": {
                name: state.subject.sight.free(name, self.replica.time.at(now))
                for name, share in state.shares.items()
                if share.limited and state.subject.sight is not None
            },
            "used_by_others": {
                name: round(amount) for name, amount in self._shared.used_by_others(state, now).items()
            },
            "paused_until": state.pause.until_epoch if state.pause.active(now) else 0.0,
            "waiting": state.queue.waiting,
            "deployments": {
                deployment.name: {
                    "in_flight": deployment.in_flight,
                    "waiting": len(deployment.queue),
                    "max_concurrent": None
                    if deployment.bound is None
                    else int(deployment.bound.shares[CONCURRENT].total),
                }
                for deployment in state.by_deployment.values()
            },
        }

    # -- inside, with the limiter's lock held

    def _look_after(self, key: LimitKey) -> None:
        """Alone, there is no gossip whose rounds would do it."""
        state = self._keys.get(key)
        if state is not None and self._clock.monotonic() >= state.next_round:
            with self.replica.lock, self._lock:
                self._shared.round(state, self._clock.monotonic())
                state.untold.clear()

    def _known(self, key: LimitKey, deployment: str) -> tuple[KeyState, KeyDeployment]:
        state = self._keys.get(key)
        ours = state.by_deployment.get(deployment) if state is not None else None
        if state is None or ours is None:
            raise ConfigurationError([f"{deployment}: no limits were configured for {key}"])
        return state, ours

    def _hear_left(self, state: KeyState, report: QuotaReport, now: float) -> None:
        """What the provider says is left, against what was counted here."""
        left = report.remaining()
        if not left:
            return
        for name, used in self._shared.used(state, now).items():
            if name in left:
                share = state.shares[name]
                slack = max(SLACK * share.total, len(share.peers)) if share.limited else 0.0
                share.hear_left(left[name], used, slack, now)

    def _epoch(self, at: float, now: float) -> float:
        return self._clock.time() + (at - now) + _ROUNDING

    def __repr__(self) -> str:
        with self._lock:
            running = sum(state.in_flight for state in self._keys.values())
            waiting = sum(state.queue.waiting for state in self._keys.values())
            return f"GossipRateLimiter({len(self._keys)} keys, {running} running, {waiting} waiting)"


class _Refused(Exception):
    """Carries the refusal out of the lock; ``wanted``: those whose ledgers may have what it needs."""

    def __init__(self, error: LimitReached, wanted: list[Subject]) -> None:
        super().__init__(error)
        self.error = error
        self.wanted = wanted
