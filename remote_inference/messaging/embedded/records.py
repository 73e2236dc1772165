"""What the broker keeps about connections, channels, consumers and queues: records without rules."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from remote_inference.messaging.embedded.queue import Entry, MessageQueue

Callback = Callable[[Any], object]


@dataclass(slots=True, eq=False)
class Consumer:
    """A subscription of a session to a queue."""

    tag: str
    session: Session = field(repr=False)
    queue: Queue
    no_ack: bool
    exclusive: bool
    limit: int
    """How many unsettled messages it may have; 0 for any number."""
    callback: Callback = field(repr=False)
    on_cancel: Callback | None = field(repr=False)
    owner: Any = field(repr=False)
    """Whatever the transport wants to find here again, with each message."""
    held: int = 0

    @property
    def has_room(self) -> bool:
        """Whether another message may be delivered to it."""
        session = self.session
        if self.no_ack:
            return True
        return not (self.limit and self.held >= self.limit) and not (
            session.limit and session.held >= session.limit
        )


@dataclass(slots=True, eq=False)
class Queue:
    """A declared queue: its messages, and what the broker has to know about it."""

    name: str
    messages: MessageQueue
    durable: bool
    auto_delete: bool
    owner: Client | None = field(repr=False)
    """The connection that it is exclusive to, if it is."""
    arguments: Mapping[str, Any]
    consumers: list[Consumer] = field(default_factory=list, repr=False)
    used_at: float = 0.0
    scheduled_at: float | None = None

    def goes_at(self) -> float | None:
        """When it will have been unused for too long, if it stays unused."""
        expires = self.messages.settings.expires
        return None if expires is None or self.consumers else self.used_at + expires

    def due_at(self) -> float | None:
        """When the broker has to look at it, at the earliest."""
        times = [at for at in (self.messages.next_expiry(), self.goes_at()) if at is not None]
        return min(times, default=None)


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A message on its way to, or with, a session."""

    tag: int
    entry: Entry
    queue: Queue
    consumer: Consumer | None


@dataclass(slots=True, eq=False)
class Session:
    """What the broker knows of a channel."""

    client: Client = field(repr=False)
    limit: int = 0
    """How many unsettled messages all its consumers may have together; 0 for any number."""
    consumer_limit: int = 0
    """The limit of consumers that are yet to come."""
    held: int = 0
    last_tag: int = 0
    unsettled: dict[int, Delivery] = field(default_factory=dict, repr=False)
    consumers: dict[str, Consumer] = field(default_factory=dict, repr=False)
    closed: bool = False


class Client:
    """What the broker knows of a connection: its sessions, and how to wake whoever waits on it."""

    def __init__(self, lock: threading.RLock) -> None:
        self.changed = threading.Condition(lock)
        self.sessions: list[Session] = []
        self.turns: deque[Consumer] = deque()
        self.cancelled: deque[Consumer] = deque()
        self.woken = False
        self.closed = False
