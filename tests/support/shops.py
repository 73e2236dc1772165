"""A small shop for tests: an app with its deployments, workers in this process, and a look into its queues."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import uuid4

from celery import Celery

from remote_inference import Inference
from remote_inference.worker.embedded import EmbeddedWorker

DEAD_LETTERS = "inference.dead-letter"


class SmallShop:
    """An app of its own with loopback deployments; closed with `close`.

    Args:
        url: the broker's.
        deployments: a table each, by name; ``provider`` is ``loopback`` unless given.
        settings: Celery's.
        inference: more arguments of `Inference`.
    """

    def __init__(
        self,
        url: str,
        deployments: Mapping[str, Mapping[str, Any]],
        *,
        settings: Mapping[str, Any] | None = None,
        **inference: Any,
    ) -> None:
        self.url = url
        self.app = Celery(f"shop-{uuid4().hex[:8]}", broker=url, set_as_current=False)
        self.app.conf.update(broker_connection_retry_on_startup=True, **(settings or {}))
        tables = [{"name": name, "provider": "loopback", **table} for name, table in deployments.items()]
        self.inference = Inference(self.app, config={"deployment": tables}, **inference)
        self._workers: list[EmbeddedWorker] = []

    def work(self, *names: str, concurrency: int = 4, **options: Any) -> EmbeddedWorker:
        """Start a worker for these deployments (all of them if none is named)."""
        names = names or tuple(self.inference.config.deployments)
        queues = [*(f"inference.{name}" for name in names), "inference.control"]
        worker = EmbeddedWorker(self.app, concurrency=concurrency, queues=queues, **options)
        self._workers.append(worker)
        worker.start(timeout=30)
        return worker

    def close(self) -> None:
        """Stop the workers, close all connections."""
        for worker in self._workers:
            worker.stop(timeout=20)
        self.inference.close()
        self.app.close()

    # -- the broker, seen from beside

    def declare(self) -> None:
        """Have the common queues and those of all deployments."""
        self.inference.submitter.sender.declare(10)
        for deployment in self.inference.config.deployments.values():
            self.inference.submitter.sender.waiting(deployment, 10)

    def depth(self, name: str) -> int:
        """How many messages are ready in a deployment's queue."""
        return self.ready(f"inference.{name}")

    def ready(self, queue: str) -> int:
        """How many messages are ready in a queue; 0 where there is none."""
        with self.app.connection_for_write() as connection:
            try:
                return int(connection.channel().queue_declare(queue, passive=True).message_count)
            except connection.channel_errors:
                return 0

    def take(self, queue: str) -> list[Any]:
        """All messages of a queue, in order; they are gone then."""
        with self.app.connection_for_write() as connection:
            channel = connection.channel()
            found = []
            while (raw := channel.basic_get(queue, no_ack=True)) is not None:
                found.append(channel.message_to_python(raw) if isinstance(raw, dict) else raw)
            return found

    def prompts(self, name: str) -> list[str]:
        """The prompts that wait in a deployment's queue, in the order in which they would start."""
        return [
            json.loads(body_of(message))[1]["messages"][0]["content"]
            for message in self.take(f"inference.{name}")
        ]

    def publish(
        self, queue: str, body: bytes, content_type: str, headers: Mapping[str, Any], **properties: Any
    ) -> None:
        """Put any message into a queue."""
        with self.app.connection_for_write() as connection:
            channel = connection.channel()
            message = channel.prepare_message(
                body, 1, content_type, "utf-8", dict(headers), {"delivery_mode": 2, **properties}
            )
            channel.basic_publish(message, exchange="", routing_key=queue)

    def raw(self, act: Callable[[Any], Any]) -> Any:
        """Do something on a channel."""
        with self.app.connection_for_write() as connection:
            return act(connection.channel())


def body_of(message: Any) -> bytes:
    """A message's body as bytes, whichever transport it came over."""
    body = message.body
    return body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body)


def headers_of(message: Any) -> dict[str, Any]:
    """A message's headers, whichever transport it came over."""
    return dict(message.headers or {})


def eventually(holds: Callable[[], Any], what: str = "it", *, within: float = 20.0) -> None:
    """Wait until it holds.

    Raises:
        AssertionError: it does not, in time.
    """
    end = time.monotonic() + within
    while not holds():
        assert time.monotonic() < end, f"{what} did not come to hold within {within:g} s"
        time.sleep(0.01)


def timed(act: Callable[[], Any]) -> tuple[float, BaseException | None]:
    """How long it took, and what it raised."""
    begun = time.monotonic()
    try:
        act()
    except Exception as exc:  # the test looks at it
        return time.monotonic() - begun, exc
    return time.monotonic() - begun, None


def texts(results: Iterable[Any]) -> list[str]:
    """The texts of completions."""
    return [result.text for result in results]
