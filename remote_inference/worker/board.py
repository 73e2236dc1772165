"""`Board`: a page of memory that a worker's processes share: what all must see at once, and what each counts.

A prefork child is reached neither by a lock nor by a message before it begins its next request; a number in shared
memory is. So an operator's rebuild is a fence: the main process counts it up, and whoever leases a session looks.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, MutableSequence, Sequence
from typing import Any

from ..engine import CELLS, MetricsRecorder, metrics_from_cells
from ..types import EngineMetrics

__all__ = ["Board"]

STRIPES = 128
"""Processes that count at the same time; more than these share."""


class Board:
    """Numbers of 64 bits: the connection's generation, a fence a deployment, and counts a process and deployment.

    Made in a worker's main process before its pool; children inherit it. Each number has one writer, except where
    more than `STRIPES` processes run.
    """

    def __init__(self, deployments: Sequence[str]) -> None:
        self._deployments = {name: index for index, name in enumerate(deployments)}
        count = max(1, len(deployments))
        self._fences_at = 1
        self._counts_at = 1 + count
        self._stride = count * CELLS
        size = 8 * (self._counts_at + STRIPES * self._stride)
        self._memory = mmap.mmap(-1, size)
        self._cells = memoryview(self._memory).cast("q")
        self.main_pid = os.getpid()

    @property
    def connection(self) -> int:
        """The generation of the worker's broker connection; deliveries of an older one cannot be acknowledged."""
        return self._cells[0]

    def next_connection(self) -> int:
        """A new connection stands, or the old one was lost (main process only)."""
        self._cells[0] += 1
        return self._cells[0]

    def fence(self, deployment: str) -> int:
        """How often the operator asked for a new session."""
        index = self._deployments.get(deployment)
        return 0 if index is None else self._cells[self._fences_at + index]

    def raise_fence(self, deployment: str) -> int:
        """Ask for a new session, in every process (main process only)."""
        index = self._fences_at + self._deployments[deployment]
        self._cells[index] += 1
        return self._cells[index]

    def counts(self, deployment: str, stripe: int) -> MutableSequence[int]:
        """The cells in which a process counts for a deployment."""
        at = self._counts_at + (stripe % STRIPES) * self._stride + self._deployments[deployment] * CELLS
        cells: Any = self._cells[
            at : at + CELLS
        ]  # a memoryview is a sequence of fixed length, which no type says
        return cells  # type: ignore[no-any-return]

    def clear_in_flight(self, stripe: int) -> None:
        """A new process takes the stripe of one that may have died with requests in flight: they failed there."""
        for name in self._deployments:
            MetricsRecorder(self.counts(name, stripe)).fail_in_flight()

    def metrics(self) -> Mapping[str, EngineMetrics]:
        """The sums over all processes."""
        return {
            name: metrics_from_cells(
                [
                    sum(column)
                    for column in zip(*(self.counts(name, stripe) for stripe in range(STRIPES)), strict=True)
                ]
            )
            for name in self._deployments
        }

    def __repr__(self) -> str:
        return f"Board({len(self._deployments)} deployments, connection {self.connection})"
