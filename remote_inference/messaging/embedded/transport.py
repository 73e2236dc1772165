"""The kombu transport over the embedded broker: kombu's and py-amqp's ways of speaking, nothing of its own.

Signatures, defaults, message class, errors and codes are py-amqp's, so that what is written for ``amqp://``
runs here. A channel may be used from any thread.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from amqp import Message as OutgoingMessage
from amqp.exceptions import (
    ChannelError,
    ConsumerCancelled,
    PreconditionFailed,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from amqp.exceptions import ConnectionError as AMQPConnectionError
from amqp.protocol import queue_declare_ok_t
from kombu.connection import Connection as KombuConnection
from kombu.message import Message as KombuMessage
from kombu.transport import base

from remote_inference.messaging.embedded.broker import Broker
from remote_inference.messaging.embedded.errors import QueueGone
from remote_inference.messaging.embedded.queue import Envelope
from remote_inference.messaging.embedded.records import Callback, Consumer, Delivery
from remote_inference.messaging.embedded.registry import DEFAULT_NAME, SCHEME, broker_named
from remote_inference.messaging.embedded.routing import EXCHANGE_KINDS


class Message(KombuMessage):
    """A message as kombu's consumers get it. The body is the bytes that were published, not a copy."""

    def __init__(self, delivery: Delivery, channel: Channel, **delivery_info: Any) -> None:
        envelope = delivery.entry.envelope
        headers = dict(envelope.headers)
        super().__init__(
            body=envelope.body,
            channel=channel,
            delivery_tag=delivery.tag,
            content_type=envelope.properties.get("content_type"),
            content_encoding=envelope.properties.get("content_encoding"),
            headers=headers,
            properties={**envelope.properties, "application_headers": headers},
            delivery_info={
                "delivery_tag": delivery.tag,
                "redelivered": delivery.entry.redelivered,
                "exchange": envelope.exchange,
                "routing_key": envelope.routing_key,
                **delivery_info,
            },
        )


class Channel(base.StdChannel):
    """A channel, with py-amqp's methods."""

    def __init__(self, connection: Connection, channel_id: int) -> None:
        self.connection: Connection | None = connection
        self.channel_id = channel_id
        self.no_ack_consumers: set[str] = set()
        self.events: defaultdict[str, set[Callable[..., object]]] = defaultdict(set)
        self._broker = connection.broker
        self._session = connection.broker.open_session(connection.broker_client)

    def __repr__(self) -> str:
        return f"<{SCHEME} channel {self.channel_id}{'' if self.is_open else ' closed'}>"

    @property
    def is_open(self) -> bool:
        """Whether the channel can be used."""
        return not self._session.closed

    def close(self) -> None:
        """Close the channel; what it holds unsettled goes back to the queues. A second time does nothing."""
        self._broker.close_session(self._session)
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.forget(self)

    # Exchanges

    def exchange_declare(
        self,
        exchange: str = "",
        type: str = "direct",  # py-amqp's name
        passive: bool = False,
        durable: bool = False,
        auto_delete: bool = True,
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """See `Broker.declare_exchange`."""
        self._broker.declare_exchange(
            self._session,
            exchange,
            type or "direct",
            passive=passive,
            durable=durable,
            auto_delete=auto_delete,
            arguments=arguments,
        )

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """See `Broker.delete_exchange`."""
        self._broker.delete_exchange(self._session, exchange, if_unused=if_unused)

    # Queues

    def prepare_queue_arguments(self, arguments: Mapping[str, Any], **options: Any) -> Mapping[str, Any]:
        """Turn kombu's queue options, in seconds, into RabbitMQ's arguments."""
        prepared: Mapping[str, Any] = base.to_rabbitmq_queue_arguments(arguments, **options)
        return prepared

    def queue_declare(
        self,
        queue: str = "",
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = True,
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> queue_declare_ok_t:
        """See `Broker.declare_queue`."""
        return queue_declare_ok_t(
            *self._broker.declare_queue(
                self._session,
                queue,
                passive=passive,
                durable=durable,
                exclusive=exclusive,
                auto_delete=auto_delete,
                arguments=arguments,
            )
        )

    def queue_bind(
        self,
        queue: str,
        exchange: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """See `Broker.bind`."""
        self._broker.bind(self._session, queue, exchange, routing_key or "")

    def queue_unbind(
        self,
        queue: str,
        exchange: str,
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """See `Broker.unbind`."""
        self._broker.unbind(self._session, queue, exchange, routing_key or "")

    def queue_delete(
        self, queue: str = "", if_unused: bool = False, if_empty: bool = False, nowait: bool = False
    ) -> int:
        """See `Broker.delete_queue`."""
        return self._broker.delete_queue(self._session, queue, if_unused=if_unused, if_empty=if_empty)

    def queue_purge(self, queue: str = "", nowait: bool = False) -> int:
        """See `Broker.purge`."""
        return self._broker.purge(self._session, queue)

    # Publishing

    def prepare_message(
        self,
        body: str | bytes,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, Any] | None = None,
        properties: Mapping[str, Any] | None = None,
    ) -> OutgoingMessage:
        """What kombu makes before it publishes; the same class as over AMQP."""
        return OutgoingMessage(
            body,
            priority=priority,
            content_type=content_type,
            content_encoding=content_encoding,
            application_headers=headers,
            **properties or {},
        )

    def basic_publish(
        self,
        msg: OutgoingMessage,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Publish. When it returns, the message is in its queues: there is nothing to confirm.

        Raises:
            QueueFull: A queue with ``x-overflow=reject-publish`` is full. The message is in no queue.
            QueueGone: The message is mandatory, and no queue takes it. Not raised if the channel has handlers
                for ``basic_return``: they are called with it instead, as over AMQP, only before this returns.
            amqp.NotFound: No such exchange.
            amqp.PreconditionFailed: The expiration is not a number of milliseconds.
        """
        properties = {name: value for name, value in msg.properties.items() if value is not None}
        headers = properties.pop("application_headers", None) or {}
        envelope = Envelope(
            body=_as_bytes(msg.body, properties.get("content_encoding")),
            exchange=exchange or "",
            routing_key=routing_key or "",
            headers=dict(headers),
            properties=properties,
        )
        routed = self._broker.publish(
            self._session,
            envelope,
            priority=int(properties.get("priority", 0)),
            ttl=_seconds(properties.get("expiration")),
        )
        if mandatory and not routed:
            gone = QueueGone(envelope.exchange, envelope.routing_key)
            handlers = tuple(self.events.get("basic_return", ()))
            if not handlers:
                raise gone
            for handler in handlers:
                handler(gone, envelope.exchange, envelope.routing_key, msg)

    basic_publish_confirm = basic_publish

    def confirm_select(self, nowait: bool = False) -> None:
        """Publishes are always confirmed here, by returning."""

    # Consuming

    def message_to_python(self, message: Message) -> Message:
        """Hand on what is a kombu message already."""
        return message

    def basic_consume(
        self,
        queue: str = "",
        consumer_tag: str = "",
        no_local: bool = False,
        no_ack: bool = False,
        exclusive: bool = False,
        nowait: bool = False,
        callback: Callback | None = None,
        arguments: Mapping[str, Any] | None = None,
        on_cancel: Callback | None = None,
    ) -> str:
        """See `Broker.consume`."""
        tag = self._broker.consume(
            self._session,
            queue,
            callback or _ignore,
            tag=consumer_tag,
            no_ack=bool(no_ack),
            exclusive=exclusive,
            on_cancel=on_cancel,
            owner=self,
        )
        if no_ack:
            self.no_ack_consumers.add(tag)
        return tag

    def basic_cancel(self, consumer_tag: str, nowait: bool = False) -> None:
        """See `Broker.cancel`."""
        self._broker.cancel(self._session, consumer_tag)
        self.no_ack_consumers.discard(consumer_tag)

    def basic_get(self, queue: str = "", no_ack: bool = False) -> Message | None:
        """See `Broker.get`."""
        found = self._broker.get(self._session, queue, no_ack=bool(no_ack))
        if found is None:
            return None
        delivery, left = found
        return Message(delivery, self, message_count=left)

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, a_global: bool = False) -> None:
        """See `Broker.limit`. There is no limit by size."""
        self._broker.limit(self._session, prefetch_count, whole_session=bool(a_global))

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """See `Broker.acknowledge`."""
        self._broker.acknowledge(self._session, delivery_tag, multiple=multiple)

    def basic_reject(self, delivery_tag: int, requeue: bool = False) -> None:
        """See `Broker.reject`."""
        self._broker.reject(self._session, delivery_tag, requeue=requeue)

    def basic_recover(self, requeue: bool = False) -> None:
        """Give all that is unsettled back to the queues, which is the only way that RabbitMQ has too."""
        if not requeue:
            raise NotImplementedError("basic.recover(requeue=False)")
        self._broker.recover(self._session)

    def receive(self, event: Delivery | Consumer) -> None:
        """Call whoever is to hear of what came for this channel."""
        if isinstance(event, Delivery):
            assert event.consumer is not None  # only those come by waiting
            event.consumer.callback(Message(event, self, consumer_tag=event.consumer.tag))
            return
        self.no_ack_consumers.discard(event.tag)
        if event.on_cancel is None:
            raise ConsumerCancelled(event.tag, (60, 30))
        event.on_cancel(event.tag)


class Connection:
    """An open connection, as the kombu connection keeps it."""

    def __init__(self, client: KombuConnection, broker: Broker) -> None:
        self.client: KombuConnection | None = client
        self.broker = broker
        self.broker_client = broker.connect()
        self._channels: set[Channel] = set()
        self._channel_ids = 0

    def __repr__(self) -> str:
        return f"<{SCHEME} connection to {self.broker.name!r}{'' if self.connected else ' closed'}>"

    @property
    def connected(self) -> bool:
        """Whether it can be used."""
        return not self.broker_client.closed

    def channel(self) -> Channel:
        """Open a channel."""
        self._channel_ids += 1
        channel = Channel(self, self._channel_ids)
        self._channels.add(channel)
        return channel

    def forget(self, channel: Channel) -> None:
        """Let go of a channel that closes."""
        self._channels.discard(channel)

    def drain_events(self, timeout: float | None = None) -> None:
        """Wait for one event, and call its consumer outside the broker's lock. See `Broker.wait`."""
        event = self.broker.wait(self.broker_client, timeout)
        consumer = event.consumer if isinstance(event, Delivery) else event
        assert consumer is not None  # only those come by waiting
        consumer.owner.receive(event)

    def close(self) -> None:
        """Close it and its channels. A second time does nothing."""
        self.broker.disconnect(self.broker_client)
        for channel in list(self._channels):
            channel.close()
        self.client = None


class Transport(base.Transport):
    """What kombu makes for ``embedded://<name>``."""

    driver_type = SCHEME
    driver_name = SCHEME
    connection_errors = (AMQPConnectionError,)
    channel_errors = (ChannelError,)
    # Not MessageNacked, which py-amqp has among them: publishing again does not help against a full queue.
    recoverable_connection_errors = (RecoverableConnectionError,)
    recoverable_channel_errors = (RecoverableChannelError,)
    implements = base.Transport.implements.extend(
        asynchronous=False, heartbeats=False, exchange_type=EXCHANGE_KINDS
    )

    def __init__(self, client: KombuConnection, **_: Any) -> None:
        super().__init__(client)
        self.client: KombuConnection = client
        self._established: Connection | None = None

    def driver_version(self) -> str:
        """kombu asks for one."""
        return "1"

    @property
    def default_connection_params(self) -> dict[str, Any]:
        """What a URL without a name means."""
        return {"hostname": DEFAULT_NAME, "port": None}

    def establish_connection(self) -> Connection:
        """Connect to the broker that the URL names."""
        self._established = Connection(self.client, broker_named(self.client.hostname or DEFAULT_NAME))
        return self._established

    def close_connection(self, connection: Connection) -> None:
        """Close a connection."""
        connection.close()

    def _collect(self, connection: Connection | None) -> None:
        # kombu's way to drop a connection that failed. Without this method it sets the whole process's
        # default socket timeout for a moment.
        if connection is not None:
            connection.close()

    def verify_connection(self, connection: Connection) -> bool:
        """Whether a connection can be used."""
        return connection.connected

    def create_channel(self, connection: Connection) -> Channel:
        """Open a channel."""
        return connection.channel()

    def close_channel(self, channel: Channel) -> None:
        """Close a channel."""
        channel.close()

    def drain_events(self, connection: Connection, *, timeout: float | None = None, **_: Any) -> None:
        """Wait for one event. See `Connection.drain_events`."""
        connection.drain_events(timeout)

    def wake(self) -> None:
        """End the wait in `drain_events`, now or when it next begins. From any thread."""
        if self._established is not None:
            self._established.broker.wake(self._established.broker_client)

    def qos_semantics_matches_spec(self, connection: Connection) -> bool:
        """No: as with RabbitMQ before 4, a prefetch count is the channel's only if it is ``global``."""
        return False


def _as_bytes(body: str | bytes | bytearray | memoryview, encoding: str | None) -> bytes:
    if isinstance(body, bytes):
        return body
    return body.encode(encoding or "utf-8") if isinstance(body, str) else bytes(body)


def _seconds(expiration: str | None) -> float | None:
    if expiration is None:
        return None
    if not (expiration.isascii() and expiration.isdigit()):
        text = f"PRECONDITION_FAILED - invalid expiration {expiration!r}"
        raise PreconditionFailed(text, (60, 40), "Basic.publish", 406)
    return int(expiration) / 1000


def _ignore(_: object) -> None:
    """What consumes where nobody gave a callback."""
