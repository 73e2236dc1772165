"""The AMQP message of a task, and what stands where Celery expects a producer: so that Celery's own code makes it.

Its signals, events, stamps and headers are then as for any task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from celery import Celery
from kombu import Producer
from kombu.utils.json import dumps as kombu_dumps

from ..config import CapacityPolicy, Deployment
from ..config.checks import json_fault
from ..errors import InvalidRequest
from ..messaging.delivery import Delivery
from ..messaging.publisher import Publisher
from ..messaging.wire import dumps
from ..types import Priority
from .sender import Sender

__all__ = ["AdmittedProducer", "Collector", "task_delivery"]

_PROPERTIES = frozenset(
    {"correlation_id", "reply_to", "priority", "expiration", "message_id", "type", "app_id", "user_id"}
)
# Celery's workers look for these, empty or not
_KEPT = frozenset({"eta", "expires", "group", "parent_id", "shadow"})


def task_delivery(
    deployment: Deployment, body: Any, headers: Mapping[str, Any], properties: dict[str, Any]
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
        name: value for name, value in properties.items() if value not in (None, "") and name in _PROPERTIES
    }
    kept["application_headers"] = {
        name: value for name, value in headers.items() if value is not None or name in _KEPT
    }
    kept["delivery_mode"] = 2
    patient = deployment.on_capacity_exhausted is CapacityPolicy.QUEUE
    return Delivery(deployment.queue, encoded, kept, patient=patient)


class Collector:
    """Stands where Celery expects a producer: takes the message, so that it can be sent with others."""

    delivery: Delivery

    def __init__(self, app: Celery, publisher: Publisher, deployment: Deployment) -> None:
        self._app = app
        self._publisher = publisher
        self._deployment = deployment

    def publish(self, body: Any, **options: Any) -> None:
        """Called by Celery with the task's message, and with a ``task-sent`` event if these are on."""
        headers = options.pop("headers", None) or {}
        if "task" not in headers:  # an event: not ours to admit
            self._publish_event(body, {**options, "headers": headers})
            return
        self._take(task_delivery(self._deployment, body, headers, options))

    def _publish_event(self, body: Any, options: dict[str, Any]) -> None:
        """As soon as that can be done: nobody waits for it."""

        def publish(connection: Any) -> None:
            Producer(connection.default_channel).publish(body, **{**options, "retry": False})

        self._publisher.call(publish)

    def _take(self, delivery: Delivery) -> None:
        self.delivery = delivery


class AdmittedProducer(Collector):
    """Stands where Celery expects a producer, for ``apply_async``: admits, publishes and waits for the confirm."""

    def __init__(
        self,
        app: Celery,
        publisher: Publisher,
        sender: Sender,
        deployment: Deployment,
        priority: Priority,
        end: float,
        before: Callable[[Deployment, float], None] | None = None,
    ) -> None:
        super().__init__(app, publisher, deployment)
        self._sender = sender
        self._priority = priority
        self._end = end
        self._before = before

    def _take(self, delivery: Delivery) -> None:
        if self._before is not None:  # after the checks: a bad request needs no broker to be told so
            self._before(self._deployment, self._end)
        self._sender.send(self._deployment, self._priority, delivery, self._end)

    @property
    def connection(self) -> AdmittedProducer:
        """Celery asks the producer's connection to translate its errors; ours are typed already."""
        return self

    @contextmanager
    def _reraise_as_library_errors(self) -> Iterator[None]:
        yield

    @property
    def channel(self) -> Any:
        """A real channel: the rpc result backend declares its queue on it, and would try so for ever."""
        self._sender.reach(self._deployment, self._end)
        with self._app.producer_or_acquire() as producer:
            return producer.channel
