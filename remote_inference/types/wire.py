"""What all the values' JSON has in common: its version, and what is done with fields of a newer one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

__all__ = ["JSON", "WIRE_VERSION", "known_fields"]

WIRE_VERSION = 1
"""The version of the JSON below. A reader refuses a higher one and ignores fields that it does not know."""

JSON = dict[str, Any]


def known_fields(cls: type[Any], wire: Mapping[str, Any]) -> JSON:
    """The fields that this version has."""
    names = {f.name for f in fields(cls)}
    return {key: value for key, value in wire.items() if key in names}
