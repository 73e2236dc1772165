"""What a configuration dataclass has: its fields, with what its docstring says of them under ``Attributes:``.

A field without a text is an error: so the reference cannot fall behind the code.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from enum import Enum
from typing import Any

__all__ = ["Row", "rows"]


class Row(typing.NamedTuple):
    """One field of a table."""

    name: str
    kind: str
    default: str
    text: str


def rows(cls: type) -> list[Row]:
    """The fields of a configuration dataclass, in order.

    Raises:
        LookupError: the docstring says nothing of a field, or speaks of one that is not there.
    """
    texts = _attributes(cls.__doc__ or "")
    fields = dataclasses.fields(cls)
    names = {field.name for field in fields}
    if missing := [field.name for field in fields if field.name not in texts]:
        raise LookupError(f"{cls.__name__}: its docstring does not describe {', '.join(missing)}")
    if strange := sorted(texts.keys() - names):
        raise LookupError(f"{cls.__name__}: its docstring describes {', '.join(strange)}, which is no field")
    return [Row(field.name, _kind(field.type), _default(field), texts[field.name]) for field in fields]


def _attributes(doc: str) -> dict[str, str]:
    found = re.search(r"\n\s*Attributes:\n(.*?)(\n\s*\n\s*[A-Z]\w+:\n|\Z)", doc, re.DOTALL)
    if found is None:
        return {}
    lines = [line for line in found[1].splitlines() if line.strip()]
    indent = min(len(line) - len(line.lstrip()) for line in lines) if lines else 0
    entries: list[str] = []
    for line in lines:
        if len(line) - len(line.lstrip()) == indent and re.match(r"[a-z_, ]+:", line.strip()):
            entries.append(line.strip())
        else:
            entries[-1] += " " + line.strip()
    texts = {}
    for entry in entries:
        names, _, text = entry.partition(":")
        for name in names.split(","):
            texts[name.strip()] = text.strip()
    return texts


def _kind(annotation: Any) -> str:
    text = str(annotation).replace(" | None", "")
    for pattern, word in _KINDS:
        if re.fullmatch(pattern, text):
            return word
    return text


_KINDS = (
    (r"str", "string"),
    (r"int", "whole number"),
    (r"float", "number"),
    (r"bool", "true or false"),
    (r"tuple\[str, \.\.\.\]", "list of strings"),
    (r"Mapping\[str, str\]", "table of strings"),
    (r"Mapping\[str, Any\]", "table"),
    (r"CapacityPolicy", "string"),
    (r"CredentialRef|RateLimits|RetryPolicy|BreakerPolicy|Timeouts|Price", "table"),
    (r"str \| Callable\[\[\], Any\]", "string; in Python also a function"),
    (r"Secret", "string"),
)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        return "" if dataclasses.is_dataclass(value) or not value else f"`{value!r}`"
    if field.default is dataclasses.MISSING:
        return "required"
    value = field.default.value if isinstance(field.default, Enum) else field.default
    if value is None or value == "" or value == ():
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return " ".join(f"`{item}`" for item in value)
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{value:_}`" if isinstance(value, int) else f"`{value:g}`"
