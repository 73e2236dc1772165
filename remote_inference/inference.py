"""`Inference`: what an application has of this library. The only place where all of it is put together."""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.signals import import_modules
from kombu import Queue
from kombu.connection import Connection

from .client import InferenceHandle, InferTask, RebuildTask, Submitter
from .client.replies import ReplyDesk
from .client.signals import credentials_changed
from .clock import Clock, SystemClock
from .config import Deployment, InferenceConfig, load_config
from .errors import ConfigurationError, InvalidRequest
from .events import Hook, Hooks
from .messaging.commands import send_command
from .messaging.names import CONTROL_QUEUE
from .messaging.publisher import Publisher
from .messaging.wire import Answer, ClientIdentity, Command
from .types import EngineMetrics, InferenceRequest, Message, Priority

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from .worker.main import WorkerMain
    from .worker.runtime import WorkerRuntime
    from .worker.shared_counters import SharedCounters

__all__ = ["Inference"]

Messages = str | Sequence[Message | Mapping[str, Any]]
ConfigSource = str | os.PathLike[str] | Mapping[str, Any] | InferenceConfig

ANSWER_TIMEOUT = 1.0
"""Seconds to gather the workers' answers; how many workers there are, nobody knows."""

_STEPS = {
    "worker": ("remote_inference.worker.steps:ProcessStep",),
    "consumer": (
        "remote_inference.worker.steps:QueueStep",
        "remote_inference.worker.steps:BusStep",
    ),
}


class Inference:
    """Attaches the library to a Celery app.

    ``inference = Inference(app, config="inference.toml")``, in the module where the app is made: web processes
    and workers both import it. Nothing is connected and no provider is loaded before it is needed.

    Args:
        app: the Celery app; its broker is ``amqp://`` or ``embedded://``.
        config: a TOML file, a mapping of the same shape, or an `InferenceConfig`; else ``app.conf.inference``.
        deployments: in place of ``config``.
        hooks: told of what happens (`remote_inference.events`).
        clock: where time comes from; a test's.

    Raises:
        ConfigurationError: with every fault of the configuration.
    """

    def __init__(
        self,
        app: Celery,
        config: ConfigSource | None = None,
        *,
        deployments: Sequence[Deployment] | None = None,
        hooks: Iterable[Hook] = (),
        clock: Clock | None = None,
    ) -> None:
        if config is not None and deployments is not None:
            raise ConfigurationError(["config: give it or deployments, not both"])
        self.app = app
        self.clock: Clock = clock or SystemClock()
        self.hooks = Hooks(hooks)
        self.worker_main: WorkerMain | None = None
        self._config: InferenceConfig | None = None
        source = config if config is not None else deployments
        if source is not None:
            self._config = load_config(source)
        self._lock = threading.RLock()
        _renew_lock_after_fork(self)
        self._process: _Process | None = None
        self._in_child: tuple[SharedCounters, int] | None = None
        if _is_embedded(app):
            from .messaging.embedded import register

            register()
        # a class each: Celery binds a task's class to one app
        self.infer = app.register_task(type("InferTask", (InferTask,), {})(self))
        self._rebuild_task = app.register_task(type("RebuildTask", (RebuildTask,), {})(self))
        for blueprint, steps in _STEPS.items():
            app.steps[blueprint].update(steps)
        if self._config is not None or app.conf.get("inference") is not None:
            self._add_queues()
        if "celery.bin.control" in sys.modules:  # Celery's command line looks our commands up here
            from .worker.control import install_commands

            install_commands()
        import_modules.connect(self._on_worker, sender=app)  # a worker, before it looks at its queues
        credentials_changed.connect(self._on_credentials_changed)

    # -- submitting

    def submit(
        self,
        deployment: str | InferenceRequest,
        messages: Messages | None = None,
        *,
        priority: Priority | int | str = Priority.NORMAL,
        deadline: float | timedelta | None = None,
        on_restart: str = "raise",
        on_disconnect: str = "cancel",
        **options: Any,
    ) -> InferenceHandle:
        """Put a request into its deployment's queue.

        Args:
            deployment: its name, or a whole `InferenceRequest`.
            messages: a prompt, or messages of OpenAI's shape.
            priority: `Priority`, its number or name.
            deadline: seconds from now (or a timedelta) over everything, the wait in the queue included.
            on_restart: when a stream begins anew after text was read: ``raise`` `StreamRestarted` in the loop, or
                ``announce`` it by a chunk with ``restarted``.
            on_disconnect: when this process is gone: ``cancel`` the request, or ``finish`` it.
            **options: OpenAI's parameters by name (``max_tokens``, ``temperature``, ``tools`` …), ``extra_body``.

        Returns:
            The handle. Iterate it for chunks, or ask it for the result.

        Raises:
            InvalidRequest: the request is wrong (with the field's path); nothing was sent.
            Backpressure: it was not taken; nothing was sent.
            SubmitUncertain: the broker did not confirm in time; the id was cancelled.
        """
        request = _request(deployment, messages, options)
        return self.submitter.submit(
            request,
            priority=Priority.parse(priority),
            deadline=deadline,
            on_restart=on_restart,
            on_disconnect=on_disconnect,
        )

    async def asubmit(
        self, deployment: str | InferenceRequest, messages: Messages | None = None, **options: Any
    ) -> InferenceHandle:
        """As `submit`, for asyncio: the loop goes on while the broker confirms."""
        import asyncio  # 10 ms of import that a web process without it does not need

        call = partial(self.submit, deployment, messages, **options)
        return await asyncio.get_running_loop().run_in_executor(self._of_this_process().executor, call)

    def submit_many(
        self,
        deployment: str,
        requests: Iterable[Messages | InferenceRequest],
        *,
        priority: Priority | int | str = Priority.NORMAL,
        deadline: float | timedelta | None = None,
        on_restart: str = "raise",
        on_disconnect: str = "cancel",
        **options: Any,
    ) -> list[InferenceHandle]:
        """Put many requests into the queue, with gathered confirms: several times as fast as one by one.

        Args:
            deployment: for all that are not an `InferenceRequest` themselves.
            requests: prompts, lists of messages, or `InferenceRequest` objects.
            priority, deadline, on_restart, on_disconnect: as in `submit`, for all.
            **options: likewise.

        Returns:
            A handle for each, in order. One that was not taken has ended with `Backpressure` or `SubmitUncertain`.

        Raises:
            InvalidRequest: one is wrong, by its index; nothing was sent.
        """
        parsed: list[InferenceRequest] = []
        for index, given in enumerate(requests):
            try:
                if isinstance(given, InferenceRequest):
                    parsed.append(given.checked())
                else:
                    parsed.append(InferenceRequest.parse(deployment, given, **options))
            except InvalidRequest as exc:
                raise InvalidRequest(f"requests[{index}].{exc.field}", exc.reason) from exc
        return self.submitter.submit_many(
            parsed,
            priority=Priority.parse(priority),
            deadline=deadline,
            on_restart=on_restart,
            on_disconnect=on_disconnect,
        )

    def cancel(self, *request_ids: str) -> None:
        """Cancel requests by id, wherever they are (a handle has `InferenceHandle.cancel`)."""
        self.submitter.cancel(request_ids)

    # -- operating

    def rebuild_session(self, deployment: str, *, timeout: float = ANSWER_TIMEOUT) -> dict[str, Any]:
        """Have all workers swap the deployment's session for one with the credential of now.

        Args:
            deployment: its name.
            timeout: seconds to gather answers.

        Returns:
            Each worker's answer by its node name. From its answer on, no process of a worker begins a request on
            the old session. A worker that was not reached learns of the command from the others, and rebuilds then.

        Raises:
            InvalidRequest: there is no such deployment.
            TimeoutError: the broker cannot be reached.
        """
        self._known(deployment)
        return {answer.worker: answer.value for answer in self._ask("rebuild", deployment, timeout)}

    def force_open(
        self, deployment: str, duration: float | timedelta, *, timeout: float = ANSWER_TIMEOUT
    ) -> dict[str, Any]:
        """Open the circuit of the deployment's endpoint in all workers: nothing is sent there for ``duration`` seconds.

        What becomes of requests meanwhile says the deployment's ``on_capacity_exhausted``. Deployments with the same
        provider and endpoint share the circuit. Workers that are not reached, or start later, learn of it from the
        others.

        Returns:
            Each worker's answer by its node name: ``processes`` have done it, and ``missing`` had not in half a second.

        Raises:
            InvalidRequest: there is no such deployment, or the duration is no positive number of seconds.
            TimeoutError: the broker cannot be reached.
        """
        self._known(deployment)
        seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
        if (
            isinstance(seconds, bool)
            or not isinstance(seconds, (int, float))
            or not 0 < seconds < float("inf")
        ):
            raise InvalidRequest("duration", "must be a positive number of seconds")
        answers = self._ask("open_circuit", deployment, timeout, seconds=float(seconds))
        return {answer.worker: answer.value for answer in answers}

    def force_close(self, deployment: str, *, timeout: float = ANSWER_TIMEOUT) -> dict[str, Any]:
        """Close the circuit of the deployment's endpoint in all workers now.

        Returns:
            As `force_open`.

        Raises:
            InvalidRequest: there is no such deployment.
            TimeoutError: the broker cannot be reached.
        """
        self._known(deployment)
        return {answer.worker: answer.value for answer in self._ask("close_circuit", deployment, timeout)}

    def status(self, *, timeout: float = ANSWER_TIMEOUT) -> dict[str, EngineMetrics]:
        """`EngineMetrics` by deployment, summed over all workers that answer, with the queues' depths."""
        answers = self.workers(timeout=timeout)
        found = {}
        for name, deployment in self.config.deployments.items():
            parts = [
                EngineMetrics.from_wire(value["metrics"][name])
                for value in answers.values()
                if name in value.get("metrics", {})
            ]
            queued = self.submitter.sender.waiting(deployment, 5.0).waiting
            found[name] = EngineMetrics.total(parts, queued)
        return found

    def workers(self, *, timeout: float = ANSWER_TIMEOUT) -> dict[str, dict[str, Any]]:
        """What each worker says of itself, by node name: counts, gates that are shut, circuits, limits, the cluster.

        A prefork worker has ``processes`` instead of ``limits`` and ``cluster``: by process id, what each child knows.
        """
        return {answer.worker: answer.value for answer in self._ask("status", "", timeout)}

    def close(self) -> None:
        """Close this process's connections (a test's end; a process that exits need not)."""
        credentials_changed.disconnect(self._on_credentials_changed)  # until it is used again
        with self._lock:
            process, self._process = self._process, None
        if process is not None and process.pid == os.getpid():
            process.close()

    # -- what the parts of the library ask

    @property
    def config(self) -> InferenceConfig:
        """The deployments."""
        if self._config is None:
            source = self.app.conf.get("inference")
            if source is None:
                raise ConfigurationError(
                    ["inference: no configuration; give Inference(app, config=...) or set app.conf.inference"]
                )
            self._config = load_config(source)
        return self._config

    @property
    def submitter(self) -> Submitter:
        """This process's way to submit."""
        return self._of_this_process().submitter

    @property
    def publisher(self) -> Publisher:
        """This process's publishing connection."""
        return self._of_this_process().publisher

    @property
    def runtime(self) -> WorkerRuntime:
        """What runs requests in this process (a worker's, or the caller's for an eager call)."""
        return self._of_this_process().runtime

    @property
    def consumed(self) -> list[str]:
        """The deployments whose queues this process's worker consumes."""
        queues = self.app.amqp.queues.consume_from
        return [name for name, deployment in self.config.deployments.items() if deployment.queue in queues]

    def become_child(self, counters: SharedCounters, stripe: int) -> None:
        """This process is a pool's child: what it runs is counted in the worker's counters."""
        self._in_child = (counters, stripe)

    def close_worker(self) -> None:
        """The worker ends: send what is still to be sent."""
        self.close()
        self.worker_main = None

    def make_runtime(self) -> WorkerRuntime:
        """Have `runtime` made now, and not at the first request: so it has joined the others by then."""
        return self.runtime

    # -- inside

    def _of_this_process(self) -> _Process:
        process = self._process
        if process is None or process.pid != os.getpid():
            with self._lock:
                if self._process is None or self._process.pid != os.getpid():
                    self._process = _Process(self)
                    credentials_changed.connect(self._on_credentials_changed)
                process = self._process
        return process

    def _add_queues(self) -> None:
        queues = self.app.amqp.queues
        for deployment in self.config.deployments.values():
            if deployment.queue not in queues:
                # declared by us: a capacity that changed must not end the worker
                queues.add(Queue(deployment.queue, routing_key=deployment.queue, no_declare=True))
        if CONTROL_QUEUE not in queues:
            queues.add(Queue(CONTROL_QUEUE, routing_key=CONTROL_QUEUE, no_declare=True))

    def _on_worker(self, **_: Any) -> None:
        self._add_queues()

    def _on_credentials_changed(self, deployment: str | None = None, **_: Any) -> None:
        names = self.config.deployments
        for name in names if deployment is None else names.keys() & {deployment}:  # else another app's
            send_command(self.publisher, Command(kind="rebuild", subject=name, reason="signal"))

    def _known(self, deployment: str) -> None:
        if deployment not in self.config.deployments:
            names = ", ".join(sorted(self.config.deployments))
            raise InvalidRequest("deployment", f"no such deployment; there are: {names}")

    def _ask(self, kind: str, subject: str, timeout: float, seconds: float = 0.0) -> list[Answer]:
        process = self._of_this_process()
        if not process.desk.listen(5.0):
            raise TimeoutError("the broker cannot be reached")
        process.submitter.sender.declare(5.0)

        def send(token: str) -> None:
            command = Command(
                kind=kind, subject=subject, seconds=seconds, reply_to=process.identity.token, token=token
            )
            send_command(process.publisher, command)

        return process.desk.gather(send, timeout)

    def __repr__(self) -> str:
        names = ", ".join(self._config.deployments) if self._config is not None else "not configured yet"
        return f"Inference({self.app.main!r}: {names})"


class _Process:
    """What belongs to one process, and must not be used after a fork."""

    def __init__(self, inference: Inference) -> None:
        self.pid = os.getpid()
        self._inference = inference
        app = inference.app
        inference._add_queues()
        self.identity = ClientIdentity()
        self.publisher = Publisher(self._connection, clock=inference.clock)
        self.desk = ReplyDesk(self._connection, self.identity, inference.clock)
        self.submitter = Submitter(
            app,
            lambda: inference.config,
            self.publisher,
            self.desk,
            self.identity,
            clock=inference.clock,
            hooks=inference.hooks,
        )
        self._executor: ThreadPoolExecutor | None = None
        self._runtime: WorkerRuntime | None = None
        self._lock = threading.Lock()
        atexit.register(_flush, weakref.ref(self))

    def _connection(self) -> Connection:
        return self._inference.app.connection_for_write()

    @property
    def executor(self) -> ThreadPoolExecutor:
        """For `asubmit`: threads of our own, so that a full queue does not take asyncio's."""
        with self._lock:
            if self._executor is None:
                from concurrent.futures import ThreadPoolExecutor  # only `asubmit` needs it

                self._executor = ThreadPoolExecutor(32, thread_name_prefix="inference-submit")
            return self._executor

    @property
    def runtime(self) -> WorkerRuntime:
        """Made when the first request is to be run here: that is what loads providers and the engine."""
        runtime = self._runtime
        if runtime is None:
            # a web process must not load them
            from .worker.membership import Membership
            from .worker.runtime import WorkerRuntime

            inference = self._inference
            counters, stripe = inference._in_child or (None, 0)
            main = inference.worker_main
            if counters is None and main is not None:
                counters = main.counters
            slots = 32
            if inference._in_child is not None:
                slots = 1
            elif main is not None and main.consumer is not None:
                slots = main.consumer.pool.limit or 1
            with self._lock:
                if self._runtime is None:
                    connection = None if _is_embedded(inference.app) else self._connection
                    name = f"{main.hostname if main is not None else socket.gethostname()}/{self.pid}"
                    member = Membership(inference, connection=connection, name=name, slots=slots)
                    made = WorkerRuntime(inference, counters, stripe, slots=slots, member=member)
                    made.join(inference.consumed)
                    self._runtime = made
                runtime = self._runtime
        return runtime

    def close(self) -> None:
        if self._runtime is not None:
            self._runtime.close()  # before the publisher: it says good-bye
        self.publisher.close()
        self.desk.close()
        if self._executor is not None:
            self._executor.shutdown(wait=False)


def _flush(reference: weakref.ref[_Process]) -> None:
    """The interpreter ends: a cancel that was just asked for is still to be sent."""
    process = reference()
    if process is not None and process.pid == os.getpid():
        process.publisher.close(timeout=2.0)


def _request(deployment: Any, messages: Any, options: dict[str, Any]) -> InferenceRequest:
    if isinstance(deployment, InferenceRequest):
        if messages is not None or options:
            raise InvalidRequest("messages", "an InferenceRequest has all of it already")
        return deployment.checked()
    return InferenceRequest.parse(deployment, messages, **options)


def _renew_lock_after_fork(inference: Inference) -> None:
    """The parent's lock may be held in the moment of a fork, by a thread that the child does not have."""
    reference = weakref.ref(inference)

    def renew() -> None:
        here = reference()
        if here is not None:
            here._lock = threading.RLock()

    os.register_at_fork(after_in_child=renew)


def _is_embedded(app: Celery) -> bool:
    url = app.conf.broker_write_url or app.conf.broker_url or ""
    return str(url[0] if isinstance(url, (list, tuple)) and url else url).startswith("embedded:")
