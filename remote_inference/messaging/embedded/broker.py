"""The broker: who is connected, what they publish and consume, and what they have yet to settle.

It knows nothing of kombu. A connection is a `Client`, a channel a `Session`; both are plain records that the
broker changes under its lock.

The broker lives in one process. After a fork the child has a copy, not a share: connect after forking, and
only among threads (or greenlets, if ``threading`` was patched before the broker was made).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from uuid import uuid4

from amqp.exceptions import AccessRefused, NotAllowed, PreconditionFailed

from remote_inference.messaging.embedded.errors import QueueFull
from remote_inference.messaging.embedded.queue import Entry, Envelope
from remote_inference.messaging.embedded.records import Callback, Client, Consumer, Delivery, Queue, Session
from remote_inference.messaging.embedded.topology import Topology


class Broker(Topology):
    """The queues of one name, shared by all connections of the process to ``embedded://<name>``.

    Args:
        name: What it is called, in messages of errors.
        clock: Seconds, monotonic.
    """

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(name, clock)

    def __repr__(self) -> str:
        return f"<Broker {self.name!r} queues={len(self._queues)} connections={len(self._clients)}>"

    # Connections and channels

    def connect(self) -> Client:
        """Open a connection."""
        with self._lock:
            self._check_open()
            client = Client(self._lock)
            self._clients.append(client)
            return client

    def disconnect(self, client: Client) -> None:
        """Close a connection: what it holds unsettled goes back, its exclusive queues go."""
        with self._lock:
            if client.closed:
                return
            for session in list(client.sessions):
                self.close_session(session)
            for queue in [queue for queue in self._queues.values() if queue.owner is client]:
                self._remove(queue)
            client.closed = True
            if client in self._clients:
                self._clients.remove(client)
            client.changed.notify_all()

    def open_session(self, client: Client) -> Session:
        """Open a channel."""
        with self._lock:
            self._check_open(client)
            session = Session(client)
            client.sessions.append(session)
            return session

    def close_session(self, session: Session) -> None:
        """Close a channel: its consumers end, and what it has not settled goes back to its place."""
        with self._lock:
            if session.closed:
                return
            session.closed = True
            session.client.sessions.remove(session)
            self._give_back(session)
            for consumer in list(session.consumers.values()):
                self._end(consumer)

    def close(self) -> None:
        """End the broker: its messages are gone, and every connection fails from here on, waiting or not."""
        with self._lock:
            self.closed = True
            for client in self._clients:
                client.closed = True
                client.changed.notify_all()
            self._clients.clear()
            self._queues.clear()
            self._exchanges.clear()
            self._due.clear()

    # Publishing

    def publish(
        self, session: Session, envelope: Envelope, *, priority: int = 0, ttl: float | None = None
    ) -> bool:
        """Put a message into every queue that it is for, or into none.

        Args:
            session: The channel.
            envelope: The message, with its exchange and routing key.
            priority: Its priority.
            ttl: Seconds that it may wait in a queue.

        Returns:
            Whether there was a queue for it.

        Raises:
            amqp.NotFound: No such exchange.
            QueueFull: A queue refuses; the message is in none of them.
        """
        with self._entering(session) as now:
            queues = self._route(envelope.exchange, envelope.routing_key)
            for queue in queues:
                if queue.messages.refuses:
                    raise QueueFull(queue.name)
            for queue in queues:
                self._enqueue(queue, envelope, priority, ttl, now)
            return bool(queues)

    # Consuming

    def consume(
        self,
        session: Session,
        name: str,
        callback: Callback,
        *,
        tag: str = "",
        no_ack: bool = False,
        exclusive: bool = False,
        on_cancel: Callback | None = None,
        owner: object = None,
    ) -> str:
        """Subscribe to a queue.

        Args:
            session: The channel.
            name: The queue.
            callback: What the transport calls for each message.
            tag: The name of the subscription; made up if empty.
            no_ack: Messages count as settled when they are delivered.
            exclusive: Nobody else may consume from the queue.
            on_cancel: What the transport calls with the tag when the queue goes.
            owner: Kept with the subscription, for the transport.

        Returns:
            The tag.

        Raises:
            amqp.NotFound: No such queue.
            amqp.ResourceLocked: The queue is exclusive to another connection.
            amqp.AccessRefused: Somebody consumes from it exclusively, or exclusivity is asked for too late.
            amqp.NotAllowed: The channel has a consumer with that tag.
        """
        with self._entering(session):
            queue = self._queue(session, name)
            tag = tag or f"amq.ctag-{uuid4()}"
            if tag in session.consumers:
                raise NotAllowed(
                    f"NOT_ALLOWED - consumer tag {tag!r} is taken", (60, 20), "Basic.consume", 530
                )
            if queue.consumers and (exclusive or queue.consumers[0].exclusive):
                text = f"ACCESS_REFUSED - queue {name!r} is consumed exclusively"
                raise AccessRefused(text, (60, 20), "Basic.consume", 403)
            consumer = Consumer(
                tag=tag,
                session=session,
                queue=queue,
                no_ack=no_ack,
                exclusive=exclusive,
                limit=session.consumer_limit,
                callback=callback,
                on_cancel=on_cancel,
                owner=owner,
            )
            session.consumers[tag] = consumer
            session.client.turns.append(consumer)
            queue.consumers.append(consumer)
            session.client.changed.notify_all()
            return tag

    def cancel(self, session: Session, tag: str) -> None:
        """End a subscription. What it was sent stays with the channel until it is settled."""
        with self._entering(session):
            consumer = session.consumers.get(tag)
            if consumer is not None:
                self._end(consumer)

    def get(self, session: Session, name: str, *, no_ack: bool = False) -> tuple[Delivery, int] | None:
        """Take one message from a queue without subscribing.

        Returns:
            The message and how many are still ready, or None if there is none.
        """
        with self._entering(session) as now:
            queue = self._queue(session, name)
            self._use(queue, now)
            entry = queue.messages.pop()
            return (
                None
                if entry is None
                else (self._deliver(session, queue, entry, None, no_ack), len(queue.messages))
            )

    def limit(self, session: Session, count: int, *, whole_session: bool) -> None:
        """Limit unsettled messages: of the whole channel, or of each consumer yet to come (0: no limit).

        These are RabbitMQ's meanings of ``basic.qos`` with and without ``global``, not those of AMQP 0-9-1.
        """
        with self._entering(session):
            if whole_session:
                session.limit = count
                session.client.changed.notify_all()
            else:
                session.consumer_limit = count

    def acknowledge(self, session: Session, tag: int, *, multiple: bool = False) -> None:
        """Settle a message; with ``multiple``, all up to it (all there are, for the tag 0).

        Raises:
            amqp.PreconditionFailed: The channel holds no such message.
        """
        with self._entering(session):
            for delivery in self._settled(session, tag, multiple, "Basic.ack"):
                delivery.queue.messages.settle(delivery.entry)

    def reject(self, session: Session, tag: int, *, requeue: bool, multiple: bool = False) -> None:
        """Give a message back to its old place, or let it go (to the dead letters, if its queue has any).

        Raises:
            amqp.PreconditionFailed: The channel holds no such message.
        """
        with self._entering(session) as now:
            for delivery in self._settled(session, tag, multiple, "Basic.reject"):
                if requeue:
                    self._requeue(delivery, now)
                else:
                    delivery.queue.messages.settle(delivery.entry)
                    self._dead_letter(delivery.queue, delivery.entry, "rejected", now)

    def recover(self, session: Session) -> None:
        """Give back all that the channel has not settled."""
        with self._entering(session):
            self._give_back(session)

    def wake(self, client: Client) -> None:
        """End the wait of a connection: the one that is going on, or the next if none is."""
        with self._lock:
            client.woken = True
            client.changed.notify_all()

    def wait(self, client: Client, timeout: float | None) -> Delivery | Consumer:
        """Wait for the next event of a connection.

        Consumers take turns. Nothing is polled: the wait ends with a message, a timeout, `wake`, or the end
        of the connection, and otherwise only when something in the broker is due.

        Args:
            client: The connection.
            timeout: Seconds; None waits for ever, 0 only looks.

        Returns:
            A message for one of the consumers, or a consumer whose queue has gone.

        Raises:
            TimeoutError: Nothing came, or somebody called `wake`.
            amqp.RecoverableConnectionError: The connection is closed, or was closed meanwhile.
        """
        until = None if timeout is None else self._clock() + timeout
        with client.changed:
            while True:
                self._check_open(client)
                now = self._clock()
                self._carry_out(now)
                if client.cancelled:
                    return client.cancelled.popleft()
                delivery = self._next_delivery(client)
                if delivery is not None:
                    return delivery
                if client.woken:
                    client.woken = False
                    raise TimeoutError("woken")
                if until is not None and until <= now:
                    raise TimeoutError("nothing to deliver")
                ends = [at for at in (until, self._due[0][0] if self._due else None) if at is not None]
                client.changed.wait(min(ends) - now if ends else None)

    # Below: everything runs under the lock.

    def _requeue(self, delivery: Delivery, now: float) -> None:
        queue = delivery.queue
        if self._queues.get(queue.name) is not queue:
            queue.messages.settle(delivery.entry)
        elif queue.messages.requeue(delivery.entry, now=now):
            self._arrived(queue, now)
        else:
            self._dead_letter(queue, delivery.entry, "expired", now)

    def _give_back(self, session: Session) -> None:
        now = self._clock()
        for delivery in [*session.unsettled.values()]:
            self._release(session, delivery)
            self._requeue(delivery, now)

    def _deliver(
        self, session: Session, queue: Queue, entry: Entry, consumer: Consumer | None, no_ack: bool
    ) -> Delivery:
        session.last_tag += 1
        delivery = Delivery(session.last_tag, entry, queue, consumer)
        if no_ack:
            queue.messages.settle(entry)
        else:
            session.unsettled[delivery.tag] = delivery
            if consumer is not None:
                consumer.held += 1
                session.held += 1
        return delivery

    def _next_delivery(self, client: Client) -> Delivery | None:
        for _ in range(len(client.turns)):
            consumer = client.turns[0]
            client.turns.rotate(-1)
            if consumer.has_room:
                entry = consumer.queue.messages.pop()
                if entry is not None:
                    return self._deliver(consumer.session, consumer.queue, entry, consumer, consumer.no_ack)
        return None

    def _settled(self, session: Session, tag: int, multiple: bool, method: str) -> Iterable[Delivery]:
        if multiple:
            tags = [held for held in session.unsettled if held <= tag or tag == 0]
        else:
            tags = [tag] if tag in session.unsettled else []
        if not tags and tag != 0:
            text = f"PRECONDITION_FAILED - unknown delivery tag {tag}"
            raise PreconditionFailed(text, (60, 80), method, 406)
        deliveries = [session.unsettled[held] for held in tags]
        for delivery in deliveries:
            self._release(session, delivery)
        return deliveries

    def _release(self, session: Session, delivery: Delivery) -> None:
        del session.unsettled[delivery.tag]
        consumer = delivery.consumer
        if consumer is not None:
            if not consumer.has_room:
                session.client.changed.notify_all()
            consumer.held -= 1
            session.held -= 1

    def _end(self, consumer: Consumer) -> None:
        queue, client = consumer.queue, consumer.session.client
        consumer.session.consumers.pop(consumer.tag, None)
        queue.consumers.remove(consumer)
        client.turns.remove(consumer)
        if not queue.consumers:
            if queue.auto_delete:
                self._remove(queue)
            else:
                self._use(queue, self._clock())
