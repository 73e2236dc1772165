"""Marks of calls that have begun and not ended, kept where they outlive the worker: in the broker.

A classic queue says of a message only that it was delivered before, not how often or why, and most messages that were
delivered before have done nothing: they were prefetched, or put back by a gate. So a request that was delivered before
leaves a mark in a small queue of its own when its call to the provider begins, and takes the mark away when the call
ends in whatever way but with its worker. The marks that its next delivery finds are deaths under its calls. A request
that is delivered once leaves no mark and costs the broker nothing.

Each mark carries the name of its run, so that a run takes away its own mark and no other one. Two processes may hold
the same request for a moment (the one has lost the broker, the other was given the message), and a mark that the one
just reads cannot be taken away by the other: an end mark is then left beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from amqp.exceptions import NotFound, PreconditionFailed
from kombu.connection import Connection

from ..types import WIRE_VERSION
from ..value import Value
from .names import marks_queue
from .queues import declare_marks_queue
from .wire import dumps, loads

__all__ = ["Deaths", "Mark", "forget_marks", "leave_mark", "take_mark_away"]


@dataclass(frozen=True, eq=False, repr=False)
class Mark(Value):
    """A call to the provider has begun.

    Attributes:
        run: what this call is known by, unique.
        alone: whether no other call ran in its process.
        ended: it is an end mark: the mark of that run is not to be counted.
    """

    run: str
    alone: bool = False
    ended: bool = False

    def encode(self) -> bytes:
        """JSON."""
        wire: dict[str, Any] = {"v": WIRE_VERSION, "run": self.run, "alone": self.alone}
        if self.ended:
            wire["ended"] = True
        return dumps(wire)

    @classmethod
    def decode(cls, body: bytes | str | memoryview) -> Mark | None:
        """Read `encode`; None for what is no mark. What is not counted harms no request, so nothing is refused."""
        try:
            wire = loads(body)
        except ValueError:
            return None
        if not isinstance(wire, dict) or not isinstance(wire.get("run"), str):
            return None
        return cls(wire["run"], wire.get("alone") is True, wire.get("ended") is True)


@dataclass(frozen=True, eq=False, repr=False)
class Deaths(Value):
    """How many workers died under a request's calls, and how many of them ran nothing else."""

    total: int = 0
    alone: int = 0


def leave_mark(
    connection: Connection, request_id: str, mark: Mark, may_begin: Callable[[Deaths], bool]
) -> Deaths:
    """Count the deaths and leave the mark, if ``may_begin`` says that the call may begin after so many.

    The mark is in the queue when this returns.

    Returns:
        The deaths before this call.
    """
    channel = connection.channel()
    try:
        waiting = declare_marks_queue(channel, request_id)
        deaths = _count(channel, request_id) if waiting else Deaths()
        if may_begin(deaths):
            _publish(channel, request_id, mark)
            declare_marks_queue(channel, request_id)  # its answer comes after the mark is in the queue
        return deaths
    finally:
        channel.close()  # what was read goes back


def take_mark_away(connection: Connection, request_id: str, run: str) -> None:
    """The call has ended, and its worker lives. The queue goes with its last mark."""
    queue = marks_queue(request_id)
    channel = connection.channel()
    try:
        channel.queue_declare(queue, passive=True)
        is_there, others = False, False
        for message, mark in _read(channel, request_id):
            if mark is not None and mark.run == run:
                is_there = True
                channel.basic_ack(message.delivery_tag)
            else:
                others = True
        if not is_there:  # somebody reads it just now
            _publish(channel, request_id, Mark(run, ended=True))
        elif not others:
            channel.queue_delete(queue, if_empty=True)
    except (NotFound, PreconditionFailed):  # the request has ended elsewhere; it has begun elsewhere
        pass
    finally:
        channel.close()


def forget_marks(connection: Connection, request_id: str) -> None:
    """The request has ended for good."""
    channel = connection.channel()
    try:
        channel.queue_delete(marks_queue(request_id))
    finally:
        channel.close()


def _publish(channel: Any, request_id: str, mark: Mark) -> None:
    message = channel.prepare_message(mark.encode(), 0, "application/json", "utf-8", {}, {"delivery_mode": 2})
    channel.basic_publish(message, exchange="", routing_key=marks_queue(request_id))


def _read(channel: Any, request_id: str) -> Iterator[tuple[Any, Mark | None]]:
    while (message := channel.basic_get(marks_queue(request_id), no_ack=False)) is not None:
        yield message, Mark.decode(message.body)


def _count(channel: Any, request_id: str) -> Deaths:
    begun: dict[str, Mark] = {}
    ended: set[str] = set()
    for _, mark in _read(channel, request_id):
        if mark is not None and mark.ended:
            ended.add(mark.run)
        elif mark is not None:
            begun[mark.run] = mark
    counted = [mark for run, mark in begun.items() if run not in ended]
    return Deaths(len(counted), sum(mark.alone for mark in counted))
