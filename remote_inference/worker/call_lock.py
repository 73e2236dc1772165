"""`CallLock`: who may call a provider in this process: many requests at a time, or one that must be alone.

A readers-writer lock whose waits are bounded and can be cancelled. One that must be alone goes before those that need
not be: else it would never be. They wait behind it for a moment and then go elsewhere (the engine hands them back).
"""

from __future__ import annotations

import threading
from collections import deque

from ..cancel import CancelToken
from ..clock import Clock

__all__ = ["CallLock"]


class _Waiter:
    __slots__ = ("event", "granted")

    def __init__(self) -> None:
        self.event = threading.Event()
        self.granted = False


class CallLock:
    """One a process. Not re-entrant.

    Args:
        clock: for the waits.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._shared = 0
        self._exclusive = False
        self._waiting_alone: deque[_Waiter] = deque()
        self._waiting: deque[_Waiter] = deque()

    def acquire(self, *, alone: bool, patience: float = 0.0, token: CancelToken | None = None) -> bool:
        """Take it, after at most ``patience`` seconds; whether it was taken. A cancelled token ends the wait."""
        with self._lock:
            if self._is_free(alone):
                self._take(alone)
                return True
            if patience <= 0:
                return False
            waiter = _Waiter()
            line = self._waiting_alone if alone else self._waiting
            line.append(waiter)
        try:
            if token is None:
                self._clock.wait(waiter.event, patience)
            else:
                with token.interrupting(waiter.event.set):
                    self._clock.wait(waiter.event, patience)
        finally:
            with self._lock:
                if not waiter.granted:
                    line.remove(waiter)
                    self._hand_on()  # those behind it need not wait any more
        return waiter.granted

    def release(self, *, alone: bool) -> None:
        """Give it back."""
        with self._lock:
            if alone:
                self._exclusive = False
            else:
                self._shared -= 1
            self._hand_on()

    def _is_free(self, alone: bool) -> bool:
        if alone:
            return not self._exclusive and not self._shared and not self._waiting_alone
        return not self._exclusive and not self._waiting_alone

    def _take(self, alone: bool) -> None:
        if alone:
            self._exclusive = True
        else:
            self._shared += 1

    def _hand_on(self) -> None:
        if self._exclusive:
            return
        if self._waiting_alone:
            if not self._shared:
                self._grant(self._waiting_alone, alone=True)
            return
        while self._waiting:
            self._grant(self._waiting, alone=False)

    def _grant(self, line: deque[_Waiter], *, alone: bool) -> None:
        waiter = line.popleft()
        self._take(alone)
        waiter.granted = True
        waiter.event.set()

    def __repr__(self) -> str:
        held = "one alone" if self._exclusive else f"{self._shared} together"
        return f"CallLock({held}, waiting={len(self._waiting_alone)}+{len(self._waiting)})"
