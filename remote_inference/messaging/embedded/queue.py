"""One queue in memory: by priority, first in first out within one, bounded, expiring, requeueing in place.

Pure data: no lock, no clock, no threads. The broker holds its lock around every call and says what time it
is.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from amqp.exceptions import PreconditionFailed

MAX_PRIORITY = 255
"""The highest ``x-max-priority`` that RabbitMQ takes."""

_NOT_SUPPORTED = ("x-max-length-bytes", "x-single-active-consumer")
_OVERFLOWS = ("drop-head", "reject-publish")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """What a queue's ``x-`` arguments ask for.

    Attributes:
        max_priority: Priorities run from 0 to this; a message with a higher one counts as this.
        max_length: How many messages may be ready (those delivered and not yet acknowledged do not count).
        reject_when_full: Refuse the message that does not fit; otherwise the one at the head makes room.
        message_ttl: Seconds after which a message that waits is dropped.
        expires: Seconds without a consumer, a declaration or a ``basic.get`` after which the queue goes.
        dead_letter_exchange: Where rejected, expired and dropped messages go, if anywhere.
        dead_letter_routing_key: The key they go with, if not their own.
    """

    max_priority: int = 0
    max_length: int | None = None
    reject_when_full: bool = False
    message_ttl: float | None = None
    expires: float | None = None
    dead_letter_exchange: str | None = None
    dead_letter_routing_key: str | None = None

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> QueueSettings:
        """Read the arguments of ``queue.declare``; those that do not change what a queue does are left alone.

        Raises:
            amqp.PreconditionFailed: A value makes no sense, or asks for what this broker does not have.
        """
        for name in _NOT_SUPPORTED:
            if arguments.get(name):
                raise _invalid(name, "the embedded broker does not have it")
        if arguments.get("x-queue-type", "classic") != "classic":
            raise _invalid("x-queue-type", "the embedded broker has classic queues only")
        overflow = arguments.get("x-overflow", "drop-head")
        if overflow not in _OVERFLOWS:
            raise _invalid("x-overflow", f"must be one of {', '.join(_OVERFLOWS)}")
        message_ttl = _whole(arguments, "x-message-ttl", least=0)
        expires = _whole(arguments, "x-expires", least=1)
        return cls(
            max_priority=_whole(arguments, "x-max-priority", least=0, most=MAX_PRIORITY) or 0,
            max_length=_whole(arguments, "x-max-length", least=0),
            reject_when_full=overflow == "reject-publish",
            message_ttl=None if message_ttl is None else message_ttl / 1000,
            expires=None if expires is None else expires / 1000,
            dead_letter_exchange=arguments.get("x-dead-letter-exchange"),
            dead_letter_routing_key=arguments.get("x-dead-letter-routing-key"),
        )


def _whole(arguments: Mapping[str, Any], name: str, *, least: int, most: int | None = None) -> int | None:
    value = arguments.get(name)
    if value is None:
        return None
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or value < least
        or (most is not None and value > most)
    ):
        raise _invalid(
            name, f"must be a whole number from {least}" + (f" to {most}" if most is not None else "")
        )
    return value


def _invalid(argument: str, why: str) -> PreconditionFailed:
    text = f"PRECONDITION_FAILED - invalid argument {argument!r}: {why}"
    return PreconditionFailed(text, (50, 10), "Queue.declare", PreconditionFailed.code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A published message. Its body is handed on and never copied; what may show a prompt is not in the repr.

    Attributes:
        body: What was published.
        exchange: Where it was published.
        routing_key: With which key.
        headers: The application's headers.
        properties: All other AMQP properties that were set, by their AMQP names.
    """

    body: bytes = field(repr=False)
    exchange: str
    routing_key: str
    headers: Mapping[str, Any] = field(default_factory=dict, repr=False)
    properties: Mapping[str, Any] = field(default_factory=dict, repr=False)


class _State(enum.Enum):
    READY = enum.auto()  # in the queue
    HELD = enum.auto()  # delivered, not yet settled
    GONE = enum.auto()


@dataclass(slots=True, eq=False)
class Entry:
    """A message's place in one queue, which it keeps when it is delivered and given back."""

    envelope: Envelope
    priority: int
    number: int
    expires_at: float | None
    redelivered: bool = False
    state: _State = field(default=_State.READY, repr=False)


class MessageQueue:
    """The messages of one queue, in the order in which they leave it.

    Two heaps: the order, and the expiries. An entry that goes out of turn (it expires, or is acknowledged
    before its time) stays in the other heap as a leftover, and leftovers are swept when they are half of it:
    so every operation costs O(log n), amortised, and no body outlives its message for long.
    """

    def __init__(self, settings: QueueSettings) -> None:
        self.settings = settings
        self._order: list[tuple[int, int, Entry]] = []
        self._expiries: list[tuple[float, int, Entry]] = []
        self._ready = 0
        self._numbers = 0
        self._expiry_leftovers = 0

    def __len__(self) -> int:
        """How many messages are ready."""
        return self._ready

    def __repr__(self) -> str:
        return f"<MessageQueue ready={self._ready} {self.settings!r}>"

    @property
    def refuses(self) -> bool:
        """Whether the next message would be one too many, and is to be refused."""
        limit = self.settings.max_length
        return self.settings.reject_when_full and limit is not None and self._ready >= limit

    def push(
        self, envelope: Envelope, *, priority: int = 0, ttl: float | None = None, now: float = 0.0
    ) -> None:
        """Put a new message behind those of its priority.

        Args:
            envelope: The message.
            priority: Its priority; higher leaves first. Clamped to what the queue has.
            ttl: Seconds that it may wait; the queue's own limit counts if it is shorter.
            now: The broker's clock.
        """
        limits = [limit for limit in (ttl, self.settings.message_ttl) if limit is not None]
        self._numbers += 1
        entry = Entry(
            envelope=envelope,
            priority=max(0, min(priority, self.settings.max_priority)),
            number=self._numbers,
            expires_at=now + min(limits) if limits else None,
        )
        if entry.expires_at is not None:
            heapq.heappush(self._expiries, (entry.expires_at, entry.number, entry))
        self._enter(entry)

    def pop(self) -> Entry | None:
        """Take the message whose turn it is. It is the taker's until `requeue` or `settle`."""
        while self._order:
            entry = heapq.heappop(self._order)[2]
            if entry.state is _State.READY:
                entry.state = _State.HELD
                self._ready -= 1
                return entry
        return None

    def requeue(self, entry: Entry, *, now: float = 0.0) -> bool:
        """Give a message back to exactly its old place, marked as redelivered.

        Returns:
            False if its time is up: then it is gone instead.
        """
        if entry.expires_at is not None and entry.expires_at <= now:
            self.settle(entry)
            return False
        entry.redelivered = True
        self._enter(entry)
        return True

    def settle(self, entry: Entry) -> None:
        """Forget a message that was taken."""
        entry.state = _State.GONE
        if entry.expires_at is not None:
            self._expiry_leftovers += 1
            self._sweep()

    def surplus(self) -> list[Entry]:
        """Take from the head what is over the length, for a queue that drops."""
        limit = self.settings.max_length
        dropped: list[Entry] = []
        while limit is not None and not self.settings.reject_when_full and self._ready > limit:
            entry = self.pop()
            assert entry is not None  # _ready counts exactly the entries that pop would find
            self.settle(entry)
            dropped.append(entry)
        return dropped

    def expired(self, now: float) -> list[Entry]:
        """Take out all messages whose time is up, wherever in the queue they are."""
        dropped: list[Entry] = []
        while self._expiries and self._expiries[0][0] <= now:
            entry = heapq.heappop(self._expiries)[2]
            if entry.state is _State.READY:
                entry.state = _State.GONE
                self._ready -= 1
                dropped.append(entry)
            elif entry.state is _State.GONE:
                self._expiry_leftovers -= 1
        if dropped:
            self._sweep()
        return dropped

    def next_expiry(self) -> float | None:
        """When the next message expires, at the earliest."""
        return self._expiries[0][0] if self._expiries else None

    def purge(self) -> int:
        """Drop all that is ready, and say how much that was."""
        count = self._ready
        while (entry := self.pop()) is not None:
            self.settle(entry)
        return count

    def _enter(self, entry: Entry) -> None:
        entry.state = _State.READY
        self._ready += 1
        heapq.heappush(self._order, (-entry.priority, entry.number, entry))

    def _sweep(self) -> None:
        if len(self._order) > 2 * self._ready:
            self._order = [item for item in self._order if item[2].state is _State.READY]
            heapq.heapify(self._order)
        if 2 * self._expiry_leftovers > len(self._expiries):
            self._expiries = [item for item in self._expiries if item[2].state is not _State.GONE]
            heapq.heapify(self._expiries)
            self._expiry_leftovers = 0
