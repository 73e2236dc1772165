"""`Rights`: what this replica holds of one dimension of a limit; the argument why the limit holds.

1. The broker hands the ledger to one replica at a time. Whoever has it writes it back changed, or leaves it as it was.
2. A replica counts what it takes only when the broker has confirmed the changed ledger (`confirmed`), and what it gives
   no longer from the moment on in which it makes the change (`begin`). If it cannot know whether the change was made,
   it counts the lesser of both, until it reads the ledger again (`adopt`).
   So at any time, all replicas together hold at most what the ledger has in their names.
3. In any window a replica spends at most what it holds: its sliding window has room for those only, and what it has
   spent remains there for a whole window. If it gives rights that are spent, the ledger keeps them, as due, for as long
   as its own window would have.
   What a request turns out to have cost beyond its estimate is spent, whatever the ledger has left over: it is taken as
   well, and the ledger is overdrawn until that leaves the window.
4. An entry is closed only when its replica has stopped: its process has ended, it has said good-bye, or nobody has
   heard it for a lease, before which it stops by itself. What it may have spent is due from then on, for a whole
   window. Of what it has told that it spent, a right counts as spent then only where it cannot have left the window and
   been spent again.
5. A ledger is begun where there is none, by one replica at a time, and takes to be spent what nobody can know not to
   be. One that was lost is begun anew when whoever held rights by it has told what it holds, or has stopped.
6. So what was spent in any window, by the living and the dead, is at most what all hold and what is due: the limit.

Requests in flight are another thing: a replica that was cut off for longer than a lease goes on with those that it has
begun, and its places are given to others meanwhile.
"""

from __future__ import annotations

__all__ = ["Rights"]


class Rights:
    """One replica's part of one dimension. Not thread-safe."""

    __slots__ = ("_taking", "held")

    def __init__(self) -> None:
        self.held = 0
        self._taking = 0

    def adopt(self, recorded: int) -> None:
        """The ledger, which this replica has in hand, says that it holds so many."""
        self.held, self._taking = recorded, 0

    def begin(self, *, take: int = 0, give: int = 0) -> None:
        """A changed ledger is on its way to the broker."""
        self.held -= give
        self._taking = take

    def confirmed(self) -> None:
        """The broker has it."""
        self.held += self._taking
        self._taking = 0

    def uncertain(self) -> None:
        """Perhaps the broker has it: what was to be taken is not counted before the ledger is read again."""
        self._taking = 0

    def give_up(self) -> None:
        """The lease is over."""
        self.held = self._taking = 0

    def __repr__(self) -> str:
        return f"Rights({self.held}{f', taking {self._taking}' if self._taking else ''})"
