"""Worker processes: Celery's own command, started, killed, and ended with the one who started them."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any

from benchmarks.cluster.arrangement import Arrangement
from benchmarks.measure import tree_cpu
from benchmarks.sides import ROOT

__all__ = ["Worker", "Workers"]

_LONGEST_END = 10.0  # seconds, of a warm shutdown
_numbers = itertools.count(1)


class Worker:
    """One worker process.

    Args:
        arrangement: What it is told.
        deployments: Whose queues it consumes.
        slots: Its concurrency.
        pool: Celery's name of the kind.
    """

    def __init__(self, arrangement: Arrangement, deployments: Sequence[str], slots: int, pool: str) -> None:
        self.deployments = tuple(deployments)
        self._log: IO[bytes] = tempfile.TemporaryFile()
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.cluster.app", "worker"]
        command += ["-P", pool, "-c", str(slots), "--loglevel", "WARNING"]
        command += ["-Q", ",".join(f"inference.{name}" for name in deployments)]
        command += ["-n", f"bench{next(_numbers)}-{os.getpid()}@%h"]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**arrangement.environment(), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is the benchmark's to handle
        )

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def cpu(self) -> float:
        """Seconds of CPU that it has used; 0.0 when it has ended."""
        return tree_cpu(self.pid) if self.running else 0.0

    def tail(self) -> str:
        """The end of what it said."""
        self._log.seek(0)
        return self._log.read()[-4000:].decode(errors="replace")

    @property
    def complaints(self) -> list[str]:
        """The lines of its log that are warnings or errors."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        return [line for line in lines if ": WARNING/" in line or ": ERROR/" in line or ": CRITICAL/" in line]

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.running:
            self._process.send_signal(number)

    def wait(self, until: float) -> None:
        """Wait for its end until then (monotonic), and kill it if that does not come."""
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __repr__(self) -> str:
        return f"<Worker {self.pid} of {', '.join(self.deployments)}>"


class Workers:
    """All workers of a case; leaving the `with` ends them."""

    def __init__(self, arrangement: Arrangement, slots: int, pool: str = "threads") -> None:
        self._arrangement = arrangement
        self._slots = slots
        self._pool = pool
        self._all: list[Worker] = []

    def start(self, *deployments: str) -> Worker:
        """Start one; it is not ready yet."""
        worker = Worker(self._arrangement, deployments, self._slots, self._pool)
        self._all.append(worker)
        return worker

    def end(self, workers: Sequence[Worker], number: int = signal.SIGTERM) -> None:
        """Signal them all, then wait for their ends."""
        for worker in workers:
            worker.signal(number)
        until = time.monotonic() + _LONGEST_END
        for worker in workers:
            worker.wait(until)

    @property
    def running(self) -> list[Worker]:
        """Those that have not ended."""
        return [worker for worker in self._all if worker.running]

    @property
    def complaints(self) -> list[str]:
        """What they said that was a warning or worse."""
        return [line for worker in self._all for line in worker.complaints]

    def check(self, expected: int) -> None:
        """Raise what a worker said before it ended of itself, if so many do not run.

        Raises:
            RuntimeError: One has.
        """
        if len(self.running) < expected:
            ended = next(worker for worker in reversed(self._all) if not worker.running)
            raise RuntimeError(f"{ended!r} has ended:\n{ended.tail()}")

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.end(self._all)
