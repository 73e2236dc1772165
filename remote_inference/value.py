"""`Value`: equality, hash and repr of a dataclass, written once instead of generated for each.

A generated method costs a compilation at import. Some sixty dataclasses are read by every web process that imports
the library, and seldom compared: so they say ``eq=False, repr=False`` and inherit these.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Value"]


class Value:
    """Base of dataclasses that are compared by their fields. ``field(repr=False)`` hides a field, as usual."""

    __slots__ = ()

    __dataclass_fields__: dict[str, Any]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__dataclass_fields__)

    def __hash__(self) -> int:
        return hash(
            tuple(getattr(self, f.name) for f in self.__dataclass_fields__.values() if f.hash is not False)
        )

    def __repr__(self) -> str:
        shown = (f"{f.name}={getattr(self, f.name)!r}" for f in self.__dataclass_fields__.values() if f.repr)
        return f"{type(self).__name__}({', '.join(shown)})"
