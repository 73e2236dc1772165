"""`SharedEstimates`: what each replica has learned of a model's real token counts, told to the others."""

from __future__ import annotations

from ..base import LimitKey
from ..crdt import LwwRegister, Path
from ..local.estimates import TokenEstimates
from ..membership import Replica, StateListener

__all__ = ["SharedEstimates"]

_RATIO = "ratio"
INTERVAL = 2.0
"""Seconds between two tellings: what is learned with each request changes little with one more."""


class SharedEstimates(StateListener):
    """A part of the replicated state: ("ratio", key, replica).

    Args:
        replica: this process among the others.
        estimates: what is shared.
    """

    kinds = frozenset({_RATIO})

    def __init__(self, replica: Replica, estimates: TokenEstimates) -> None:
        self._replica = replica
        self._estimates = estimates
        self._keys: dict[str, LimitKey] = {}
        self._next = 0.0
        replica.attach(self)

    def watch(self, key: LimitKey) -> None:
        """Take part in what is known of that key."""
        with self._replica.lock:
            digest = key.digest
            if digest not in self._keys:
                self._keys[digest] = key
                self._take_in(digest)

    def merged(self, paths: list[Path]) -> None:
        for digest in {path[1] for path in paths if len(path) == 3}:
            self._take_in(digest)

    def before_send(self, now: float) -> None:
        if now < self._next:
            return
        self._next = now + INTERVAL
        me = self._replica.id
        for digest, key in self._keys.items():
            told = self._estimates.to_wire(key)
            path = (_RATIO, digest, me)
            known = self._replica.state.get(path, LwwRegister)
            if told and (known is None or known.value != told):
                self._replica.own(path, LwwRegister).set(told, me)

    def rejoined(self, before: str) -> None:
        self._next = 0.0

    def _take_in(self, digest: str) -> None:
        key = self._keys.get(digest)
        if key is not None:
            me = self._replica.id
            others = [
                entry.value
                for path, entry in self._replica.state.entries.items()
                if path[:2] == (_RATIO, digest) and path[2:] != (me,) and isinstance(entry, LwwRegister)
            ]
            self._estimates.merged(key, others)

    def __repr__(self) -> str:
        return f"SharedEstimates({len(self._keys)} keys)"
