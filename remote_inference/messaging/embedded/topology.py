"""What is declared in a broker: exchanges, bindings and queues, with RabbitMQ's rules, and when they go.

Nothing runs on its own: what is due (expired messages, unused queues) is carried out at the start of the next
operation, or by a client that waits, which wakes for it.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

from amqp.exceptions import (
    AccessRefused,
    AMQPNotImplementedError,
    ConnectionForced,
    NotFound,
    PreconditionFailed,
    RecoverableConnectionError,
    ResourceLocked,
)

from remote_inference.messaging.embedded.dead_letters import dead_letter, goes_round
from remote_inference.messaging.embedded.queue import Entry, Envelope, MessageQueue, QueueSettings
from remote_inference.messaging.embedded.records import Client, Queue, Session
from remote_inference.messaging.embedded.routing import EXCHANGE_KINDS, Exchange


class Topology:
    """The declared things of one broker. Every operation takes the lock.

    Args:
        name: What the broker is called, in messages of errors.
        clock: Seconds, monotonic.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.name = name
        self.closed = False
        self._clock = clock
        self._lock = threading.RLock()
        self._queues: dict[str, Queue] = {}
        self._exchanges: dict[str, Exchange] = {}
        self._clients: list[Client] = []
        self._due: list[tuple[float, int, Queue]] = []
        self._schedules = 0
        for kind in sorted(EXCHANGE_KINDS):
            self._exchanges[f"amq.{kind}"] = Exchange(f"amq.{kind}", kind, True, False, {})

    def declare_exchange(
        self,
        session: Session,
        name: str,
        kind: str,
        *,
        passive: bool = False,
        durable: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Make an exchange, or check that the one there is what is asked for.

        Raises:
            amqp.NotFound: It was to be there and is not.
            amqp.PreconditionFailed: It is another kind of exchange.
        """
        with self._entering(session):
            there = self._exchanges.get(name)
            if passive:
                self._exchange(name)
            elif not name:
                raise AccessRefused(
                    "ACCESS_REFUSED - the default exchange is always there", (40, 10), "Exchange.declare", 403
                )
            elif there is None:
                if kind not in EXCHANGE_KINDS:
                    raise AMQPNotImplementedError(
                        f"no exchanges of type {kind!r}", (40, 10), "Exchange.declare", 540
                    )
                self._exchanges[name] = Exchange(name, kind, durable, auto_delete, dict(arguments or {}))
            else:
                asked = {
                    "type": kind,
                    "durable": durable,
                    "auto_delete": auto_delete,
                    "arguments": dict(arguments or {}),
                }
                has = {
                    "type": there.kind,
                    "durable": there.durable,
                    "auto_delete": there.auto_delete,
                    "arguments": there.arguments,
                }
                self._check_equivalent(f"exchange {name!r}", asked, has, (40, 10), "Exchange.declare")

    def delete_exchange(self, session: Session, name: str, *, if_unused: bool = False) -> None:
        """Remove an exchange and its bindings; one that is not there is fine.

        Raises:
            amqp.PreconditionFailed: It has bindings, and was to go only if it had none.
        """
        with self._entering(session):
            exchange = self._exchanges.get(name)
            if exchange is not None:
                if if_unused and exchange.bindings:
                    text = f"PRECONDITION_FAILED - exchange {name!r} is in use"
                    raise PreconditionFailed(text, (40, 20), "Exchange.delete", 406)
                del self._exchanges[name]

    def bind(self, session: Session, queue: str, exchange: str, routing_key: str) -> None:
        """Let what is published to the exchange, and fits the key, go to the queue.

        Raises:
            amqp.NotFound: No such queue or exchange.
        """
        with self._entering(session):
            self._queue(session, queue)
            self._exchange(exchange).bindings[routing_key, queue] = None

    def unbind(self, session: Session, queue: str, exchange: str, routing_key: str) -> None:
        """Take a binding back; one that is not there is fine."""
        with self._entering(session):
            if exchange in self._exchanges:
                self._drop_bindings(
                    self._exchanges[exchange], lambda binding: binding == (routing_key, queue)
                )

    def declare_queue(
        self,
        session: Session,
        name: str,
        *,
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> tuple[str, int, int]:
        """Make a queue, or check that the one there is what is asked for.

        Args:
            session: The channel.
            name: The queue, or the empty string to have a new one named.
            passive: Only look; make nothing, compare nothing.
            durable: Only compared: nothing here outlives the process.
            exclusive: For this connection alone, and gone with it.
            auto_delete: Gone with its last consumer.
            arguments: See `QueueSettings`.

        Returns:
            Its name, how many messages are ready, and how many consumers it has.

        Raises:
            amqp.NotFound: It was to be there and is not.
            amqp.ResourceLocked: It is exclusive to another connection.
            amqp.PreconditionFailed: It is there and was declared otherwise, or an argument is invalid.
        """
        arguments = dict(arguments or {})
        with self._entering(session) as now:
            name = name or f"amq.gen-{uuid4()}"
            if passive or name in self._queues:
                queue = self._queue(session, name)
                if not passive:
                    asked = {
                        "durable": durable,
                        "exclusive": exclusive,
                        "auto_delete": auto_delete,
                        "arguments": arguments,
                    }
                    has = {
                        "durable": queue.durable,
                        "exclusive": queue.owner is not None,
                        "auto_delete": queue.auto_delete,
                        "arguments": queue.arguments,
                    }
                    self._check_equivalent(f"queue {name!r}", asked, has, (50, 10), "Queue.declare")
            else:
                queue = self._queues[name] = Queue(
                    name=name,
                    messages=MessageQueue(QueueSettings.from_arguments(arguments)),
                    durable=durable,
                    auto_delete=auto_delete,
                    owner=session.client if exclusive else None,
                    arguments=arguments,
                )
            self._use(queue, now)
            return name, len(queue.messages), len(queue.consumers)

    def delete_queue(
        self, session: Session, name: str, *, if_unused: bool = False, if_empty: bool = False
    ) -> int:
        """Remove a queue, its messages and bindings, and tell its consumers; one that is not there is fine.

        Returns:
            How many messages went with it.

        Raises:
            amqp.PreconditionFailed: It has consumers or messages, and was to go only if it had none.
        """
        with self._entering(session):
            if name not in self._queues:
                return 0
            queue = self._queue(session, name)
            for forbidden, what in (
                (if_unused and queue.consumers, "in use"),
                (if_empty and len(queue.messages), "not empty"),
            ):
                if forbidden:
                    text = f"PRECONDITION_FAILED - queue {name!r} is {what}"
                    raise PreconditionFailed(text, (50, 40), "Queue.delete", 406)
            return self._remove(queue)

    def purge(self, session: Session, name: str) -> int:
        """Drop all ready messages of a queue, and say how many they were."""
        with self._entering(session):
            return self._queue(session, name).messages.purge()

    # Below: everything runs under the lock.

    def _entering(self, session: Session) -> _Operation:
        return _Operation(self, session)

    def _begin(self, session: Session) -> float:
        self._check_open(session.client)
        if session.closed:
            raise RecoverableConnectionError("the channel is closed")
        now = self._clock()
        self._carry_out(now)
        return now

    def _check_open(self, client: Client | None = None) -> None:
        if self.closed:
            raise ConnectionForced(f"CONNECTION_FORCED - the embedded broker {self.name!r} was closed")
        if client is not None and client.closed:
            raise RecoverableConnectionError("the connection is closed")

    def _check_equivalent(
        self,
        what: str,
        asked: Mapping[str, Any],
        has: Mapping[str, Any],
        signature: tuple[int, int],
        method: str,
    ) -> None:
        for name, value in asked.items():
            if value != has[name] and name == "arguments":  # RabbitMQ names the first of them that differs
                given, own = value or {}, has[name] or {}
                key = min(key for key in {*given, *own} if given.get(key) != own.get(key))
                current = "none" if key not in own else f"the value {own[key]!r}"
                received = "none" if key not in given else f"the value {given[key]!r}"
                text = f"inequivalent arg {key!r} for {what}: received {received} but current is {current}"
                raise PreconditionFailed(f"PRECONDITION_FAILED - {text}", signature, method, 406)
            if value != has[name]:
                text = f"inequivalent {name} for {what}: received {value!r}, current is {has[name]!r}"
                text = f"PRECONDITION_FAILED - {text}"
                raise PreconditionFailed(text, signature, method, 406)

    def _exchange(self, name: str) -> Exchange:
        try:
            return self._exchanges[name]
        except KeyError:
            text = f"NOT_FOUND - no exchange {name!r} in {self.name!r}"
            raise NotFound(text, (40, 10), "Exchange.declare", 404) from None

    def _queue(self, session: Session, name: str) -> Queue:
        try:
            queue = self._queues[name]
        except KeyError:
            raise NotFound(
                f"NOT_FOUND - no queue {name!r} in {self.name!r}", (50, 10), "Queue.declare", 404
            ) from None
        if queue.owner is not None and queue.owner is not session.client:
            text = f"RESOURCE_LOCKED - queue {name!r} is exclusive to another connection"
            raise ResourceLocked(text, (50, 10), "Queue.declare", 405)
        return queue

    def _remove(self, queue: Queue) -> int:
        if self._queues.pop(queue.name, None) is None:
            return 0
        for exchange in list(self._exchanges.values()):
            self._drop_bindings(exchange, lambda binding: binding[1] == queue.name)
        for consumer in queue.consumers:
            client = consumer.session.client
            consumer.session.consumers.pop(consumer.tag, None)
            client.turns.remove(consumer)
            client.cancelled.append(consumer)
            client.changed.notify_all()
        queue.consumers.clear()
        return queue.messages.purge()

    def _drop_bindings(self, exchange: Exchange, chosen: Callable[[tuple[str, str]], bool]) -> None:
        dropped = [binding for binding in exchange.bindings if chosen(binding)]
        for binding in dropped:
            del exchange.bindings[binding]
        if dropped and exchange.auto_delete and not exchange.bindings:
            del self._exchanges[exchange.name]

    def _use(self, queue: Queue, now: float) -> None:
        queue.used_at = now
        self._schedule(queue)

    def _schedule(self, queue: Queue) -> None:
        at = queue.due_at()
        if at is None or (queue.scheduled_at is not None and queue.scheduled_at <= at):
            return  # nothing to come, or looked at before that anyway
        queue.scheduled_at = at
        self._schedules += 1
        earliest = not self._due or at < self._due[0][0]
        heapq.heappush(self._due, (at, self._schedules, queue))
        if earliest:
            for client in self._clients:  # whoever waits has to wait less long now
                client.changed.notify_all()

    def _carry_out(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            queue = heapq.heappop(self._due)[2]
            queue.scheduled_at = None
            if self._queues.get(queue.name) is not queue:
                continue
            for entry in queue.messages.expired(now):
                self._dead_letter(queue, entry, "expired", now)
            goes_at = queue.goes_at()
            if goes_at is not None and goes_at <= now:
                self._remove(queue)
            else:
                self._schedule(queue)

    def _route(self, exchange: str, routing_key: str) -> list[Queue]:
        if exchange:
            return [self._queues[name] for name in self._exchange(exchange).targets(routing_key)]
        queue = self._queues.get(routing_key)
        return [] if queue is None else [queue]

    def _enqueue(
        self, queue: Queue, envelope: Envelope, priority: int, ttl: float | None, now: float
    ) -> None:
        queue.messages.push(envelope, priority=priority, ttl=ttl, now=now)
        self._arrived(queue, now)

    def _arrived(self, queue: Queue, now: float) -> None:
        for entry in queue.messages.surplus():
            self._dead_letter(queue, entry, "maxlen", now)
        self._schedule(queue)
        for consumer in queue.consumers:
            consumer.session.client.changed.notify_all()

    def _dead_letter(self, queue: Queue, entry: Entry, reason: str, now: float) -> None:
        letter = dead_letter(queue.name, queue.messages.settings, entry.envelope, reason)
        if letter is None or (letter.exchange and letter.exchange not in self._exchanges):
            return
        for target in self._route(letter.exchange, letter.routing_key):
            if not target.messages.refuses and not goes_round(letter, target.name):
                self._enqueue(target, letter, entry.priority, None, now)


class _Operation:
    """The lock, held for one operation of a session on an open broker; entering gives the time."""

    __slots__ = ("_session", "_topology")

    def __init__(self, topology: Topology, session: Session) -> None:
        self._topology = topology
        self._session = session

    def __enter__(self) -> float:
        self._topology._lock.acquire()
        try:
            return self._topology._begin(self._session)
        except BaseException:
            self._topology._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._topology._lock.release()
