"""Bootsteps: what a Celery worker starts for us, and in which order.

A worker finds them by name (`Inference` adds the names to the app), so that a web process never loads this module.
"""

from __future__ import annotations

import _thread
import logging
import os
import signal
import threading
from typing import Any

from amqp.exceptions import PreconditionFailed
from celery import bootsteps
from celery.backends.base import DisabledBackend
from celery.signals import (
    worker_process_init,
    worker_process_shutdown,
    worker_shutdown,
    worker_shutting_down,
)
from celery.worker.consumer.connection import Connection
from celery.worker.consumer.tasks import Tasks

from ..messaging.commands import bus_queue, cancelled_ids
from ..messaging.names import CONTROL_QUEUE, INFER_TASK, deployment_of, is_inference_queue
from ..messaging.queues import declare_common, declare_inference_queue
from .control import install_commands
from .logs import redact_pool_log
from .main import WorkerMain, is_ours
from .quiet import quiet_requeues

__all__ = ["BusStep", "ProcessStep", "QueueStep"]

logger = logging.getLogger(__name__)

CELERYS_HEARTBEAT = 120
HEARTBEAT = 20
"""Seconds. A worker that is cut off learns it by a missed heartbeat, and asks (and pays) on until then."""


class ProcessStep(bootsteps.StartStopStep):
    """Before the pool starts: the shared page, the way to the children, the operator's signal."""

    requires = ("celery.worker.components:Timer",)
    # the pool's step is told to come after us by being required by nothing of ours: steps are made in order of need
    label = "inference"

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self.inference = worker.app.tasks[INFER_TASK].inference
        # made here and not in `start`: every step is made before the first is started, and the pool forks in its start
        self.main = WorkerMain(self.inference, worker.app)
        self.inference.worker_main = self.main
        install_commands()
        redact_pool_log()
        quiet_requeues()
        if not isinstance(worker.app.backend, DisabledBackend):  # which fails when it is asked for a state
            worker.app.conf.worker_deduplicate_successful_tasks = True
        # what ran when the connection was lost is cancelled, so that its slots are free for the next one
        worker.app.conf.worker_enable_prefetch_count_reduction = False
        inference, main = self.inference, self.main

        def in_child(**_: Any) -> None:
            if main.counters.main_pid != os.getpid():
                stripe = _child_index()
                main.counters.clear_in_flight(stripe)
                inference.become_child(main.counters, stripe)
                runtime = (
                    inference.make_runtime()
                )  # joins the others, and has heard them before its first request
                main.child_commands.listen(
                    lambda command: runtime.on_child_command(command, main.child_commands.report)
                )
                worker_process_shutdown.connect(leaves, weak=False)

        def leaves(**_: Any) -> None:
            inference.close()  # the others need not wait for the end of its lease

        self._in_child = in_child
        worker_process_init.connect(in_child, weak=False)
        worker_shutdown.connect(self._ended, sender=worker, weak=False)
        worker_shutting_down.connect(self._ending, sender=worker.hostname, weak=False)

    def start(self, worker: Any) -> None:
        """Hear the operator's signal."""
        if threading.current_thread() is not threading.main_thread():
            return
        if os.environ.get("CELERY_RDBSIG"):
            logger.warning(
                "SIGUSR2 is Celery's debugger's here: rebuild sessions by the control command instead"
            )
            return

        def rebuild_all() -> None:
            for name in self.inference.config.deployments:
                self.main.rebuild(name)

        def on_signal(signum: int, frame: Any) -> None:
            # In a thread: what was interrupted may hold the lock of Celery's loop, which a rebuild takes too. Not one
            # of `threading`, whose start takes locks itself.
            _thread.start_new_thread(rebuild_all, ())

        signal.signal(signal.SIGUSR2, on_signal)

    def _ending(self, **_: Any) -> None:
        """The worker was told to end, by a signal: not in its handler, see `start`."""
        _thread.start_new_thread(self.main.drain, ())

    def _ended(self, **_: Any) -> None:
        """The worker has ended. Not our `stop`: that comes before the pool's, which waits for running requests."""
        worker_process_init.disconnect(self._in_child)
        worker_shutdown.disconnect(self._ended)
        worker_shutting_down.disconnect(self._ending)
        self.main.close()
        self.inference.close_worker()


class QueueStep(bootsteps.StartStopStep):
    """Before the consumer starts to consume: our queues stand, and no more is taken than there are slots."""

    requires = (Connection,)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self.inference = consumer.app.tasks[INFER_TASK].inference
        self.main: WorkerMain = self.inference.worker_main
        pool = consumer.pool
        self.main.attach(consumer, prefork=_is_prefork(pool))
        consumes = [name for name in consumer.app.amqp.queues.consume_from if is_inference_queue(name)]
        if consumes:
            # what a worker has taken does not compete on priority any more: never more than it has slots
            consumer.prefetch_multiplier = 1
            if consumer.amqheartbeat == CELERYS_HEARTBEAT:  # nobody chose it
                consumer.amqheartbeat = HEARTBEAT
            consumer.initial_prefetch_count = pool.limit or 1  # prefork's num_processes is not there yet
            # an operator's tasks (beat's rebuild) find a worker, whatever its -Q says
            queues = consumer.app.amqp.queues
            queues.select_add(queues[CONTROL_QUEUE])
        self._consumes = consumes
        self._guard(consumer)
        self._cancel_first(consumer)
        self._heed_operator(consumer)

    def start(self, consumer: Any) -> None:
        """Declare what is consumed (with another capacity than it has: see `declare_inference_queue`)."""
        channel = consumer.connection.channel()
        declare_common(channel)
        channel.close()
        deployments = self.inference.config.deployments
        for queue in self._consumes:
            deployment = deployments.get(deployment_of(queue))
            if deployment is None:
                logger.warning("queue %s: the configuration has no such deployment", queue)
                continue
            try:
                declare_inference_queue(consumer.connection, queue, deployment.queue_capacity)
            except (
                PreconditionFailed
            ) as exc:  # of somebody else's making: senders refuse it, but what waits is served
                logger.error("queue %s: %s", queue, exc)

    def _cancel_first(self, consumer: Any) -> None:
        """When the connection is lost, cancel what it delivered before Celery cleans up.

        The steps' `stop` would be too late: with gevent, one of Celery's own waits for an answer on a connection that
        may be as dead, for as long as the operating system believes in it.
        """
        clean_up = consumer.on_connection_error_after_connected

        def on_connection_error_after_connected(exc: Exception) -> None:
            self.main.connection_lost()
            clean_up(exc)

        consumer.on_connection_error_after_connected = on_connection_error_after_connected

    def _heed_operator(self, consumer: Any) -> None:
        """``celery control add_consumer`` and ``cancel_consumer`` count for more than the gate.

        A gate that is shut would else consume again what was cancelled, or refuse over and over what was added.
        """
        gate, add, cancel = self.main.gate, consumer.add_task_queue, consumer.cancel_task_queue

        def add_task_queue(queue: str, *args: Any, **options: Any) -> None:
            gate.forget(queue)
            add(queue, *args, **options)

        def cancel_task_queue(queue: str) -> None:
            gate.forget(queue)
            cancel(queue)

        consumer.add_task_queue, consumer.cancel_task_queue = add_task_queue, cancel_task_queue

    def _guard(self, consumer: Any) -> None:
        """Messages that cannot be read: kept, told, and shown to no log."""
        main, inherited = (
            self.main,
            (
                consumer.on_decode_error,
                consumer.on_invalid_task,
                consumer.on_unknown_message,
                consumer.on_unknown_task,
            ),
        )

        def ours(message: Any) -> bool:
            return is_ours(message) or is_inference_queue(main.gate.queue_of(message))

        def on_decode_error(message: Any, exc: Exception) -> None:
            if ours(message):
                main.refuse(message, f"it cannot be decoded ({type(exc).__name__})")
            else:
                inherited[0](message, exc)

        def on_invalid_task(body: Any, message: Any, exc: Exception) -> None:
            if ours(message):
                main.refuse(message, f"it is not what a task's message is ({type(exc).__name__})")
            else:
                inherited[1](body, message, exc)

        def on_unknown_message(body: Any, message: Any) -> None:
            if ours(message):
                main.refuse(message, "it is no Celery task's message")
            else:
                inherited[2](body, message)

        def on_unknown_task(body: Any, message: Any, exc: Exception) -> None:
            if ours(message):
                main.refuse(message, "it is of another task than those of an inference queue")
            else:
                inherited[3](body, message, exc)

        consumer.on_unknown_task = on_unknown_task
        consumer.on_decode_error = on_decode_error
        consumer.on_invalid_task = on_invalid_task
        consumer.on_unknown_message = on_unknown_message


class BusStep(bootsteps.StartStopStep):
    """Listens for commands, on the consumer's own connection; knows what was cancelled before the first request."""

    requires = (Tasks, QueueStep)  # which declares the bus; what no step asks for, Celery orders at random

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self.main: WorkerMain = consumer.app.tasks[INFER_TASK].inference.worker_main
        self._channel: Any = None

    def start(self, consumer: Any) -> None:
        """Begin to listen, then read what was cancelled before."""
        self.main.counters.next_connection()
        self.main.gate.reconnected()
        self.main.watch_circuits()
        if not self.main.prefork:
            self.main.join()
        self._channel = consumer.connection.channel()
        queue = bus_queue(self._channel)
        self._channel.basic_consume(
            queue, no_ack=True, callback=lambda message: self.main.on_bus(message.body), consumer_tag=queue
        )
        self.main.remember_cancelled(cancelled_ids(consumer.connection))
        if getattr(consumer.pool, "is_green", False):
            _do_not_linger(consumer)

    def stop(self, consumer: Any) -> None:
        """The connection is lost, or the worker ends."""
        self._channel = None


def _do_not_linger(consumer: Any) -> None:
    """Look at the events' connection without waiting.

    Celery's blocking loop waits there for 0.1 s in every turn, which makes ten tasks a second; it reads it only so that
    the broker's heartbeats do not pile up.
    """
    connection = getattr(consumer.event_dispatcher, "connection", None)
    if connection is not None:
        drain = connection.drain_events
        connection.drain_events = lambda timeout=None: drain(timeout=0)


def _is_prefork(pool: Any) -> bool:
    return bool(getattr(pool, "uses_semaphore", False)) or type(pool).__module__.endswith(
        "concurrency.prefork"
    )


def _child_index() -> int:
    try:
        from billiard.process import current_process

        return int(getattr(current_process(), "index", 0))
    except (ImportError, AttributeError):
        return 0
