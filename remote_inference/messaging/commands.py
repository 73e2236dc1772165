"""Commands to all workers: over the bus (a fanout exchange) to those that run, and kept for those that start later.

A classic queue gives no message out of its middle, so a request that waits cannot be taken out of the broker. A
cancel is therefore remembered: workers that run hear it over the bus; one that starts later reads the queue of
cancelled ids, before its first request, and puts everything back (`cancelled_ids`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from amqp.exceptions import AccessRefused, ResourceLocked
from kombu.connection import Connection

from .delivery import Delivery
from .names import BUS_EXCHANGE, CANCELLED_QUEUE
from .publisher import Publisher
from .wire import Command

__all__ = ["bus_queue", "cancelled_ids", "send_cancel", "send_command"]


def send_command(publisher: Publisher, command: Command) -> None:
    """Tell all workers that run. A command without a token is given one."""
    if not command.token:
        command = replace(command, token=os.urandom(8).hex())
    publisher.publish(
        Delivery("", command.encode(), {"delivery_mode": 1}, exchange=BUS_EXCHANGE, on_done=_ignore)
    )


def send_cancel(publisher: Publisher, request_ids: Iterable[str], reason: str) -> None:
    """Cancel requests wherever they are. Returns at once; is sent as soon as the broker can be reached."""
    deliveries = []
    for request_id in request_ids:
        body = Command(kind="cancel", subject=request_id, reason=reason).encode()
        kept = {"delivery_mode": 2, "correlation_id": request_id}
        deliveries.append(Delivery(CANCELLED_QUEUE, body, kept, on_done=_ignore))
        deliveries.append(Delivery("", body, {"delivery_mode": 1}, exchange=BUS_EXCHANGE, on_done=_ignore))
    publisher.publish_all(deliveries)


def _ignore(delivery: Delivery) -> None:
    """Nobody waits for the end of a command."""


def bus_queue(channel: Any) -> str:
    """Declare a queue on the bus for this consumer alone; it goes with its connection."""
    name = f"inference.bus.{os.urandom(8).hex()}"
    channel.queue_declare(name, exclusive=True, auto_delete=True, durable=False)
    channel.queue_bind(name, BUS_EXCHANGE, "")
    return name


def cancelled_ids(
    connection: Connection, *, timeout: float = 5.0, sleep: Callable[[float], None] = time.sleep
) -> list[str]:
    """The ids in the queue of cancelled requests; the queue stays as it is.

    One reader at a time (an exclusive queue is the lock), for a message in a reader's hands is hidden from others.
    Whoever does not get its turn in ``timeout`` seconds reads all the same, and may miss what another one holds.
    """
    end = time.monotonic() + timeout
    while True:
        lock = connection.channel()
        try:
            lock.queue_declare(f"{CANCELLED_QUEUE}.reader", exclusive=True, auto_delete=True, durable=False)
            break
        except (AccessRefused, ResourceLocked):
            if time.monotonic() > end:
                break
            sleep(0.02)
    ids: list[str] = []
    channel = connection.channel()
    try:
        left = channel.queue_declare(CANCELLED_QUEUE, passive=True).message_count
        while left > 0:
            message = channel.basic_get(CANCELLED_QUEUE, no_ack=False)
            if message is None:
                break
            left -= 1
            try:
                ids.append(Command.decode(message.body).subject)
            except (ValueError, KeyError, TypeError):
                continue  # not ours: it stays where it is, and expires
    finally:
        channel.close()  # what was not acknowledged goes back to its place
        if lock.is_open:
            lock.queue_delete(f"{CANCELLED_QUEUE}.reader")
            lock.close()
    return ids
