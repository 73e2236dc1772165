"""Gossip: what brings a replica's messages to all others, and theirs to it, over a fanout exchange.

A replica (`remote_inference.cluster`) does no I/O. One thread a process hands it what comes, has it do what is due,
and tells it whether it can hear *and* be heard: it listens on a connection of its own, and speaks through the
process's `Publisher`. What cannot be sent at once is dropped: a state that is late is worth nothing, and the replica
sends it again, in full, when it is told that it is online.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any, Protocol

from kombu.connection import Connection

from ..clock import Clock, SystemClock
from .delivery import Delivery
from .names import GOSSIP_EXCHANGE
from .publisher import Publisher, PublisherClosed
from .subscriber import Subscriber

__all__ = ["Gossip", "GossipReplica", "gossip_queue"]

logger = logging.getLogger(__name__)

QUEUE_LENGTH = 1000
QUEUE_TTL_MS = 15_000
"""A replica that stands still costs the broker this much, and need not read what is older than a member's lease."""

LOOK = 1.0
"""Seconds between two looks at a publisher that cannot send."""


class GossipReplica(Protocol):
    """What is asked of a replica. All is called in the thread of `Gossip`, but `leave` in the one that closes."""

    send: Callable[[bytes], None] | None
    """Set by `Gossip`, for any thread: returns at once and never raises; drops what cannot be sent now."""

    def receive(self, body: bytes | str) -> None:
        """A message came, perhaps its own."""

    def tick(self) -> float:
        """Do what is due. Called after messages too.

        Returns:
            The seconds until it wants to be called again.
        """

    def online(self) -> None:
        """It hears and is heard from here on; what it sent before may be lost."""

    def offline(self) -> None:
        """It does not hear, or is not heard."""

    def leave(self) -> object:
        """Say good-bye; nothing more is sent after it."""


class Gossip:
    """The I/O of this process's replica. A forked child must make its own, with a replica of its own.

    Close it before the publisher.

    Args:
        replica: whose messages it brings.
        connection: makes the (unopened) connection on which it listens.
        publisher: the process's.
        clock: for the waits.
    """

    def __init__(
        self,
        replica: GossipReplica,
        connection: Callable[[], Connection],
        publisher: Publisher,
        *,
        clock: Clock | None = None,
    ) -> None:
        self.pid = os.getpid()
        self.dropped = 0
        """Messages that could not be sent at once."""
        self._replica = replica
        self._publisher = publisher
        self._clock = clock or SystemClock()
        self._subscriber = Subscriber(
            connection,
            lambda channel: {gossip_queue(channel): False},
            replica.receive,
            name="inference-gossip",
            tick=self._tick,
            on_change=self._on_change,
            clock=self._clock,
        )
        self._hears = False
        self._online = threading.Event()
        self._missed = False
        self._connections = 0
        self._started = False
        self._leaving = False
        self._left = False
        replica.send = self._send

    def start(self) -> None:
        """Begin, if it has not begun."""
        self._started = True
        self._subscriber.start()

    def wait_online(self, timeout: float | None) -> bool:
        """Whether the replica hears and is heard, or does within ``timeout`` seconds."""
        return self._clock.wait(self._online, timeout)

    def close(self, timeout: float = 5.0) -> None:
        """End the thread, and have the replica say good-bye. Does nothing in a forked child, or a second time."""
        if self.pid != os.getpid() or self._leaving:
            return
        self._leaving = True  # no tick and no delta after the good-bye
        if self._started:
            self._subscriber.close(timeout)
            self._tell(self._replica.leave)
        self._left = True

    def __repr__(self) -> str:
        state = "left" if self._left else "online" if self._online.is_set() else "not online"
        return f"Gossip({state}, dropped={self.dropped})"

    def _send(self, body: bytes) -> None:
        if self._left or not self._online.is_set() or self._publisher.trouble:
            self.dropped += 1
            self._missed = True
            return
        try:
            self._publisher.publish(
                Delivery("", body, {"delivery_mode": 1}, exchange=GOSSIP_EXCHANGE, confirm=False)
            )
        except PublisherClosed:
            self.dropped += 1

    # -- in the thread

    def _tick(self) -> float:
        if self._leaving:
            return LOOK
        self._look()
        wait = self._replica.tick()
        return min(wait, LOOK) if self._hears and not self._online.is_set() else wait

    def _on_change(self, hears: bool) -> None:
        self._hears = hears
        if not self._leaving:
            self._look()

    def _look(self) -> None:
        """Tell the replica what has changed since the last look."""
        can_talk = self._hears and not self._publisher.trouble
        if self._online.is_set():
            if not can_talk or self._missed:
                self._online.clear()
                self._tell(self._replica.offline)
            elif self._connections != self._publisher.connections:
                if (
                    self._connections
                ):  # it had one, with what was written there lost; perhaps the exchange too
                    self._subscriber.renew()
                self._connections = self._publisher.connections
        if can_talk and not self._online.is_set():
            self._missed = False
            self._connections = self._publisher.connections
            self._online.set()
            self._tell(self._replica.online)

    def _tell(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception:  # its fault must not end the thread
            logger.exception("gossip: the replica could not %s", call.__name__)


def gossip_queue(channel: Any) -> str:
    """Declare the exchange, and a queue on it for this replica alone, which goes with its connection.

    The exchange is durable, as it has to stand when the publisher comes back before us: a message to one that does
    not would cost the publisher its connection.
    """
    name = f"{GOSSIP_EXCHANGE}.{os.urandom(8).hex()}"  # a new one each time: the broker may not have missed us yet
    channel.exchange_declare(GOSSIP_EXCHANGE, "fanout", durable=True, auto_delete=False)
    channel.queue_declare(
        name,
        durable=False,
        exclusive=True,
        auto_delete=True,
        arguments={"x-max-length": QUEUE_LENGTH, "x-overflow": "drop-head", "x-message-ttl": QUEUE_TTL_MS},
    )
    channel.queue_bind(name, GOSSIP_EXCHANGE, "")
    return name
