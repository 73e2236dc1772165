"""`Transfers`: when this replica asks for a ledger, and what it changes there: it takes, gives, closes dead entries."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping

from ...clock import Clock
from ..local.window import DIMENSIONS
from ..membership import LEASE, Replica, Stage
from ..membership.schedule import CROWD
from .closing import due_of
from .demand import PeerDemand
from .key import KeyState
from .ledger import DISCARD, TICKS, Entry, Ledger, LedgerError, UnknownLedgerFormat
from .plan import Plan
from .share import CONCURRENT, Change, Share, Sight, Subject

__all__ = ["Transfers"]

logger = logging.getLogger(__name__)

SOON = 0.02
"""Seconds between two looks at a ledger, for a replica that cannot send without."""
AGAIN = 1.0
"""Seconds until a replica that found nothing looks again, if nobody says that there is something."""
SAME = 0.01
"""Seconds by which the beginning of one ledger is told differently, by rounding."""
WRITE = 5.0
"""Seconds between two notes of what a replica has spent: it is what is known of it where all die at once."""
AUDIT = 10.0
"""Seconds after which the replica that has been here for longest looks whether a dead one holds anything, of which
nobody else has heard."""
LATE_START = 3.0
"""Seconds by which what nobody counted is taken to be spent later than it can have been: evenly, which it never was.
A replica that starts takes nothing before that anyway."""


class Transfers:
    """One replica's. What the I/O calls (`read` and what follows it) takes both locks; all else is called with them.

    Args:
        clock: where time comes from.
        replica: this process among the others.
        lock: the limiter's.
        subjects: by digest.
        window, span: seconds; see `GossipRateLimiter`.
        changed: told of a key whose rights have changed.
    """

    def __init__(
        self,
        clock: Clock,
        replica: Replica,
        lock: threading.Lock,
        subjects: Mapping[str, tuple[KeyState, Subject]],
        *,
        window: float,
        span: float,
        changed: Callable[[KeyState, float], None],
    ) -> None:
        self.ask: Callable[[str], None] | None = None
        """Asks for a ledger, by its subject's digest; returns at once."""
        self._clock = clock
        self._replica = replica
        self._lock = lock
        self._subjects = subjects
        self._window = window
        self._span = span
        self._changed = changed
        self._leaving = False
        self.counters = {"read": 0, "written": 0, "closed": 0, "begun": 0}

    # -- when

    def plan(
        self, state: KeyState, subject: Subject, share: Share, peers: list[PeerDemand], now: float
    ) -> Plan:
        """The plan by what is known of the ledger."""
        sight, name = subject.sight, share.dimension
        time = self._replica.time.at(now)
        held_by_all, due = (sight.held.get(name, 0), sight.due(name, time)) if sight is not None else (0, 0)
        return self._decide(
            state, subject, share, peers, now, held_by_all, due, self._left_over(subject, name, now)
        )

    def consider(self, state: KeyState, subject: Subject, now: float) -> None:
        """Ask for the ledger, if there is a reason to."""
        if self._reason(state, subject, now):
            self._ask(subject, now)

    def hurry(self, subject: Subject, now: float) -> None:
        """A request waits that the ledger may help."""
        if now >= subject.looked_at + SOON and self._worthwhile(subject, now):
            self._ask(subject, now)

    def _ask(self, subject: Subject, now: float) -> None:
        if self.ask is None or subject.asked or self._replica.life.waiting:
            return
        subject.asked, subject.looked_at = True, now
        self.ask(subject.digest)

    def _reason(self, state: KeyState, subject: Subject, now: float) -> bool:
        sight, shares = subject.sight, subject.shares
        limited = [share for share in shares.values() if share.limited]
        if not limited or subject.asked or self._leaving:
            return False
        crowd = max(1.0, len(self._replica.members(now)) / CROWD)
        since = now - subject.looked_at
        if sight is None:
            return since >= SOON
        if any(sight.limits.get(share.dimension) != int(share.total) for share in limited):
            return since >= self._replica.period
        if self._to_close(subject, now):
            return since >= SOON
        if any(share.plan.take > 0 for share in limited) and self._worthwhile(subject, now):
            starved = any(share.plan.take > 0 and share.demand.claim(now) > 0 for share in limited)
            return since >= (SOON if starved else self._replica.period / 2) * crowd
        if any(share.plan.give > 0 or share.plan.hand_over > 0 for share in limited):
            return since >= 2 * self._replica.period * crowd
        used = {share.dimension: state.used(subject, share.dimension) for share in limited}
        if any(used[share.dimension] > share.rights.held for share in limited):
            return since >= self._replica.period / 2 * crowd
        if any(share.span and used[share.dimension] for share in limited):
            return now - sight.written_at >= WRITE * crowd
        return False

    def _worthwhile(self, subject: Subject, now: float) -> bool:
        """Whether a look at the ledger may find what is wanted."""
        if subject.sight is None:
            return True
        crowd = max(1.0, len(self._replica.members(now)) / CROWD)
        if now - subject.looked_at >= AGAIN * crowd:
            return True
        return any(
            self._left_over(subject, share.dimension, now) >= max(1.0, share.demand.claim(now))
            for share in subject.shares.values()
            if share.limited and (share.plan.take > 0 or share.demand.claim(now) > 0)
        )

    def _left_over(self, subject: Subject, dimension: str, now: float) -> float:
        """What is free by the latest word: of this replica, or of another one that saw the ledger later."""
        sight = subject.sight
        version, told = subject.told
        if sight is None or version > sight.version:
            return told.get(dimension, 0.0)
        return sight.free(dimension, self._replica.time.at(now))

    def _to_close(self, subject: Subject, now: float) -> bool:
        """Whether this replica should see to it that an entry is closed: one does so for all."""
        replica = self._replica
        if subject.sight is None or not replica.may_reclaim(now) or not self._is_first(subject, now):
            return False
        holders = subject.sight.holders.union(*(share.peers for share in subject.shares.values()))
        return (
            any(
                name != replica.id
                and name not in subject.cleared
                and replica.knows(name)
                and not replica.live(name, now)
                for name in holders
            )
            or now >= subject.looked_at + AUDIT
        )

    def _is_first(self, subject: Subject, now: float) -> bool:
        """Whether this replica has been here for longest of those that know the subject: others cannot act for it."""
        return self._replica.is_first(set().union(*(share.peers for share in subject.shares.values())), now)

    def close_dead(self, now: float) -> None:
        """A replica has died, perhaps: what it held should not lie idle."""
        for _, subject in self._subjects.values():
            if self._to_close(subject, now):
                self._ask(subject, now)

    # -- what the I/O calls

    def may_begin(self, digest: str, new: bool) -> bool:
        """Whether a ledger may be begun where none is. ``new``: its queue did not exist before.

        Else it may be in the hands of a process that stands still, or lost: whoever held rights by it has stopped after
        a lease, or has told what it holds.
        """
        with self._replica.lock, self._lock:
            found = self._subjects.get(digest)
            if found is None or self._leaving:
                return False
            _, subject = found
            replica, now = self._replica, self._clock.monotonic()
            subject.missing_since = min(subject.missing_since, now)
            subject.looked_at = now
            if not replica.may_reclaim(now) or not self._is_first(subject, now) or replica.refused_version:
                return False
            if new and subject.known_version == 0:
                return True
            return now >= max(subject.missing_since, replica.life.hears_since) + LEASE

    def read(self, digest: str, body: bytes | str | None) -> bytes | None:
        """The ledger is in hand. Returns it changed, or None to leave it as it is; None for a body: there is none, and
        it may be begun."""
        with self._replica.lock:
            changed = self._read(digest, body)
            found = self._subjects.get(digest)
            if found is not None and found[1].given_up:
                found[1].given_up = False
                self._replica.given_up()
            return changed

    def _read(self, digest: str, body: bytes | str | None) -> bytes | None:
        with self._lock:
            found = self._subjects.get(digest)
            if found is None:
                return None
            state, subject = found
            now = self._clock.monotonic()
            self.counters["read"] += 1
            subject.asked = False
            subject.looked_at = now
            ledger = self._decoded(subject, body, now)
            if ledger is None or isinstance(ledger, bytes):
                return ledger
            known = subject.known_created
            if ledger.created < known - SAME and known <= self._replica.time.at(now) + SAME:
                logger.warning("limits: a ledger came back after another one was begun, and was thrown away")
                return DISCARD
            if body is not None:
                subject.known_created, subject.known_version = ledger.created, ledger.version
            change = self._change(state, subject, ledger, now)
            if subject.given_up:
                return None
            written_at = subject.sight.written_at if subject.sight is not None else -math.inf
            if change is not None:
                ledger.version += 1
                ledger.stamp = self._replica.time.stamp(self._clock.time(), now)
                written_at = now
            subject.sight = Sight(ledger, written_at)
            subject.changing = change
            self._plan_all(state, subject, now)
            self._changed(state, now)
            if change is None:
                return None
            self.counters["written"] += 1
            return ledger.encode()

    def confirmed(self, digest: str) -> None:
        """The broker has what `read` returned."""
        with self._replica.lock, self._lock:
            found = self._subjects.get(digest)
            change = found[1].changing if found is not None else None
            if found is None or change is None:
                return
            state, subject = found
            subject.changing = None
            subject.known_created = max(subject.known_created, change.ledger.created)
            subject.known_version = max(subject.known_version, change.ledger.version)
            if change.leaves:
                subject.left = True
            for share in subject.shares.values():
                share.rights.confirmed()
            now = self._clock.monotonic()
            self._plan_all(state, subject, now)
            self._changed(state, now)

    def failed(self, digest: str) -> None:
        """The ledger could not be had; or nobody knows whether the broker has what `read` returned."""
        with self._replica.lock, self._lock:
            found = self._subjects.get(digest)
            if found is None:
                return
            state, subject = found
            change, subject.changing = subject.changing, None
            subject.asked = False
            if self._leaving and not subject.left and self.ask is not None:
                self.ask(digest)
            if change is None:
                return
            for share in subject.shares.values():
                share.rights.uncertain()
            for dimension, parts in change.handed:
                state.window.restore(dimension, parts)
            subject.sight = None  # whatever was seen then may not be so
            self._changed(state, self._clock.monotonic())

    def leave(self) -> list[str]:
        """Give back everything with the next look; the digests of the ledgers that are to be read for it."""
        with self._replica.lock, self._lock:
            self._leaving = True
            return [
                digest
                for digest, (_, subject) in self._subjects.items()
                if subject.sight is not None or subject.changing is not None or subject.asked
            ]

    def has_left(self, digest: str) -> bool:
        """Whether nothing stands in this replica's name there any more."""
        with self._lock:
            found = self._subjects.get(digest)
            return found is None or found[1].left

    def give_up(self, subject: Subject) -> None:
        """The lease is over; with both locks held."""
        for share in subject.shares.values():
            share.rights.give_up()
        subject.sight = None
        subject.asked = False
        subject.changing = None
        subject.missing_since = math.inf

    # -- what it changes; with both locks held

    def _decoded(self, subject: Subject, body: bytes | str | None, now: float) -> Ledger | bytes | None:
        replica = self._replica
        if body is not None:
            try:
                ledger = Ledger.decode(body)
            except UnknownLedgerFormat as exc:
                if subject.refused_format != exc.format:
                    subject.refused_format = exc.format
                    logger.error(
                        "limits: a ledger has format %s, which this version does not read: it sends nothing on that "
                        "limit. Stop the processes of the other version, or give them a virtual host of their own.",
                        exc.format,
                    )
                return None
            except LedgerError as exc:
                logger.error("limits: a message in place of a ledger is thrown away: %s", exc)
                return DISCARD
            replica.time.read(ledger.stamp, self._clock.time(), now)
            for name in ledger.entries:
                replica.share_time_with(name, now)
            heard = replica.older_format_until - LEASE
            if heard > -math.inf and ledger.created < replica.time.at(heard) - SAME:
                # Processes of an older format have spent what it does not know. They were heard at the same moment by
                # all, and no ledger is begun before they have been silent for a lease.
                return self._begin(subject, now) if not replica.refused_version else None
            subject.refused_format = 0
            subject.missing_since = math.inf
            subject.lost = False
            return ledger
        return self._begin(subject, now)

    def _begin(self, subject: Subject, now: float) -> Ledger:
        """A ledger where there was none: what the live say that they hold is theirs, the rest came from nobody."""
        replica = self._replica
        replica.time.begin(self._clock.time(), now)
        self.counters["begun"] += 1
        unknown_until = max(replica.older_format_until, now if subject.known_version else -math.inf)
        subject.lost = now < unknown_until + self._span
        subject.missing_since = math.inf
        ledger = Ledger(
            created=replica.time.at(now),
            version=subject.known_version,
            stamp=replica.time.stamp(self._clock.time(), now),
        )
        for name in replica.members(now):
            held = {
                dimension: int(share.peers[name].held)
                for dimension, share in subject.shares.items()
                if name in share.peers and share.limited
            }
            if name != replica.id and any(held.values()):
                ledger.entries[name] = Entry(replica.process_of(name), held)
        mine = {dimension: share.rights.held for dimension, share in subject.shares.items() if share.limited}
        ledger.entries[replica.id] = Entry(replica.process, mine)
        return ledger

    def _change(self, state: KeyState, subject: Subject, ledger: Ledger, now: float) -> Change | None:
        """Do in the ledger what there is to do; None: nothing."""
        replica = self._replica
        me, time = replica.id, replica.time.at(now)
        ledger.come_free(time)
        entry = ledger.entries.get(me)
        if entry is None:
            if any(share.rights.held for share in subject.shares.values()):
                logger.warning("limits: %s was given up by the others, and joins anew", replica.name or me)
                subject.given_up = True
                return None
            if self._leaving:
                subject.left = True
                return None
        change = Change(ledger, self._leaving)
        worth = self._close_dead(state, subject, ledger, now)
        limited = {name: share for name, share in subject.shares.items() if share.limited}
        if entry is None and replica.life.stage(now) not in (Stage.LISTENING, Stage.ACTIVE):
            return None
        if entry is None:
            entry = ledger.entries[me] = Entry(replica.process)
            fresh = True
        else:
            fresh = False
        entry.process = replica.process
        for name, share in limited.items():
            worth |= self._open(state, subject, ledger, share, now)
            share.rights.adopt(entry.held.get(name, 0))
        for name in [name for name in entry.held if name not in limited]:
            amount = entry.held.pop(name)  # not limited any more: whatever it has spent of it
            if name in ledger.books and amount and name != CONCURRENT:
                ledger.add_due(name, [(time + self._span, amount)])
            worth = True
        for share in limited.values():
            if self._leaving:
                self._give_all(state, share, ledger, now)
                worth = True
            else:
                worth |= self._exchange(state, subject, share, ledger, change, now)
        if self._leaving:
            del ledger.entries[me]
            return change
        stale = subject.sight is None or now - subject.sight.written_at >= WRITE
        if not worth and (fresh or not stale):
            if fresh:
                del ledger.entries[me]
            return None
        entry.noted_at = time
        for name, share in limited.items():
            if share.span:
                entry.spent[name] = [
                    (math.ceil(replica.time.at(leaves) * TICKS), amount)
                    for leaves, amount in state.window.leaving(name)
                ]
        return change

    def _open(self, state: KeyState, subject: Subject, ledger: Ledger, share: Share, now: float) -> bool:
        """See that the dimension is there, with the limit of now; whether that is a change."""
        name, limit, replica = share.dimension, int(share.total), self._replica
        book = ledger.books.get(name)
        if book is not None:
            changed = book.limit != limit
            book.limit = limit
            return changed
        if share.span:
            held = ledger.entries[replica.id].held
            held[name] = max(held.get(name, 0), state.used(subject, name))
            for other in replica.members(now):
                known = state.spend.of([other], name, now) if other != replica.id else 0
                if known:
                    entry = ledger.entries.setdefault(other, Entry(replica.process_of(other)))
                    entry.held[name] = max(entry.held.get(name, 0), known)
        rest = limit - ledger.held(name)
        ledger.open(name, limit, self._assumed(state, share, rest, now, lost=subject.lost))
        return True

    def _assumed(
        self, state: KeyState, share: Share, rest: int, now: float, *, lost: bool
    ) -> list[tuple[float, int]]:
        """When it comes free what nobody can know not to be spent: evenly, as a limit does that is used up.

        Whoever allows larger bursts allows them here as well.
        """
        time = self._replica.time
        if not share.span or rest <= 0:
            return []
        counted = max(share.since, self._replica.life.hears_since, self._replica.older_format_until)
        if lost:
            counted = now  # with it went what the dead have spent
            if share.bucket is None:
                return [(time.at(now + self._span), rest)]
        if counted <= now - self._span or share.bucket is None:
            return []
        burst = min(deployment.burst for deployment in state.by_deployment.values())
        part = (self._window - burst) / (self._window - 1.0) if burst > 1.0 and not lost else 1.0
        assumed = round(rest * part)
        begin, ticks = time.at(min(now, counted + LATE_START)), math.ceil(self._window * TICKS)
        return [
            (begin + tick / TICKS, assumed * (tick + 1) // ticks - assumed * tick // ticks)
            for tick in range(1, ticks)
        ]

    def _close_dead(self, state: KeyState, subject: Subject, ledger: Ledger, now: float) -> bool:
        replica, closed = self._replica, False
        subject.cleared = {name for name in replica.dead(now) if name not in ledger.entries}
        for name, entry in list(ledger.entries.items()):
            if name == replica.id:
                continue
            replica.sighted(name, entry.process, now)
            if not replica.life.may_act(now):
                continue  # it may not know yet what time it is among the others
            stopped = replica.ended(name)
            if stopped is None:
                if replica.live(name, now) or not (replica.may_reclaim(now) and self._is_first(subject, now)):
                    continue
                stopped = min(now, replica.silent_since(name) + LEASE)
            due = {
                dimension: due_of(
                    held,
                    noted=entry.spent.get(dimension, []),
                    noted_at=entry.noted_at,
                    told=[
                        (replica.time.at(leaves), amount)
                        for leaves, amount in state.spend.leaving(name, dimension, now)
                    ],
                    span=self._span,
                    last=replica.time.at(stopped + self._span),
                    now=replica.time.at(now),
                )
                for dimension, held in entry.held.items()
                if dimension in DIMENSIONS
            }
            ledger.close(name, due)
            subject.cleared.add(name)
            self.counters["closed"] += 1
            closed = True
        return closed

    def _exchange(
        self, state: KeyState, subject: Subject, share: Share, ledger: Ledger, change: Change, now: float
    ) -> bool:
        """Take and give in one dimension; whether anything was."""
        me, name, rights = self._replica.id, share.dimension, share.rights
        used = state.used(subject, name)
        forced = max(0, used - rights.held)  # it is spent, whatever the ledger says
        ledger.take(me, name, forced)
        live = [other for other in self._replica.members(now) if other != me]
        it = self._decide(
            state,
            subject,
            share,
            share.agree(live),
            now,
            ledger.held(name),
            ledger.due(name),
            ledger.free(name),
        )
        external = share.total - it.available
        take = max(0, min(it.take, math.floor(ledger.free(name) - external)))
        handed: list[tuple[float, int]] = []
        if it.hand_over and share.span:
            handed = state.window.hand_over(name, it.hand_over)
            change.handed.append((name, handed))
        give = it.give + sum(amount for _, amount in handed)
        if take:
            ledger.take(me, name, take)
        if give:
            time = self._replica.time
            ledger.give(me, name, give, [(time.at(leaves), amount) for leaves, amount in handed])
        rights.begin(take=forced + take, give=give)
        return bool(forced or take or give)

    def _give_all(self, state: KeyState, share: Share, ledger: Ledger, now: float) -> None:
        time = self._replica.time
        spent = state.window.leaving(share.dimension) if share.span else []
        ledger.give(
            self._replica.id,
            share.dimension,
            share.rights.held,
            [(time.at(leaves), amount) for leaves, amount in spent],
        )
        share.rights.begin(give=share.rights.held)

    def _plan_all(self, state: KeyState, subject: Subject, now: float) -> None:
        live = [name for name in self._replica.members(now) if name != self._replica.id]
        for share in subject.shares.values():
            peers = share.agree(live)
            if share.limited:
                self.plan(state, subject, share, peers, now)

    def _decide(
        self,
        state: KeyState,
        subject: Subject,
        share: Share,
        peers: list[PeerDemand],
        now: float,
        held_by_all: float,
        due: float,
        left_over: float,
    ) -> Plan:
        horizon = 2 * self._replica.period
        name = share.dimension
        return share.decide(
            now,
            weight=self._replica.weight,
            peers=peers,
            used=state.used(subject, name),
            used_by_others=state.spend.total(name),
            expiring=state.window.expiring(name, now + horizon) if share.span else 0,
            typical=max(1.0, state.mean_tokens) if name in DIMENSIONS[1:] else 1.0,
            horizon=horizon,
            held_by_all=held_by_all,
            due=due,
            left_over=left_over,
        )

    def __repr__(self) -> str:
        return f"Transfers({self.counters})"
