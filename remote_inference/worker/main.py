"""`WorkerMain`: the part of us that lives in a worker's main process, whatever its pool."""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from celery.worker import state

from ..config import InferenceConfig
from ..errors import InferenceError, UndecodableMessage
from ..events import Hooks
from ..messaging.immediate import publish_now
from ..messaging.names import (
    CANCELLED_QUEUE,
    DEAD_LETTER_QUEUE,
    HEADER,
    INFER_TASK,
    inference_queue,
    reply_queue,
)
from ..messaging.wire import Answer, Command, Outcome, client_of, reply_to_of
from ..reasons import GateKind
from .child_commands import ChildCommands
from .gate import Gate
from .shared_counters import SharedCounters

__all__ = ["MainOwner", "WorkerMain"]

logger = logging.getLogger(__name__)

CANCELLED_MEMORY = 50_000

CIRCUIT_LOOK = 1.0
"""Seconds between two looks whether a circuit that shut a gate was closed meanwhile, by whomever."""

OBEY_TIMEOUT = 0.5
"""Seconds for the pool's processes to carry out a command. It is answered then all the same: an operator does not wait
for long."""

_OBEY_LOOK = 0.02


class MainOwner(Protocol):
    """What the main process needs of the `Inference` object."""

    hooks: Hooks

    @property
    def config(self) -> InferenceConfig:
        """The deployments."""

    @property
    def runtime(self) -> Any:
        """This process's runtime (where the pool runs in it)."""

    def make_runtime(self) -> Any:
        """The same, made now and not at the first request."""


class WorkerMain:
    """The shared counters, the children's commands, the gate, the cancelled ids; carries out what the bus brings.

    Args:
        inference: configuration, hooks and the runtime.
        app: the Celery app.
    """

    def __init__(self, inference: MainOwner, app: Any) -> None:
        self._inference = inference
        self._app = app
        self.counters = SharedCounters(list(inference.config.deployments))
        self.child_commands = ChildCommands()
        self.cancelled: OrderedDict[str, float] = OrderedDict()
        self.gate: Gate = None  # type: ignore[assignment]  # made with the consumer, before anything can use it
        self.consumer: Any = None
        self.hostname = ""
        self.prefork = False
        self._command_number = 0
        self._watch: Any = None

    def attach(self, consumer: Any, prefork: bool) -> None:
        """A consumer was made (once a worker)."""
        self.consumer = consumer
        self.hostname = consumer.hostname
        self.prefork = prefork
        self.gate = Gate(consumer, self._inference.hooks)

    def join(self) -> None:
        """Where the pool runs in this process: hear the others before the first request."""
        self._inference.make_runtime()

    # -- commands

    def on_bus(self, body: bytes | str) -> None:
        """A command came over the bus."""
        try:
            command = Command.decode(body)
        except (ValueError, KeyError, TypeError):
            logger.warning("bus: a message that is no command of ours was ignored")
            return
        if command.kind == "cancel":
            self.cancel(command.subject, command.reason or "caller")
        elif command.kind == "rebuild":
            self._answer(command, self.rebuild(command.subject, command.token))
        elif command.kind in ("open_circuit", "close_circuit"):
            done, told = self._force(
                command.subject, command.seconds if command.kind == "open_circuit" else None
            )
            self._answer_when_obeyed(command, done, told)
        elif command.kind == "status":
            self._answer_status(command)
        elif command.kind == "urgent" and self.gate is not None:
            self.gate.hurry(inference_queue(command.subject))

    def cancel(self, request_id: str, reason: str) -> bool:
        """Cancel a request: running here, or to come. Whether it runs here."""
        self.remember_cancelled([request_id])
        return self.cancel_running(request_id, reason)

    def remember_cancelled(self, request_ids: list[str]) -> None:
        """Requests of these ids are not to be begun."""
        now = time.time()
        for request_id in request_ids:
            self.cancelled[request_id] = now
            self.cancelled.move_to_end(request_id)
        while len(self.cancelled) > CANCELLED_MEMORY:
            self.cancelled.popitem(last=False)

    def cancel_running(self, request_id: str, reason: str) -> bool:
        """Cancel it if it is in the pool."""
        request = state.requests.get(request_id)
        if request is None or request not in state.active_requests:
            return False
        if self.prefork:
            return self.child_commands.send(
                request.worker_pid, {"kind": "cancel", "id": request_id, "reason": reason}
            )
        self._inference.runtime.jobs.cancel(request_id, reason)
        return True

    def holds(self, request_id: str) -> bool:
        """Whether one of our requests of that id is here: in the pool, or about to be."""
        request = state.requests.get(request_id)
        return request is not None and request.task.name == INFER_TASK

    def revoked(self, request_ids: list[str]) -> None:
        """Celery's ``revoke`` (Flower's button): the same as a cancel, and the caller is told."""
        notices: list[tuple[str, bytes, dict[str, Any]]] = []
        for request_id in request_ids:
            self.cancel(request_id, "revoked")
            notice = Outcome(request_id, "", notice=True).encode()
            notices.append((reply_queue(client_of(request_id)), notice, {"correlation_id": request_id}))
            kept = Command(kind="cancel", subject=request_id, reason="revoked").encode()
            from_now = {"correlation_id": request_id, "delivery_mode": 2}
            notices.append((CANCELLED_QUEUE, kept, from_now))
        self._publish(notices)

    def tell_cancelled(self, request: Any) -> None:
        """A cancelled request was met in the queue: its caller may still wait (cancelled by an operator)."""
        header = request.request_dict.get(HEADER) or {}
        client = header.get("reply") if isinstance(header, dict) else None
        if client:
            notice = Outcome(request.id, "", notice=True).encode()
            self._publish([(reply_queue(client), notice, {"correlation_id": request.id})])

    def connection_lost(self) -> None:
        """What was delivered on the old connection can no longer be acknowledged: it is cancelled here."""
        generation = self.counters.next_connection()
        if self.prefork:
            self.child_commands.send_all({"kind": "connection_lost", "connection": generation})
        else:
            count = self._inference.runtime.connection_lost(generation)
            if count:
                logger.warning("%d running requests cancelled: the broker delivers them again", count)

    def rebuild(self, deployment: str, token: str = "") -> dict[str, Any]:
        """From now on no process of this worker begins a request on the old session.

        ``token`` is that of a command to all workers: those that missed it learn of it from this one's processes.
        """
        if deployment not in self._inference.config.deployments:
            return {"error": f"no deployment {deployment!r} here"}
        epoch = self.counters.advance_rebuild_epoch(deployment)
        if token and self.prefork:
            self.child_commands.send_all({"kind": "rebuild", "deployment": deployment, "token": token})
        elif token:
            self._inference.runtime.rebuild_commanded(deployment, token)
        if self.gate is not None:
            self.gate.open(inference_queue(deployment))
        return {"ok": f"session of {deployment} rebuilt", "rebuilds": epoch}

    def drain(self) -> None:
        """The worker is shutting down: requests that wait for another attempt go back into their queues."""
        if self.prefork:
            self.child_commands.send_all({"kind": "drain"})
        else:
            self._inference.runtime.drain()

    def force_circuit(self, deployment: str, seconds: float | None) -> dict[str, Any]:
        """Open the circuit of a deployment's endpoint for so many seconds, or close it (None)."""
        return self._force(deployment, seconds)[0]

    def _force(self, deployment: str, seconds: float | None) -> tuple[dict[str, Any], int]:
        """The answer, and how many processes of the pool were told."""
        if deployment not in self._inference.config.deployments:
            return {"error": f"no deployment {deployment!r} here"}, 0
        if seconds is not None and not 0 < seconds < float("inf"):
            return {"error": "the duration must be a positive number of seconds"}, 0
        self._command_number += 1
        told = 1
        if self.prefork:
            command = {"kind": "force_circuit", "deployment": deployment, "seconds": seconds}
            told = self.child_commands.send_all({**command, "number": self._command_number})
        else:
            self._inference.runtime.force_circuit(deployment, seconds)
        if seconds is None and self.gate is not None:
            self.gate.open(inference_queue(deployment))
        done = "closed" if seconds is None else f"open for {seconds:g} s"
        return {"ok": f"circuit of {deployment} {done}"}, told

    def status(self) -> dict[str, Any]:
        """What this worker knows: counts of all its processes, gates, circuits."""
        return {
            "pid": os.getpid(),
            "metrics": {
                name: {key: value for key, value in vars(metrics).items() if key != "queued"}
                for name, metrics in self.counters.metrics().items()
            },
            "gates": self.gate.status() if self.gate is not None else {},
            "engines": self._circuits() if self.prefork else self._inference.runtime.status(),
            **({} if self.prefork else self._inference.runtime.cluster_status()),
        }

    def _circuits(self) -> dict[str, dict[str, str]]:
        """As the pool's processes show them."""
        now = time.time()
        return {
            name: {"circuit": self.counters.circuit(name, now)} for name in self._inference.config.deployments
        }

    def watch_circuits(self) -> None:
        """A circuit may be closed elsewhere, before its time: then the gate that it shut opens (anew a connection)."""
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self.consumer.timer.call_repeatedly(CIRCUIT_LOOK, self.look_at_circuits)

    def look_at_circuits(self) -> None:
        """Open the gates that were shut for circuits which are closed now. A timer's work, see `Gate`."""
        if not self.gate.any_closed:
            return
        now = time.time()
        for deployment, reason in self.gate.reasons().items():
            if (
                reason.kind is GateKind.CIRCUIT
                and deployment in self._inference.config.deployments
                and self.counters.circuit(deployment, now) == "closed"
            ):
                self.gate.resume(inference_queue(deployment))

    def _answer_when_obeyed(self, command: Command, done: dict[str, Any], told: int) -> None:
        def answer(obeyed: int) -> None:
            missing = {"missing": told - obeyed} if obeyed < told else {}
            self._answer(command, {**done, "processes": obeyed, **missing})

        if "ok" in done:
            self._when_obeyed(self._command_number, told, time.monotonic() + OBEY_TIMEOUT, answer)
        else:
            self._answer(command, done)

    def _answer_status(self, command: Command) -> None:
        """Limits and members are what each of the pool's processes knows; they are asked first."""
        if not self.prefork:
            self._answer(command, self.status())
            return
        self._command_number += 1
        number = self._command_number
        told = self.child_commands.send_all({"kind": "status", "number": number})

        def answer(obeyed: int) -> None:
            self._answer(command, {**self.status(), "processes": self.child_commands.reports(number)})

        self._when_obeyed(number, told, time.monotonic() + OBEY_TIMEOUT, answer)

    def _when_obeyed(self, number: int, told: int, until: float, then: Callable[[int], None]) -> None:
        """The pool's processes are told by datagram, and show by the shared counters that they have done it."""
        obeyed = min(self.counters.obeyed(number), told) if self.prefork else told
        if obeyed < told and time.monotonic() < until:
            self.consumer.timer.call_after(_OBEY_LOOK, self._when_obeyed, (number, told, until, then))
        else:
            then(obeyed)

    def _answer(self, command: Command, value: dict[str, Any]) -> None:
        if command.reply_to:
            answer = Answer(command.token, self.hostname, value).encode()
            self._publish([(reply_queue(command.reply_to), answer, {})])

    # -- messages that cannot be read

    def refuse(self, message: Any, reason: str) -> None:
        """Set aside what no worker can read, tell its sender where there is one, and acknowledge it."""
        headers = message.headers if isinstance(message.headers, dict) else {}
        request_id = str(headers.get("id") or message.properties.get("correlation_id") or "")
        error = UndecodableMessage(reason, request_id)
        logger.error("%s; kept in %s", error, DEAD_LETTER_QUEUE)
        body = (
            message.body
            if isinstance(message.body, bytes)
            else str(message.body).encode("utf-8", "surrogatepass")
        )
        kept = {key: value for key, value in headers.items() if key in ("id", "task", HEADER)}
        publications = [
            (
                DEAD_LETTER_QUEUE,
                body,
                {
                    "content_type": str(message.content_type or "application/octet-stream"),
                    "content_encoding": str(message.content_encoding or "binary"),
                    "delivery_mode": 2,
                    "correlation_id": request_id,
                    "application_headers": {**kept, "inference_reason": reason},
                },
            )
        ]
        client = reply_to_of(headers.get(HEADER))
        if client and request_id:
            outcome = Outcome(request_id, "", error=error).encode()
            publications.append(
                (reply_queue(client), outcome, {"delivery_mode": 2, "correlation_id": request_id})
            )
        if self._publish(publications):
            message.ack_log_error(logger, self.consumer.connection_errors)
        else:  # not kept anywhere else: it must not be lost
            message.reject_log_error(logger, self.consumer.connection_errors, requeue=True)

    def _publish(self, publications: list[tuple[str, bytes, dict[str, Any]]]) -> bool:
        try:
            with self._app.connection_for_write() as connection:
                publish_now(connection, publications)
            return True
        except (
            InferenceError,
            OSError,
            *self.consumer.connection_errors,
            *self.consumer.channel_errors,
        ) as exc:
            logger.warning("could not publish: %s", type(exc).__name__)
            return False

    def close(self) -> None:
        """The worker ends."""
        self.child_commands.close()

    def __repr__(self) -> str:
        return f"WorkerMain({self.hostname}, {self.gate!r}, {len(self.cancelled)} cancelled)"


def is_ours(message: Any) -> bool:
    """Whether a message is one of ours, as far as can be told of one that cannot be read."""
    headers = message.headers if isinstance(message.headers, dict) else {}
    return headers.get("task") == INFER_TASK
