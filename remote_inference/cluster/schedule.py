"""`Schedule`: when a replica has to say what."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Schedule"]


@dataclass
class Schedule:
    """Monotonic times, in seconds; infinite for what is not to be said.

    Attributes:
        delta: what has changed.
        full: all that it has to say.
        hello: a greeting, or a question.
        archive: the last words of others.
        soon: what has changed and should not wait.
    """

    delta: float = math.inf
    full: float = math.inf
    hello: float = math.inf
    archive: float = math.inf
    soon: float = math.inf

    @property
    def due(self) -> float:
        """When the first of it is due."""
        return min(self.delta, self.full, self.hello, self.archive, self.soon)
