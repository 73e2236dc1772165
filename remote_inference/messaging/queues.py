"""Declaring our queues, also where one stands there already with another capacity.

Queue arguments cannot be changed in AMQP: declaring a queue anew with another ``x-max-length`` is refused (406). So
a changed capacity is applied where it can be (a queue that is empty and that nobody consumes is made anew), told where
it cannot, and a smaller one is kept to by the senders (`admission`), whatever the broker's bound is.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any

from amqp.exceptions import NotFound, PreconditionFailed
from kombu.connection import Connection

from ..types import Priority
from ..value import Value
from .names import (
    BUS_EXCHANGE,
    CANCELLED_QUEUE,
    CONTROL_QUEUE,
    DEAD_LETTER_QUEUE,
    chunk_queue,
    marks_queue,
    reply_queue,
)

__all__ = [
    "DeclaredQueue",
    "declare_client_queues",
    "declare_common",
    "declare_inference_queue",
    "declare_marks_queue",
    "queue_depth",
]

logger = logging.getLogger(__name__)

REPLY_EXPIRES_MS = 60_000
"""A reply queue goes a minute after its last reader: time enough for a client's reconnect."""

CHUNK_QUEUE_LENGTH = 20_000
"""A reader that stands still costs the broker this many chunks at most; `Completion` repairs what was dropped."""

MARKS_EXPIRE_MS = 2 * 3600 * 1000
"""Longer than a request may run, and than most wait for their next delivery. Marks that are left behind (of a request
that was cancelled before that) go then; one that waits for longer is taken for innocent again."""

CANCEL_TTL_MS = 24 * 3600 * 1000
CANCEL_QUEUE_LENGTH = 10_000


@dataclass(frozen=True, eq=False, repr=False)
class DeclaredQueue(Value):
    """A deployment's queue as it stands in the broker. ``capacity`` is None where the broker does not tell."""

    name: str
    waiting: int
    consumers: int
    capacity: int | None


def arguments(capacity: int) -> dict[str, Any]:
    """The arguments of a deployment's queue."""
    return {
        "x-max-priority": int(Priority.CRITICAL),
        "x-max-length": capacity,
        "x-overflow": "reject-publish",
    }


def declare_inference_queue(connection: Connection, name: str, capacity: int) -> DeclaredQueue:
    """Declare a deployment's queue; with another capacity than it has, as the module says.

    Raises:
        PreconditionFailed: it stands there with other arguments than the capacity (made by somebody else).
    """
    try:
        return _declare(connection, name, capacity)
    except PreconditionFailed as exc:
        refused = exc
    other = re.search(r"'x-max-length'.*?current is (?:the value )?'?(\d+)", str(refused))
    current = int(other.group(1)) if other is not None else None
    channel = connection.channel()
    try:  # made anew only if that loses nothing: the broker checks and deletes in one step
        channel.queue_delete(name, if_unused=True, if_empty=True)
    except (PreconditionFailed, NotFound):
        pass
    else:
        logger.info("queue %s: made anew with capacity %d (was %s)", name, capacity, current)
        return _declare(connection, name, capacity)
    finally:
        channel.close()
    if current is None:
        raise refused
    depth = queue_depth(connection, name)
    logger.warning(
        "queue %s was declared with capacity %d, the configuration says %d. Queue arguments cannot be changed while "
        "it is in use: senders keep to the smaller figure; to apply the new one, let it run empty, stop its workers "
        "and start them again",
        name,
        current,
        capacity,
    )
    return DeclaredQueue(name, depth.waiting, depth.consumers, current)


def _declare(connection: Connection, name: str, capacity: int) -> DeclaredQueue:
    channel = connection.channel()
    try:
        ok = channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments(capacity))
    finally:
        channel.close()  # also after a refusal: it would be opened again, and nobody would close it
    return DeclaredQueue(name, ok.message_count, ok.consumer_count, capacity)


def queue_depth(connection: Connection, name: str) -> DeclaredQueue:
    """How many messages wait and how many consumers there are.

    Raises:
        NotFound: there is no such queue.
    """
    channel = connection.channel()
    try:
        ok = channel.queue_declare(name, passive=True)
    finally:
        channel.close()
    return DeclaredQueue(name, ok.message_count, ok.consumer_count, None)


def declare_common(channel: Any) -> None:
    """The exchange and the queues that all processes share."""
    channel.exchange_declare(BUS_EXCHANGE, "fanout", durable=True, auto_delete=False)
    channel.queue_declare(CONTROL_QUEUE, durable=True, auto_delete=False)
    channel.queue_declare(DEAD_LETTER_QUEUE, durable=True, auto_delete=False)
    channel.queue_declare(
        CANCELLED_QUEUE,
        durable=True,
        auto_delete=False,
        arguments={"x-message-ttl": CANCEL_TTL_MS, "x-max-length": CANCEL_QUEUE_LENGTH},
    )


def declare_client_queues(channel: Any, client: str) -> None:
    """A client process's two queues: outcomes (never dropped) and chunks (bounded, the oldest go first)."""
    expires = {"x-expires": REPLY_EXPIRES_MS}
    channel.queue_declare(reply_queue(client), durable=True, auto_delete=False, arguments=expires)
    channel.queue_declare(
        chunk_queue(client),
        durable=True,
        auto_delete=False,
        arguments={**expires, "x-max-length": CHUNK_QUEUE_LENGTH},
    )


def declare_marks_queue(channel: Any, request_id: str) -> int:
    """The queue of a request's marks, and how many are in it."""
    declared = channel.queue_declare(
        marks_queue(request_id), durable=True, auto_delete=False, arguments={"x-expires": MARKS_EXPIRE_MS}
    )
    return int(declared.message_count)
