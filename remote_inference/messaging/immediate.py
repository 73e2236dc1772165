"""Publishing a few messages at once on a connection of their own: for where no publisher thread may be.

The main process of a prefork pool must not have threads beside its forks, and does this only for what is rare: a
message that cannot be read, an answer to an operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kombu.connection import Connection

__all__ = ["publish_now"]

TIMEOUT = 5.0


def publish_now(connection: Connection, publications: Sequence[tuple[str, bytes, dict[str, Any]]]) -> None:
    """Publish to queues by name, and return when the broker has them.

    Args:
        connection: not yet opened.
        publications: routing key (a queue; one that is gone is no error), body, properties.

    Raises:
        OSError, or the transport's errors: not all of it is known to have arrived.
    """
    connection.transport_options = {**connection.transport_options, "confirm_publish": True}
    connection.connect_timeout = TIMEOUT
    channel = connection.channel()
    for queue, body, properties in publications:
        kept = dict(properties)
        message = channel.prepare_message(
            body,
            0,
            kept.pop("content_type", "application/json"),
            kept.pop("content_encoding", "utf-8"),
            kept.pop("application_headers", {}),
            kept,
        )
        options = (
            {"timeout": TIMEOUT, "confirm_timeout": TIMEOUT}
            if connection.transport.driver_type == "amqp"
            else {}
        )
        channel.basic_publish(message, exchange="", routing_key=queue, **options)
