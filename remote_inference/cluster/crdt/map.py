"""The replicated state of the cluster: a map of small CRDTs, and how it is written on the wire.

An entry is ``[code, [part, ...], value]``: the type's letter, the path, and what the type writes. That is JSON, but
the map leaves the writing to the caller, who sends other things besides.

A newer replica may talk to an older one, and this is how the encoding changes: what is added comes last, in an entry,
a stamp or a pair, and an older replica ignores it; what changes its meaning gets a letter or a path of its own, and
an older replica skips what it does not know. So the letters are the version. What it skipped it does not hand on
either; the newer ones do that among themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from .bounds import check_name
from .types import Crdt, ExpiringSet, GCounter, LwwRegister, PNCounter

__all__ = ["LONGEST_PATH", "MOST_ENTRIES", "CrdtMap", "Path"]

Path = tuple[str, ...]
"""Where an entry is: its kind first, then what it is about. A path has one type for ever."""

LONGEST_PATH = 8
"""Parts of a path."""

MOST_ENTRIES = 200_000
"""Entries of a map; 64 replicas that spend on 40 limits in every second of a window have 160,000. What comes in with a
new path is refused from there on; what is known is still merged."""

_TYPES: dict[str, type[Crdt]] = {cls.code: cls for cls in (GCounter, PNCounter, LwwRegister, ExpiringSet)}

_C = TypeVar("_C", bound=Crdt)


class CrdtMap:
    """Entries by path. Two maps that have heard of the same changes are the same, whatever the order.

    Not thread-safe.

    Attributes:
        entries: all of them, for reading. Change one through `change`, so that the others hear of it.
        ignored: how many entries that came in were skipped: unknown, malformed, past a bound, or of another type than
            the entry that is here.
    """

    __slots__ = ("_fresh", "entries", "ignored")

    def __init__(self) -> None:
        self.entries: dict[Path, Crdt] = {}
        self.ignored = 0
        self._fresh: dict[Path, None] = {}

    def get(self, path: Path, cls: type[_C]) -> _C | None:
        """The entry, if it is there and of that type: a broken peer may have put another one there."""
        entry = self.entries.get(path)
        return entry if isinstance(entry, cls) else None

    def change(self, path: Path, cls: type[_C]) -> _C:
        """The entry for its owner to change, made where there is none (of that type), and part of the next delta.

        To be called before each change; a change to an entry that was kept since the last delta waits for the next
        call, or a full state.

        Raises:
            ValueError: the path has no part, too many, or one that is no name.
        """
        entry = self.entries.get(path)
        if not isinstance(entry, cls):
            _check_path(path)
            entry = self.entries[path] = cls()
        self._fresh[path] = None
        return entry

    def delta(self) -> list[list[Any]]:
        """What was changed here since the last call, as entries for the wire. Not what was merged."""
        fresh, self._fresh = self._fresh, {}
        found = ((path, self.entries[path]) for path in fresh)
        return [
            [entry.code, list(path), value] for path, entry in found if (value := entry.delta()) is not None
        ]

    def full(self, where: Callable[[Path], bool] | None = None) -> list[list[Any]]:
        """All entries for the wire, or those on paths for which ``where`` holds. `delta` is not affected."""
        return [
            [entry.code, list(path), value]
            for path, entry in self.entries.items()
            if (where is None or where(path)) and (value := entry.full()) is not None
        ]

    def merge(
        self, entries: object, admit: Callable[[Path], bool] | None = None, *, sender: str | None = None
    ) -> list[Path]:
        """Merge what another replica's `delta` or `full` gave. Raises nothing, whatever comes in.

        Args:
            entries: what came.
            admit: whether an entry on that path (which may be any list of strings) is merged, or else skipped.
            sender: who need not be admitted to an entry of its own that is here: the path ends with its id.

        Returns:
            The paths whose entries changed, each once.
        """
        if type(entries) is not list:
            self.ignored += 1
            return []
        known = self.entries
        changed: dict[Path, None] = {}
        for raw in entries:
            # A string can be taken apart too, so the types are asked for first.
            if type(raw) is not list or len(raw) < 3 or type(raw[1]) is not list or not raw[1]:
                self.ignored += 1
                continue
            path = tuple(raw[1])
            try:
                entry = known.get(path)
                if admit is not None and (entry is None or path[-1] != sender) and not admit(path):
                    continue
                if entry is None:
                    if self._add(path, raw):
                        changed[path] = None
                elif entry.code != raw[0]:
                    self.ignored += 1  # an entry of another type
                elif entry.absorb(raw[2]):
                    changed[path] = None
            except (TypeError, ValueError):  # not hashable, so no path; or not a value of its type
                self.ignored += 1
        return list(changed)

    def forget(self, path: Path) -> None:
        """Drop an entry here. It comes back if a replica that has it sends it again."""
        self.entries.pop(path, None)
        self._fresh.pop(path, None)

    def _add(self, path: Path, raw: list[Any]) -> bool:
        """Make an entry of what came, unless that says nothing."""
        _check_path(path)
        cls = _TYPES.get(raw[0]) if type(raw[0]) is str else None
        if cls is None:
            raise ValueError("unknown type")
        if len(self.entries) >= MOST_ENTRIES:
            raise ValueError("too many entries")
        entry = cls()
        if not entry.absorb(raw[2]):
            return False
        self.entries[path] = entry
        return True

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Path]:
        return iter(self.entries)

    def __repr__(self) -> str:
        return f"<CrdtMap {len(self.entries)} entries, {len(self._fresh)} to send, {self.ignored} ignored>"


def _check_path(path: Path) -> None:
    if not 0 < len(path) <= LONGEST_PATH:
        raise ValueError("not a path")
    for part in path:
        check_name(part)
