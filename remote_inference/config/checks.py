"""How a table checks itself: every field by its name, all faults before one is raised, units at the edge."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from datetime import timedelta
from enum import Enum
from typing import Any, TypeVar

from ..errors import ConfigurationError

__all__ = ["Checker", "build", "did_you_mean", "json_fault", "under"]

T = TypeVar("T")

DAY = 86_400.0
_DEEPEST = 32
_NOT_HERE = {
    ("Deployment", "budget"): "this version keeps no budgets; set one with the provider",
    ("CredentialRef", "adc"): (
        'this version does not fetch Google\'s credentials itself; write from_command = ["gcloud", "auth", '
        '"application-default", "print-access-token"], lifetime = 1800'
    ),
}


class Checker:
    """Checks the fields of a frozen dataclass in its ``__post_init__``, and puts them into their inner form.

    Each check returns whether the field is right, so that a rule over two fields is asked only of right ones.
    """

    def __init__(self, target: object) -> None:
        self._target = target
        self.faults: list[str] = []

    def get(self, name: str) -> Any:
        """The field, of whatever type it was given."""
        return getattr(self._target, name)

    def put(self, name: str, value: object) -> None:
        """Put a field into its inner form."""
        object.__setattr__(self._target, name, value)

    def fault(self, name: str, reason: str) -> bool:
        """Note a fault; False, to be returned by a check."""
        self.faults.append(f"{name}: {reason}")
        return False

    def done(self) -> None:
        """Raise `ConfigurationError` with every fault, if there is one."""
        if self.faults:
            raise ConfigurationError(self.faults)

    def whole(self, name: str, low: int, high: int, *, optional: bool = False) -> bool:
        """A whole number from ``low`` to ``high``."""
        value = self.get(name)
        if value is None and optional:
            return True
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            return self.fault(name, f"must be a whole number from {low} to {high}")
        return True

    def number(self, name: str, low: float, high: float, *, optional: bool = False) -> bool:
        """A number from ``low`` to ``high``; kept as a float."""
        value = self.get(name)
        if value is None and optional:
            return True
        if not is_number(value) or not low <= value <= high:
            return self.fault(name, f"must be a number from {low:g} to {high:g}")
        self.put(name, float(value))
        return True

    def seconds(self, name: str, high: float = DAY) -> bool:
        """A duration above 0: seconds, or a timedelta; kept as float seconds."""
        value = self.get(name)
        if isinstance(value, timedelta):
            value = value.total_seconds()
        if not is_number(value) or not 0 < value <= high:
            return self.fault(name, f"must be seconds, above 0 and at most {high:g}")
        self.put(name, float(value))
        return True

    def flag(self, name: str) -> bool:
        """True or false, and nothing that only looks like it."""
        return isinstance(self.get(name), bool) or self.fault(name, "must be true or false")

    def choice(self, name: str, options: Iterable[str]) -> bool:
        """One of these words."""
        value, options = self.get(name), tuple(options)
        if isinstance(value, Enum):
            value = value.value
        if isinstance(value, str) and value in options:
            return True
        return self.fault(name, f"must be {' or '.join(map(_quoted, options))}{did_you_mean(value, options)}")

    def words(self, name: str) -> bool:
        """A list of strings without repetition; kept as a tuple."""
        value = self.get(name)
        if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
            return self.fault(name, "must be a list of strings")
        right = True
        for index, word in enumerate(value):
            if word in value[:index]:
                right = self.fault(f"{name}[{index}]", "is in the list already")
        self.put(name, tuple(value))
        return right

    def table(self, name: str, cls: type[Any], *, optional: bool = False) -> bool:
        """A table of its own: an object of ``cls``, or a mapping to build one from."""
        value = self.get(name)
        if value is None and optional:
            return True
        built = build(cls, value, name, self.faults)
        if built is not None:
            self.put(name, built)
        return built is not None


def build(cls: type[T], value: Any, path: str, faults: list[str]) -> T | None:
    """An object of the dataclass ``cls`` from a mapping; None where ``faults`` grew by what is wrong with it.

    Unknown keys do not hide what else is wrong, and a field that is missing does not either.
    """
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        faults.append(f"{path}: must be a table")
        return None
    known = {f.name: f for f in fields(cls) if f.init}  # type: ignore[arg-type]  # always one of our dataclasses
    found = []
    for key in value:
        if key not in known:
            found.append(under(path, f"{_short(key)}: {_not_known(cls, key, known)}"))
    given = {key: item for key, item in value.items() if key in known}
    for name, f in known.items():
        if name not in given and f.default is MISSING and f.default_factory is MISSING:
            found.append(under(path, f"{name}: is missing"))
            given[name] = f.metadata["placeholder"]  # so that the other fields are checked too
    try:
        built = cls(**given)
    except ConfigurationError as exc:
        found += [under(path, fault) for fault in exc.faults]
    faults += found
    return None if found else built


def under(path: str, fault: str) -> str:
    """The fault of a table, told from one level up."""
    return f"{path}.{fault}" if path else fault


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    """``; did you mean "…"?`` with the nearest of the known words, or nothing."""
    import difflib  # 2 ms of import, for faults only

    near = difflib.get_close_matches(word, list(known), n=1) if isinstance(word, str) else []
    return f'; did you mean "{near[0]}"?' if near else ""


def is_number(value: object) -> bool:
    """A finite int or float; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) or math.isfinite(value)


def json_fault(value: Any, path: str, depth: int = 0) -> str | None:
    """The first fault that keeps a value out of a JSON body, as ``path: reason``, or None."""
    if value is None or isinstance(value, (str, bool)) or is_number(value):
        return None
    if depth >= _DEEPEST:
        return f"{path}: is nested too deep"
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            return f"{path}: must have strings as keys"
        parts = [(f"{path}.{_short(key)}", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    else:
        return f"{path}: must be JSON: a string, number, true or false, list or table"
    return next((fault for where, item in parts if (fault := json_fault(item, where, depth + 1))), None)


def _not_known(cls: type[Any], key: Any, known: Iterable[str]) -> str:
    hint = _NOT_HERE.get((cls.__name__, key)) if isinstance(key, str) else None
    if hint:
        return f"is not known: {hint}"
    near = did_you_mean(key, known)
    return f"is not known{near}" if near else f"is not known; known are {', '.join(known)}"


def _short(key: Any) -> str:
    text = str(key)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _quoted(word: str) -> str:
    return f'"{word}"'
