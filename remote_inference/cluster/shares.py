"""`Shares`: a limiter's part in the replicated state: the rounds between what it hears and what it tells."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Sequence

from ..clock import Clock
from .assumption import Assumption
from .base import LimitKey
from .crdt import GCounter, LwwRegister, Path
from .hearing import Hearing, Subject
from .key import CONCURRENT, KeyState, Member, Share
from .learned import LearnedLimits
from .ledger import Ledger, Peer
from .pace import Pace
from .pauses import Pauses
from .peers import LEASE
from .record import Record
from .replica import Replica
from .telling import GIVEN, KINDS, LIMITS, TAKEN, Telling
from .window import DIMENSIONS, Ceilings

__all__ = ["Shares"]

LOOK = 1.0
"""Seconds between two looks at limits that are learned."""
UNEVEN = 3.0
"""Seconds by which what nobody counted is taken to be spent later than it can have been: evenly, which it never was.
Who starts takes nothing before that anyway."""
SWEEP = 10.0
"""Seconds between two looks for what was spent too long ago to matter."""

_ROUNDS = 2
"""Of gossip: for so long a replica has rights in hand, and waits for a better one to take what nobody holds."""


class Shares:
    """All keys of one limiter. But for those of `Part`, methods are called with both locks held.

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
        self._subjects: dict[str, Subject] = {}
        """By digest: of keys, and of deployments with a limit of their own."""
        self._telling = Telling(replica)
        self._hearing = Hearing(clock, replica, self._subjects, span)
        self._next_sweep = -math.inf
        self.pauses = Pauses(clock, replica, self.lock, self._by_digest)
        replica.attach(self)

    # -- a `Part`; called with the replica's lock held

    def merged(self, paths: list[Path]) -> None:
        """See `Part`."""
        with self.lock:
            now = self._clock.monotonic()
            for path in paths:
                if path[0] == LIMITS:
                    self._hear_learned(path, now)
            for state in self._hearing.hear(paths, now):
                state.refresh(now)
                state.line.hand_out(now)

    def before_send(self, now: float) -> None:
        """See `Part`."""
        with self.lock:
            for state in self.keys.values():
                self.round(state, now)
                self._telling.spend(state)
            for subject, (_, shares) in self._subjects.items():
                if shares:
                    self._telling.rights(subject, shares, now)
            if now >= self._next_sweep:
                self._next_sweep = now + SWEEP
                self._hearing.sweep(now)

    def members_changed(self, now: float) -> None:
        """See `Part`."""
        self.before_send(now)
        self._replica.soon()

    def forgotten(self, replica: str) -> None:
        """See `Part`."""
        with self.lock:
            for _, shares in self._subjects.values():
                for share in shares.values():
                    share.ledger.forget(replica)
                    share.unheard.pop(replica, None)
                    share.assumption.forget(replica)
            for path, entry in self._replica.state.entries.items():
                if path[0] in (GIVEN, TAKEN) and isinstance(entry, GCounter):
                    entry.drop(replica)

    def rejoined(self, before: str) -> None:
        """See `Part`."""
        with self.lock:
            now = self._clock.monotonic()
            for state in self.keys.values():
                state.window.clear()
                state.unsaid.clear()
                for share, _ in state.all_shares():
                    share.ledger.give_up()
                    share.assumption.clear()
            for subject in self._subjects:
                self._hearing.hear_all(subject, now, of=before)
            for state in self.keys.values():
                state.refresh(now)

    def state(self, key: LimitKey) -> KeyState:
        state = self.keys.get(key)
        if state is None:
            state = KeyState(key, self._replica, self.lock, self._clock, self._span, self._grain)
            self.keys[key] = self._by_digest[state.digest] = state
            self._subjects[state.digest] = (state, state.shares)
            self.pauses.catch_up(state)
        return state

    def used(self, state: KeyState, now: float) -> dict[str, float]:
        """What all have used within the window, as far as it is known, or is assumed."""
        state.window.forget(now)
        others = self.used_by_others(state, now)
        return {name: getattr(state.window, name) + amount for name, amount in others.items()}

    def used_by_others(self, state: KeyState, now: float) -> dict[str, float]:
        """The others' part of that."""
        me = self._replica.id
        return {
            name: state.spend.total(name) + share.assumption.of_others(me, now)
            for name, share in state.shares.items()
            if name != CONCURRENT
        }

    def publish_learned(self, state: KeyState, learned: LearnedLimits) -> None:
        self._telling.limits(state, learned)

    def _hear_learned(self, path: Path, now: float) -> None:
        state = self._by_digest.get(path[1]) if len(path) == 2 else None
        register = self._replica.state.get(path, LwwRegister)
        if state is None or state.learned is None or register is None:
            return
        if state.learned.merge_wire(register.value, self._clock.time()):
            self.set_limits(state, now)
            state.line.hand_out(now)

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
        for member in state.members.values():
            ceilings = ceilings.least(member.ceilings)
            burst = min(burst, member.burst)
            learns |= member.learns
        if not learns:
            state.learned = None
        else:
            if state.learned is None:
                state.learned = LearnedLimits()
                self._hear_learned((LIMITS, state.digest), now)
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
                pace = Pace(burst, now) if paced else None
                share = Share(name, self._ledger(name, span, now), pace, Assumption(state.window, name), now)
                state.shares[name] = share
                self._hearing.hear_all(state.digest, now)
            share.ledger.limit = limit
        state.paces = [
            (index, share.pace)
            for index, name in enumerate(DIMENSIONS)
            if (share := state.shares.get(name)) is not None and share.pace is not None
        ]
        self.round(state, now)

    def set_member_limit(self, state: KeyState, member: Member, limit: float, now: float) -> None:
        digest = hashlib.blake2b(member.name.encode(), digest_size=8, key=b"deployment").hexdigest()
        if limit == math.inf:
            member.share = None
            self._subjects.pop(digest, None)
            return
        if member.share is None:
            ledger = self._ledger(CONCURRENT, 0.0, now)
            member.share = Share(CONCURRENT, ledger, None, Assumption(state.window, CONCURRENT), now)
            self._subjects[digest] = (state, {CONCURRENT: member.share})
            self._hearing.hear_all(digest, now)
        member.share.ledger.limit = limit

    def _ledger(self, name: str, span: float, now: float) -> Ledger:
        return Ledger(name, span=span, now=now, horizon=_ROUNDS * self._replica.period)

    def round(self, state: KeyState, now: float) -> None:
        replica = self._replica
        state.next_round = now + replica.period
        self._look_at_learned(state, now)
        state.window.forget(now)
        state.spend.forget(now)
        live = [name for name in replica.members(now) if name != replica.id]
        acts = replica.acts(now)
        if acts:
            self._deal_assumed(state, live, now)
        for share, used in state.all_shares():
            ledger = share.ledger
            ledger.merged = state.spend.total(share.dimension)
            peers = [
                Peer(name, ledger.records[name], replica.weight_of(name), replica.joining(name))
                for name in live
                if name in ledger.records
            ]
            dead = {name: record for name, record in ledger.records.items() if name not in live}
            expiring = state.window.expiring(share.dimension, now + ledger.horizon) if ledger.span else 0
            unknown, pace, paused = ledger.unknown, share.pace, state.pause.active(now)
            taken = ledger.round(
                now,
                replica.id,
                replica.weight,
                peers,
                used=used,
                spent=state.spent[DIMENSIONS.index(share.dimension)] if ledger.span else 0,
                expiring=expiring,
                served=state.spent[0],
                leads=acts and not any(replica.outranked_by(p.name) and not p.joining for p in peers),
                typical=1.0 if share.dimension == "requests" else state.mean_tokens,
                ready=pace is None or pace.due(1, now) <= now + replica.period,
                sends=not paused and (pace is None or pace.due(ledger.claim(now), now) <= now),
                deals=replica.deals(now),
                settle=0.0 if replica.alone else _ROUNDS * replica.period,
                dead=sum(
                    self._spent_by_dead(state, share, name, record, now) for name, record in dead.items()
                ),
            )
            if taken and unknown and not ledger.merged:
                self._assume_the_worst(state, share, taken, now)
        state.refresh(now)
        if state.line.waiting:
            state.line.hand_out(now)

    def _assume_the_worst(self, state: KeyState, share: Share, taken: int, now: float) -> None:
        """Nobody knows what was spent before: `Assumption`. Who allows larger bursts allows them here as well."""
        if not share.ledger.span or share.pace is None:
            return
        burst = min(member.burst for member in state.members.values())
        part = (self._window - burst) / (self._window - 1.0) if burst > 1.0 else 1.0
        counted = max(share.since, self._replica.hears_since)
        if counted > now - self._span:  # else all that matters was counted: the limit was found out later
            share.assumption.begin(round(taken * part), min(now, counted + UNEVEN), self._replica.id, now)

    def _deal_assumed(self, state: KeyState, live: Sequence[str], now: float) -> None:
        """Give the others their part of what was assumed to be spent."""
        replica = self._replica
        for share in state.shares.values():
            assumption, ledger = share.assumption, share.ledger
            if not assumption.lasts(now):
                continue
            joining = {name for name in live if replica.joining(name)}
            knowing = [replica.id, *(name for name in live if name in ledger.records and name not in joining)]
            weights = {name: replica.weight_of(name) for name in knowing}
            coming = sum(map(replica.weight_of, joining))
            for taker, amount in assumption.deal(replica.id, weights, coming, now).items():
                ledger.hand(taker, amount)
                assumption.dealt[taker] = assumption.dealt[taker]._replace(upto=ledger.given.get(taker, 0))

    def _spent_by_dead(self, state: KeyState, share: Share, name: str, record: Record, now: float) -> float:
        """What it is known to have spent within the window, and may have spent before it gave up, unheard."""
        ledger = share.ledger
        if not ledger.span or not self._replica.knows(name):
            return 0.0
        known = state.spend.of(name, share.dimension, now) + share.assumption.of(name, now)
        heard, said_goodbye = self._replica.heard(name)
        if said_goodbye:
            return known
        if heard + LEASE <= now - ledger.span:
            return known
        most = ledger.most_held(name, self._replica.id)
        # bounded by the rights that it had or got free ...
        unheard = share.unheard.setdefault(name, max(0, most - known))
        if share.pace is not None:
            # ... and by its pace, with a burst saved up and urgent requests a burst ahead
            silence = min(heard + LEASE, now) - max(heard, now - ledger.span)
            unheard = min(unheard, record.pace * (silence + 2 * share.pace.burst))
        return float(min(most, known + unheard))
