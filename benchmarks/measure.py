"""Measuring processes and samples: CPU and memory of process trees, percentiles, medians over rounds."""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Sequence

import psutil

__all__ = ["MemoryPeak", "median", "percentile", "ratio", "tree_cpu", "tree_rss"]


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was really measured. NaN without values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    """The median; NaN without values."""
    return statistics.median(values) if values else math.nan


def ratio(part: float, whole: float) -> float:
    """`part / whole`; NaN where there is no whole."""
    return part / whole if whole else math.nan


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def tree_cpu(pid: int) -> float:
    """User and system seconds that a process and its living descendants have used since they began.

    The clock ticks at 10 ms: measure spans of seconds.
    """
    total = 0.0
    for process in _tree(pid):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        # What ended children used is in their parent's children_*: nothing is lost with them.
        total += times.user + times.system + times.children_user + times.children_system
    return total


def tree_rss(pid: int) -> int:
    """Resident bytes of a process and its descendants. Pages they share are counted once for each."""
    total = 0
    for process in _tree(pid):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


class MemoryPeak:
    """Watches the resident bytes of a process tree in a `with`, every `interval` seconds.

    Attributes:
        bytes: The most that was seen.
    """

    def __init__(self, pid: int, interval: float = 0.25) -> None:
        self.bytes = 0
        self._pid = pid
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-peak", daemon=True)

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, tree_rss(self._pid))
            if self._stop.wait(self._interval):
                return

    def __enter__(self) -> MemoryPeak:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
