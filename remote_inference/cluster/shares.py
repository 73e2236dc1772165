"""`Shares`: a limiter's part in the replicated state: what it tells the others, what it hears, the rounds in between.

Paths, whose last part is the replica that says it: ("rights", subject, replica), of each dimension; ("given" | "taken",
subject, dimension, replica); ("assumed", subject, dimension, taker, replica), what of a gift is taken to be spent;
("spend", subject, second of its clock, replica), of each dimension. What a key's limits
were found out to be is everybody's: ("limits", subject). A subject is the digest of a key, or of a deployment that has
a limit of its own.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Sequence

from ..clock import Clock
from .assumption import Assumption, Spent, from_wire, to_wire
from .base import LimitKey
from .crdt import GCounter, LwwRegister, Path, PNCounter
from .key import CONCURRENT, KeyState, Member, Share
from .learned import LearnedLimits
from .ledger import Ledger, Peer
from .pace import Pace
from .pauses import Pauses
from .peers import LEASE
from .record import Record, is_news
from .replica import Replica
from .window import DIMENSIONS, Ceilings

__all__ = ["Shares"]

LOOK = 1.0
"""Seconds between two looks at limits that are learned."""
SWEEP = 10.0
"""Seconds between two looks for what was spent too long ago to matter."""

_ROUNDS = 2
"""Of gossip: for so long a replica has rights in hand, and waits for a better one to take what nobody holds."""
_RIGHTS, _GIVEN, _TAKEN, _SPEND, _LIMITS = "rights", "given", "taken", "spend", "limits"
_ASSUMED = "assumed"


class Shares:
    """All keys of one limiter. But for those of `Part`, methods are called with both locks held.

    Args:
        clock: where time comes from.
        replica: this process among the others.
        window, span, grain: seconds; see `GossipRateLimiter`. ``span`` is the window with its margin.
    """

    kinds = frozenset({_RIGHTS, _GIVEN, _TAKEN, _ASSUMED, _SPEND, _LIMITS})

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
        self._subjects: dict[str, tuple[KeyState, dict[str, Share]]] = {}
        """By digest: of keys, and of deployments with a limit of their own."""
        self._next_sweep = -math.inf
        self.pauses = Pauses(clock, replica, self.lock, self._by_digest)
        replica.attach(self)

    # -- a `Part`; called with the replica's lock held

    def merged(self, paths: list[Path]) -> None:
        """See `Part`."""
        with self.lock:
            now = self._clock.monotonic()
            touched: dict[str, KeyState] = {}
            for path in paths:
                if path[0] == _LIMITS:
                    self._hear_learned(path, now)
                elif (state := self._hear(path, now)) is not None:
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
            if now >= self._next_sweep:
                self._next_sweep = now + SWEEP
                self._sweep(now)

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
                    share.assumption.clear()
            for subject in self._subjects:
                self._hear_all(subject, now, of=before)
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
                self._hear_learned((_LIMITS, state.digest), now)
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
                self._hear_all(state.digest, now)
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
            self._hear_all(digest, now)
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
        since = max(share.since, self._replica.hears_since)
        if since > now - self._span:  # else all that matters was counted: the limit was found out later
            share.assumption.begin(round(taken * part), since, self._replica.id, now)

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

    def _say(self, state: KeyState, now: float) -> None:
        """Put into the replicated state what this replica has to tell."""
        replica, me = self._replica, self._replica.id
        for second, amounts in sorted(state.unsaid.items()):
            for index, name in enumerate(DIMENSIONS):
                if amounts[index] and name in state.shares:
                    replica.own((_SPEND, state.digest, str(second), me), PNCounter).add(name, amounts[index])
        state.unsaid = {}
        for subject, (owner, shares) in self._subjects.items():
            if owner is state and shares:
                self._say_rights(subject, shares, now)

    def _say_rights(self, subject: str, shares: dict[str, Share], now: float) -> None:
        replica, me = self._replica, self._replica.id
        value = {name: share.ledger.record(now) for name, share in shares.items()}
        path = (_RIGHTS, subject, me)
        known = replica.state.get(path, LwwRegister)
        told = None if known is None else known.value
        news = (
            type(told) is not dict
            or told.keys() != value.keys()
            or (replica.says_all(now) and told != value)
            or any(is_news(told[name], value[name], wanted=shares[name].ledger.wanted) for name in value)
        )
        if news:
            replica.own(path, LwwRegister).set(value, me)
        for name, share in shares.items():
            news |= self._say_counts((_GIVEN, subject, name, me), share.ledger.given)
            news |= self._say_counts((_TAKEN, subject, name, me), share.ledger.taken)
        for share in shares.values():
            if news and share.assumption.lasts(now):
                self._say_assumed(subject, share)

    def _say_assumed(self, subject: str, share: Share) -> None:
        """With every word of rights: who hears of a gift has to hear at once what of it is spent."""
        me = self._replica.id
        for taker, spent in share.assumption.dealt.items():
            if taker == me or share.ledger.receipts.get(taker, {}).get(me, 0) < spent.upto:
                path = (_ASSUMED, subject, share.dimension, taker, me)
                self._replica.own(path, LwwRegister).set(to_wire(spent), me)

    def _say_counts(self, path: Path, counts: dict[str, int]) -> bool:
        if not counts:
            return False
        entry, news = self._replica.state.get(path, GCounter), False
        known = {} if entry is None else entry.counts
        for name, count in counts.items():
            grown = count - known.get(name, 0)
            if grown > 0:
                self._replica.own(path, GCounter).add(name, grown)
                news = True
        return news

    def _hear_all(self, subject: str, now: float, of: str | None = None) -> None:
        for path in list(self._replica.state.entries):
            if path[0] in self.kinds and path[1:2] == (subject,) and of in (None, path[-1]):
                self._hear(path, now)

    def _hear(self, path: Path, now: float) -> KeyState | None:
        """What another one has spent, holds or has given; the key, if this replica may do more or less now."""
        name, replica = path[-1], self._replica
        found = self._subjects.get(path[1]) if len(path) >= 3 else None
        if found is None or name == replica.id:
            return None
        state, shares = found
        if path[0] == _SPEND:
            self._hear_spend(state, path, now)
        elif not replica.knows(name):
            return None
        elif path[0] == _RIGHTS:
            self._hear_rights(shares, path, name)
        elif len(path) == 4 and (share := shares.get(path[2])) is not None:
            counter = replica.state.get(path, GCounter)
            if counter is None:
                return None
            if path[0] == _TAKEN:
                share.ledger.receipts[name] = counter.counts
            elif path[0] == _GIVEN:
                share.ledger.gifts[name] = counter.counts
                return state if self._accept(state, share, name, now) else None
        elif path[0] == _ASSUMED and len(path) == 5:
            spent = self._assumed(path, now)
            if spent is not None and path[2] in shares:
                shares[path[2]].assumption.hear(path[3], name, spent)
        return None

    def _accept(self, state: KeyState, share: Share, giver: str, now: float) -> int:
        """Take what that one has given; how much that is."""
        me, ledger = self._replica.id, share.ledger
        gift = ledger.accept(giver, me)
        spent = self._assumed((_ASSUMED, state.digest, share.dimension, me, giver), now) if gift else None
        if spent is not None and 0 <= ledger.taken[giver] - spent.upto < gift:
            share.assumption.accept(spent._replace(amount=min(spent.amount, gift)), now)
        return gift

    def _assumed(self, path: Path, now: float) -> Spent | None:
        """What is taken to be spent, in our time."""
        register, offset = self._replica.state.get(path, LwwRegister), self._replica.offset_of(path[-1])
        if register is None or offset is None:
            return None
        return from_wire(register.value, offset, now, self._span)

    def _hear_spend(self, state: KeyState, path: Path, now: float) -> None:
        entry, expires = self._replica.state.get(path, PNCounter), self._expires(path)
        if entry is not None and expires <= now + 2 * self._span:
            state.spend.hear(path[3], int(path[2]), entry.all_of(DIMENSIONS), expires, now)

    def _hear_rights(self, shares: dict[str, Share], path: Path, name: str) -> None:
        register = self._replica.state.get(path, LwwRegister)
        value = None if register is None else register.value
        if type(value) is not dict:
            return
        for dimension, share in shares.items():
            ledger = share.ledger
            try:
                record = ledger.records[name] = Record(value.get(dimension))
            except ValueError:  # or it has no such limit
                continue
            if record.need >= 1 and (ledger.spare >= 1 or (record.urgent and ledger.held)):
                self._replica.soon()

    def _expires(self, path: Path) -> float:
        """When what a path tells of leaves the window, if it is spending and its writer is known; else never."""
        replica = self._replica
        offset = replica.offset_of(path[-1])
        if offset is None:
            return math.inf
        if path[0] == _ASSUMED:
            spent = self._assumed(path, self._clock.monotonic())
            return math.inf if spent is None else spent.last + self._span
        try:
            return int(path[2]) + 1 + offset + self._span if len(path) == 4 else math.inf
        except (ValueError, OverflowError):
            return math.inf

    def _sweep(self, now: float) -> None:
        """Drop what was spent before the window, also of keys that are not ours, and what never is in it."""
        replica = self._replica
        for path in [path for path in replica.state.entries if path[0] in (_SPEND, _ASSUMED)]:
            if not now < self._expires(path) <= now + 2 * self._span:
                replica.forget(path)
