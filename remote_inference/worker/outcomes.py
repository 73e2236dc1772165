"""What a task tells the worker's main process: it is to be put back, or it was cancelled."""

from __future__ import annotations

from typing import Any

from celery.exceptions import Ignore, Reject

from ..reasons import GateReason

__all__ = ["Requeue", "RequestCancelled"]


class Requeue(Reject):
    """Raised in a task: not now, and not before ``until`` (seconds since the epoch). Survives prefork's pickling."""

    def __init__(self, reason: GateReason, until: float) -> None:
        super().__init__(reason, True)
        self.until = until

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.until)


class RequestCancelled(Ignore):
    """Raised in a task that was cancelled. An `Ignore`: the child stores nothing, the main process announces it.

    ``quiet``: the message belongs to a connection that is lost; there is nothing to announce or acknowledge.
    """

    def __init__(self, reason: str, quiet: bool = False) -> None:
        super().__init__(reason, quiet)
        self.reason = reason
        self.quiet = quiet
