"""Time as an argument: what decides or waits takes a `Clock`, so that tests can own the time."""

from __future__ import annotations

import threading
import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Where time comes from and how it is waited for. All figures are seconds."""

    def time(self) -> float:
        """Seconds since the epoch: for what crosses a process (deadlines, pauses)."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back: for durations within a process."""

    def sleep(self, seconds: float) -> None:
        """Wait."""

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        """Wait for the event, at most ``timeout``; True when it is set."""


class SystemClock:
    """The machine's clocks."""

    @staticmethod
    def time() -> float:
        return time.time()

    @staticmethod
    def monotonic() -> float:
        return time.monotonic()

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(seconds)  # looked up at the call: gevent may have replaced it since the import

    @staticmethod
    def wait(event: threading.Event, timeout: float | None) -> bool:
        return event.wait(timeout)

    def __repr__(self) -> str:
        return "SystemClock()"
