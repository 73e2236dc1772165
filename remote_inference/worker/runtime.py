"""`WorkerRuntime`: what one process has to run requests: engines, the publisher's streams, the running jobs."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ..cancel import CancelToken
from ..clock import Clock
from ..config import CapacityPolicy, Deployment, InferenceConfig
from ..credentials import provider_for
from ..engine import (
    CELLS,
    CallGuard,
    EngineContext,
    Job,
    MetricsRecorder,
    NullSink,
    RemoteEngine,
    Sink,
    Upstream,
)
from ..errors import (
    Cancelled,
    CircuitOpen,
    InferenceError,
    InvalidRequest,
    LimitReached,
    RequestError,
    UndecodableMessage,
    WorkerLost,
)
from ..events import Hooks
from ..messaging.delivery import Delivery, DeliveryState
from ..messaging.names import DEAD_LETTER_QUEUE, HEADER
from ..messaging.publisher import Publisher
from ..messaging.streams import ChunkStream, publish_outcome
from ..messaging.wire import Envelope, Outcome, dumps, reply_to_of
from ..policy.routing import next_deployment
from ..providers import provider_named
from ..reasons import GateKind, GateReason, LimitReason
from ..transport.clients import Clients
from ..transport.session import RemoteSession
from ..types import Completion, InferenceRequest, Priority
from .circuits import Circuits
from .jobs import Jobs
from .membership import Membership
from .missed_rebuilds import MissedRebuilds
from .outcomes import RequestCancelled, Requeue
from .poison_guard import PoisonGuard
from .rebuild_epoch import EpochSession
from .shared_counters import SharedCounters

__all__ = ["CONNECTION", "EVENTS", "RuntimeParts", "WorkerRuntime"]

logger = logging.getLogger(__name__)

CONNECTION = "inference_connection"
"""In the task's request: the generation of the broker connection that delivered it (the main process writes it)."""

EVENTS = "inference_events"
"""In the task's request: whether the worker sends events (the main process writes it)."""

MAX_RUN = 25 * 60.0
"""Seconds that a request may run in a worker: the broker closes the channel of a consumer that keeps a message for
longer than its ``consumer_timeout``, 30 minutes unless it is configured otherwise."""

OUTCOME_TIMEOUT = 60.0
"""Seconds for which the end of a request is told again and again, when the broker does not confirm it."""


OUTCOME_NOT_TAKEN = GateReason(GateKind.BROKER, "outcome_not_taken")
DEAD_LETTER_NOT_TAKEN = GateReason(GateKind.BROKER, "dead_letter_not_taken")


class RuntimeParts(Protocol):
    """What a runtime is given by the `Inference` object."""

    clock: Clock
    hooks: Hooks

    @property
    def config(self) -> InferenceConfig:
        """The deployments."""

    @property
    def publisher(self) -> Publisher:
        """This process's."""


class WorkerRuntime:
    """One a process; made again after a fork.

    Args:
        parts: configuration, clock, hooks, publisher.
        counters: shared with the worker's other processes; None outside a worker.
        stripe: which of the counts are this process's.
        slots: how many requests this process runs at most (for its connection pools).
        member: this process among the others of the cluster; left out: it is by itself.
    """

    def __init__(
        self,
        parts: RuntimeParts,
        counters: SharedCounters | None = None,
        stripe: int = 0,
        slots: int = 32,
        member: Membership | None = None,
    ) -> None:
        self.pid = os.getpid()
        self._parts = parts
        self._clock = parts.clock
        self._counters = counters
        self._stripe = stripe
        self._clients = Clients(clock=parts.clock, max_connections=slots)
        self._member = member or Membership(parts, slots=slots)
        replica = self._member.shared
        self._missed_rebuilds = (
            None if replica is None else MissedRebuilds(replica, parts.clock, parts.config.deployments)
        )
        self._circuits = Circuits(parts, replica=replica, rng=random.Random(), show=self._show_circuit)
        self._engines: dict[str, RemoteEngine] = {}
        self._rebuild_epochs: dict[str, int] = {}
        self._rng = random.Random()
        self._poison_guard = PoisonGuard(parts)
        self.jobs = Jobs(parts.clock)

    def join(self, deployments: Sequence[str]) -> None:
        """Become one of those that share the limits, of these deployments from the start."""
        known = self._parts.config.deployments
        self._member.serve([known[name] for name in deployments if name in known])
        self._member.start()

    # -- a request

    def run(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Completion:
        """Run the request of a task.

        Args:
            task: the task; its ``request`` is Celery's context.
            args, kwargs: the task's arguments.

        Raises:
            InferenceError: what became of it; its caller was told.
            Requeue: the deployment cannot send now; the message is to wait in the queue.
            RequestCancelled: it was cancelled; its caller was told.
        """
        context = task.request
        if context.called_directly or context.is_eager:
            return self._run_here(context, args, kwargs)
        request_id = str(context.id)
        redelivered = bool((context.delivery_info or {}).get("redelivered"))
        envelope = Envelope(reply_to=reply_to_of(context.get(HEADER)))
        try:
            envelope = Envelope.from_headers({HEADER: context.get(HEADER)} if context.get(HEADER) else None)
            request = self._decoded(args, kwargs)
        except (UndecodableMessage, InvalidRequest) as exc:
            error: InferenceError = exc
            if isinstance(exc, UndecodableMessage):
                error = UndecodableMessage(exc.reason, request_id)
            self._set_aside(context, args, kwargs, str(error))
            self._tell(envelope, Outcome(request_id, "", error=error))
            raise error from None
        token = CancelToken()
        with self._poison_guard.delivery(
            request_id, redelivered=redelivered, token=token, draining=lambda: self.jobs.draining
        ) as guard:
            try:
                return self._deliver(task, envelope, request, token, guard)
            except WorkerLost as poison:
                logger.error("%s: set aside after %d workers died under it", request_id, poison.deaths)
                self._set_aside(context, args, kwargs, str(poison))
                self._tell(envelope, Outcome(request_id, "", error=poison))
                raise

    def _lost(self, generation: int) -> bool:
        """Whether what that connection delivered can no longer be acknowledged."""
        return self._counters is not None and generation < self._counters.connection

    def _deliver(
        self, task: Any, envelope: Envelope, request: InferenceRequest, token: CancelToken, guard: CallGuard
    ) -> Completion:
        """Run it, stream it to its caller, and tell its end (but not that it is poison)."""
        context = task.request
        request_id = str(context.id)
        connection = int(context.get(CONNECTION) or 0)
        stream: ChunkStream | None = None
        sink: Sink = NullSink()
        if envelope.reply_to:
            gone = (lambda: token.cancel("reader_gone")) if envelope.on_disconnect == "cancel" else None
            stream = ChunkStream(self._parts.publisher, request_id, envelope.reply_to, gone)  # type: ignore[arg-type]  # what cancel returns is ignored
            sink = stream
        with self.jobs.running(request_id, connection, token):
            if self._lost(connection):
                raise RequestCancelled("connection_lost", quiet=True)
            now = self._clock.time()
            job = Job(
                request_id=request_id,
                priority=_priority(context),
                deadline=_within(envelope.local_deadline(now), now + MAX_RUN),
                submitted=envelope.sent,
                token=token,
                on_retry=_retry_event(task) if context.get(EVENTS) else None,
                draining=lambda: self.jobs.draining,
                guard=guard,
            )
            error: InferenceError | None = None
            completion: Completion | None = None
            try:
                completion = self._execute(request, job, sink)
            except (LimitReached, CircuitOpen) as not_now:
                reason = GateReason.of(not_now)
                # at a shutdown the gate stays shut here for as long as this process lives
                until = now + MAX_RUN if reason.kind is GateKind.SHUTDOWN else not_now.retry_at
                raise Requeue(reason, until) from None
            except _Final as final:
                error = final.error
            except WorkerLost:
                raise
            except InferenceError as exc:
                error = exc
            except Exception:  # a fault of ours: Celery shows it, and the caller must not wait for ever
                failed = RequestError("internal", request.deployment, request_id)
                self._tell(envelope, Outcome(request_id, "", error=failed), token)
                raise
            finally:
                if stream is not None:
                    stream.close()
            quiet = isinstance(error, Cancelled) and error.code in ("connection_lost", "superseded")
            if not quiet:
                epoch = stream.epoch if stream is not None else ""
                self._tell(envelope, Outcome(request_id, epoch, completion, error), token)
            if isinstance(error, Cancelled):
                raise RequestCancelled(error.code, quiet=quiet)
            if error is not None:
                raise error
            assert completion is not None
            return completion

    def _execute(self, request: InferenceRequest, job: Job, sink: Sink) -> Completion:
        """On the deployment's engine, and on its fallbacks' where the configuration says so.

        Raises:
            LimitReached, CircuitOpen: not now (never where the policy is to reject).
        """
        asked = self._deployment(request.deployment)
        tried = [asked.name]
        deployment = asked
        while True:
            engine = self.engine(deployment.name)
            self._heed_rebuild(engine)
            try:
                return engine.execute(request, job, sink)
            except RequestError as error:
                other = next_deployment(asked, error, self._parts.config, tried=tried)
                if other is not None:
                    logger.info("%s: %s; goes to %s", job.request_id, type(error).__name__, other)
                    tried.append(other)
                    deployment = self._deployment(other)
                    continue
                if isinstance(error, CircuitOpen) and asked.on_capacity_exhausted is CapacityPolicy.REJECT:
                    engine.rejected()
                    raise _Final(error) from None
                raise

    def _run_here(self, context: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Completion:
        """``apply`` or a direct call: no broker, no caller but this one; what would be a gate is waited for."""
        request = self._decoded(args, kwargs)
        job = Job(request_id=str(context.id or ""), submitted=self._clock.time())
        while True:
            try:
                return self._execute(request, job, NullSink())
            except _Final as final:
                raise final.error from None
            except (LimitReached, CircuitOpen) as error:
                if error.code == LimitReason.CREDENTIAL_UNAVAILABLE:
                    raise  # nobody would ever mend it while we sleep here
                self._clock.sleep(max(0.01, error.retry_at - self._clock.time()))

    def _decoded(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> InferenceRequest:
        given = dict(kwargs)
        given.update(zip(("deployment", "messages"), args, strict=False))
        given.pop("deadline", None)
        version = given.get("version", 1)
        if not isinstance(version, int) or version > 1:
            raise UndecodableMessage(f"request version {version!r} is not known here")
        request = InferenceRequest.parse(given.pop("deployment", None), given.pop("messages", None), **given)
        self._deployment(request.deployment)
        return request

    def _deployment(self, name: str) -> Deployment:
        deployment = self._parts.config.deployments.get(name)
        if deployment is None:
            raise InvalidRequest("deployment", "this worker's configuration has no deployment of that name")
        return deployment

    # -- its end

    def _tell(self, envelope: Envelope, outcome: Outcome, token: CancelToken | None = None) -> None:
        if not envelope.reply_to:
            return

        def keep_on() -> bool:
            return token is None or token.reason != "connection_lost"

        settled = publish_outcome(
            self._parts.publisher,
            envelope.reply_to,
            outcome,
            clock=self._clock,
            timeout=OUTCOME_TIMEOUT,
            keep_on=keep_on,
        )
        if not settled:
            logger.warning(
                "%s: the outcome could not be told; the request will be delivered again", outcome.request_id
            )
            if not keep_on():
                raise RequestCancelled("connection_lost", quiet=True)
            raise Requeue(OUTCOME_NOT_TAKEN, self._clock.time() + 5.0)

    def _set_aside(self, context: Any, args: Sequence[Any], kwargs: Mapping[str, Any], reason: str) -> None:
        """Keep the message in the dead-letter queue, before it is acknowledged."""
        headers = {
            "task": context.task,
            "id": context.id,
            "inference_reason": reason,
            HEADER: context.get(HEADER),
        }
        delivery = Delivery(
            DEAD_LETTER_QUEUE,
            dumps([list(args), dict(kwargs), {}]),
            {
                "correlation_id": str(context.id),
                "delivery_mode": 2,
                "application_headers": {name: value for name, value in headers.items() if value is not None},
            },
        )
        self._parts.publisher.publish(delivery)
        if not delivery.wait(OUTCOME_TIMEOUT) or delivery.state is not DeliveryState.CONFIRMED:
            self._parts.publisher.withdraw(delivery)
            raise Requeue(DEAD_LETTER_NOT_TAKEN, self._clock.time() + 5.0)

    # -- engines

    def engine(self, name: str) -> RemoteEngine:
        """The deployment's engine, made at its first request."""
        engine = self._engines.get(name)
        if engine is None:
            engine = self._engines.setdefault(name, self._make_engine(self._deployment(name)))
        return engine

    def _make_engine(self, deployment: Deployment) -> RemoteEngine:
        parts = self._parts
        self._circuits.wait_until_heard()
        self._member.serve([deployment])
        provider = provider_named(deployment.provider)
        provider.check(deployment)
        session = RemoteSession(
            deployment,
            provider_for(deployment.api_key, clock=parts.clock),
            self._clients,
            clock=parts.clock,
            hooks=parts.hooks,
        )
        cells: Any = self._counters.counts(deployment.name, self._stripe) if self._counters else [0] * CELLS
        return RemoteEngine(
            EngineContext(
                deployment=deployment,
                upstream=Upstream(provider, clock=parts.clock),
                session=EpochSession(session, lambda: self._rebuild_epoch(deployment.name)),
                limiter=self._member.limiter,
                estimates=self._member.estimates,
                breaker=self._circuits.breaker(deployment),
                clock=parts.clock,
                hooks=parts.hooks,
                metrics=MetricsRecorder(cells),
                rng=self._rng,
            )
        )

    # -- commands

    def on_child_command(
        self, command: Mapping[str, Any], report: Callable[[int, dict[str, Any]], None]
    ) -> None:
        """A command of the worker's main process, in a prefork child; ``report`` brings the answer to one that asks."""
        if command.get("kind") == "cancel":
            self.jobs.cancel(str(command["id"]), str(command["reason"]))
        elif command.get("kind") == "connection_lost":
            self.connection_lost(int(command["connection"]))
        elif command.get("kind") == "drain":
            self.drain()
        elif command.get("kind") == "force_circuit":
            self.force_circuit(str(command["deployment"]), command["seconds"])
            self._obey(command)
        elif command.get("kind") == "status":
            report(int(command["number"]), self.cluster_status())
            self._obey(command)
        elif command.get("kind") == "rebuild":
            self.rebuild_commanded(str(command["deployment"]), str(command["token"]))

    def _obey(self, command: Mapping[str, Any]) -> None:
        if self._counters is not None:
            self._counters.obey(self._stripe, int(command["number"]))

    def drain(self) -> None:
        """The worker is shutting down: requests that wait for another attempt go back into their queues."""
        self.jobs.drain(LimitReason.SHUTDOWN)

    def force_circuit(self, deployment: str, seconds: float | None) -> None:
        """Open the circuit of the deployment's endpoint for so many seconds, or close it (None)."""
        self._circuits.force(self._deployment(deployment), seconds)

    def rebuild_commanded(self, deployment: str, token: str) -> None:
        """The bus has brought a command, and the rebuild epoch was advanced: those that missed it are to know."""
        if self._missed_rebuilds is not None:
            self._missed_rebuilds.on_bus(deployment, token)

    def connection_lost(self, generation: int) -> int:
        """The worker's connection was lost: cancel what cannot be acknowledged any more; how many that were.

        The publisher's connection most likely has the same fate, and may be long in noticing.
        """
        cancelled = self.jobs.cancel_older(generation, "connection_lost")
        self._parts.publisher.renew()
        return cancelled

    def _heed_rebuild(self, engine: RemoteEngine) -> None:
        """The operator asked for a new session: what the provider said of the old credential counts no more.

        Looked up before each request, because no message is sure to reach a prefork child before its next one does.
        """
        name = engine.deployment.name
        epoch = self._rebuild_epoch(name)
        if self._rebuild_epochs.get(name, 0) != epoch:
            engine.open_gate()
            self._rebuild_epochs[name] = epoch

    def _rebuild_epoch(self, deployment: str) -> int:
        """Another number than before: a new session was asked for, over the bus or in what the replicas tell."""
        asked = self._counters.rebuild_epoch(deployment) if self._counters is not None else 0
        missed = self._missed_rebuilds.rebuild_epoch(deployment) if self._missed_rebuilds is not None else 0
        return asked + missed

    def _show_circuit(self, deployment: str, until: float) -> None:
        if self._counters is not None:
            self._counters.show_circuit(deployment, self._stripe, until)

    def status(self) -> dict[str, Any]:
        """What this process knows of its deployments."""
        found: dict[str, Any] = {
            name: {"circuit": self._circuits.breaker(deployment).state}
            for name, deployment in self._parts.config.deployments.items()
        }
        for name, engine in list(self._engines.items()):
            found[name]["opens_at"] = engine.opens_at()
        return found

    def cluster_status(self) -> dict[str, Any]:
        """What it knows of the limits and of the others that share them."""
        return {"limits": self._member.limiter.snapshot(), "cluster": self._member.replica.status()}

    def close(self) -> None:
        """Say good-bye to the others, and close the sessions."""
        self._member.close()
        for engine in self._engines.values():
            engine.session.close()

    def __repr__(self) -> str:
        return f"WorkerRuntime({len(self._engines)} engines, {self.jobs!r})"


class _Final(Exception):
    """Carries a `CircuitOpen` that ends its request: the policy is not to wait."""

    def __init__(self, error: RequestError) -> None:
        super().__init__(error)
        self.error = error


def _retry_event(task: Any) -> Callable[[RequestError], None]:
    """Makes Flower show attempts: the engine's retries are within one run of the task."""

    def send(error: RequestError) -> None:
        try:
            task.send_event("task-retried", retry=False, exception=repr(error), traceback="")
        except Exception as exc:  # an event that cannot be sent is no reason to fail a request
            logger.warning("%s: task-retried not sent: %s", task.request.id, type(exc).__name__)

    return send


def _within(deadline: float | None, latest: float) -> float:
    return latest if deadline is None else min(deadline, latest)


def _priority(context: Any) -> Priority:
    try:
        return Priority((context.delivery_info or {}).get("priority") or 0)
    except ValueError:
        return Priority.NORMAL
