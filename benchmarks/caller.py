"""The calling process of every side: N threads that ask, and the times at which they asked and were answered.

`python -m benchmarks.caller package.module:factory` reads commands from standard input, one JSON object a
line, and writes one for each to standard output. It lives through all rounds, so that imports and first
connections are in none.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from benchmarks.setting import Setting

__all__ = ["Asker", "Watch", "main"]


class Watch:
    """Stop watch of one request; the asker tells it what happened."""

    def __init__(self, rate: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._earliest = self._latest = 0.0
        self.submitted_at = 0.0
        self.first_at = 0.0
        self.last_at = 0.0
        self.tokens = 0

    def submitted(self) -> None:
        """The request is about to be sent."""
        self.submitted_at = self._clock()

    def token(self, count: int = 1) -> None:
        """So many tokens are in the caller's hands."""
        now = self.last_at = self._clock()
        if not self.tokens:
            self.first_at = now
        self.tokens += count
        if self._rate:
            due = now - self.tokens / self._rate
            if self._earliest == 0.0:
                self._earliest = self._latest = due
            else:
                self._earliest = min(self._earliest, due)
                self._latest = max(self._latest, due)

    @property
    def lateness(self) -> float:
        """Seconds by which the worst token was late, against its stream's best one and the server's pace."""
        return self._latest - self._earliest


class Asker(Protocol):
    """A side's half in the caller: one object for all threads, from the factory on the command line."""

    def ask(self, watch: Watch) -> None:
        """Send one request and read its tokens to the end, telling the watch. Raises what goes wrong."""
        ...

    def submit(self, count: int) -> None:
        """Send `count` requests that nobody answers, confirmed by the broker, as fast as this side can."""
        ...

    def discard(self) -> None:
        """Throw away what `submit` sent."""
        ...


def _run(
    asker: Asker, setting: Setting, requests: int, concurrency: int, per_second: float | None
) -> dict[str, Any]:
    """Ask in `concurrency` threads: each one after the other, or at the times that `per_second` gives."""
    numbers = itertools.count()
    samples: list[tuple[float, float, float, float]] = []
    errors: list[str] = []
    behind = [0.0]
    began = time.monotonic() + 0.05

    def work() -> None:
        while (number := next(numbers)) < requests:
            if per_second:
                due = began + number / per_second
                wait = due - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                else:
                    behind[0] = max(behind[0], -wait)
            watch = Watch(setting.rate)
            try:
                asker.ask(watch)
            except Exception as exc:
                errors.append(f"{type(exc).__name__}: {exc}"[:300])
                continue
            if watch.tokens != setting.tokens:
                errors.append(f"{watch.tokens} tokens instead of {setting.tokens}")
                continue
            samples.append((watch.submitted_at, watch.first_at, watch.last_at, watch.lateness))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(concurrency, requests))]
    cpu = time.process_time()
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "samples": samples,
        "errors": errors,
        "behind": behind[0],
        "wall": time.monotonic() - started,
        "cpu": time.process_time() - cpu,
    }


def _submit(asker: Asker, count: int) -> dict[str, Any]:
    cpu, started = time.process_time(), time.monotonic()
    asker.submit(count)
    taken = {"wall": time.monotonic() - started, "cpu": time.process_time() - cpu}
    asker.discard()
    return taken


def main() -> None:
    """Answer commands until standard input ends."""
    setting = Setting.from_environment()
    module, _, name = sys.argv[1].partition(":")
    factory: Callable[[Setting], Asker] = getattr(importlib.import_module(module), name)
    asker = factory(setting)
    # The answers have the real standard output to themselves, whatever a library prints.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "run":
            answer = _run(asker, setting, command["requests"], command["concurrency"], command["per_second"])
        else:
            answer = _submit(asker, command["count"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
