"""`Part`: what keeps a kind of entries in a replica's state: limits, circuits, generations, estimates."""

from __future__ import annotations

from typing import Protocol

from .crdt import Path

__all__ = ["Part"]


class Part(Protocol):
    """What keeps a kind of entries (the first element of a path). All are called under the replica's lock."""

    kinds: frozenset[str]

    def merged(self, paths: list[Path]) -> None:
        """Entries of its kinds changed by a message."""

    def before_send(self, now: float) -> None:
        """A message is about to be made: put into the state what there is to say."""

    def members_changed(self, now: float) -> None:
        """Somebody came, died or left; or this replica's own standing changed."""

    def forgotten(self, replica: str) -> None:
        """One that is no more, and whose entries are dropped."""

    def rejoined(self, before: str) -> None:
        """This replica has a new id and owns nothing: what it owned was given up, and is that of one who is no more."""
