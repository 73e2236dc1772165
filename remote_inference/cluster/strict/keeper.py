"""`Keeper`: the strict limiter's thread, which says what nobody else takes along."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Protocol

__all__ = ["Keeper", "Keeps"]

logger = logging.getLogger(__name__)

_GATHER = 0.02  # seconds in which another exchange may take along what ended


class Keeps(Protocol):
    """What has something to keep."""

    def keep(self) -> bool:
        """Do what is due; whether there is more to come."""


class Keeper:
    """Runs while its owner has something to keep, in real time. It does not keep the owner alive."""

    def __init__(self, owner: Keeps, period: float) -> None:
        self._owner = weakref.ref(owner)
        self._period = period
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._runs = False
        self._stopped = False

    def wake(self) -> None:
        """There is something to say, or to keep."""
        if self._event.is_set():
            return
        with self._lock:
            self._event.set()
            if not self._runs and not self._stopped:
                self._runs = True
                threading.Thread(target=self._run, name="inference-strict-limits", daemon=True).start()

    def stop(self) -> None:
        """End it."""
        with self._lock:
            self._stopped = True
            self._event.set()

    def _run(self) -> None:
        quiet = threading.Event()
        while True:
            self._event.wait(min(self._period, 1.0))
            quiet.wait(_GATHER)
            self._event.clear()
            owner = self._owner()
            try:
                more = owner is not None and not self._stopped and owner.keep()
            except Exception:  # a fault of ours must not end the leases of all that runs
                logger.exception("the strict limits' keeper failed; it goes on")
                more = True
            del owner
            with self._lock:
                if not more and (self._stopped or not self._event.is_set()):
                    self._runs = False
                    return
