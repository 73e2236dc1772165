"""`Telling`: what a replica says of its limits, and where in the replicated state.

Paths, whose last part is the replica that says it: ("rights", subject, replica), of each dimension; ("given" | "taken",
subject, dimension, replica); ("assumed", subject, dimension, taker, replica), what of a gift is taken to be spent;
("spend", subject, second of its clock, replica), of each dimension. What a key's limits were found out to be is
everybody's: ("limits", subject). A subject is the digest of a key, or of a deployment that has a limit of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from .assumption import to_wire
from .crdt import GCounter, LwwRegister, Path, PNCounter
from .key import KeyState, Share
from .learned import LearnedLimits
from .record import is_news
from .replica import Replica
from .window import DIMENSIONS

__all__ = ["ASSUMED", "GIVEN", "KINDS", "LIMITS", "RIGHTS", "SPEND", "TAKEN", "Telling"]

RIGHTS, GIVEN, TAKEN, ASSUMED, SPEND, LIMITS = "rights", "given", "taken", "assumed", "spend", "limits"
KINDS = frozenset({RIGHTS, GIVEN, TAKEN, ASSUMED, SPEND, LIMITS})


class Telling:
    """Puts it there. Called with the replica's lock held.

    Args:
        replica: who speaks.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def spend(self, state: KeyState) -> None:
        """What was spent since it was said last."""
        replica, me = self._replica, self._replica.id
        for second, amounts in sorted(state.unsaid.items()):
            for index, name in enumerate(DIMENSIONS):
                if amounts[index] and name in state.shares:
                    replica.own((SPEND, state.digest, str(second), me), PNCounter).add(name, amounts[index])
        state.unsaid = {}

    def rights(self, subject: str, shares: Mapping[str, Share], now: float) -> None:
        """What is held, given and taken of each dimension, if that is news."""
        replica, me = self._replica, self._replica.id
        value = {name: share.ledger.record(now) for name, share in shares.items()}
        path = (RIGHTS, subject, me)
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
            news |= self._counts((GIVEN, subject, name, me), share.ledger.given)
            news |= self._counts((TAKEN, subject, name, me), share.ledger.taken)
        for share in shares.values():
            if news and share.assumption.lasts(now):
                self._assumed(subject, share)

    def limits(self, state: KeyState, learned: LearnedLimits) -> None:
        """What was found out of a key's limits."""
        self._replica.own((LIMITS, state.digest), LwwRegister).set(learned.to_wire(), self._replica.id)

    def _counts(self, path: Path, counts: Mapping[str, int]) -> bool:
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

    def _assumed(self, subject: str, share: Share) -> None:
        """With every word of rights: who hears of a gift has to hear at once what of it is spent."""
        me = self._replica.id
        for taker, spent in share.assumption.dealt.items():
            if taker == me or share.ledger.receipts.get(taker, {}).get(me, 0) < spent.upto:
                path = (ASSUMED, subject, share.dimension, taker, me)
                self._replica.own(path, LwwRegister).set(to_wire(spent), me)

    def __repr__(self) -> str:
        return f"Telling({self._replica!r})"
