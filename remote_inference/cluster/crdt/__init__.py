"""Values that replicas change apart and merge to the same, and a map of them. No clock, no I/O."""

from __future__ import annotations

from .map import LONGEST_PATH, MOST_ENTRIES, CrdtMap, Path
from .types import Crdt, ExpiringSet, GCounter, LwwRegister, PNCounter

__all__ = [
    "Crdt",
    "CrdtMap",
    "ExpiringSet",
    "GCounter",
    "LONGEST_PATH",
    "LwwRegister",
    "MOST_ENTRIES",
    "PNCounter",
    "Path",
]
