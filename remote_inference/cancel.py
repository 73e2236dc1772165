"""`CancelToken`: one request's way to be told to stop, from any thread, wherever it waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import Cancelled

__all__ = ["CancelToken"]


class CancelToken:
    """Set once, with a reason; whoever waits is woken, whoever reads a socket gets it cut.

    A reader registers what ends its wait with `interrupting`. The callback runs under the token's lock, and the
    end of the ``with`` block takes that lock too: so a descriptor cannot be closed and reused while it is being cut.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._interrupt: Callable[[], None] | None = None
        self.reason = ""
        self.resting = False
        """Set by the one who runs the request while it only waits before another attempt: nothing would be cut."""

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._event.is_set()

    @property
    def event(self) -> threading.Event:
        """For waiting with a limit: ``clock.wait(token.event, seconds)``."""
        return self._event

    def cancel(self, reason: str = "caller") -> bool:
        """Stop the request; the first reason stays. True if this call was the first."""
        with self._lock:
            if self._event.is_set():
                return False
            self.reason = reason
            self._event.set()
            if self._interrupt is not None:
                self._interrupt()
            return True

    def check(self) -> None:
        """Raise `Cancelled` if the request is to stop."""
        if self._event.is_set():
            raise Cancelled(self.reason)

    @contextmanager
    def interrupting(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """While the block runs, `cancel` calls ``interrupt`` (which must not block or raise).

        Called at once if the token is cancelled already: an order that came a moment early is not lost.
        """
        with self._lock:
            outer, self._interrupt = self._interrupt, interrupt
            if self._event.is_set():
                interrupt()
        try:
            yield
        finally:
            with self._lock:
                self._interrupt = outer

    def __repr__(self) -> str:
        return f"CancelToken({self.reason!r})" if self.cancelled else "CancelToken()"
