"""`GossipRateLimiter`: the limits of a key, kept by all replicas together, with no server but the broker's gossip.

Of each dimension of a limit a replica holds rights (`ledger`), and spends them within its own sliding window
(`window`), not quicker than its share (`pace`). Every decision is made under one lock, every wait outside it. A
permit looks at this replica's own figures only; what the others say is worked in between, twice a second.
"""

from __future__ import annotations

import hashlib
import math
import threading
from typing import Any

from ..cancel import CancelToken
from ..clock import Clock
from ..config import RateLimits
from ..errors import ConfigurationError, LimitReached
from ..policy.quota import QuotaReport
from ..types import Priority
from .base import Cost, LimitKey
from .crdt import GCounter, LwwRegister, Path, PNCounter
from .key import CONCURRENT, GossipPermit, KeyState, Member, Share
from .learned import LearnedLimits
from .ledger import HORIZON, Ledger, Peer, Record
from .line import Waiter
from .pace import Pace
from .replica import LEASE, PERIOD, Replica
from .window import DIMENSIONS, Ceilings

__all__ = ["GossipRateLimiter"]

SETTLE = 1.0
"""Seconds for which a replica knows of no better one before it takes what nobody holds: two rounds of gossip."""
SAME_PAUSE = 0.1
"""Seconds by which a pause has to end later to be another one: clocks are not compared more exactly."""

SHORT_PAUSE = 1.0
"""Seconds; see `_ramps`."""
SLACK = 0.03
"""The part of a limit by which the provider's count may be ahead of ours without meaning anything."""
LOOK = 1.0
"""Seconds between two looks at limits that are learned."""

_SHORTEST_RETRY = 0.1
_ROUNDING = 1e-6  # so that who asks at `retry_at` is not a rounding error early
_RIGHTS, _GIVEN, _TAKEN, _SPEND, _PAUSE, _LIMITS = "rights", "given", "taken", "spend", "pause", "limits"


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

    kinds = frozenset({_RIGHTS, _GIVEN, _TAKEN, _SPEND, _PAUSE, _LIMITS})

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
        self._window = window
        self._span = window + margin
        self._grain = grain
        self._lock = threading.Lock()
        self._keys: dict[LimitKey, KeyState] = {}
        self._shares: dict[str, tuple[KeyState, Share]] = {}
        self._by_digest: dict[str, KeyState] = {}
        self.replica.attach(self)

    # -- a RateLimiter

    def configure(
        self, key: LimitKey, limits: RateLimits, *, deployment: str, max_concurrent: int | None = None
    ) -> None:
        """See `RateLimiter`.

        A deployment that moves to another key no longer binds the old one; what it has running stays counted
        there.
        """
        with self.replica.lock, self._lock:
            now = self._clock.monotonic()
            for other in self._keys.values():
                if other.name != key and deployment in other.members:
                    other.members[deployment].ceilings = Ceilings()
                    self._set_limits(other, now)
            state = self._state(key)
            member = state.members.setdefault(deployment, Member(deployment))
            member.ceilings = Ceilings.of(limits)
            member.burst = limits.burst
            member.learns = limits.learn
            self._set_member_limit(state, member, math.inf if max_concurrent is None else max_concurrent, now)
            self._set_limits(state, now)

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
            state, member = self._known(key, deployment)
            now = self._clock.monotonic()
            line = state.line
            if not line.waiting:
                permit = state.take(member, cost, now)
                if permit is not None:
                    return permit
            waiter = line.join(member, cost, priority)
        try:
            with token.interrupting(waiter.event.set):
                return self._wait(state, waiter, now + max(patience, 0.0), token)
        except BaseException as exc:  # also what a pool throws into its threads: nothing may stay behind
            self._leave(state, waiter)
            if isinstance(exc, _Refused):
                if exc.urgent:
                    self.replica.urgent()
                raise exc.error from None
            raise

    def _wait(
        self, state: KeyState, waiter: Waiter[GossipPermit], deadline: float, token: CancelToken
    ) -> GossipPermit:
        member: Member = waiter.standing  # type: ignore[assignment]  # there are no others
        told = False
        while True:
            with self._lock:
                now = self._clock.monotonic()
                waiter.event.clear()  # before all that is looked at: what happens after it sets it again
                state.line.hand_out(now)
                token.check()
                if waiter.permit is not None:
                    return waiter.permit
                due, code = state.due(member, waiter.cost, now)
                if now >= deadline or due > deadline:
                    raise self._refusal(state, waiter, now)
                until = min(deadline, waiter.wake_at) if state.line.leader is waiter else deadline
                urgent = not told and self._told(state, waiter, code, now, due)
            if urgent:
                told = True
                self.replica.urgent()
            self._clock.wait(waiter.event, until - now)

    def _told(self, state: KeyState, waiter: Waiter[GossipPermit], code: str, now: float, due: float) -> bool:
        member: Member = waiter.standing  # type: ignore[assignment]
        if not code and (member.full or state.full):
            code = "concurrency"
        return bool(code) and state.wanted(member, waiter.cost, code, now, due)

    def _refusal(self, state: KeyState, waiter: Waiter[GossipPermit], now: float) -> _Refused:
        member: Member = waiter.standing  # type: ignore[assignment]
        at, code = state.due(member, waiter.cost, now)
        urgent = False
        if at <= now:
            if member.full or state.full:
                at, code = state.room_due(member, now), "concurrency"
            else:  # it would fit, but others come first
                leader = state.line.leader
                at, code = max(leader.wake_at if leader is not None else now, now + _SHORTEST_RETRY), "queue"
        urgent = state.wanted(member, waiter.cost, code, now, at)
        if at == math.inf:
            at = now + self._span
        return _Refused(LimitReached(code, member.name, retry_at=self._epoch(at, now)), urgent)

    def _leave(self, state: KeyState, waiter: Waiter[GossipPermit]) -> None:
        with self._lock:
            if waiter.permit is None:
                state.line.leave(waiter, self._clock.monotonic())
        if waiter.permit is not None:  # it came between the decision to leave and now
            waiter.permit.refund()

    def observe(self, key: LimitKey, report: QuotaReport) -> None:
        """See `RateLimiter`. What was learned the others hear at once."""
        with self.replica.lock:
            with self._lock:
                state = self._state(key)
                now, epoch = self._clock.monotonic(), self._clock.time()
                learned = state.learned
                news = False
                if learned is not None:
                    news = learned.observe(report)
                    if report.refused:
                        news |= learned.refused(self._used(state), epoch, report)
                    if news:
                        self._set_limits(state, now)
                self._hear_left(state, report, now)
            if learned is not None and news:
                self._publish_learned(state, learned)
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
                state = self._state(key)
                now = self._clock.monotonic()
                end = now + (until - self._clock.time())
                self._set_crowd(state, now)
                if not state.pause.extend(end, until, now, ramp=_ramps(state, end - now)):
                    return
                state.line.wake_all()  # those whom it makes wait too long leave at once
                epoch = state.epoch
            self._publish_pause(state, epoch, end)
        self.replica.urgent()

    def resume(self, key: LimitKey) -> None:
        """See `RateLimiter`. The ramp begins here."""
        with self.replica.lock:
            with self._lock:
                state = self._keys.get(key)
                now = self._clock.monotonic()
                if state is None or not state.pause.active(now):
                    return
                self._set_crowd(state, now)
                state.epoch += 1
                state.pause.end(now)
                state.line.hand_out(now)
                epoch = state.epoch
            self._publish_pause(state, epoch, now)
        self.replica.urgent()

    def paused_until(self, key: LimitKey) -> float:
        """See `RateLimiter`."""
        with self._lock:
            state = self._keys.get(key)
            return state.pause.until_epoch if state and state.pause.active(self._clock.monotonic()) else 0.0

    def opens_at(self, key: LimitKey, deployment: str, cost: Cost) -> float:
        """See `RateLimiter`."""
        with self._lock:
            state, member = self._known(key, deployment)
            now = self._clock.monotonic()
            at, _ = state.due(member, cost, now)
            if member.full or state.full:
                at = max(at, state.room_due(member, now))
            return self._epoch(min(at, now + self._span), now) if at > now else 0.0

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
            "limits": {name: int(share.ledger.total) for name, share in state.shares.items()},
            "rights": {name: share.ledger.held for name, share in state.shares.items()},
            "used_by_others": {
                name: share.spend.total for name, share in state.shares.items() if name != CONCURRENT
            },
            "paused_until": state.pause.until_epoch if state.pause.active(now) else 0.0,
            "waiting": state.line.waiting,
            "deployments": {
                member.name: {
                    "in_flight": member.in_flight,
                    "waiting": len(member.line),
                    "max_concurrent": None if member.share is None else int(member.share.ledger.total),
                }
                for member in state.members.values()
            },
        }

    # -- a Part of the replicated state; called with the replica's lock held

    def merged(self, paths: list[Path]) -> None:
        """See `Part`."""
        with self._lock:
            now = self._clock.monotonic()
            touched: dict[str, KeyState] = {}
            for path in paths:
                if path[0] == _PAUSE:
                    self._hear_pause(path, now)
                    continue
                if path[0] == _LIMITS:
                    self._hear_learned(path, now)
                    continue
                found = self._shares.get(path[1])
                if found is None:
                    continue
                state, share = found
                if path[0] == _SPEND:
                    self._hear_spend(share, path, now)
                elif self._hear_rights(share, path):
                    touched[state.digest] = state
            for state in touched.values():
                state.refresh(now)
                state.line.hand_out(now)

    def before_send(self, now: float) -> None:
        """See `Part`."""
        with self._lock:
            for state in self._keys.values():
                self._round(state, now)
                self._say(state, now)

    def members_changed(self, now: float) -> None:
        """See `Part`."""
        self.before_send(now)
        self.replica.soon()

    def forgotten(self, replica: str) -> None:
        """See `Part`."""
        with self._lock:
            for _, share in self._shares.values():
                share.ledger.forget(replica)

    def rejoined(self, before: str) -> None:
        """See `Part`."""
        with self._lock:
            now = self._clock.monotonic()
            for state in self._keys.values():
                state.window.clear()
                state.unsaid.clear()
                for share, _ in state.all_shares():
                    share.ledger.give_up()
                    share.told.clear()
                    self._hear_all(share, now, of=before)
                state.refresh(now)

    # -- inside, with the limiter's lock held

    def _known(self, key: LimitKey, deployment: str) -> tuple[KeyState, Member]:
        state = self._keys.get(key)
        member = state.members.get(deployment) if state is not None else None
        if state is None or member is None:
            raise ConfigurationError([f"{deployment}: no limits were configured for {key}"])
        return state, member

    def _state(self, key: LimitKey) -> KeyState:
        state = self._keys.get(key)
        if state is None:
            state = KeyState(key, self.replica, self._lock, self._clock, self._span, self._grain)
            self._keys[key] = self._by_digest[state.digest] = state
            for path in self._heard(_PAUSE, state.digest):
                self._hear_pause(path, self._clock.monotonic())
        return state

    def _hear_left(self, state: KeyState, report: QuotaReport, now: float) -> None:
        """What the provider says is left, against what was counted here."""
        left = report.remaining()
        state.window.forget(now)
        for name, share in state.shares.items():
            if name in left:
                ledger = share.ledger
                slack = max(SLACK * ledger.total, len(ledger.records)) if ledger.total < math.inf else 0.0
                ledger.hear_left(left[name], getattr(state.window, name) + share.spend.total, slack, now)

    def _used(self, state: KeyState) -> dict[str, float]:
        """What all have used within the window, as far as it is known."""
        return {
            name: float(getattr(state.window, name) + share.spend.total)
            for name, share in state.shares.items()
            if name != CONCURRENT
        }

    def _publish_learned(self, state: KeyState, learned: LearnedLimits) -> None:
        self.replica.own((_LIMITS, state.digest), LwwRegister).set(learned.to_wire(), self.replica.id)

    def _hear_learned(self, path: Path, now: float) -> None:
        state = self._by_digest.get(path[1]) if len(path) == 2 else None
        register = self.replica.state.get(path, LwwRegister)
        if state is None or state.learned is None or register is None:
            return
        if state.learned.merge_wire(register.value, self._clock.time()):
            self._set_limits(state, now)
            state.line.hand_out(now)

    def _look_at_learned(self, state: KeyState, now: float) -> None:
        """Learned limits grow with time."""
        learned = state.learned
        if learned is None or now < state.next_look:
            return
        state.next_look = now + LOOK
        if learned.tick(self._used(state), self._clock.time()):
            self._publish_learned(state, learned)
        self._set_limits(state, now)

    def _set_limits(self, state: KeyState, now: float) -> None:
        """Of what the deployments name, the least holds."""
        ceilings, burst, learns = Ceilings(), math.inf, False
        for member in state.members.values():
            ceilings = ceilings.least(member.ceilings)
            burst = min(burst, member.burst)
            learns |= member.learns
        if not learns:
            state.learned = None
        else:
            if state.learned is None:
                state.learned = LearnedLimits()
                self._hear_learned((_LIMITS, state.digest), now)
            ceilings = ceilings.least(Ceilings(**state.learned.ceilings(self._clock.time())))
        for name in (*DIMENSIONS, CONCURRENT):
            limit = getattr(ceilings, name)
            share = state.shares.get(name)
            if limit == math.inf and not (learns and name != CONCURRENT):  # else it is counted all the same
                if share is not None:
                    del state.shares[name], self._shares[share.wire]
                continue
            if share is None:
                span = 0.0 if name == CONCURRENT else self._span
                paced = bool(span) and burst < self._window
                share = self._new_share(
                    state, state.digest, name, span, Pace(burst, now) if paced else None, now
                )
                state.shares[name] = share
            share.ledger.limit = limit
        state.paces = [
            (index, share.pace)
            for index, name in enumerate(DIMENSIONS)
            if (share := state.shares.get(name)) is not None and share.pace is not None
        ]
        self._round(state, now)

    def _set_member_limit(self, state: KeyState, member: Member, limit: float, now: float) -> None:
        if limit == math.inf:
            if member.share is not None:
                del self._shares[member.share.wire]
                member.share = None
        else:
            if member.share is None:
                digest = hashlib.blake2b(member.name.encode(), digest_size=8, key=b"deployment").hexdigest()
                member.share = self._new_share(state, digest, CONCURRENT, 0.0, None, now)
            member.share.ledger.limit = limit

    def _new_share(
        self, state: KeyState, digest: str, dimension: str, span: float, pace: Pace | None, now: float
    ) -> Share:
        share = Share(f"{digest}.{dimension}", dimension, Ledger(dimension, span=span, now=now), pace)
        self._shares[share.wire] = (state, share)
        self._hear_all(share, now)
        return share

    def _hear_all(self, share: Share, now: float, of: str | None = None) -> None:
        for path in list(self.replica.state.entries):
            if path[0] in self.kinds and len(path) >= 3 and path[1] == share.wire and of in (None, path[-1]):
                if path[0] == _SPEND:
                    self._hear_spend(share, path, now)
                else:
                    self._hear_rights(share, path)

    def _heard(self, kind: str, subject: str) -> list[Path]:
        return [path for path in self.replica.state.entries if path[0] == kind and path[1] == subject]

    def _look_after(self, key: LimitKey) -> None:
        """Alone, there is no gossip whose rounds would do it."""
        state = self._keys.get(key)
        if state is not None and self._clock.monotonic() >= state.next_round:
            with self.replica.lock, self._lock:
                self._round(state, self._clock.monotonic())
                state.unsaid.clear()

    def _round(self, state: KeyState, now: float) -> None:
        replica = self.replica
        state.next_round = now + PERIOD
        self._look_at_learned(state, now)
        state.window.forget(now)
        live = [name for name in replica.members(now) if name != replica.id]
        acts = replica.acts(now)
        self._set_crowd(state, now)
        for share, used in state.all_shares():
            ledger = share.ledger
            for path in share.spend.forget(now):
                self.replica.forget((_SPEND, share.wire, str(path[1]), path[0]))
            ledger.merged = share.spend.total
            peers = [
                Peer(name, ledger.records[name], replica.weight_of(name), replica.joining(name))
                for name in live
                if name in ledger.records
            ]
            dead = {name: record for name, record in ledger.records.items() if name not in live}
            expiring = state.window.expiring(share.dimension, now + HORIZON) if ledger.span else 0
            unknown = ledger.unknown
            taken = ledger.round(
                now,
                replica.id,
                replica.weight,
                peers,
                used=used,
                expiring=expiring,
                leads=acts and not any(p.name < replica.id and not p.joining for p in peers),
                ready=share.pace is None or share.pace.due(1, now) <= now + PERIOD,
                settle=0.0 if replica.alone else SETTLE,
                dead=sum(self._spent_by_dead(share, name, record, now) for name, record in dead.items()),
            )
            if taken and unknown and not share.spend.total:
                self._assume_the_worst(state, share, taken, now)
        state.refresh(now)
        if state.line.waiting:
            state.line.hand_out(now)

    def _assume_the_worst(self, state: KeyState, share: Share, taken: int, now: float) -> None:
        """The first that knows a limit cannot know what was spent just before: all, evenly, it has to assume.

        So a restart of everything keeps the limit too. Who allows larger bursts allows them here as well.
        """
        if not share.ledger.span or share.pace is None:
            return
        burst = min(member.burst for member in state.members.values())
        assumed = taken * (self._window - burst) / (self._window - 1.0) if burst > 1.0 else float(taken)
        steps = int(self._span / self._grain)
        amounts, told = [], 0
        for step in range(1, steps + 1):
            upto = round(assumed * step / steps)
            if upto > told:
                amounts.append((now - self._span + step * self._grain, upto - told))
                told = upto
        state.window.assume(share.dimension, amounts)
        index = DIMENSIONS.index(share.dimension)
        for at, amount in amounts:
            state.unsaid.setdefault(math.floor(at), [0, 0, 0, 0])[index] += amount

    def _spent_by_dead(self, share: Share, name: str, record: Record, now: float) -> float:
        """What it is known to have spent within the window, and may have spent before it gave up, unheard."""
        ledger = share.ledger
        if not ledger.span or not self.replica.knows(name):
            return 0.0
        known = share.spend.of(name, now)
        heard, said_goodbye = self.replica.heard(name)
        if said_goodbye:
            return known
        silent_from, silent_to = max(heard, now - ledger.span), min(heard + LEASE, now)
        unheard = record.pace * max(0.0, silent_to - silent_from)
        return float(min(record.held, known + unheard))

    def _say(self, state: KeyState, now: float) -> None:
        """Put into the replicated state what this replica has to tell."""
        replica, me = self.replica, self.replica.id
        for second, amounts in sorted(state.unsaid.items()):
            for index, name in enumerate(DIMENSIONS):
                share = state.shares.get(name)
                if share is not None and amounts[index]:
                    replica.own((_SPEND, share.wire, str(second), me), PNCounter).add(me, amounts[index])
                    if not share.told or share.told[-1] < second:
                        share.told.append(second)
        state.unsaid = {}
        for share, _ in state.all_shares():
            ledger = share.ledger
            value = ledger.record(now)
            path = (_RIGHTS, share.wire, me)
            known = replica.state.get(path, LwwRegister)
            if known is None or known.value != value:
                replica.own(path, LwwRegister).set(value, me)
            self._say_counts((_GIVEN, share.wire, me), ledger.given)
            self._say_counts((_TAKEN, share.wire, me), ledger.taken)
            oldest = math.floor(now - self._span) - 1
            while share.told and share.told[0] <= oldest:
                replica.forget((_SPEND, share.wire, str(share.told.popleft()), me))

    def _say_counts(self, path: Path, counts: dict[str, int]) -> None:
        if not counts:
            return
        entry = self.replica.state.get(path, GCounter)
        known = {} if entry is None else entry.counts
        for name, count in counts.items():
            grown = count - known.get(name, 0)
            if grown > 0:
                self.replica.own(path, GCounter).add(name, grown)

    def _hear_spend(self, share: Share, path: Path, now: float) -> None:
        if len(path) != 4 or path[3] == self.replica.id:
            return
        offset = self.replica.offset_of(path[3])
        entry = self.replica.state.get(path, PNCounter)
        if offset is None or entry is None:
            return
        try:
            second = int(path[2])
        except ValueError:
            return
        expires = second + 1 + offset + share.ledger.span
        if expires <= now + 2 * share.ledger.span:
            share.spend.hear(path[3], second, max(0, entry.value), expires, now)

    def _hear_rights(self, share: Share, path: Path) -> bool:
        """A record or counters of another; whether that changes what this replica may do now."""
        kind, name, ledger, state = path[0], path[-1], share.ledger, self.replica.state
        if len(path) != 3 or name == self.replica.id or not self.replica.knows(name):
            return False
        if kind == _RIGHTS:
            register = state.get(path, LwwRegister)
            try:
                record = ledger.records[name] = Record(None if register is None else register.value)
            except ValueError:
                return False
            if record.need >= 1 and ledger.spare >= 1:
                self.replica.soon()
            return False
        counter = state.get(path, GCounter)
        if counter is None:
            return False
        if kind == _TAKEN:
            ledger.receipts[name] = counter.counts
            return False
        ledger.gifts[name] = counter.counts
        return ledger.accept(name, self.replica.id) > 0

    def _hear_pause(self, path: Path, now: float) -> None:
        state = self._by_digest.get(path[1]) if len(path) == 3 else None
        if state is None:
            return
        epoch, end = state.epoch, -math.inf
        for replica in {path[2], *(p[2] for p in self._heard(_PAUSE, state.digest))}:
            entry = self.replica.state.entries.get((_PAUSE, state.digest, replica))
            offset = self.replica.offset_of(replica)
            if offset is None or not isinstance(entry, LwwRegister) or not _is_pause(entry.value):
                continue
            if entry.value[0] > epoch:
                epoch, end = entry.value[0], entry.value[1] + offset
            elif entry.value[0] == epoch:
                end = max(end, entry.value[1] + offset)
        if end == -math.inf:
            return
        self._set_crowd(state, now)
        until = self._clock.time() + end - now
        if epoch > state.epoch:
            state.epoch = epoch
            state.pause.end(now)
            state.pause.extend(end, until, now, ramp=_ramps(state, end - now))
            state.line.hand_out(now)
        elif end > state.pause.until + SAME_PAUSE and state.pause.extend(
            end, until, now, ramp=_ramps(state, end - now)
        ):
            state.line.wake_all()

    def _publish_pause(self, state: KeyState, epoch: int, end: float) -> None:
        me = self.replica.id
        self.replica.own((_PAUSE, state.digest, me), LwwRegister).set([epoch, round(end, 3)], me)

    def _set_crowd(self, state: KeyState, now: float) -> None:
        members = self.replica.members(now)
        state.pause.crowd, state.pause.rank = len(members), members.index(self.replica.id)

    def _epoch(self, at: float, now: float) -> float:
        return self._clock.time() + (at - now) + _ROUNDING

    def __repr__(self) -> str:
        with self._lock:
            running = sum(state.in_flight for state in self._keys.values())
            waiting = sum(state.line.waiting for state in self._keys.values())
            return f"GossipRateLimiter({len(self._keys)} keys, {running} running, {waiting} waiting)"


class _Refused(Exception):
    """Carries the refusal out of the lock; ``urgent``: others may be able to help."""

    def __init__(self, error: LimitReached, urgent: bool) -> None:
        super().__init__(error)
        self.error = error
        self.urgent = urgent


def _ramps(state: KeyState, seconds: float) -> bool:
    """Whether a pause of that length is followed by a ramp: a moment's is not, where all are paced anyway."""
    return seconds > SHORT_PAUSE or not state.paces


def _is_pause(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 2
        and type(value[0]) is int
        and type(value[1]) in (int, float)
        and 0 <= value[0] < 2**53
        and abs(value[1]) < 1e12
    )
