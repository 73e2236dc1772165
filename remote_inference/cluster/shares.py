"""`Shares`: a limiter's part in the replicated state: what it tells the others, what it hears, the rounds in between.

Paths, whose last part is the replica that says it: ("rights" | "given" | "taken", ledger, replica), ("spend", ledger,
second of its clock, replica), ("pause", key, replica). What a key's limits were found out to be is everybody's:
("limits", key).
"""

from __future__ import annotations

import hashlib
import math
import threading
from typing import Any

from ..clock import Clock
from .base import LimitKey
from .crdt import GCounter, LwwRegister, Path, PNCounter
from .key import CONCURRENT, KeyState, Member, Share
from .learned import LearnedLimits
from .ledger import HORIZON, Ledger, Peer, Record
from .pace import Pace
from .replica import LEASE, PERIOD, Replica
from .window import DIMENSIONS, Ceilings

__all__ = ["Shares"]

SETTLE = 1.0
"""Seconds for which a replica knows of no better one before it takes what nobody holds: two rounds of gossip."""
SAME_PAUSE = 0.1
"""Seconds by which a pause has to end later to be another one: clocks are not compared more exactly."""
SHORT_PAUSE = 1.0
"""Seconds; see `Shares.pause`."""
LOOK = 1.0
"""Seconds between two looks at limits that are learned."""

_RIGHTS, _GIVEN, _TAKEN, _SPEND, _PAUSE, _LIMITS = "rights", "given", "taken", "spend", "pause", "limits"


class Shares:
    """All keys of one limiter. But for those of `Part`, methods are called with both locks held.

    Args:
        clock: where time comes from.
        replica: this process among the others.
        window, span, grain: seconds; see `GossipRateLimiter`. ``span`` is the window with its margin.
    """

    kinds = frozenset({_RIGHTS, _GIVEN, _TAKEN, _SPEND, _PAUSE, _LIMITS})

    def __init__(self, clock: Clock, replica: Replica, *, window: float, span: float, grain: float) -> None:
        self.lock = threading.Lock()
        """The limiter's: guards the keys. Taken after the replica's, where both are."""
        self.keys: dict[LimitKey, KeyState] = {}
        self._clock = clock
        self._replica = replica
        self._window = window
        self._span = span
        self._grain = grain
        self._shares: dict[str, tuple[KeyState, Share]] = {}
        self._by_digest: dict[str, KeyState] = {}
        replica.attach(self)

    # -- a `Part`; called with the replica's lock held

    def merged(self, paths: list[Path]) -> None:
        """See `Part`."""
        with self.lock:
            now = self._clock.monotonic()
            touched: dict[str, KeyState] = {}
            for path in paths:
                if path[0] == _PAUSE:
                    self._hear_pause(path, now)
                    continue
                if path[0] == _LIMITS:
                    self._hear_learned(path, now)
                    continue
                found = self._shares.get(path[1]) if len(path) > 1 else None
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
        with self.lock:
            for state in self.keys.values():
                self.round(state, now)
                self._say(state, now)

    def members_changed(self, now: float) -> None:
        """See `Part`."""
        self.before_send(now)
        self._replica.soon()

    def forgotten(self, replica: str) -> None:
        """See `Part`."""
        with self.lock:
            for _, share in self._shares.values():
                share.ledger.forget(replica)
                share.unheard.pop(replica, None)
            for path, entry in self._replica.state.entries.items():
                if path[0] in (_GIVEN, _TAKEN) and isinstance(entry, GCounter):
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
                    share.told.clear()
                    self._hear_all(share, now, of=before)
                state.refresh(now)

    def state(self, key: LimitKey) -> KeyState:
        state = self.keys.get(key)
        if state is None:
            state = KeyState(key, self._replica, self.lock, self._clock, self._span, self._grain)
            self.keys[key] = self._by_digest[state.digest] = state
            for path in self._heard(_PAUSE, state.digest):
                self._hear_pause(path, self._clock.monotonic())
        return state

    def used(self, state: KeyState) -> dict[str, float]:
        """What all have used within the window, as far as it is known."""
        return {
            name: float(getattr(state.window, name) + share.spend.total)
            for name, share in state.shares.items()
            if name != CONCURRENT
        }

    def publish_learned(self, state: KeyState, learned: LearnedLimits) -> None:
        self._replica.own((_LIMITS, state.digest), LwwRegister).set(learned.to_wire(), self._replica.id)

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
        if learned.tick(self.used(state), self._clock.time()):
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
        self.round(state, now)

    def set_member_limit(self, state: KeyState, member: Member, limit: float, now: float) -> None:
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
        for path in list(self._replica.state.entries):
            if path[0] in self.kinds and len(path) >= 3 and path[1] == share.wire and of in (None, path[-1]):
                if path[0] == _SPEND:
                    self._hear_spend(share, path, now)
                else:
                    self._hear_rights(share, path)

    def _heard(self, kind: str, subject: str) -> list[Path]:
        return [path for path in self._replica.state.entries if path[0] == kind and path[1:2] == (subject,)]

    def round(self, state: KeyState, now: float) -> None:
        replica = self._replica
        state.next_round = now + PERIOD
        self._look_at_learned(state, now)
        state.window.forget(now)
        live = [name for name in replica.members(now) if name != replica.id]
        acts = replica.acts(now)
        self.set_crowd(state, now)
        for share, used in state.all_shares():
            ledger = share.ledger
            for path in share.spend.forget(now):
                self._replica.forget((_SPEND, share.wire, str(path[1]), path[0]))
            ledger.merged = share.spend.total
            peers = [
                Peer(name, ledger.records[name], replica.weight_of(name), replica.joining(name))
                for name in live
                if name in ledger.records
            ]
            dead = {name: record for name, record in ledger.records.items() if name not in live}
            expiring = state.window.expiring(share.dimension, now + HORIZON) if ledger.span else 0
            unknown, pace, paused = ledger.unknown, share.pace, state.pause.active(now)
            taken = ledger.round(
                now,
                replica.id,
                replica.weight,
                peers,
                used=used,
                spent=state.spent[DIMENSIONS.index(share.dimension)] if ledger.span else 0,
                expiring=expiring,
                leads=acts and not any(replica.outranked_by(p.name) and not p.joining for p in peers),
                typical=1.0 if share.dimension == "requests" else state.mean_tokens,
                ready=pace is None or pace.due(1, now) <= now + PERIOD,
                sends=not paused and (pace is None or pace.due(ledger.claim(now), now) <= now),
                deals=replica.deals(now),
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
        if not ledger.span or not self._replica.knows(name):
            return 0.0
        known = share.spend.of(name, now)
        heard, said_goodbye = self._replica.heard(name)
        if said_goodbye:
            return known
        if heard + LEASE <= now - ledger.span:
            return known
        most = ledger.most_held(name, self._replica.id)
        unheard = share.unheard.setdefault(
            name, max(0, most - known)
        )  # by the rights that it had or got free
        if (
            share.pace is not None
        ):  # and by its pace: a burst before, and what urgent requests may be ahead of it
            silence = min(heard + LEASE, now) - max(heard, now - ledger.span)
            unheard = min(unheard, record.pace * (silence + 2 * share.pace.burst))
        return float(min(most, known + unheard))

    def _say(self, state: KeyState, now: float) -> None:
        """Put into the replicated state what this replica has to tell."""
        replica, me = self._replica, self._replica.id
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
        entry = self._replica.state.get(path, GCounter)
        known = {} if entry is None else entry.counts
        for name, count in counts.items():
            grown = count - known.get(name, 0)
            if grown > 0:
                self._replica.own(path, GCounter).add(name, grown)

    def _hear_spend(self, share: Share, path: Path, now: float) -> None:
        if len(path) != 4 or path[3] == self._replica.id:
            return
        offset = self._replica.offset_of(path[3])
        entry = self._replica.state.get(path, PNCounter)
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
        kind, name, ledger, state = path[0], path[-1], share.ledger, self._replica.state
        if len(path) != 3 or name == self._replica.id or not self._replica.knows(name):
            return False
        if kind == _RIGHTS:
            register = state.get(path, LwwRegister)
            try:
                record = ledger.records[name] = Record(None if register is None else register.value)
            except ValueError:
                return False
            if record.need >= 1 and (ledger.spare >= 1 or (record.urgent and ledger.held)):
                self._replica.soon()
            return False
        counter = state.get(path, GCounter)
        if counter is None:
            return False
        if kind == _TAKEN:
            ledger.receipts[name] = counter.counts
            return False
        ledger.gifts[name] = counter.counts
        return ledger.accept(name, self._replica.id) > 0

    def _hear_pause(self, path: Path, now: float) -> None:
        state = self._by_digest.get(path[1]) if len(path) == 3 else None
        if state is None:
            return
        epoch, end = state.epoch, -math.inf
        for replica in {path[2], *(p[2] for p in self._heard(_PAUSE, state.digest))}:
            entry = self._replica.state.entries.get((_PAUSE, state.digest, replica))
            offset = self._replica.offset_of(replica)
            if offset is None or not isinstance(entry, LwwRegister) or not _is_pause(entry.value):
                continue
            if entry.value[0] > epoch:
                epoch, end = entry.value[0], entry.value[1] + offset
            elif entry.value[0] == epoch:
                end = max(end, entry.value[1] + offset)
        if end == -math.inf:
            return
        until = self._clock.time() + end - now
        if epoch > state.epoch:  # somebody has opened it before its time
            state.epoch = epoch
            state.pause.end(now)
            self.pause(state, end, until, now)
            state.line.hand_out(now)
        elif end > state.pause.until + SAME_PAUSE:
            self.pause(state, end, until, now)

    def pause(self, state: KeyState, end: float, until: float, now: float) -> bool:
        """Hand out nothing until then; whether that is longer than before. With the limiter's lock only.

        A ramp follows, but for a moment's pause of those who are paced anyway.
        """
        self.set_crowd(state, now)
        if not state.pause.extend(end, until, now, ramp=end - now > SHORT_PAUSE or not state.paces):
            return False
        state.line.wake_all()  # those whom it makes wait too long leave at once
        return True

    def publish_pause(self, state: KeyState, epoch: int, end: float) -> None:
        me = self._replica.id
        self._replica.own((_PAUSE, state.digest, me), LwwRegister).set([epoch, round(end, 3)], me)

    def set_crowd(self, state: KeyState, now: float) -> None:
        members = self._replica.members(now)
        state.pause.crowd, state.pause.rank = len(members), members.index(self._replica.id)


def _is_pause(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 2
        and type(value[0]) is int
        and type(value[1]) in (int, float)
        and 0 <= value[0] < 2**53
        and abs(value[1]) < 1e12
    )
