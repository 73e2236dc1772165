"""Where an attempt's chunks go."""

from __future__ import annotations

from typing import Protocol

from ..types import TokenChunk

__all__ = ["NullSink", "Sink"]


class Sink(Protocol):
    """Takes the chunks of one request; must not block for longer than an append."""

    def begin(self) -> None:
        """A new attempt: what came before is void."""

    def push(self, chunk: TokenChunk) -> None:
        """A piece of the answer, as it comes."""


class NullSink:
    """For a caller who wants only the result."""

    def begin(self) -> None:
        """Nothing to void."""

    def push(self, chunk: TokenChunk) -> None:
        """Nobody reads."""
