"""`StateListener`: what keeps a kind of entries in a replica's state: limits, circuits, missed rebuilds, estimates."""

from __future__ import annotations

from ..crdt import Path

__all__ = ["StateListener"]


class StateListener:
    """Told of what happens to the replicated state; what a listener does not need it leaves out.

    All methods are called under the replica's lock.

    Attributes:
        kinds: the first elements of the paths that it keeps.
    """

    kinds: frozenset[str] = frozenset()

    def merged(self, paths: list[Path]) -> None:
        """Entries of its kinds changed by a message."""

    def before_send(self, now: float) -> None:
        """A message is about to be made: put into the state what there is to say."""

    def members_changed(self, now: float) -> None:
        """A replica came, died or left; or this replica's own standing changed."""

    def forgotten(self, replica: str) -> None:
        """A dead replica's entries are dropped."""

    def rejoined(self, before: str) -> None:
        """This replica holds nothing, and has a new id: what ``before`` held was given up, and is a dead replica's.

        If ``before`` is its id still, it was alone until now, and has spent what nobody else knows of.
        """
