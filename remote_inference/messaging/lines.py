"""The two kinds of broker under the publisher: AMQP over a socket, and the embedded one in this process."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import amqp
from amqp.exceptions import IrrecoverableChannelError, MessageNacked
from kombu.connection import Connection

from .delivery import Delivery, DeliveryState, Probe
from .read_ahead import ReadAhead

__all__ = ["BrokerBlocked", "Line", "connect_line"]

T = TypeVar("T")

HEARTBEAT = 20.0
"""Seconds of silence that either side takes for a dead connection (twice missed)."""

WRITE_TIMEOUT = 10.0
"""Seconds for which a write may block: a broker under alarm stops reading."""


class BrokerBlocked(ConnectionError):
    """The broker has blocked the connection (its memory or disk is short); it reads nothing."""


class Line(ABC):
    """A connection that publishes. All but the constructor runs in the publisher's thread."""

    connection: Connection
    errors: tuple[type[BaseException], ...]
    fileno: int | None = None
    heartbeat_interval: float | None = None
    blocked = False
    unconfirmed: dict[int, Delivery]

    @abstractmethod
    def write(self, batch: Sequence[Delivery]) -> None:
        """Send the batch, in order."""

    def drain(self) -> None:  # noqa: B027  # the embedded broker has nothing to say later
        """Read what the broker has to say, without waiting."""

    def heartbeat(self) -> None:  # noqa: B027  # the embedded broker lives as long as we do
        """Show that we live, and check that the broker does."""

    def call(self, function: Callable[[Connection], T]) -> T:
        """Run a function that waits for the broker's answers.

        Raises:
            BrokerBlocked: the broker began to block the connection meanwhile: there will be no answer.
        """
        return function(self.connection)

    def abandon(self) -> None:
        """The connection failed: what was written and not confirmed is uncertain."""
        for delivery in list(self.unconfirmed.values()):
            delivery.finish(DeliveryState.UNCERTAIN, "connection_lost")
        self.unconfirmed.clear()
        self.close()

    def close(self) -> None:
        """Close the connection."""
        try:
            self.connection.close()
        except Exception:  # it is going away: however it fails, there is nothing left to do
            pass


def connect_line(connection: Connection, unroutable: Callable[[str], None]) -> Line:
    """Connect; ``unroutable`` is told the routing key of what came back."""
    if connection.transport.driver_type == "embedded":
        return EmbeddedLine(connection, unroutable)
    return AmqpLine(connection, unroutable)


class AmqpLine(Line):
    """RabbitMQ: one channel with confirms, one without for the chunks."""

    def __init__(self, connection: Connection, unroutable: Callable[[str], None]) -> None:
        self.connection = connection
        self.errors = (*connection.connection_errors, *connection.channel_errors, OSError)
        self.unconfirmed = {}
        self._unroutable = unroutable
        self._returned: set[tuple[str, str]] = set()
        self._tag = 0
        self._calling = False
        connection.transport_options = {
            **connection.transport_options,
            "confirm_publish": False,  # its own is synchronous, and takes any acknowledgement for its own
            "on_blocked": self._on_blocked,
            "on_unblocked": self._on_unblocked,
        }
        connection.heartbeat = HEARTBEAT
        connection.connect()
        self._amqp = connection.connection
        # py-amqp would read the socket before every publish; we read it once a batch
        capabilities = self._amqp.client_properties.get("capabilities", {})
        self._amqp.client_properties["capabilities"] = {**capabilities, "connection.blocked": False}
        self._transport = self._amqp.transport
        self._transport.sock.settimeout(WRITE_TIMEOUT)
        self.fileno = self._transport.sock.fileno()
        self._read_ahead = ReadAhead(self._amqp)
        self.heartbeat_interval = (self._amqp.heartbeat or HEARTBEAT) / 2
        self._confirmed = self._channel()
        self._confirmed.confirm_select()
        self._confirmed.events["basic_ack"].add(self._on_ack)
        self._confirmed.events["basic_nack"].add(self._on_nack)
        self._plain = self._channel()

    def _channel(self) -> Any:
        channel = self.connection.channel()
        channel.events["basic_return"].add(self._on_return)
        return channel

    def write(self, batch: Sequence[Delivery]) -> None:
        buffer = bytearray()
        transport = self._transport
        write, transport._write = (
            transport._write,
            buffer.extend,
        )  # frames are gathered: one system call a batch
        try:
            for delivery in batch:
                message = amqp.Message(
                    delivery.body,
                    content_type="application/json",
                    content_encoding="utf-8",
                    **delivery.properties,
                )
                if delivery.confirm:
                    self._tag += 1
                    self.unconfirmed[self._tag] = delivery
                    channel = self._confirmed
                else:
                    channel = self._plain
                channel.basic_publish(
                    message,
                    exchange=delivery.exchange,
                    routing_key=delivery.routing_key,
                    mandatory=not delivery.exchange,
                )
        finally:
            transport._write = write
        transport.write(buffer)

    def drain(self) -> None:
        self._read_ahead.drain(0.0)

    def heartbeat(self) -> None:
        self._amqp.heartbeat_tick(rate=2)

    def _on_ack(self, tag: int, multiple: bool) -> None:
        for delivery in self._settled(tag, multiple):
            key = (delivery.routing_key, str(delivery.properties.get("correlation_id", "")))
            if key in self._returned:
                self._returned.discard(key)
                delivery.finish(DeliveryState.UNROUTABLE)
            else:
                delivery.finish(DeliveryState.CONFIRMED)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        for delivery in self._settled(tag, multiple):
            delivery.finish(DeliveryState.REFUSED)

    def _settled(self, tag: int, multiple: bool) -> list[Delivery]:
        if not multiple:
            delivery = self.unconfirmed.pop(tag, None)
            return [] if delivery is None else [delivery]
        settled = []
        for known in list(self.unconfirmed):  # in the order of the tags
            if known > tag:
                break
            settled.append(self.unconfirmed.pop(known))
        return settled

    def _on_return(self, exc: Exception, exchange: str, routing_key: str, message: amqp.Message) -> None:
        correlation = message.properties.get("correlation_id")
        if correlation:  # a confirmed one: the acknowledgement follows the return
            self._returned.add((routing_key, correlation))
        self._unroutable(routing_key)

    def call(self, function: Callable[[Connection], T]) -> T:
        self._calling = True
        try:
            return function(self.connection)
        finally:
            self._calling = False

    def _on_blocked(self, reason: str) -> None:
        self.blocked = True
        for delivery in list(self.unconfirmed.values()):
            if isinstance(delivery, Probe):
                delivery.finish(DeliveryState.NOT_SENT, "broker_blocked")
            elif (
                not delivery.patient
            ):  # written, and not read before the alarm ends: who cannot wait is told now
                delivery.finish(DeliveryState.UNCERTAIN, "broker_blocked")
        if self._calling:  # we are in its wait for an answer
            raise BrokerBlocked("the broker has blocked the connection")

    def _on_unblocked(self) -> None:
        self.blocked = False

    def close(self) -> None:
        sock = getattr(self._transport, "sock", None)
        if sock is not None:
            try:
                sock.settimeout(1.0)  # the close handshake must not hang on a broken peer
            except OSError:
                pass
        super().close()


class EmbeddedLine(Line):
    """The embedded broker: a publish ends at once, one way or the other."""

    def __init__(self, connection: Connection, unroutable: Callable[[str], None]) -> None:
        self.connection = connection
        self.errors = (*connection.connection_errors, *connection.channel_errors, OSError)
        self.unconfirmed = {}
        self._unroutable = unroutable
        connection.connect()
        self._channel = connection.channel()

    def write(self, batch: Sequence[Delivery]) -> None:
        for delivery in batch:
            properties = dict(delivery.properties)
            priority = properties.pop("priority", 0)
            headers = properties.pop("application_headers", {})
            channel = self._channel
            message = channel.prepare_message(
                delivery.body,
                priority,
                "application/json",
                "utf-8",
                headers,
                {**properties, "timestamp": int(time.time())},
            )
            try:
                channel.basic_publish(
                    message,
                    exchange=delivery.exchange,
                    routing_key=delivery.routing_key,
                    mandatory=not delivery.exchange,
                )
            except MessageNacked:
                delivery.finish(DeliveryState.REFUSED)
            except IrrecoverableChannelError:
                self._unroutable(delivery.routing_key)
                delivery.finish(DeliveryState.UNROUTABLE)
            else:
                delivery.finish(DeliveryState.CONFIRMED)
