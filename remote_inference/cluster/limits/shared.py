"""`SharedLimits`: a limiter's part in the replicated state: the rounds between what it hears and what it tells."""

from __future__ import annotations

import math
import threading

from ...clock import Clock
from ..base import LimitKey
from ..crdt import LwwRegister, Path
from ..local.token_bucket import TokenBucket
from ..local.window import DIMENSIONS, Ceilings
from ..membership import Replica, StateListener
from .gossip import KINDS, LIMITS, Inbound, Outbound
from .key import KeyDeployment, KeyState
from .learned import LearnedLimits
from .pauses import Pauses
from .share import CONCURRENT, Share, Subject
from .transfer import Transfers

__all__ = ["SharedLimits"]

LOOK = 1.0
"""Seconds between two looks at limits that are learned."""
SWEEP = 10.0
"""Seconds between two looks for what was spent too long ago to matter."""


class SharedLimits(StateListener):
    """All keys of one limiter. But for those of `StateListener`, methods are called with both locks held.

    Args:
        clock: where time comes from.
        replica: this process among the others.
        window, span, grain: seconds; see `GossipRateLimiter`. ``span`` is the window with its margin.
    """

    kinds = KINDS

    def __init__(self, clock: Clock, replica: Replica, *, window: float, span: float, grain: float) -> None:
        self.lock = threading.Lock()
        """The limiter's: guards the keys. Taken after the replica's, where both are."""
        self.keys: dict[LimitKey, KeyState] = {}
        self._clock = clock
        self._replica = replica
        self._window = window
        self._span = span
        self._grain = grain
        self._by_digest: dict[str, KeyState] = {}
        self._subjects: dict[str, tuple[KeyState, Subject]] = {}
        self._outbound = Outbound(replica)
        self._inbound = Inbound(clock, replica, self._subjects, span)
        self._next_sweep = -math.inf
        self.pauses = Pauses(clock, replica, self.lock, self._by_digest)
        self.transfers = Transfers(
            clock, replica, self.lock, self._subjects, window=window, span=span, changed=self._changed
        )
        replica.attach(self)

    # -- a `StateListener`; called with the replica's lock held

    def merged(self, paths: list[Path]) -> None:
        with self.lock:
            now = self._clock.monotonic()
            for path in paths:
                if path[0] == LIMITS:
                    self._hear_learned(path, now)
            for state in self._inbound.hear(paths, now):
                self.round(state, now)

    def before_send(self, now: float) -> None:
        with self.lock:
            for state in self.keys.values():
                self.round(state, now)
                self._outbound.spend(state)
            for _, subject in self._subjects.values():
                self._outbound.demand(subject, now)
            if now >= self._next_sweep:
                self._next_sweep = now + SWEEP
                self._inbound.sweep(now)

    def members_changed(self, now: float) -> None:
        with self.lock:
            self.transfers.close_dead(now)

    def forgotten(self, replica: str) -> None:
        with self.lock:
            for _, subject in self._subjects.values():
                for share in subject.shares.values():
                    share.peers.pop(replica, None)

    def rejoined(self, before: str) -> None:
        with self.lock:
            now = self._clock.monotonic()
            for state in self.keys.values() if before != self._replica.id else ():
                state.window.clear()
                state.untold.clear()
            for digest, (_, subject) in self._subjects.items():
                self.transfers.give_up(subject)
                self._inbound.hear_all(digest, now, of=before)
            for state in self.keys.values():
                state.refresh(now)

    # -- keys and their limits

    def state(self, key: LimitKey) -> KeyState:
        """What is known of a key; from now on it is."""
        state = self.keys.get(key)
        if state is None:
            state = KeyState(key, self._replica, self.lock, self._clock, self._span, self._grain)
            digest = state.subject.digest
            self.keys[key] = self._by_digest[digest] = state
            self._subjects[digest] = (state, state.subject)
            self.pauses.catch_up(state)
        return state

    def used(self, state: KeyState, now: float) -> dict[str, float]:
        """What all have used within the window, as far as it is known, and what may have been."""
        state.window.forget(now)
        others = self.used_by_others(state, now)
        return {name: getattr(state.window, name) + amount for name, amount in others.items()}

    def used_by_others(self, state: KeyState, now: float) -> dict[str, float]:
        """The others' part of that: what the live ones tell, and of the dead what the ledger takes to be spent."""
        state.spend.forget(now)
        sight, time = state.subject.sight, self._replica.time.at(now)
        live = [name for name in self._replica.members(now) if name != self._replica.id]
        return {
            name: state.spend.of(live, name, now) + (0 if sight is None else sight.due(name, time))
            for name in state.shares
            if name != CONCURRENT
        }

    def publish_learned(self, state: KeyState, learned: LearnedLimits) -> None:
        """Tell the others what was found out."""
        self._outbound.limits(state, learned)

    def _hear_learned(self, path: Path, now: float) -> None:
        state = self._by_digest.get(path[1]) if len(path) == 2 else None
        register = self._replica.state.get(path, LwwRegister)
        if state is None or state.learned is None or register is None:
            return
        if state.learned.merge_wire(register.value, self._clock.time()):
            self.set_limits(state, now)
            state.queue.hand_out(now)

    def _look_at_learned(self, state: KeyState, now: float) -> None:
        """Learned limits grow with time."""
        learned = state.learned
        if learned is None or now < state.next_look:
            return
        state.next_look = now + LOOK
        if learned.tick(self.used(state, now), self._clock.time()):
            self.publish_learned(state, learned)
        self.set_limits(state, now)

    def set_limits(self, state: KeyState, now: float) -> None:
        """Of what the deployments name, the least holds."""
        ceilings, burst, learns = Ceilings(), math.inf, False
        for deployment in state.by_deployment.values():
            ceilings = ceilings.least(deployment.ceilings)
            burst = min(burst, deployment.burst)
            learns |= deployment.learns
        if not learns:
            state.learned = None
        else:
            if state.learned is None:
                state.learned = LearnedLimits()
                self._hear_learned((LIMITS, state.subject.digest), now)
            ceilings = ceilings.least(Ceilings(**state.learned.ceilings(self._clock.time())))
        for name in (*DIMENSIONS, CONCURRENT):
            limit = getattr(ceilings, name)
            share = state.shares.get(name)
            if limit == math.inf and not (learns and name != CONCURRENT):  # else it is counted all the same
                if share is not None:
                    del state.shares[name]
                continue
            if share is None:
                span = 0.0 if name == CONCURRENT else self._span
                paced = bool(span) and burst < self._window
                bucket = TokenBucket(burst, now) if paced else None
                share = state.shares[name] = Share(name, span, bucket, now)
                self._inbound.hear_all(state.subject.digest, now)
            share.limit = limit
        state.buckets = [
            (index, share.bucket)
            for index, name in enumerate(DIMENSIONS)
            if (share := state.shares.get(name)) is not None and share.bucket is not None
        ]
        self.round(state, now)

    def set_bound(self, state: KeyState, deployment: KeyDeployment, limit: float, now: float) -> None:
        """How many requests of that deployment may run at once, all replicas together."""
        if limit == math.inf:
            deployment.bound = None
            self._subjects.pop(deployment.digest, None)
            return
        if deployment.bound is None:
            share = Share(CONCURRENT, 0.0, None, now)
            deployment.bound = Subject(deployment.digest, {CONCURRENT: share})
            self._subjects[deployment.digest] = (state, deployment.bound)
            self._inbound.hear_all(deployment.digest, now)
        deployment.bound.shares[CONCURRENT].limit = limit

    # -- a round

    def round(self, state: KeyState, now: float) -> None:
        """Look at what all have said, and make a plan of it."""
        replica = self._replica
        state.next_round = now + replica.period
        self._look_at_learned(state, now)
        state.window.forget(now)
        state.spend.forget(now)
        live = [name for name in replica.members(now) if name != replica.id]
        for subject in state.subjects():
            for name, share in subject.shares.items():
                used = state.used(subject, name)
                share.demand.measure(used, state.spent[DIMENSIONS.index(name)] if share.span else 0, now)
                peers = share.agree(live)
                if not share.limited:
                    continue
                if replica.alone:
                    share.everything()
                    continue
                self.transfers.plan(state, subject, share, peers, now)
                share.demand.see_free(share.plan.usable - used, self._can_send(state, share, now), now)
            if not replica.alone:
                self.transfers.consider(state, subject, now)
        self._changed(state, now)

    def _can_send(self, state: KeyState, share: Share, now: float) -> bool:
        """Whether a request that waits could go at once, if there were rights."""
        bucket = share.bucket
        return not state.pause.active(now) and (
            bucket is None or bucket.due(share.demand.claim(now), now) <= now
        )

    def _changed(self, state: KeyState, now: float) -> None:
        state.refresh(now)
        if state.queue.waiting:
            state.queue.hand_out(now)

    def __repr__(self) -> str:
        return f"SharedLimits({len(self.keys)} keys)"
