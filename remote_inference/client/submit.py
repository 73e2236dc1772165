"""`Submitter`: a request's way into its queue, or a typed error in time; never a hang, a silent drop, a second copy."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from amqp.exceptions import AMQPError, ChannelError, NotFound
from celery import Celery
from kombu import Producer
from kombu.utils.json import dumps as kombu_dumps

from ..clock import Clock
from ..config import CapacityPolicy, Deployment, InferenceConfig
from ..config.checks import json_fault
from ..errors import Backpressure, ConfigurationError, InvalidRequest, SubmitUncertain
from ..events import CapacityMismatch, Hooks, SubmitRejected
from ..messaging.admission import Admission
from ..messaging.delivery import Delivery, DeliveryState, Probe
from ..messaging.names import INFER_TASK
from ..messaging.orders import send_cancel
from ..messaging.publisher import Publisher
from ..messaging.queues import DeclaredQueue, declare_common, declare_inference_queue, queue_depth
from ..messaging.wire import ClientIdentity, Envelope, dumps
from ..policy.routing import next_deployment
from ..types import InferenceRequest, Priority, summary
from .handle import InferenceHandle
from .replies import ReplyDesk

__all__ = ["Submitter"]

logger = logging.getLogger(__name__)

ROOM_PAUSE = 0.02, 0.1
"""Seconds between two looks at a full queue (the broker does not tell when there is room), drawn at random."""

SLICE = 512
"""Messages of `submit_many` under way at once."""


class _Unreachable(Exception):
    """The broker cannot be asked now; ``reason`` is `Backpressure`'s."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


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
    delivery: Delivery | None = None


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
        self._hooks = hooks
        self._admission = Admission(clock)
        self._declared: dict[str, tuple[int, int]] = {}  # queue: (connection, capacity that is kept to)

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
            producer = _AdmittedProducer(self, self._app, work.deployment, priority, end, before=self._listen)
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

    def waiting(self, deployment: Deployment, timeout: float) -> DeclaredQueue:
        """How many requests wait in a deployment's queue."""
        try:
            return self._look(deployment, timeout)
        except _Unreachable as exc:
            raise self._refused(deployment, exc.reason) from exc

    def declare(self, timeout: float) -> None:
        """Have the exchange and the queues that all processes share, before something goes to the bus.

        Raises:
            TimeoutError: the broker did not answer in time.
        """

        def declare(connection: Any) -> None:
            channel = connection.channel()
            declare_common(channel)
            channel.close()

        self._publisher.call(declare).result(timeout)

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
            "producer": _AdmittedProducer(self, self._app, deployment, priority, end),
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

    def _publish_task(self, work: _Work, producer: _Collector) -> None:
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
        collector = _Collector(self, self._app, work.deployment)
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

    def delivery(
        self, deployment: Deployment, body: Any, headers: Mapping[str, Any], properties: dict[str, Any]
    ) -> Delivery:
        """The AMQP message of a task's message.

        Raises:
            InvalidRequest: it is larger than the deployment allows.
        """
        try:
            encoded = dumps(body, strict=True)
        except (TypeError, ValueError, RecursionError) as exc:
            for name, value in body[1].items():
                fault = json_fault(value, name)
                if fault is not None:
                    path, _, reason = fault.partition(": ")
                    raise InvalidRequest(path, reason) from exc
            # a link or a chord may carry datetimes and the like: Celery's JSON knows them
            encoded = kombu_dumps(body).encode()
        if len(encoded) > deployment.max_request_bytes:
            raise InvalidRequest(
                "messages",
                f"the request has {len(encoded)} bytes; max_request_bytes is {deployment.max_request_bytes}",
            )
        expiration = properties.pop("expiration", None)
        if expiration is not None:
            properties["expiration"] = str(max(0, int(float(expiration) * 1000)))
        kept = {
            name: value
            for name, value in properties.items()
            if value not in (None, "") and name in _PROPERTIES
        }
        kept["application_headers"] = {
            name: value for name, value in headers.items() if value is not None or name in _KEPT
        }
        kept["delivery_mode"] = 2
        patient = deployment.on_capacity_exhausted is CapacityPolicy.QUEUE
        return Delivery(deployment.queue, encoded, kept, patient=patient)

    # -- into the queue

    def _listen(self, deployment: Deployment, end: float) -> None:
        patient = deployment.on_capacity_exhausted is CapacityPolicy.QUEUE
        if not self._desk.listen(max(0.05, end - self._clock.monotonic()), patient=patient):
            raise self._refused(deployment, self._publisher.trouble or "broker_down")

    def send(self, deployment: Deployment, priority: Priority, delivery: Delivery, end: float) -> None:
        """Publish one message, and wait for its confirm, until ``end`` (monotonic) at most.

        Raises:
            Backpressure, SubmitUncertain: as `submit`.
        """
        while True:
            granted, reason = self._take(deployment, priority, 1, end)
            if granted:
                self._publisher.publish(delivery)
                try:
                    delivery.wait(max(0.0, end - self._clock.monotonic()))
                    reason = self._ended(deployment, delivery)
                finally:
                    self._admission.settled(deployment.queue)
                if not reason:
                    return
            self._wait_for_room(deployment, reason, end)
            delivery = _again(delivery)

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
                refused += self._send_many(deployment, own)
        return refused

    def _send_many(self, deployment: Deployment, left: list[_Work]) -> list[tuple[_Work, Backpressure]]:
        priority = left[0].priority
        end = self._clock.monotonic() + deployment.admission_timeout
        try:
            while left:
                granted, reason = self._take(deployment, priority, min(SLICE, len(left)), end)
                if granted:
                    batch, rest = left[:granted], left[granted:]
                    again, reason = self._send_batch(deployment, batch, end)
                    left = again + rest
                    if len(again) < len(batch):  # it moves: the time limit is for standing still
                        end = self._clock.monotonic() + deployment.admission_timeout
                if left and reason:
                    self._wait_for_room(deployment, reason, end)
        except Backpressure as exc:
            return [(work, exc) for work in left]
        return []

    def _send_batch(self, deployment: Deployment, batch: list[_Work], end: float) -> tuple[list[_Work], str]:
        """Publish what there is room for; what may be tried again, and why."""
        reason, again = "", []
        deliveries = [work.delivery for work in batch if work.delivery is not None]
        self._publisher.publish_all(deliveries)
        for work, delivery in zip(batch, deliveries, strict=True):
            delivery.wait(max(0.0, end - self._clock.monotonic()))
            try:
                why = self._ended(deployment, delivery)
            except SubmitUncertain as exc:
                work.handle.fail(exc)
                continue
            finally:
                self._admission.settled(deployment.queue)
            if why:
                reason = why
                work.delivery = _again(delivery)
                again.append(work)
        return again, reason

    def _take(self, deployment: Deployment, priority: Priority, wanted: int, end: float) -> tuple[int, str]:
        """Take room for up to ``wanted`` messages; 0 and the reason, where there is none."""
        full = "queue_full" if priority is Priority.CRITICAL else "class_full"
        looked = False
        while True:
            connection, capacity = self._declared.get(deployment.queue, (-1, 0))
            granted = None
            if connection == self._publisher.connections and not self._publisher.trouble:
                granted = self._admission.take(deployment.queue, capacity, priority, wanted)
            if granted is not None:
                return granted, "" if granted else full
            left = end - self._clock.monotonic()
            if looked and left <= 0:
                return 0, full
            try:
                self._look(deployment, max(0.05, left))
            except _Unreachable as exc:
                return 0, exc.reason
            looked = True

    def reach(self, deployment: Deployment, end: float) -> None:
        """Make sure that the broker answers.

        Raises:
            Backpressure: it does not.
        """
        while True:
            try:
                self._look(deployment, max(0.05, end - self._clock.monotonic()))
                return
            except _Unreachable as exc:
                self._wait_for_room(deployment, exc.reason, end)

    def publish_event(self, body: Any, options: dict[str, Any]) -> None:
        """Publish an event of Celery's, as soon as that can be done: nobody waits for it."""

        def publish(connection: Any) -> None:
            Producer(connection.default_channel).publish(body, **{**options, "retry": False})

        self._publisher.call(publish)

    def _look(self, deployment: Deployment, timeout: float) -> DeclaredQueue:
        """See how full the queue is, and declare it if this connection has not.

        Raises:
            _Unreachable: the broker does not answer.
            Backpressure: it refuses the queue.
        """
        name, configured = deployment.queue, deployment.queue_capacity
        known = self._declared.get(name)
        end = self._clock.monotonic() + timeout
        probe = Probe()
        self._publisher.publish(probe)
        if not probe.wait(timeout):
            self._publisher.withdraw(probe)
            raise _Unreachable(self._publisher.trouble or "broker_down")
        if probe.state in (DeliveryState.NOT_SENT, DeliveryState.UNCERTAIN):
            raise _Unreachable("broker_blocked" if probe.reason == "broker_blocked" else "broker_down")

        looking = self._admission.looking(name)

        def look(connection: Any) -> tuple[int, DeclaredQueue]:
            generation = self._publisher.connections
            if known is not None and known[0] == generation:
                try:
                    return generation, queue_depth(connection, name)
                except NotFound:
                    pass
            channel = connection.channel()
            declare_common(channel)
            channel.close()
            return generation, declare_inference_queue(connection, name, configured)

        try:
            generation, queue = self._publisher.call(look).result(max(0.05, end - self._clock.monotonic()))
        except ChannelError as exc:
            logger.error("queue %s: the broker refuses it: %s", name, exc)
            raise self._refused(deployment, "no_queue") from exc
        except (TimeoutError, OSError, AMQPError) as exc:
            raise _Unreachable(self._publisher.trouble or "broker_down") from exc
        if queue.capacity is not None:
            self._declared[name] = (generation, min(configured, queue.capacity))
            if queue.capacity != configured:
                self._hooks(
                    CapacityMismatch(
                        deployment=deployment.name, configured=configured, declared=queue.capacity
                    )
                )
        self._admission.seen(name, queue.waiting, looking)
        return queue

    def _ended(self, deployment: Deployment, delivery: Delivery) -> str:
        """How a delivery ended: "" when it is queued, else why it may be tried again.

        Raises:
            SubmitUncertain: nobody knows.
        """
        if delivery.state is DeliveryState.QUEUED and self._publisher.withdraw(delivery):
            return delivery.reason or "broker_down"
        if delivery.state is DeliveryState.CONFIRMED:
            return ""
        if delivery.state is DeliveryState.REFUSED:
            self._admission.seen(deployment.queue, deployment.queue_capacity)  # full, whatever we thought
            return "queue_full"
        if delivery.state is DeliveryState.UNROUTABLE:
            self._declared.pop(deployment.queue, None)
            return "no_queue"
        if delivery.state is DeliveryState.NOT_SENT:
            return delivery.reason or "broker_down"
        if delivery.state is DeliveryState.WRITTEN:
            self._publisher.reset(delivery)  # a late confirm must confirm nothing
        request_id = str(delivery.properties.get("correlation_id", ""))
        self.cancel((request_id,), "uncertain")
        raise SubmitUncertain(request_id, deployment.name)

    def _wait_for_room(self, deployment: Deployment, reason: str, end: float) -> None:
        """Wait a little, or say that it is enough.

        Raises:
            Backpressure: the policy or the time limit says so.
        """
        left = end - self._clock.monotonic()
        may_wait = deployment.on_capacity_exhausted is CapacityPolicy.QUEUE or reason == "no_queue"
        if not may_wait or left <= 0:
            raise self._refused(deployment, reason)
        self._clock.sleep(min(left, random.uniform(*ROOM_PAUSE)))

    def _refused(self, deployment: Deployment, reason: str) -> Backpressure:
        self._hooks(SubmitRejected(deployment=deployment.name, reason=reason))
        return Backpressure(deployment.name, reason, 1.0 if reason.endswith("full") else 5.0)

    def __repr__(self) -> str:
        return f"Submitter({self._identity.token}, {self._publisher!r})"


_PROPERTIES = frozenset(
    {"correlation_id", "reply_to", "priority", "expiration", "message_id", "type", "app_id", "user_id"}
)
_KEPT = frozenset(
    {"eta", "expires", "group", "parent_id", "shadow"}
)  # Celery's workers look for these, empty or not


def _again(delivery: Delivery) -> Delivery:
    return Delivery(delivery.routing_key, delivery.body, delivery.properties, patient=delivery.patient)


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


class _Collector:
    """Stands where Celery expects a producer: takes the message, so that it can be sent with others."""

    delivery: Delivery

    def __init__(self, submitter: Submitter, app: Celery, deployment: Deployment) -> None:
        self._submitter = submitter
        self._app = app
        self._deployment = deployment

    def publish(self, body: Any, **options: Any) -> None:
        """Called by Celery with the task's message, and with a ``task-sent`` event if these are on."""
        headers = options.pop("headers", None) or {}
        if "task" not in headers:  # an event: not ours to admit
            self._submitter.publish_event(body, {**options, "headers": headers})
            return
        self._take(self._submitter.delivery(self._deployment, body, headers, options))

    def _take(self, delivery: Delivery) -> None:
        self.delivery = delivery


class _AdmittedProducer(_Collector):
    """Stands where Celery expects a producer, for ``apply_async``: admits, publishes and waits for the confirm."""

    def __init__(
        self,
        submitter: Submitter,
        app: Celery,
        deployment: Deployment,
        priority: Priority,
        end: float,
        before: Callable[[Deployment, float], None] | None = None,
    ) -> None:
        super().__init__(submitter, app, deployment)
        self._priority = priority
        self._end = end
        self._before = before

    def _take(self, delivery: Delivery) -> None:
        if self._before is not None:  # after the checks: a bad request needs no broker to be told so
            self._before(self._deployment, self._end)
        self._submitter.send(self._deployment, self._priority, delivery, self._end)

    @property
    def connection(self) -> _AdmittedProducer:
        """Celery asks the producer's connection to translate its errors; ours are typed already."""
        return self

    @contextmanager
    def _reraise_as_library_errors(self) -> Iterator[None]:
        yield

    @property
    def channel(self) -> Any:
        """A real channel: the rpc result backend declares its queue on it, and would try so for ever."""
        self._submitter.reach(self._deployment, self._end)
        with self._app.producer_or_acquire() as producer:
            return producer.channel
