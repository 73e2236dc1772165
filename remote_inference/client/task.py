"""The tasks by name: what a web process has of them, and what ``apply_async`` and ``delay`` go through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from celery import Task

from ..errors import InferenceError
from ..messaging.names import CONTROL_QUEUE, INFER_TASK, REBUILD_TASK
from .submit import Submitter

__all__ = ["InferTask", "RebuildTask", "TaskOwner"]


class TaskOwner(Protocol):
    """What the tasks need of the `Inference` object that they belong to."""

    @property
    def runtime(self) -> Any:
        """What runs requests in this process."""

    @property
    def submitter(self) -> Submitter:
        """What publishes requests from this process."""

    def rebuild_session(self, deployment: str) -> dict[str, Any]:
        """Rebuild a session in all workers."""


class InferTask(Task):
    """``remote_inference.infer``: an ordinary Celery task, published through our admission and run by our engine.

    ``expires``, ``link``, ``group``, ``chord``, events and result backends work on it as on any task.
    """

    name = INFER_TASK
    typing = False  # the request is checked by us, with the field's name in the error
    serializer = "json"
    acks_late = True
    reject_on_worker_lost = True
    acks_on_failure_or_timeout = True
    ignore_result = True
    track_started = True  # else an idle worker reports REVOKED for a task that another one is running
    throws = (InferenceError,)
    # by name: a web process does not load the worker
    Request = "remote_inference.worker.request:InferenceTaskRequest"
    Strategy = "remote_inference.worker.strategy:inference_strategy"

    def __init__(self, inference: TaskOwner) -> None:
        self.inference = inference

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the request in this process: a worker's, or the caller's (``apply``, a direct call)."""
        return self.inference.runtime.run(self, args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Publish it as `Inference.submit` does: checked, admitted, confirmed; ``priority`` as an AMQP priority.

        Raises:
            InvalidRequest, Backpressure, SubmitUncertain: as `Inference.submit`.
        """
        if self._get_app().conf.task_always_eager:
            self.inference.submitter.check_call(args or (), kwargs or {})
            return super().apply_async(args, kwargs, **options)
        kwargs, options = self.inference.submitter.prepare(args or (), kwargs or {}, options)
        return super().apply_async((), kwargs, **options)


class RebuildTask(Task):
    """``remote_inference.rebuild_session``: for a beat schedule; tells all workers."""

    name = REBUILD_TASK
    queue = CONTROL_QUEUE
    ignore_result = True
    serializer = "json"

    def __init__(self, inference: TaskOwner) -> None:
        self.inference = inference

    def run(self, deployment: str) -> dict[str, Any]:
        """Rebuild the deployment's session in every worker; returns who did."""
        return self.inference.rebuild_session(deployment)
