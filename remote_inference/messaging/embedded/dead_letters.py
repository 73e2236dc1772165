"""What becomes of a message that a queue rejects, lets expire or drops: RabbitMQ's dead letters."""

from __future__ import annotations

from remote_inference.messaging.embedded.queue import Envelope, QueueSettings


def dead_letter(queue: str, settings: QueueSettings, envelope: Envelope, reason: str) -> Envelope | None:
    """Address a dead message to where its queue sends them, with its history in the ``x-death`` header.

    Args:
        queue: The name of the queue that it died in.
        settings: Those of that queue.
        envelope: The message.
        reason: ``rejected``, ``expired`` or ``maxlen``.

    Returns:
        The new message, or None if the queue keeps no dead letters.
    """
    if settings.dead_letter_exchange is None:
        return None
    deaths = list(envelope.headers.get("x-death", ()))
    before = next((death for death in deaths if (death["queue"], death["reason"]) == (queue, reason)), None)
    if before is not None:
        deaths.remove(before)
    death = {
        "count": before["count"] + 1 if before else 1,
        "reason": reason,
        "queue": queue,
        "exchange": envelope.exchange,
        "routing-keys": [envelope.routing_key],
    }
    first = {
        "x-first-death-queue": queue,
        "x-first-death-reason": reason,
        "x-first-death-exchange": envelope.exchange,
    }
    return Envelope(
        body=envelope.body,
        exchange=settings.dead_letter_exchange,
        routing_key=settings.dead_letter_routing_key or envelope.routing_key,
        headers={**first, **envelope.headers, "x-death": [death, *deaths]},
        # Its time to live must not kill it among the dead letters too.
        properties={name: value for name, value in envelope.properties.items() if name != "expiration"},
    )


def goes_round(letter: Envelope, target: str) -> bool:
    """Whether a dead letter has come back to a queue without anybody having rejected it on the way.

    RabbitMQ drops such letters, or they would go round for ever (https://www.rabbitmq.com/docs/dlx,
    "Automatically Dead-lettered Message Cycles").
    """
    for death in letter.headers.get("x-death", ()):
        if death["reason"] == "rejected":
            return False
        if death["queue"] == target:
            return True
    return False
