"""`Skew`: how far this machine's wall clock is off the others', and whether that is too much."""

from __future__ import annotations

import logging
from collections.abc import Callable

__all__ = ["Skew"]

logger = logging.getLogger(__name__)

WRONG_CLOCK = 30.0
"""Seconds by which a clock may differ from the middle of the others before it is taken for wrong."""


class Skew:
    """One replica's.

    Args:
        on_skew: told (seconds) when the clock is found wrong, and 0.0 when it is right again.
    """

    __slots__ = ("_on_skew", "seconds", "wrong")

    def __init__(self, on_skew: Callable[[float], None] | None) -> None:
        self._on_skew = on_skew
        self.seconds = 0.0
        """By which this wall clock is ahead of the middle of the others'."""
        self.wrong = False

    def compare(self, seconds: float) -> None:
        """It is ahead by so much now."""
        self.seconds = seconds
        wrong = abs(seconds) > WRONG_CLOCK
        if wrong == self.wrong:
            return
        self.wrong = wrong
        if wrong:
            logger.warning(
                "gossip: this machine's clock is %.1f s off the others'",
                seconds,
            )
        if self._on_skew is not None:
            self._on_skew(seconds if wrong else 0.0)

    def __repr__(self) -> str:
        return f"Skew({self.seconds:.3f} s{', wrong' if self.wrong else ''})"
