"""Celery's view of one of our tasks in the worker's main process: gate, cancel, and nothing of the prompt to show."""

from __future__ import annotations

import logging
from typing import Any

from celery.worker.request import Request
from celery.worker.state import task_ready

from .outcomes import RequestCancelled, Requeue
from .runtime import CONNECTION, EVENTS

__all__ = ["InferenceTaskRequest"]

logger = logging.getLogger(__name__)


class InferenceTaskRequest(Request):
    """One delivery of one request."""

    def __init__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(message, *args, **kwargs)
        main = self.inference_main
        self.request_dict[CONNECTION] = main.counters.connection
        self.request_dict[EVENTS] = bool(self.eventer and self.eventer.enabled)

    @property
    def inference_main(self) -> Any:
        """The `WorkerMain` of this process."""
        return self.task.inference.worker_main

    def revoked(self) -> bool:
        """Called just before the pool gets it: the gate may have closed, a cancel may have come."""
        main = self.inference_main
        gate = main.gate
        if gate.refuses(self.message):
            self.acknowledged = True
            task_ready(self)
            gate.bounce(self.message, self.id)
            return True
        if main.cancelled.get(self.id) is not None and not self._already_revoked:
            main.tell_cancelled(self)
            self._announce_revoked("cancelled", False, None, False)
            return True
        return bool(super().revoked())

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        super().on_accepted(pid, time_accepted)
        main = self.inference_main
        if main.cancelled.get(self.id) is not None:  # between the check and the pool
            main.cancel_running(self.id, "caller")

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        exc = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(exc, Requeue):
            task_ready(self)
            self.acknowledged = True
            self.inference_main.gate.hand_back(self.message, self.id, exc.reason, exc.until)
            return None
        if isinstance(exc, RequestCancelled):
            if exc.quiet:
                task_ready(self)
                self.acknowledged = (
                    True  # it cannot be: its connection is gone, and the broker delivers it again
                )
            elif not self._already_revoked:
                self._announce_revoked("cancelled", False, None, False)
            return None
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def info(self, safe: bool = False) -> dict[str, Any]:
        """What ``inspect`` and Flower's worker page show: the representations, not the arguments."""
        info: dict[str, Any] = super().info(safe=True)
        info["args"], info["kwargs"] = self.argsrepr, self.kwargsrepr
        return info
