"""What a case found: figures, and the goals they are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measure import ratio
from benchmarks.report import Goal

__all__ = ["COLD_START", "Outcome", "Window", "at_least", "at_most"]

COLD_START = "refused in minute 1"
"""What the goal is called that every case about a limit has."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """What the provider saw in a span of time.

    Attributes:
        share: Of what the limit allows in that time, how much was spent; may pass 1 by what a span's ends do.
        admitted: Requests.
        refused: Requests.
    """

    share: float
    admitted: int
    refused: int

    @property
    def refused_share(self) -> float:
        """Of all requests that came, those that were refused; NaN if none came, for then nothing was measured."""
        return ratio(self.refused, self.admitted + self.refused)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One case's.

    Attributes:
        name: As on the command line.
        title: As in the table.
        first: The first minute (cold start), where the case is about a limit.
        steady: Minutes 2 and 3.
        goals: What is to be reached.
        figures: More, for the JSON.
        failed: What kept it from its end, if so.
    """

    name: str
    title: str
    first: Window | None = None
    steady: Window | None = None
    goals: Sequence[Goal] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    failed: str = ""

    @property
    def reached(self) -> bool:
        """Whether all goals are."""
        return not self.failed and all(goal.reached for goal in self.goals)

    @property
    def verdict(self) -> str:
        """One word."""
        return "failed" if self.failed else "reached" if self.reached else "missed"


def at_least(what: str, value: float, bound: float) -> Goal:
    """A goal from below."""
    return Goal(what=what, value=value, bound=bound, at_least=True)


def at_most(what: str, value: float, bound: float) -> Goal:
    """A goal from above."""
    return Goal(what=what, value=value, bound=bound)
