"""`EngineMetrics`: how many requests of a deployment are where, and how they ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..value import Value
from .wire import known_fields

__all__ = ["EngineMetrics"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EngineMetrics(Value):
    """Counts since the process began, of one deployment. Always: ``started = in_flight + completed + failed +
    rejected + cancelled + handed_back``.

    Attributes:
        queued: requests that wait in the broker (None where it was not asked).
        in_flight: being worked on now, backoffs included.
        completed, failed, cancelled: how they ended; a passed deadline is a failure.
        rejected: ended by our own refusal (an open circuit, where the policy is not to wait).
        handed_back: put back into the queue, because the deployment cannot send now. They come again.
        retried: attempts after the first one.
        prompt_tokens, completion_tokens, cost_usd: what was used, cancelled requests included.
    """

    queued: int | None = None
    in_flight: int = 0
    started: int = 0
    completed: int = 0
    failed: int = 0
    rejected: int = 0
    cancelled: int = 0
    handed_back: int = 0
    retried: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> EngineMetrics:
        """Read a worker's figures, also a newer one's (those that are not known are left out)."""
        return cls(**known_fields(cls, wire))

    @classmethod
    def total(cls, parts: Iterable[EngineMetrics], queued: int | None = None) -> EngineMetrics:
        """The sum over processes."""
        sums: dict[str, float] = {}
        for part in parts:
            for f in fields(cls):
                if f.name != "queued":
                    sums[f.name] = sums.get(f.name, 0) + getattr(part, f.name)
        return cls(queued=queued, **sums)  # type: ignore[arg-type]  # whole numbers stay whole
