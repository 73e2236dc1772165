"""A Celery worker inside this process: one thread consumes, a pool of threads works; stops in milliseconds.

Celery's own way to do that (`celery.contrib.testing.worker`) is for tests, and stops within seconds. It runs
over ``embedded://`` and ``amqp://``; over AMQP it uses Celery's event loop, because pool threads must not
write to the socket that the consumer reads, and over the embedded broker the blocking loop, which needs no
socket.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import uuid4

from celery import Celery
from celery.bootsteps import RUN
from celery.concurrency.thread import ApplyResult, TaskPool
from celery.exceptions import WorkerShutdown
from celery.utils import timer2
from celery.worker import WorkController
from kombu.asynchronous import get_event_loop, set_event_loop
from kombu.utils.imports import symbol_by_name

logger = logging.getLogger(__name__)

# Making and stopping a worker each touch what Celery and kombu keep once per process (the event loop; the
# default socket timeout while a worker shuts down), so one worker at a time does either.
_one_at_a_time = threading.Lock()


class PromptTimer(timer2.Timer):
    """Celery's timer thread, only that it can be interrupted: a new entry or `stop` ends its wait at once."""

    running: bool  # set by Celery's, where no type can be told

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._halted = False

    def run(self) -> None:
        """Apply entries when they are due, until `stop`."""
        scheduler = iter(self.schedule)
        while not self._halted:
            with self.not_empty:
                delay, entry = next(scheduler)
                if entry is None:
                    if not self._halted:
                        self.not_empty.wait(delay)
                    continue
            self.schedule.apply_entry(entry)

    def ensure_started(self) -> None:
        """Start the thread with the first entry."""
        if not self.running:
            self.running = True
            self.start()

    def stop(self) -> None:
        """End the thread; entries that are not yet due are dropped."""
        with self.not_empty:
            self._halted = True
            self.not_empty.notify_all()
        if self.running and threading.current_thread() is not self:
            self.join()


class EmbeddedPool(TaskPool):
    """Celery's threads pool, whose threads know their app and whose errors are not lost."""

    Timer = PromptTimer
    # The process's flag against tasks that wait for tasks: here those that wait are mostly no tasks at all.
    task_join_will_block = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # `trace_task` finds the task through the current app, which is a thread's own: without this, tasks
        # run on Celery's default app, with its configuration.
        self.executor = ThreadPoolExecutor(
            self.limit, thread_name_prefix="embedded-worker-pool", initializer=self.app.set_current
        )

    def on_apply(self, *args: Any, **kwargs: Any) -> ApplyResult:
        """Run a task in a thread."""
        result = super().on_apply(*args, **kwargs)
        result.f.add_done_callback(_log_lost_error)
        return result


def _log_lost_error(future: Future[object]) -> None:
    """Nobody reads the pool's futures; what ends up there never reached Celery's own handling."""
    error = None if future.cancelled() else future.exception()
    if error is not None:
        logger.error("a task's thread failed outside the task: %s", type(error).__name__, exc_info=error)


class EmbeddedWorker:
    """A worker in a thread of this process.

    Several may run at once. Workers of one app consume the same queues, because Celery keeps the selection
    with the app: for different queues use an app each. Celery keeps lists of active and reserved requests
    once per process, so that ``inspect active`` of one shows those of all.

    Args:
        app: The Celery app. Its broker may be ``embedded://`` or ``amqp://``.
        concurrency: How many tasks run at the same time.
        queues: The names of the queues to consume from; all of the app's if None.
        hostname: The worker's node name; made up if None.
        options: More of `celery.worker.WorkController`'s options.
    """

    def __init__(
        self,
        app: Celery,
        *,
        concurrency: int,
        queues: Iterable[str] | None = None,
        hostname: str | None = None,
        **options: Any,
    ) -> None:
        self.hostname = hostname or f"embedded-{uuid4().hex[:12]}@localhost"
        self._app = app
        self._options = {
            "pool": EmbeddedPool,
            "concurrency": concurrency,
            "queues": None if queues is None else list(queues),
            "hostname": self.hostname,
            "task_events": False,
            "without_gossip": True,
            "without_heartbeat": True,
            "without_mingle": True,
            **options,
        }
        self._controller: Any = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._ended = threading.Event()

    def __repr__(self) -> str:
        return f"<EmbeddedWorker {self.hostname} {'running' if self.is_alive else 'not running'}>"

    def __enter__(self) -> EmbeddedWorker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def controller(self) -> Any:
        """Celery's worker object; None before `start`."""
        return self._controller

    def start(self, timeout: float = 10.0) -> None:
        """Start it, and return when it consumes.

        Args:
            timeout: Seconds to wait for that.

        Raises:
            RuntimeError: It was started before, ended at once, or does not consume in time (it is stopped
                then).
        """
        if self._thread is not None:
            raise RuntimeError(f"{self.hostname} was started before")
        with _one_at_a_time:
            self._controller = self._make_controller()
        self._thread = threading.Thread(target=self._run, name=self.hostname, daemon=True)
        self._thread.start()
        if not self._ready.wait(timeout) or self._ended.is_set():
            why = "ended at once" if self._ended.is_set() else f"does not consume after {timeout} s"
            self.stop(timeout=1.0)
            raise RuntimeError(f"{self.hostname} {why}")

    def stop(self, timeout: float | None = 10.0) -> bool:
        """Take no more messages, let the running tasks end, and give back what was not begun.

        Args:
            timeout: Seconds to wait; None waits as long as the tasks take.

        Returns:
            Whether it has ended. If not, it still ends when its tasks do.
        """
        if self._thread is None:
            return True
        with _one_at_a_time:
            self._stopping.set()
            consumer = getattr(self._controller, "consumer", None)
            if consumer is not None:
                consumer.call_soon(self._shut_down_soon, consumer.hub)
                wake = getattr(getattr(consumer.connection, "_transport", None), "wake", None)
                if wake is not None:
                    wake()
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _make_controller(self) -> Any:
        self._app.finalize()
        # Celery's worker takes the process's event loop if there is one, and replaces the lock of the app's
        # clock by none when it has a loop; here other workers and the app's other threads live on.
        loop, clock_lock = get_event_loop(), self._app.clock.mutex
        set_event_loop(None)
        try:
            return WorkController(
                app=self._app,
                consumer_cls=self._consumer_class(),
                ready_callback=lambda _: self._ready.set(),
                **self._options,
            )
        finally:
            set_event_loop(loop)
            self._app.clock.mutex = clock_lock

    def _consumer_class(self) -> type:
        """The app's consumer class, with a way out of the wait for a broker that is not there.

        Celery's own way is a flag of the process, which would stop every other worker in it too.
        """
        base: Any = symbol_by_name(self._app.conf.worker_consumer)
        check = self._shut_down_if_stopping

        class EmbeddedConsumer(base):
            def ensure_connected(self, conn: Any) -> Any:
                check()
                dial: Callable[..., Any] = conn.ensure_connection

                def ensure_connection(errback: Any, max_retries: Any, callback: Any) -> Any:
                    return dial(errback, max_retries, callback=check)

                conn.ensure_connection = ensure_connection
                try:
                    return super().ensure_connected(conn)
                finally:
                    del conn.ensure_connection

        return EmbeddedConsumer

    def _shut_down_soon(self, hub: Any) -> None:
        """Called by the loop, which loses the other callbacks of this turn, acknowledgements, if one raises."""
        if hub is None:
            self._shut_down_if_stopping()
        else:
            hub.on_tick.add(self._shut_down_if_stopping)

    def _shut_down_if_stopping(self) -> None:
        """Raise, in the worker's own thread and while it runs, what ends it in good order."""
        thread_is_ours = threading.current_thread() is self._thread
        if self._stopping.is_set() and thread_is_ours and not self._controller_is_closing():
            raise WorkerShutdown(0)

    def _controller_is_closing(self) -> bool:
        consumer = getattr(self._controller, "consumer", None)
        return consumer is None or consumer.blueprint.state not in (None, RUN)

    def _run(self) -> None:
        try:
            self._app.set_current()
            self._controller.start()
        except Exception:
            logger.exception("the embedded worker %s failed", self.hostname)
        finally:
            self._ended.set()
            self._ready.set()
