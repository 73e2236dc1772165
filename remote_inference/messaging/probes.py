"""Probe slots: as many exclusive queues in the broker as a half-open circuit may have probes under way.

An exclusive queue is a lock that nobody has to look after: whoever declares it has it, the broker refuses it to every
other connection, and it goes with its holder, however that one ends. The queues hold no messages.

They belong to the process's publishing connection. A process that loses that connection in the middle of a probe has
lost the slot too, and for the rest of that probe there may be one more than there should be.
"""

from __future__ import annotations

import logging
import random
import threading
from typing import Any

from amqp.exceptions import ChannelError
from kombu.connection import Connection

from .names import probe_queue
from .publisher import Publisher, PublisherClosed

__all__ = ["BrokerSlot", "BrokerSlots"]

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT = 1.0
"""Seconds for the broker to give a slot. Without an answer there is no probe."""


class BrokerSlots:
    """The slots of one circuit, over all processes that share the broker.

    Args:
        publisher: this process's; its connection holds the queues.
        circuit: the circuit's name between processes, see `remote_inference.policy.circuit.circuit_id`.
        count: how many slots there are.
        rng: in which order they are tried: those who ask at the same time should not all ask for the same one.
    """

    def __init__(self, publisher: Publisher, circuit: str, count: int, rng: random.Random) -> None:
        self._publisher = publisher
        self._circuit = circuit
        self._count = count
        self._rng = rng
        self._lock = threading.Lock()
        self._held: dict[
            int, BrokerSlot
        ] = {}  # the broker does not refuse a queue to the connection that has it

    def take(self) -> BrokerSlot | None:
        """A free slot; None where there is none, or the broker does not answer in time."""
        asked = _Asked()
        try:
            slot = self._publisher.call(lambda connection: self._declare(connection, asked)).result(
                ANSWER_TIMEOUT
            )
        except Exception as exc:  # whatever it was: without the lock there is no probe
            logger.warning("no probe: the broker gives no slot: %s", type(exc).__name__)
            slot = None
        if slot is None and asked.give_up():  # it was given after all, in the last moment
            asked.slot.release()
        return slot

    def _declare(self, connection: Connection, asked: _Asked) -> BrokerSlot | None:
        """In the publisher's thread."""
        numbers = list(range(self._count))
        self._rng.shuffle(numbers)
        for number in numbers:
            if not asked.waiting:
                return None
            with self._lock:
                held = self._held.get(number)
                if held is not None and held.connection == self._publisher.connections:
                    continue
            channel = connection.channel()
            try:
                channel.queue_declare(self._name(number), exclusive=True, auto_delete=False, durable=False)
            except ChannelError:  # locked, which closes the channel
                continue
            channel.close()
            slot = BrokerSlot(self, number, self._publisher.connections)
            with self._lock:
                self._held[number] = slot
            return asked.give(slot)
        return None

    def _release(self, slot: BrokerSlot) -> None:
        def delete(connection: Connection) -> None:
            """In the publisher's thread, as `_declare`: nothing comes between."""
            if self._forget(slot) and slot.connection == self._publisher.connections:
                channel = connection.channel()
                try:
                    channel.queue_delete(self._name(slot.number))
                    channel.close()
                except ChannelError as exc:
                    logger.debug("a probe's slot was gone: %s", type(exc).__name__)

        try:
            self._publisher.call(delete)  # fails without a connection, and with it the slot is lost
        except PublisherClosed:
            self._forget(slot)

    def _forget(self, slot: BrokerSlot) -> bool:
        """Whether it was held until now."""
        with self._lock:
            if self._held.get(slot.number) is not slot:
                return False
            del self._held[slot.number]
            return True

    def _name(self, number: int) -> str:
        return probe_queue(self._circuit, number)

    def __repr__(self) -> str:
        return f"BrokerSlots({self._circuit}, {len(self._held)} of {self._count} here)"


class BrokerSlot:
    """One slot, held until it is released or this process's connection is lost."""

    def __init__(self, slots: BrokerSlots, number: int, connection: int) -> None:
        self._slots = slots
        self.number = number
        self.connection = connection
        """The so-manieth connection of the publisher; with another one the slot is lost."""

    def release(self) -> None:
        """Give it back. Does not wait for the broker; where the slot was lost, there is nothing to do."""
        self._slots._release(self)

    def __repr__(self) -> str:
        return f"BrokerSlot({self.number})"


class _Asked:
    """Who asked for a slot may be gone when it comes."""

    def __init__(self) -> None:
        self.waiting = True
        self.slot: Any = None
        self._lock = threading.Lock()

    def give(self, slot: BrokerSlot) -> BrokerSlot | None:
        """Hand it over; in the publisher's thread."""
        with self._lock:
            if self.waiting:
                self.slot = slot
                return slot
        slot.release()
        return None

    def give_up(self) -> bool:
        """Nobody waits any more. Whether a slot had been handed over."""
        with self._lock:
            self.waiting = False
            return self.slot is not None
