"""The requests that run in this process, and how a command reaches them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from ..cancel import CancelToken
from ..clock import Clock

__all__ = ["Jobs"]

EARLY_MEMORY = 10_000
EARLY_SECONDS = 60.0
"""A cancel may come a moment before its request: it is remembered this long."""


class Jobs:
    """Tokens by request id. A redelivered request may run beside its older self for a moment: both are kept."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[str, list[tuple[int, CancelToken]]] = {}
        self._early: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self.draining = False
        """The process is about to end: nothing long is to be waited for."""

    @contextmanager
    def running(self, request_id: str, connection: int, token: CancelToken) -> Iterator[None]:
        """While the block runs, commands reach the token."""
        entry = (connection, token)
        with self._lock:
            older = list(self._running.get(request_id, ()))
            self._running.setdefault(request_id, []).append(entry)
            early = self._early.pop(request_id, None)
        for _, other in older:
            other.cancel("superseded")
        if early is not None and self._clock.monotonic() - early[1] < EARLY_SECONDS:
            token.cancel(early[0])
        try:
            yield
        finally:
            with self._lock:
                left = self._running[request_id]
                left.remove(entry)
                if not left:
                    del self._running[request_id]

    def cancel(self, request_id: str, reason: str) -> bool:
        """Cancel it if it runs here; else remember the command for a moment. Whether it runs here."""
        with self._lock:
            entries = list(self._running.get(request_id, ()))
            if not entries:
                self._early[request_id] = (reason, self._clock.monotonic())
                self._early.move_to_end(request_id)
                while len(self._early) > EARLY_MEMORY:
                    self._early.popitem(last=False)
        for _, token in entries:
            token.cancel(reason)
        return bool(entries)

    def cancel_older(self, connection: int, reason: str) -> int:
        """Cancel what was delivered on an older connection; how many that were."""
        with self._lock:
            tokens = [
                token for entries in self._running.values() for made, token in entries if made < connection
            ]
        return sum(token.cancel(reason) for token in tokens)

    def drain(self, reason: str) -> None:
        """The process is about to end: cancel what only waits for another attempt, now and from now on."""
        self.draining = True
        with self._lock:
            tokens = [token for entries in self._running.values() for _, token in entries]
        for token in tokens:
            if token.resting:
                token.cancel(reason)

    def __len__(self) -> int:
        return len(self._running)

    def __repr__(self) -> str:
        return f"Jobs({len(self)} running)"
