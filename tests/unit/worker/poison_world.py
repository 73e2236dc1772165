"""A broker and a publisher without a thread or a socket, for those who leave marks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from kombu import Connection

from remote_inference.cancel import CancelToken
from remote_inference.messaging.embedded import register
from remote_inference.messaging.names import marks_queue
from remote_inference.testing.clock import VirtualClock
from remote_inference.worker.poison_guard import PoisonGuard

_names = itertools.count()
_under_way: list[Any] = []  # what has begun and never ends must not be ended by the garbage collector


def embedded_broker() -> Connection:
    """A broker of its own."""
    register()
    connection = Connection(f"embedded://poison-{next(_names)}")
    connection.connect()
    return connection


class FakeCall:
    """What a call has come to."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._error: Exception | None = None
        self._value: Any = None
        try:
            self._value = function()
        except Exception as exc:
            self._error = exc

    def result(self, timeout: float | None) -> Any:
        if self._error is not None:
            raise self._error
        return self._value


class FakePublisher:
    """Runs calls at once. Cut off, it fails those that are not patient, and keeps the others until it is back."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._kept: list[Callable[[Connection], Any]] = []
        self.cut_off = False
        self.calls = 0

    def call(self, function: Callable[[Connection], Any], *, patient: bool = False) -> FakeCall:
        self.calls += 1
        if not self.cut_off:
            return FakeCall(lambda: function(self._connection))
        if patient:
            self._kept.append(function)
        return FakeCall(self._fail)

    def reconnect(self) -> None:
        """What was kept is run."""
        self.cut_off = False
        kept, self._kept = self._kept, []
        for function in kept:
            function(self._connection)

    @staticmethod
    def _fail() -> None:
        raise ConnectionError("cut off")


class Process:
    """A process that runs requests."""

    def __init__(self, connection: Connection, clock: VirtualClock | None = None) -> None:
        self.clock = clock or VirtualClock()
        self.publisher = FakePublisher(connection)
        self.guard = PoisonGuard(SimpleNamespace(clock=self.clock, publisher=self.publisher))
        self.draining = False

    def delivery(self, request_id: str, *, redelivered: bool = True, token: CancelToken | None = None) -> Any:
        """A message arrives."""
        return self.guard.delivery(
            request_id,
            redelivered=redelivered,
            token=token or CancelToken(),
            draining=lambda: self.draining,
        )

    def begin(self, request_id: str, *, redelivered: bool = True) -> Any:
        """A call begins in a process that dies before it ends; what guards it, in case it lives."""
        delivery = self.delivery(request_id, redelivered=redelivered)
        _under_way.append(delivery)
        guard = delivery.__enter__()
        assert guard.enter(None)
        if not guard.begin():
            assert guard.enter(None)
            assert guard.begin()
        return guard


def marks_in(connection: Connection, request_id: str) -> int | None:
    """How many messages are in the queue of its marks; None where there is none."""
    with connection.channel() as channel:
        try:
            return int(channel.queue_declare(marks_queue(request_id), passive=True).message_count)
        except connection.channel_errors:
            return None
