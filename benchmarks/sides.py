"""What a side of a benchmark is, and how its processes are run: a worker, and a caller that asks it.

Side (a), this library, is the package `benchmarks.ours`, which must have a class `Ours(ProcessSide)`:
`name = "ours"`, `caller = "benchmarks.ours.<module>:<factory>"` (the factory takes a `Setting` and
gives an `Asker`) and `worker_command()`. Worker and caller find the `Setting` with
`Setting.from_environment()`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from benchmarks.measure import MemoryPeak, tree_cpu, tree_rss
from benchmarks.setting import Setting

__all__ = ["ProcessSide", "Side", "SideResult", "Timing"]

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One request in its caller, in seconds of `time.monotonic()`; `lateness` as in `Watch`."""

    submitted: float
    first_token: float
    last_token: float
    lateness: float

    @property
    def to_first_token(self) -> float:
        """Seconds from submitting to the first token."""
        return self.first_token - self.submitted


@dataclass(frozen=True, kw_only=True)
class SideResult:
    """One measured run.

    Attributes:
        timings: Of the requests that got all their tokens.
        errors: What happened to the others.
        wall: Seconds for all of them.
        worker_cpu: User and system seconds of the worker's process tree, for all of them.
        caller_cpu: The same of the calling process.
        worker_rss: The most resident bytes of the worker's tree.
        caller_rss: The caller's, at the end.
        behind: Seconds by which the caller fell behind the arrivals it was asked for.
    """

    timings: Sequence[Timing]
    errors: Sequence[str]
    wall: float
    worker_cpu: float
    caller_cpu: float
    worker_rss: int
    caller_rss: int
    behind: float


class Side(Protocol):
    """One way to get tokens from the provider to a caller."""

    name: str

    def start(self) -> None:
        """Start its processes; returns when a first request was answered."""
        ...

    def run(self, requests: int, concurrency: int, per_second: float | None = None) -> SideResult:
        """Ask and measure: closed loop of `concurrency` threads, or arrivals at an even rate."""
        ...

    def submit(self, count: int) -> float:
        """Seconds to submit `count` requests, confirmed by the broker."""
        ...

    def stop(self) -> None:
        """End its processes and remove its queues."""
        ...


class ProcessSide:
    """A side whose worker and caller are subprocesses. Subclasses say which.

    Attributes:
        name: Of the side, in tables.
        caller: `module:factory` of its `Asker`.
    """

    name = ""
    caller = ""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._log: IO[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._caller: subprocess.Popen[str] | None = None

    def worker_command(self) -> list[str]:
        """How its worker is started; empty: it has none."""
        return []

    def cleanup(self) -> None:
        """Remove what is left behind in brokers, after the processes have ended."""

    def start(self, *, worker: bool = True) -> None:
        """Start worker and caller, and ask until one request is answered.

        Raises:
            RuntimeError: None was, within half a minute; the message ends with the worker's log.
        """
        environment = {**self.setting.environment(), "PYTHONPATH": str(ROOT)}
        self._log = tempfile.TemporaryFile()
        command = self.worker_command() if worker else []
        if command:
            self._worker = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a process group, for the pool's children
            )
        self._caller = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.caller", self.caller],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if worker:
            answer = self._command(
                {"do": "run", "requests": 1, "concurrency": 1, "per_second": None}, timeout=60
            )
            if answer["errors"]:
                raise RuntimeError(f"{self.name}: {answer['errors'][0]}\n{self._tail()}")

    def run(self, requests: int, concurrency: int, per_second: float | None = None) -> SideResult:
        """See `Side`."""
        worker, caller = self._worker, self._caller
        assert caller is not None
        command = {"do": "run", "requests": requests, "concurrency": concurrency, "per_second": per_second}
        before = tree_cpu(worker.pid) if worker else 0.0
        with MemoryPeak(worker.pid if worker else caller.pid) as peak:
            answer = self._command(command, timeout=900)
        time.sleep(0.1)  # what the worker does after the last token (acknowledging) is its work too
        return SideResult(
            timings=[
                Timing(submitted=submitted, first_token=first, last_token=last, lateness=late)
                for submitted, first, last, late in answer["samples"]
            ],
            errors=answer["errors"],
            wall=answer["wall"],
            worker_cpu=(tree_cpu(worker.pid) if worker else 0.0) - before,
            caller_cpu=answer["cpu"],
            worker_rss=peak.bytes if worker else 0,
            caller_rss=tree_rss(caller.pid),
            behind=answer["behind"],
        )

    def submit(self, count: int) -> float:
        """See `Side`."""
        wall: float = self._command({"do": "submit", "count": count}, timeout=300)["wall"]
        return wall

    def stop(self) -> None:
        """End both, the worker warmly if it can."""
        caller, self._caller = self._caller, None
        if caller is not None:
            assert caller.stdin is not None
            caller.stdin.close()
            _wait_or_kill(caller, 5)
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.send_signal(signal.SIGTERM)
            _wait_or_kill(worker, 10)
        self.cleanup()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _command(self, command: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        caller = self._caller
        assert caller is not None
        assert caller.stdin is not None
        assert caller.stdout is not None
        print(json.dumps(command), file=caller.stdin, flush=True)
        if not select.select([caller.stdout], [], [], timeout)[0]:
            raise RuntimeError(f"{self.name}: no answer from the caller in {timeout:g} s\n{self._tail()}")
        line = caller.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: the caller ended\n{self._tail()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _tail(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read()[-4000:].decode(errors="replace")


def _wait_or_kill(process: subprocess.Popen[Any], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        # Its group only where it has one of its own; never ours.
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
