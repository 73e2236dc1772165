"""`Submitter`: a request's way into its queue, or a typed error in time; never a hang, a silent drop, a second copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from celery import Celery

from ..clock import Clock
from ..config import CapacityPolicy, Deployment, InferenceConfig
from ..errors import Backpressure, ConfigurationError, InferenceError, InvalidRequest
from ..events import Hooks
from ..messaging.commands import send_cancel
from ..messaging.delivery import Delivery
from ..messaging.names import INFER_TASK
from ..messaging.publisher import Publisher
from ..messaging.wire import ClientIdentity, Envelope
from ..policy.routing import next_deployment
from ..types import InferenceRequest, Priority, summary
from .handle import InferenceHandle
from .message import AdmittedProducer, Collector
from .replies import ReplyDesk
from .sender import Sender

__all__ = ["Submitter"]


@dataclass
class _Work:
    """One request on its way: to the deployment that was asked for, and on to its fallbacks."""

    asked: Deployment
    deployment: Deployment
    request: InferenceRequest
    priority: Priority
    envelope: Envelope
    handle: InferenceHandle
    tried: list[str]
    delivery: Delivery = field(init=False)

    def fail(self, error: InferenceError) -> None:
        """Its handle ends with this error."""
        self.handle.fail(error)


class Submitter:
    """One process's way to submit. Made again after a fork.

    Args:
        app: for the task's message, its signals and events.
        config: the deployments.
        publisher, desk, identity: this process's.
        clock, hooks: time, and who is told of refusals.
    """

    def __init__(
        self,
        app: Celery,
        config: Callable[[], InferenceConfig],
        publisher: Publisher,
        desk: ReplyDesk,
        identity: ClientIdentity,
        *,
        clock: Clock,
        hooks: Hooks,
    ) -> None:
        self._app = app
        self._config = config
        self._publisher = publisher
        self._desk = desk
        self._identity = identity
        self._clock = clock
        self.sender = Sender(publisher, clock=clock, hooks=hooks)

    # -- what the API calls

    def submit(
        self,
        request: InferenceRequest,
        *,
        priority: Priority = Priority.NORMAL,
        deadline: float | timedelta | None = None,
        on_restart: str = "raise",
        on_disconnect: str = "cancel",
    ) -> InferenceHandle:
        """Publish one request.

        Raises:
            InvalidRequest: nothing was sent.
            Backpressure: it was not taken, and nothing was sent.
            SubmitUncertain: the broker did not confirm; the id is cancelled.
        """
        deployment = self._deployment(request.deployment)
        seconds = check_deadline(deadline)
        _choice("on_restart", on_restart, ("raise", "announce"))
        _choice("on_disconnect", on_disconnect, ("cancel", "finish"))
        work = self._work(request, deployment, priority, seconds, on_restart, on_disconnect)
        end = self._clock.monotonic() + deployment.admission_timeout
        while True:
            producer = AdmittedProducer(
                self._app, self._publisher, self.sender, work.deployment, priority, end, before=self._listen
            )
            try:
                self._publish_task(work, producer)
                return work.handle
            except Backpressure as refused:
                if not self._move_on(work, refused):
                    raise
                end = self._clock.monotonic() + work.deployment.admission_timeout

    def submit_many(
        self,
        requests: Iterable[InferenceRequest],
        *,
        priority: Priority = Priority.NORMAL,
        deadline: float | timedelta | None = None,
        on_restart: str = "raise",
        on_disconnect: str = "cancel",
    ) -> list[InferenceHandle]:
        """Publish many requests with gathered confirms; in order within a deployment.

        Returns:
            A handle for each. One that was not taken has ended with its `Backpressure` or `SubmitUncertain`: so
            nothing is known of only half of them.

        Raises:
            InvalidRequest: one of them is wrong; nothing was sent.
        """
        seconds = check_deadline(deadline)
        _choice("on_restart", on_restart, ("raise", "announce"))
        _choice("on_disconnect", on_disconnect, ("cancel", "finish"))
        prepared: list[tuple[Deployment, InferenceRequest]] = []
        for index, request in enumerate(requests):
            try:
                prepared.append((self._deployment(request.deployment), request))
            except InvalidRequest as exc:
                raise InvalidRequest(f"requests[{index}].{exc.field}", exc.reason) from exc
        if not prepared:
            return []
        works: list[_Work] = []
        for index, (deployment, request) in enumerate(prepared):
            work = self._work(request, deployment, priority, seconds, on_restart, on_disconnect)
            try:
                self._collect(work)
            except InvalidRequest as exc:
                raise InvalidRequest(f"requests[{index}].{exc.field}", exc.reason) from exc
            works.append(work)
        handles = [work.handle for work in works]
        while works:
            works = [work for work, refused in self._send_all(works) if self._goes_on(work, refused)]
        return handles

    def cancel(self, request_ids: Iterable[str], reason: str = "caller") -> None:
        """Cancel requests wherever they are."""
        send_cancel(self._publisher, request_ids, reason)

    def prepare(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What ``apply_async`` was given, checked, with our producer and the redacted representations.

        Raises:
            InvalidRequest: nothing was sent.
        """
        deployment, request, seconds = self.check_call(args, kwargs)
        if self._app.conf.task_protocol != 2:
            raise ConfigurationError(
                ["task_protocol: must be 2 (Celery's default): older messages have no headers"]
            )
        end = self._clock.monotonic() + deployment.admission_timeout
        priority = Priority.NORMAL if options.get("priority") is None else Priority.parse(options["priority"])
        headers = dict(options.get("headers") or {})
        headers.update(self._envelope(request, seconds, reply_to="").to_headers())
        options = {
            **options,
            "queue": deployment.queue,
            "priority": int(priority),
            "headers": headers,
            "producer": AdmittedProducer(self._app, self._publisher, self.sender, deployment, priority, end),
            "serializer": "json",
            "argsrepr": "()",
            "kwargsrepr": summary(request),
        }
        for name in ("exchange", "routing_key", "compression", "connection", "publisher"):
            options.pop(name, None)
        return request.to_wire(), options

    def check_call(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Deployment, InferenceRequest, float | None]:
        """What a task is called with: its deployment, its request, and the seconds that it may take.

        Raises:
            InvalidRequest: with the path of the field at fault.
        """
        given = dict(kwargs)
        for name, value in zip(("deployment", "messages"), args, strict=False):
            if name in given:
                raise InvalidRequest(name, "given twice")
            given[name] = value
        if len(args) > 2:
            raise InvalidRequest("args", "deployment and messages may be positional, the rest goes by name")
        seconds = check_deadline(given.pop("deadline", None))
        request = InferenceRequest.parse(given.pop("deployment", None), given.pop("messages", None), **given)
        return self._deployment(request.deployment), request, seconds

    # -- one message

    def _deployment(self, name: str) -> Deployment:
        deployments = self._config().deployments
        deployment = deployments.get(name)
        if deployment is None:
            raise InvalidRequest(
                "deployment", f"no such deployment; there are: {', '.join(sorted(deployments))}"
            )
        return deployment

    def _envelope(
        self, request: InferenceRequest, seconds: float | None, *, reply_to: str, gone: str = "cancel"
    ) -> Envelope:
        now = self._clock.time()
        return Envelope(
            reply_to=reply_to,
            sent=now,
            deadline=None if seconds is None else now + seconds,
            on_disconnect=gone,
            tokens=request.estimated_tokens(),
        )

    def _work(
        self,
        request: InferenceRequest,
        deployment: Deployment,
        priority: Priority,
        seconds: float | None,
        on_restart: str,
        on_disconnect: str,
    ) -> _Work:
        envelope = self._envelope(request, seconds, reply_to=self._identity.token, gone=on_disconnect)
        handle = InferenceHandle(
            self._identity.new_id(),
            deployment.name,
            clock=self._clock,
            cancel=self._cancel_one,
            deadline=envelope.deadline,
            announce_restarts=on_restart == "announce",
        )
        self._desk.expect(handle)
        return _Work(deployment, deployment, request, priority, envelope, handle, [deployment.name])

    def _publish_task(self, work: _Work, producer: Collector) -> None:
        """Have Celery make the task's message, with its signals and events, and give it to ``producer``."""
        amqp = self._app.amqp
        request = work.request
        message = amqp.as_task_v2(
            work.handle.request_id,
            INFER_TASK,
            (),
            request.to_wire(),
            create_sent_event=self._app.conf.task_send_sent_event,
            argsrepr="()",
            kwargsrepr=summary(request),
            ignore_result=True,
        )
        amqp.send_task_message(
            producer,
            INFER_TASK,
            message,
            queue=amqp.queues[work.deployment.queue],
            headers=work.envelope.to_headers(),
            priority=int(work.priority),
            retry=False,
            delivery_mode=2,
        )

    def _collect(self, work: _Work) -> None:
        collector = Collector(self._app, self._publisher, work.deployment)
        self._publish_task(work, collector)
        work.delivery = collector.delivery

    def _move_on(self, work: _Work, refused: Backpressure) -> bool:
        """Send it to the next of its fallbacks, if there is one for this refusal."""
        other = next_deployment(work.asked, refused, self._config(), tried=work.tried)
        if other is None:
            return False
        work.tried.append(other)
        work.deployment = self._config().deployments[other]
        work.request = replace(work.request, deployment=other)
        work.handle.deployment = other
        return True

    def _goes_on(self, work: _Work, refused: Backpressure) -> bool:
        """As `_move_on`, for one of many: where it does not go on, its handle is told."""
        try:
            if self._move_on(work, refused):
                self._collect(work)
                return True
        except InvalidRequest as exc:  # too large for the fallback
            work.handle.fail(exc)
            return False
        work.handle.fail(Backpressure(*refused.args))
        return False

    def _cancel_one(self, request_id: str) -> None:
        self.cancel((request_id,))

    # -- into the queue

    def _listen(self, deployment: Deployment, end: float) -> None:
        patient = deployment.on_capacity_exhausted is CapacityPolicy.QUEUE
        if not self._desk.listen(max(0.05, end - self._clock.monotonic()), patient=patient):
            raise self.sender.refused(deployment, self._publisher.trouble or "broker_down")

    def _send_all(self, works: list[_Work]) -> list[tuple[_Work, Backpressure]]:
        """Publish all, deployment by deployment; which of them were refused."""
        refused: list[tuple[_Work, Backpressure]] = []
        for deployment in {work.deployment.name: work.deployment for work in works}.values():
            own = [work for work in works if work.deployment is deployment]
            try:
                self._listen(deployment, self._clock.monotonic() + deployment.admission_timeout)
            except Backpressure as exc:
                refused += [(work, exc) for work in own]
            else:
                refused += self.sender.send_many(deployment, own[0].priority, own)
        return refused

    def __repr__(self) -> str:
        return f"Submitter({self._identity.token}, {self._publisher!r})"


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidRequest(name, f"must be {' or '.join(repr(c) for c in choices)}")


def check_deadline(deadline: Any) -> float | None:
    """Seconds from now, or None.

    Raises:
        InvalidRequest: it is no such figure, or in the past.
    """
    if deadline is None:
        return None
    if isinstance(deadline, timedelta):
        deadline = deadline.total_seconds()
    if isinstance(deadline, bool) or not isinstance(deadline, (int, float)) or not math.isfinite(deadline):
        raise InvalidRequest("deadline", "must be seconds from now, or a timedelta")
    if deadline <= 0:
        raise InvalidRequest("deadline", "is in the past")
    return float(deadline)
