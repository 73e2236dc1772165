"""Counting how many requests of a deployment are where, and how they ended."""

from __future__ import annotations

import threading
from collections.abc import Iterator, MutableSequence, Sequence
from contextlib import contextmanager

from ..types import EngineMetrics

__all__ = ["CELLS", "MetricsRecorder", "metrics_from_cells"]

_NAMES = (
    "in_flight",
    "started",
    "completed",
    "failed",
    "rejected",
    "cancelled",
    "handed_back",
    "retried",
    "prompt_tokens",
    "completion_tokens",
    "cost_microusd",
)
CELLS = len(_NAMES)
"""How many whole numbers a recorder keeps."""

_INDEX = {name: index for index, name in enumerate(_NAMES)}


def metrics_from_cells(cells: Sequence[int]) -> EngineMetrics:
    """From a recorder's numbers, or the sums of several."""
    values = dict(zip(_NAMES, cells, strict=True))
    cost = values.pop("cost_microusd") / 1e6
    return EngineMetrics(cost_usd=cost, **values)


class MetricsRecorder:
    """Counts in ``cells``: a list, or memory shared by a worker's processes (each writes cells of its own)."""

    def __init__(self, cells: MutableSequence[int] | None = None) -> None:
        self._cells = cells if cells is not None else [0] * CELLS
        self._lock = threading.Lock()

    @contextmanager
    def request(self) -> Iterator[list[str]]:
        """One request: set the outcome's name in the list that the block is given."""
        outcome = ["failed"]
        self.add("in_flight", 1)
        self.add("started", 1)
        try:
            yield outcome
        finally:
            with self._lock:
                self._cells[_INDEX["in_flight"]] -= 1
                self._cells[_INDEX[outcome[0]]] += 1

    def add(self, name: str, amount: int) -> None:
        """Add to one count."""
        with self._lock:
            self._cells[_INDEX[name]] += amount

    def fail_in_flight(self) -> None:
        """Whoever counted in these cells before has died: what it had in flight failed there."""
        with self._lock:
            self._cells[_INDEX["failed"]] += self._cells[_INDEX["in_flight"]]
            self._cells[_INDEX["in_flight"]] = 0

    def snapshot(self) -> EngineMetrics:
        """The counts now."""
        with self._lock:
            return metrics_from_cells(list(self._cells[:CELLS]))
