"""How often workers died under a request, kept where it outlives them all: in the broker.

A classic queue says of a message only that it was delivered before, not how often or why. So from its second delivery
on, a request that begins to run leaves a mark in a small queue of its own, and takes it away when it ends in whatever
way but with its worker. What is found there at the next beginning are deaths. A message that was put back on purpose
leaves a note, for its next delivery is no sign of a death; so does one whose worker lost the broker and lives. The
ordinary request, delivered once, costs nothing.
"""

from __future__ import annotations

from typing import Any

from kombu.connection import Connection

from .names import suspect_queue

__all__ = ["begin_suspect", "deaths_under", "end_suspect", "note_put_back", "note_survived"]

EXPIRES_MS = 24 * 3600 * 1000

_MARK, _NOTE = "mark", "note"


def _declare(channel: Any, request_id: str, nowait: bool = False) -> str:
    queue = suspect_queue(request_id)
    channel.queue_declare(
        queue,
        durable=True,
        auto_delete=False,
        arguments={"x-expires": EXPIRES_MS},
        **({"nowait": True} if nowait else {}),
    )
    return queue


def _publish(channel: Any, queue: str, kind: str) -> None:
    message = channel.prepare_message(kind.encode(), 0, "text/plain", "utf-8", {}, {"delivery_mode": 2})
    channel.basic_publish(message, exchange="", routing_key=queue)


def _text(message: Any) -> str:
    return message.body if isinstance(message.body, str) else bytes(message.body).decode()


def deaths_under(connection: Connection, request_id: str) -> int:
    """How many workers died under a request that was delivered before."""
    channel = connection.channel()
    try:
        queue = _declare(channel, request_id)
        kinds = []
        while (message := channel.basic_get(queue, no_ack=False)) is not None:
            kinds.append(_text(message))
        # the first delivery leaves no mark: it counts, unless a note says how it ended
        return kinds.count(_MARK) + (0 if _NOTE in kinds else 1)
    finally:
        channel.close()  # what was read goes back


def begin_suspect(connection: Connection, request_id: str) -> None:
    """A request that was delivered before begins: leave a mark."""
    channel = connection.channel()
    try:
        queue = _declare(channel, request_id)
        _publish(channel, queue, _MARK)
        _declare(channel, request_id)  # its answer comes after the mark is in the queue
    finally:
        channel.close()


def end_suspect(connection: Connection, request_id: str, *, finished: bool) -> None:
    """It ended without a death: finished for good, or to come again, for which its mark is taken away."""
    channel = connection.channel()
    try:
        if finished:
            channel.queue_delete(suspect_queue(request_id))
            return
        queue = _declare(channel, request_id)
        while (message := channel.basic_get(queue, no_ack=False)) is not None:
            if _text(message) == _MARK:
                channel.basic_ack(message.delivery_tag)
                break
    finally:
        channel.close()


def note_put_back(channel: Any, request_id: str) -> None:
    """A message delivered for the first time is put back on purpose. On the consumer's channel, without waiting."""
    queue = _declare(channel, request_id, nowait=True)
    _publish(channel, queue, _NOTE)


def note_survived(connection: Connection, request_id: str) -> None:
    """The first delivery ended with its connection, not with its worker."""
    channel = connection.channel()
    try:
        _publish(channel, _declare(channel, request_id), _NOTE)
    finally:
        channel.close()
