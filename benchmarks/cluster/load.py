"""Requests without end: a thread that publishes them at a rate, and leaves out what would only pile up.

The messages are plain Celery's: nobody reads the answers, and nothing of the library's runs here, whose two cores
are the workers' and the provider's.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from uuid import uuid4

from amqp.exceptions import NotFound
from kombu import Producer

from remote_inference import Inference, Priority

__all__ = ["Load", "Prompt"]

_TICK = 0.02  # seconds between two bunches
_LOOK = 0.5  # seconds between two looks at the queues
_BACKLOG = 200  # requests waiting, beyond which arrivals are left out


class Prompt(NamedTuple):
    """A request's text, and the most tokens of its answer."""

    text: str = "Go on."
    max_tokens: int = 8


class Load:
    """See the module. Leaving the `with` stops it, and deletes the queues and what was in them.

    Args:
        inference: Whose deployments are asked.
        prompts: Makes the prompts of the steady load.
    """

    def __init__(self, inference: Inference, prompts: Callable[[], Prompt] = Prompt) -> None:
        self.inference = inference
        self._prompts = prompts
        self._rates: Mapping[str, float] = {}
        self._owed: dict[str, float] = {}
        self._waiting: dict[str, int] = {}
        self.left_out = 0
        self.failed: BaseException | None = None
        self._lock = threading.Lock()  # of the connection
        self._connection = inference.app.connection_for_write()
        self._producer = Producer(self._connection.channel(), auto_declare=False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def rates(self, rates: Mapping[str, float]) -> None:
        """From now on, so many requests a second for each deployment."""
        self._rates = dict(rates)

    def send(
        self,
        deployment: str,
        prompt: Prompt | None = None,
        *,
        priority: Priority = Priority.NORMAL,
        count: int = 1,
    ) -> float:
        """Publish `count` requests now; returns the time before the first (monotonic)."""
        began = time.monotonic()
        with self._lock:
            for _ in range(count):
                self._publish(deployment, prompt or self._prompts(), priority)
        return began

    def ready(self, deployment: str) -> bool:
        """Whether somebody consumes its queue."""
        try:
            return bool(self._declared(deployment).consumer_count)
        except NotFound:
            return False

    def waiting(self, deployment: str) -> int:
        """How many wait in its queue."""
        return int(self._declared(deployment).message_count)

    def purge(self, deployment: str) -> None:
        """Empty its queue."""
        with self._lock, self._connection.channel() as channel:
            channel.queue_purge(f"inference.{deployment}")

    def _declared(self, deployment: str) -> Any:
        with self._lock, self._connection.channel() as channel:
            return channel.queue_declare(f"inference.{deployment}", passive=True)

    def _publish(self, deployment: str, prompt: Prompt, priority: Priority) -> None:
        call = {"deployment": deployment, "messages": prompt.text, "max_tokens": prompt.max_tokens}
        message = self.inference.app.amqp.as_task_v2(
            str(uuid4()), self.inference.infer.name, (), call, argsrepr="()", kwargsrepr="{}"
        )
        self._producer.publish(
            message.body,
            routing_key=f"inference.{deployment}",
            headers=message.headers,
            serializer="json",
            priority=int(priority),
            delivery_mode=2,
            **message.properties,
        )

    def _run(self) -> None:
        try:
            look_at = last = time.monotonic()
            while not self._stop.wait(_TICK):
                now = time.monotonic()
                rates, passed, last = self._rates, now - last, now
                if now >= look_at:
                    self._waiting = {name: self.waiting(name) for name in rates}
                    look_at = now + _LOOK
                for name, rate in rates.items():
                    owed = self._owed.get(name, 0.0) + rate * passed
                    self._owed[name] = owed - int(owed)
                    room = max(0, _BACKLOG - self._waiting.get(name, 0))
                    count = min(int(owed), room)
                    self.left_out += int(owed) - count
                    self._waiting[name] = self._waiting.get(name, 0) + count
                    self.send(name, count=count)
        except Exception as exc:  # told by `check`: a case without load measures nothing
            self.failed = exc

    def check(self) -> None:
        """Raise what ended the load.

        Raises:
            RuntimeError: It has ended.
        """
        if self.failed is not None:
            raise RuntimeError("the load has ended") from self.failed

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._stop.set()
        self._thread.join()
        for name in self.inference.config.deployments:
            with contextlib.suppress(NotFound):  # nobody has declared it
                self.purge(name)
            with self._connection.channel() as channel:
                channel.queue_delete(f"inference.{name}")
        self._connection.release()
