"""`Outbound`, `Inbound`: what replicas tell each other of their limits, and where in the replicated state.

Paths, whose last part is the replica that says it: ("demand", subject, replica), of each dimension; ("spend", subject,
second of its clock, replica), of each dimension. What a key's limits were found out to be is everybody's: ("limits",
subject). A subject is the digest of a key, or of a deployment that has a limit of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ...clock import Clock
from ..crdt import LwwRegister, Path, PNCounter
from ..local.window import DIMENSIONS
from ..membership import Replica
from .demand import PeerDemand
from .key import KeyState
from .learned import LearnedLimits
from .share import Subject

__all__ = ["KINDS", "LIMITS", "Inbound", "Outbound"]

DEMAND, SPEND, LIMITS = "demand", "spend", "limits"
KINDS = frozenset({DEMAND, SPEND, LIMITS})


class Outbound:
    """Puts what there is to say into the state. Called with the replica's lock held.

    Args:
        replica: who speaks.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def spend(self, state: KeyState) -> None:
        """What was spent since it was told last."""
        replica, me = self._replica, self._replica.id
        for second, amounts in sorted(state.untold.items()):
            for index, name in enumerate(DIMENSIONS):
                if amounts[index] and name in state.shares:
                    path = (SPEND, state.subject.digest, str(second), me)
                    replica.own(path, PNCounter).add(name, amounts[index])
        state.untold = {}

    def demand(self, subject: Subject, now: float) -> None:
        """What is wanted of each dimension, if that is news."""
        if not subject.shares:
            return
        replica, sight, time = self._replica, subject.sight, self._replica.time.at(now)
        value = {
            name: PeerDemand.to_wire(
                limit=share.limit,
                rate=share.demand.rate,
                starved=share.demand.lasting(now),
                held=share.rights.held,
                external=share.external_use(now),
                version=sight.version if sight is not None else subject.known_version,
                free=sight.free(name, time) if sight is not None else 0,
                created=subject.known_created,
            )
            for name, share in subject.shares.items()
        }
        path = (DEMAND, subject.digest, replica.id)
        known = replica.state.get(path, LwwRegister)
        told = None if known is None else known.value
        if type(told) is dict and told.keys() == value.keys():
            if replica.says_all(now):
                news = told != value
            else:
                news = any(PeerDemand.is_news(told[name], value[name]) for name in value)
            if not news:
                return
        replica.own(path, LwwRegister).set(value, replica.id)

    def limits(self, state: KeyState, learned: LearnedLimits) -> None:
        """What was found out of a key's limits."""
        path = (LIMITS, state.subject.digest)
        self._replica.own(path, LwwRegister).set(learned.to_wire(), self._replica.id)

    def __repr__(self) -> str:
        return f"Outbound({self._replica!r})"


class Inbound:
    """Works what the others say into this replica's shares. Called with both locks held.

    Args:
        clock: where time comes from.
        replica: who hears.
        subjects: by digest, with the key that each is of.
        span: seconds of the window, with its margin.
    """

    def __init__(
        self, clock: Clock, replica: Replica, subjects: Mapping[str, tuple[KeyState, Subject]], span: float
    ) -> None:
        self._clock = clock
        self._replica = replica
        self._subjects = subjects
        self._span = span

    def hear_all(self, subject: str, now: float, of: str | None = None) -> None:
        """All that was said of a subject before it was known here; or by one replica."""
        for path in list(self._replica.state.entries):
            if path[0] in KINDS and path[1:2] == (subject,) and of in (None, path[-1]):
                self.hear([path], now)

    def hear(self, paths: Iterable[Path], now: float) -> list[KeyState]:
        """What others want and have spent; the keys of which the others' wishes have changed."""
        replica, entries, me = self._replica, self._replica.state.entries, self._replica.id
        touched: list[KeyState] = []
        for path in paths:
            name = path[-1]
            found = self._subjects.get(path[1]) if len(path) >= 3 else None
            entry = entries.get(path)
            if found is None or entry is None or name == me:
                continue
            state, subject = found
            if path[0] == SPEND and isinstance(entry, PNCounter):
                expires = self._expires(path)
                if expires <= now + 2 * self._span:
                    state.spend.hear(path[3], int(path[2]), entry.all_of(DIMENSIONS), expires, now)
            elif path[0] == DEMAND and isinstance(entry, LwwRegister) and replica.knows(name):
                if self._demand(subject, entry.value, name) and state not in touched:
                    touched.append(state)
        return touched

    def sweep(self, now: float) -> None:
        """Drop what was spent before the window, also of keys that are not ours, and what never is in it."""
        replica = self._replica
        for path in [path for path in replica.state.entries if path[0] == SPEND]:
            if not now < self._expires(path) <= now + 2 * self._span:
                replica.forget(path)

    def _demand(self, subject: Subject, value: object, name: str) -> bool:
        """Whether that replica goes short as it did not before."""
        if type(value) is not dict:
            return False
        weight, news, free, version = self._replica.weight_of(name), False, {}, 0
        for dimension, share in subject.shares.items():
            try:
                demand = PeerDemand(value.get(dimension), weight)
            except ValueError:  # or it has no such limit
                continue
            known = share.peers.get(name)
            news |= demand.starved and not (known is not None and known.starved)
            share.peers[name] = demand
            free[dimension], version = demand.free, demand.version
            subject.known_created = max(subject.known_created, demand.created)
        if version > max(subject.told[0], subject.known_version):
            subject.told = (version, free)
            subject.known_version = version
        return news

    def _expires(self, path: Path) -> float:
        """When what a path tells of leaves the window, if its writer is known; else never."""
        offset = self._replica.offset_of(path[-1])
        if offset is None:
            return math.inf
        try:
            return int(path[2]) + 1 + offset + self._span if len(path) == 4 else math.inf
        except (ValueError, OverflowError):
            return math.inf

    def __repr__(self) -> str:
        return f"Inbound({len(self._subjects)} subjects)"
