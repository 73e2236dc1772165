"""One publishing connection for a whole process: an I/O thread that writes batches and keeps its own confirms.

Whoever publishes puts a `Delivery` into the inbox and may wait for its end. The thread connects (again), writes what
is there in one system call, reads acknowledgements and returns, and runs short calls on the connection (`call`). Why
it is done so, and not with a pool of producers, was measured: a third of the CPU, and confirms that cannot be taken
for one another's (a client library's synchronous confirm takes any acknowledgement for its own).

The thread waits for the socket, the inbox or the next due stream, whichever is first; it never polls.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

from kombu.connection import Connection

from ..clock import Clock, SystemClock
from .delivery import Delivery, DeliveryState
from .lines import BrokerBlocked, Line, connect_line

__all__ = ["Call", "Publisher", "PublisherClosed", "Scheduled"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

BATCH = 256
RECONNECT_FIRST, RECONNECT_LAST = 0.05, 1.0
GATHER = 0.025
"""Seconds. Streams are written on the ticks of this clock: many share one wake-up, one write, and one message."""


class PublisherClosed(RuntimeError):
    """The publisher was closed; nothing more is sent."""


class Scheduled(Protocol):
    """Something that has a piece of JSON ready when it is asked (a token stream)."""

    def take(self) -> tuple[str, bytes] | None:
        """The queue, and what to send there now; called in the I/O thread."""


class Call(Generic[T]):
    """A function to be run on the publishing connection, and its result.

    ``patient``: it waits while the broker is away, and is run again where the connection broke under it.
    """

    def __init__(self, function: Callable[[Connection], T], patient: bool = False) -> None:
        self.patient = patient
        self._function = function
        self._done = threading.Event()
        self._value: T | None = None
        self._error: BaseException | None = None

    def run(self, line: Line) -> None:
        """In the I/O thread.

        Raises:
            OSError, or the transport's connection errors: the connection is of no more use. The caller has it too.
        """
        try:
            self._value = line.call(self._function)
        except Exception as exc:  # the caller has it in any case
            lost = isinstance(exc, (OSError, *line.connection.connection_errors))
            if not (lost and self.patient):
                self.fail(exc)
            if lost:
                raise
        else:
            self._done.set()

    def fail(self, error: BaseException) -> None:
        """It cannot be run."""
        self._error = error
        self._done.set()

    def result(self, timeout: float | None) -> T:
        """Wait for it.

        Raises:
            TimeoutError: not run in time (it may still be).
        """
        if not self._done.wait(timeout):
            raise TimeoutError("the broker did not answer in time")
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # set where no error is


class Publisher:
    """See the module. Threads of one process share it; a forked child must make its own.

    Args:
        connection: makes the (unopened) connection.
        clock: for what is due.
    """

    def __init__(self, connection: Callable[[], Connection], *, clock: Clock | None = None) -> None:
        self.pid = os.getpid()
        self._make_connection = connection
        self._clock = clock or SystemClock()
        self._inbox: deque[Delivery | Call[Any] | _Drop | tuple[bool, Scheduled]] = deque()
        self._gathering: list[Scheduled] = []
        self._flush_at: float | None = None
        self._held: deque[Delivery | Call[Any]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._sleeping = False
        self._stopping = False
        self._ended = False
        self._wake_receiver: socket.socket | None = None
        self._wake_sender: socket.socket | None = None
        self._watched: dict[str, list[Callable[[], None]]] = {}
        self._line: Line | None = None
        self.connections = 0
        """How often it has connected: what was declared may have to be declared again."""

    # -- for any thread

    def publish(self, delivery: Delivery) -> None:
        """Send it."""
        self._put(delivery)

    def publish_all(self, deliveries: Iterable[Delivery]) -> None:
        """Send them, in order, with one wake-up."""
        self._start()
        self._inbox.extend(deliveries)
        self._wake()

    def schedule(self, source: Scheduled, at_once: bool) -> None:
        """Ask ``source`` for what it has, at once or at the next tick."""
        if self._thread is None:
            self._start()
        self._inbox.append((at_once, source))
        if self._sleeping and (at_once or self._flush_at is None):  # else it wakes at the tick anyway
            self._wake()

    def call(self, function: Callable[[Connection], T], *, patient: bool = False) -> Call[T]:
        """Run a short function on the connection, between two batches; see `Call` for ``patient``."""
        call = Call(function, patient)
        self._put(call)
        return call

    def withdraw(self, delivery: Delivery) -> bool:
        """Take it back if it has not been written yet; True if that is so: it will never be sent."""
        with self._lock:
            if delivery.state is DeliveryState.QUEUED:
                delivery.state = DeliveryState.NOT_SENT
                delivery.reason = delivery.reason or self.trouble or "broker_down"
                return True
            return False

    def watch(self, routing_key: str, gone: Callable[[], None]) -> Callable[[], None]:
        """``gone`` is called (in the I/O thread) when a message to ``routing_key`` had nowhere to go; returns undo."""
        with self._lock:
            self._watched.setdefault(routing_key, []).append(gone)

        def undo() -> None:
            with self._lock:
                left = self._watched.get(routing_key, [])
                if gone in left:
                    left.remove(gone)
                if not left:
                    self._watched.pop(routing_key, None)

        return undo

    def unroutable(self, routing_key: str) -> None:
        """A message came back; the line's callback."""
        with self._lock:
            callbacks = list(self._watched.get(routing_key, ()))
        for callback in callbacks:
            callback()

    @property
    def trouble(self) -> str:
        """Why nothing can be sent now: ``broker_down``, ``broker_blocked``, or "" when it can."""
        line = self._line
        if line is None:
            return "broker_down" if self.connections or self._failed else ""
        return "broker_blocked" if line.blocked else ""

    _failed = False

    def reset(self, unconfirmed: Delivery) -> None:
        """Drop the connection on which ``unconfirmed`` still waits for its confirm; a new one follows.

        Not while the broker blocks it: it would only forget that, and write more that is not read.
        """
        self._put(_Drop(unconfirmed))

    def renew(self) -> None:
        """Connect anew, if that has not happened since: this process has found its other connection to be dead."""
        if self._thread is not None:
            self._put(_Drop(self.connections))

    def close(self, timeout: float = 5.0) -> None:
        """Send what is in the inbox, as far as that is possible in time, and end the thread."""
        self._stopping = True
        thread = self._thread
        if thread is not None and thread.is_alive() and self.pid == os.getpid():
            self._wake()
            if thread is not threading.current_thread():
                thread.join(timeout)

    def __repr__(self) -> str:
        return f"Publisher({'connected' if self._line else 'not connected'}, inbox={len(self._inbox)})"

    # -- the inbox

    def _put(self, item: Delivery | Call[Any] | _Drop) -> None:
        if self._thread is None:
            self._start()
        self._inbox.append(item)
        if self._ended:
            self._fail_rest()
        if self._sleeping:
            self._wake()

    def _start(self) -> None:
        if self._stopping:
            raise PublisherClosed("the publisher is closed")
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None:
                self._wake_receiver, self._wake_sender = socket.socketpair()
                self._wake_receiver.setblocking(False)
                self._wake_sender.setblocking(False)
                thread = threading.Thread(target=self._run, name="inference-publisher", daemon=True)
                thread.start()
                self._thread = thread

    def _wake(self) -> None:
        self._sleeping = False
        if self._wake_sender is not None:
            try:
                self._wake_sender.send(b"\0")
            except (BlockingIOError, OSError):  # full: it is awake anyway; closed: it is gone
                pass

    # -- the I/O thread

    def _run(self) -> None:
        delay = 0.0
        selector = selectors.DefaultSelector()
        assert self._wake_receiver is not None
        selector.register(self._wake_receiver, selectors.EVENT_READ)
        while True:
            line = None
            try:
                line = connect_line(self._make_connection(), self.unroutable)
                self._line = line
                self.connections += 1
                self._failed = False
                delay = 0.0
                self._serve(line, selector)
                line.close()
                break
            except _Stopped:
                break
            except Exception as exc:
                recoverable = isinstance(exc, line.errors) if line is not None else True
                self._line = None
                self._failed = True
                if line is not None:
                    _unregister(selector, line)
                    line.abandon()
                if not recoverable:
                    logger.exception("publisher: unexpected error; connecting anew")
                elif not isinstance(exc, ConnectionResetError):
                    logger.warning("publisher: broker connection: %s; connecting anew", type(exc).__name__)
                if self._stopping:
                    break
                delay = min(RECONNECT_LAST, delay * 2 or RECONNECT_FIRST)
                self._idle(selector, delay)
        self._line = None
        self._ended = True
        self._fail_rest()
        selector.close()
        for sock in (self._wake_receiver, self._wake_sender):
            if sock is not None:
                sock.close()

    def _serve(self, line: Line, selector: selectors.BaseSelector) -> None:
        if line.fileno is not None:
            selector.register(line.fileno, selectors.EVENT_READ)
        while True:
            line.drain()
            if self._held and not line.blocked:
                self._inbox.extendleft(reversed(self._held))
                self._held.clear()
            batch = self._collect(line)
            if batch:
                try:
                    line.write(batch)
                except BaseException:
                    for delivery in batch:  # those too that the line has not got to
                        delivery.finish(DeliveryState.UNCERTAIN, "connection_lost")
                    raise
                line.drain()
                continue
            if self._stopping and not line.unconfirmed:
                return
            self._sleep(selector, line)

    def _collect(self, line: Line) -> list[Delivery]:
        """What is to be written now: from the inbox in order, then from the streams whose tick has come."""
        batch: list[Delivery] = []
        inbox = self._inbox
        now_due: list[Scheduled] = []
        while inbox and len(batch) < BATCH:
            item = inbox.popleft()
            if type(item) is tuple:
                at_once, source = item
                (now_due if at_once and not line.blocked else self._gathering).append(source)
            elif isinstance(item, _Drop):
                if batch or now_due:
                    inbox.appendleft(item)
                    break
                if item.on == self.connections or (item.on in line.unconfirmed.values() and not line.blocked):
                    raise ConnectionResetError("dropped on purpose")
            elif isinstance(item, Call):
                if line.blocked:  # no answer would come
                    if item.patient:
                        self._held.append(item)
                    else:
                        item.fail(BrokerBlocked("the broker has blocked the connection"))
                    continue
                if batch:  # in order: first what was put before it
                    inbox.appendleft(item)
                    break
                try:
                    item.run(line)
                except BrokerBlocked:  # it began in the middle of the call; the connection is well
                    if item.patient:
                        self._held.append(item)
                except Exception:
                    if item.patient:
                        inbox.appendleft(item)
                    raise
            else:
                self._admit(line, item, batch)  # type: ignore[arg-type]  # the three kinds are told apart above
        if self._gathering and not line.blocked:  # they gather on meanwhile: nothing is lost
            now = self._clock.monotonic()
            if self._flush_at is None:
                self._flush_at = (now // GATHER + 1) * GATHER
            elif now >= self._flush_at:
                now_due += self._gathering
                self._gathering = []
                self._flush_at = None
        for delivery in _together(now_due):
            self._admit(line, delivery, batch)
        return batch

    def _admit(self, line: Line, delivery: Delivery, batch: list[Delivery]) -> None:
        if line.blocked:
            if not delivery.confirm:
                return  # a chunk: the outcome repairs it
            if delivery.patient:
                self._held.append(delivery)
            else:
                delivery.finish(DeliveryState.NOT_SENT, "broker_blocked")
            return
        with self._lock:
            if delivery.state is not DeliveryState.QUEUED:
                return  # withdrawn
            delivery.state = DeliveryState.WRITTEN
        batch.append(delivery)

    def _sleep(self, selector: selectors.BaseSelector, line: Line) -> None:
        timeout = line.heartbeat_interval
        if self._flush_at is not None and not line.blocked:
            left = self._flush_at - self._clock.monotonic()
            timeout = left if timeout is None else min(left, timeout)
            if timeout <= 0:
                return
        self._sleeping = True
        if self._inbox:
            self._sleeping = False
            return
        events = selector.select(timeout)
        self._sleeping = False
        for key, _ in events:
            if key.fileobj is self._wake_receiver:
                self._swallow_wakes()
        line.heartbeat()

    def _idle(self, selector: selectors.BaseSelector, delay: float) -> None:
        """Not connected: those who cannot wait are told, chunks are dropped, the rest stays."""
        until = self._clock.monotonic() + delay
        while not self._stopping:
            keep: list[Delivery | Call[Any]] = []
            while self._inbox:
                item = self._inbox.popleft()
                if isinstance(item, Call):
                    if item.patient:
                        keep.append(item)
                    else:
                        item.fail(ConnectionError("the broker is not reachable"))
                elif type(item) is tuple:
                    self._gathering.append(item[1])  # it gathers on: what was not written is not lost
                elif isinstance(item, Delivery) and item.confirm and item.state is DeliveryState.QUEUED:
                    if item.patient:
                        item.reason = "broker_down"
                        keep.append(item)
                    else:
                        item.finish(DeliveryState.NOT_SENT, "broker_down")
            left = until - self._clock.monotonic()
            self._held.extend(keep)
            if left <= 0:
                break
            self._sleeping = True
            if not self._inbox:
                selector.select(left)
            self._sleeping = False
            self._swallow_wakes()
        self._flush_at = None
        self._inbox.extendleft(reversed(self._held))
        self._held.clear()

    def _swallow_wakes(self) -> None:
        assert self._wake_receiver is not None
        try:
            while self._wake_receiver.recv(4096):
                pass
        except (BlockingIOError, OSError):
            pass

    def _fail_rest(self) -> None:
        self._inbox.extend(self._held)
        self._held.clear()
        while self._inbox:
            try:
                item = self._inbox.popleft()
            except IndexError:  # another thread was faster
                return
            if isinstance(item, Call):
                item.fail(PublisherClosed("the publisher is closed"))
            elif isinstance(item, Delivery):
                item.finish(DeliveryState.NOT_SENT, "closed")


def _together(sources: Iterable[Scheduled]) -> Iterable[Delivery]:
    """One message for each queue, with all that goes there."""
    pieces: dict[str, list[bytes]] = {}
    for source in sources:
        taken = source.take()
        if taken is not None:
            pieces.setdefault(taken[0], []).append(taken[1])
    for queue, chunks in pieces.items():
        yield Delivery(queue, b"[" + b",".join(chunks) + b"]", {}, confirm=False)


class _Stopped(Exception):
    """The thread is to end."""


class _Drop:
    """An order to drop the connection on which a delivery waits, or the so-manieth connection."""

    def __init__(self, on: Delivery | int) -> None:
        self.on = on


def _unregister(selector: selectors.BaseSelector, line: Line) -> None:
    if line.fileno is not None:
        try:
            selector.unregister(line.fileno)
        except (KeyError, ValueError, OSError):
            pass
