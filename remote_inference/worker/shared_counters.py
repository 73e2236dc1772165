"""`SharedCounters`: a page of memory that a worker's processes share: what all must see at once, and what each counts.

A prefork child is reached neither by a lock nor by a message before it begins its next request; a number in shared
memory is. So a deployment has a rebuild epoch: the main process advances it, and each lease of a session compares it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, MutableSequence, Sequence
from typing import Any

from ..engine import CELLS, MetricsRecorder, metrics_from_cells
from ..types import EngineMetrics

__all__ = ["SharedCounters"]

STRIPES = 128
"""Processes that count at the same time; more than these share."""

_LARGEST = 2**63 - 1


class SharedCounters:
    """Numbers of 64 bits: the connection's generation; a rebuild epoch for each deployment; counts and the circuit for
    each process and deployment; the last command that each process has carried out.

    Made in a worker's main process before its pool; children inherit it. Each number has one writer, except where
    more than `STRIPES` processes run.
    """

    def __init__(self, deployments: Sequence[str]) -> None:
        self._deployments = {name: index for index, name in enumerate(deployments)}
        count = max(1, len(deployments))
        self._rebuild_epochs_at = 1
        self._counts_at = 1 + count
        self._stride = count * CELLS
        self._circuits_at = self._counts_at + STRIPES * self._stride
        self._obeyed_at = self._circuits_at + STRIPES * count
        size = 8 * (self._obeyed_at + STRIPES)
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

    def rebuild_epoch(self, deployment: str) -> int:
        """How often the operator asked for a new session."""
        index = self._deployments.get(deployment)
        return 0 if index is None else self._cells[self._rebuild_epochs_at + index]

    def advance_rebuild_epoch(self, deployment: str) -> int:
        """Ask for a new session, in every process (main process only)."""
        index = self._rebuild_epochs_at + self._deployments[deployment]
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
        """A new process takes the stripe of one that may have died with requests in flight: they failed there.

        What that one knew of circuits is of no more interest.
        """
        for name in self._deployments:
            MetricsRecorder(self.counts(name, stripe)).fail_in_flight()
            self.show_circuit(name, stripe, 0.0)

    def show_circuit(self, deployment: str, stripe: int, until: float) -> None:
        """A process knows the deployment's circuit to be open until then (seconds since the epoch), 0.0: closed."""
        at = self._circuits_at + (stripe % STRIPES) * len(self._deployments) + self._deployments[deployment]
        self._cells[at] = min(int(until * 1000), _LARGEST)

    def circuit(self, deployment: str, now: float) -> str:
        """``open`` or ``half_open`` where it is in one of the processes, else ``closed``."""
        count = len(self._deployments)
        first = self._circuits_at + self._deployments[deployment]
        latest = max(self._cells[first : first + STRIPES * count : count])
        return "closed" if not latest else "open" if latest > now * 1000 else "half_open"

    def obey(self, stripe: int, command: int) -> None:
        """A process has carried out what the main process asked for."""
        self._cells[self._obeyed_at + stripe % STRIPES] = command

    def obeyed(self, command: int) -> int:
        """How many processes have carried out that command, or one that came after it."""
        return sum(done >= command for done in self._cells[self._obeyed_at : self._obeyed_at + STRIPES])

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
        return f"SharedCounters({len(self._deployments)} deployments, connection {self.connection})"
