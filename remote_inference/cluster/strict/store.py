"""`LimitStore`: where the strict limiter counts. One atomic exchange about one key at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ..base import LimitKey

__all__ = ["LimitStore", "StoreUnavailable"]


class StoreUnavailable(Exception):
    """The store did not answer, or could not. Whether the exchange happened, nobody knows.

    Args:
        reason: A word or two for logs, with nothing of an address or a password in it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class LimitStore(Protocol):
    """A server that all processes reach, with a clock of its own. Safe to use from threads."""

    def exchange(self, key: LimitKey, message: Mapping[str, Any]) -> dict[str, Any]:
        """Do what the message says, all of it or nothing, and give the answer; see `Account` for the words.

        Raises:
            StoreUnavailable: It did not answer in time, or not as it should.
        """

    def close(self) -> None:
        """Give the connections up; the next exchange makes new ones."""
