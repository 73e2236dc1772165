"""`Ledgers`: brings the limits' ledgers from the broker and back.

A ledger (`remote_inference.cluster`) is the one message of a durable queue. Whoever wants it consumes the queue: the
broker hands it to one at a time, in turn. It is written back in a transaction, which publishes the new one and
acknowledges the old one, both or neither ("tx" is atomic for one queue); where nothing changed it is put back. A
process that dies with it in hand loses its connection, and the broker puts it back.

Where there is none, one is begun by whoever holds an exclusive queue, which serves as a lock.

One thread a process does it, on a connection of its own: a broker that is slow here must not delay tokens or gossip. It
waits for the socket or for a wish, whichever is first.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from amqp.exceptions import NotFound, ResourceLocked
from kombu.connection import Connection

from ..clock import Clock, SystemClock
from .names import ledger_queue
from .read_ahead import ReadAhead

__all__ = ["LedgerReader", "Ledgers"]

logger = logging.getLogger(__name__)

HEARTBEAT = 10.0
"""Seconds. The broker gives up the connection of a process that stands still after two of them, and what it had in hand
goes back."""
NOTHING_THERE = 1.0
"""Seconds after which a ledger that does not come is taken not to be there."""
LOOK_AGAIN = 0.1
"""Seconds until a ledger that may not be begun as yet is looked for again."""
AFTER_FAULT = 1.0
"""Seconds until a ledger is read again by whose reading a fault of ours has shown."""
EXPIRES_MS = 24 * 3600 * 1000
"""An unused ledger's queue is deleted: whatever was spent by it has left its window long since."""
ARGUMENTS = {
    "x-queue-type": "classic",
    "x-expires": EXPIRES_MS,
    # A process that stood still with one in hand, while another was begun, cannot write a second beside it.
    "x-max-length": 1,
    "x-overflow": "reject-publish",
}
RECONNECT_FIRST, RECONNECT_LAST = 0.05, 1.0
COMPLAIN = 60.0
"""Seconds between two log lines about a broker that stays away."""


class LedgerReader(Protocol):
    """What decides; see `remote_inference.cluster.Transfers`. All is called in the thread, but `leave`, `has_left`."""

    ask: Callable[[str], None] | None

    def may_begin(self, digest: str, new: bool) -> bool:
        """Whether a ledger may be begun where none is."""

    def read(self, digest: str, body: bytes | str | None) -> bytes | None:
        """It is in hand (or may be begun); returns what is to be written in its place: None leaves it as it is, nothing
        throws it away."""

    def confirmed(self, digest: str) -> None:
        """The broker has it."""

    def failed(self, digest: str) -> None:
        """It could not be had; or nobody knows whether the broker has what was written."""

    def leave(self) -> Sequence[str]:
        """Give everything back with the next look; where."""

    def has_left(self, digest: str) -> bool:
        """Whether that is done."""


class Ledgers:
    """One process's. A forked child must make its own.

    Args:
        reader: what decides.
        connection: makes the (unopened) connection.
        clock: for the waits.
    """

    def __init__(
        self, reader: LedgerReader, connection: Callable[[], Connection], *, clock: Clock | None = None
    ) -> None:
        self.pid = os.getpid()
        self._reader = reader
        self._make_connection = connection
        self._clock = clock or SystemClock()
        self._wanted: deque[str] = deque()
        self._left = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._asleep = False
        self._delay = 0.0
        self._complained = -COMPLAIN
        reader.ask = self.ask

    # -- for any thread

    def start(self) -> None:
        """Begin, if it has not begun."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="inference-ledgers", daemon=True)
            self._thread.start()

    def ask(self, subject: str) -> None:
        """Bring the ledger of that subject; returns at once."""
        self._wanted.append(subject)
        if self._asleep:
            self._wake()

    def close(self, timeout: float = 2.0) -> None:
        """Give everything back, and end the thread. Does nothing in a forked child, or a second time."""
        if self.pid != os.getpid() or self._stopping:
            return
        if self._thread is not None:
            subjects = self._reader.leave()
            for subject in subjects:
                self.ask(subject)
            with self._left:
                self._left.wait_for(lambda: all(map(self._reader.has_left, subjects)), timeout)
        self._stopping = True
        self._wake()
        if self._thread is not None:
            self._thread.join(timeout)
        self._waker.close()
        self._woken.close()

    def __repr__(self) -> str:
        return f"Ledgers({'stopping' if self._stopping else 'running' if self._thread else 'not started'})"

    def _wake(self) -> None:
        with suppress(OSError):  # full: it will wake anyway; closed: it has ended
            self._waker.send(b"x")

    # -- in the thread

    def _run(self) -> None:
        while not self._stopping:
            line: _Channel | None = None
            try:
                line = _Channel(self, self._make_connection())
                line.serve()
            except Exception as exc:
                if not self._stopping:
                    self._complain(exc)
            finally:
                if line is not None:
                    line.close()
            if self._stopping:
                return
            self._delay = min(RECONNECT_LAST, self._delay * 2 or RECONNECT_FIRST)
            self._clock.sleep(self._delay)

    def _done(self) -> None:
        """A ledger was read: the connection is of use."""
        self._delay = 0.0
        with self._left:
            self._left.notify_all()

    def _complain(self, exc: Exception) -> None:
        now = self._clock.monotonic()
        if now >= self._complained + COMPLAIN:
            self._complained = now
            logger.warning(
                "limits: the broker's ledgers cannot be reached (%s); connecting anew, with the rights that are held",
                type(exc).__name__,
            )


class _Channel:
    """One connection, for as long as it stands."""

    def __init__(self, ledgers: Ledgers, connection: Connection) -> None:
        self._ledgers = ledgers
        self._reader = ledgers._reader
        self._clock = ledgers._clock
        self._connection = connection
        self._channel: Any = None
        self._orderly = False
        self._came: deque[tuple[str, Any]] = deque()
        self._waiting: dict[str, float] = {}  # since when each is waited for
        self._again: dict[str, float] = {}  # when each is to be looked for once more
        self._there: set[str] = set()  # those whose queue exists
        self._rests_until: dict[str, float] = {}  # those whose reading has failed
        self._pending: set[str] = set()  # those that were asked for, and have not come

    def close(self) -> None:
        """Tell of what will not come."""
        for subject in self._pending:
            self._reader.failed(subject)
        with suppress(Exception):
            if self._orderly:
                self._connection.close()
            else:  # nothing may be waited for on a broken connection
                self._connection.collect()

    def serve(self) -> None:
        """Connect, and bring ledgers until the connection is lost or the end has come."""
        ledgers, connection = self._ledgers, self._connection
        connection.heartbeat = HEARTBEAT
        connection.ensure_connection(
            max_retries=1, interval_start=0, interval_step=0, reraise_as_library_errors=False
        )
        self._channel = connection.channel()
        self._channel.tx_select()
        drain = ReadAhead(connection.connection).drain
        sock = connection.connection.transport.sock
        sock.settimeout(
            2 * HEARTBEAT
        )  # for whatever waits for an answer: a connection on which nothing moves is dead
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            selector.register(ledgers._woken, selectors.EVENT_READ)
            while not ledgers._stopping:
                self._work()
                if getattr(sock, "pending", int)() or self._readable(selector, sock):
                    drain(0.0)
                connection.heartbeat_check(rate=2)
        self._orderly = True

    def _readable(self, selector: selectors.BaseSelector, sock: Any) -> bool:
        """Wait for a frame, a wish, or what is due."""
        ledgers = self._ledgers
        ledgers._asleep = True
        try:
            idle = not (ledgers._wanted or self._came or ledgers._stopping)
            ready = selector.select(self._until(self._clock.monotonic()) if idle else 0.0)
        finally:
            ledgers._asleep = False
        with suppress(BlockingIOError):
            while ledgers._woken.recv(4096):
                pass
        return any(key.fileobj is sock for key, _ in ready)

    def _until(self, now: float) -> float:
        due = [since + NOTHING_THERE for since in self._waiting.values()]
        return max(0.0, min([now + HEARTBEAT / 4, *due, *self._again.values()]) - now)

    def _work(self) -> None:
        """Do what is there to do."""
        ledgers = self._ledgers
        while ledgers._wanted:
            self._want(ledgers._wanted.popleft())
        while self._came:
            subject, message = self._came.popleft()
            if self._waiting.pop(subject, None) is None:
                self._put_back(message)  # it was not asked for
                continue
            self._cancel(subject, nowait=True)
            self._handle(subject, message)
        now = self._clock.monotonic()
        for subject in [s for s, since in self._waiting.items() if now >= since + NOTHING_THERE]:
            self._nothing_came(subject)
        for subject in [s for s, at in self._again.items() if now >= at]:
            del self._again[subject]
            self._want(subject)

    def _want(self, subject: str) -> None:
        self._pending.add(subject)
        if subject in self._waiting:
            return
        if self._clock.monotonic() < self._rests_until.get(subject, 0.0):
            self._again[subject] = self._rests_until[subject]
            return
        self._again.pop(subject, None)
        if not self._exists(subject):
            self._nothing_there(subject, new=True)
            return
        self._waiting[subject] = self._clock.monotonic()
        self._channel.basic_consume(
            ledger_queue(subject),
            no_ack=False,
            nowait=True,
            consumer_tag=subject,
            callback=lambda message: self._came.append((subject, message)),
        )

    def _cancel(self, subject: str, *, nowait: bool) -> None:
        self._channel.basic_cancel(subject, nowait=nowait)

    def _exists(self, subject: str) -> bool:
        """Whether there is a queue for it; only whoever begins a ledger makes one."""
        if subject not in self._there:
            look = self._connection.channel()
            try:
                look.queue_declare(ledger_queue(subject), passive=True)
            except NotFound:
                return False
            finally:
                look.close()  # py-amqp opens it again when the broker has closed it
            self._there.add(subject)
        return True

    def _handle(self, subject: str, message: Any) -> None:
        """It is in hand; without a message: it may be begun."""
        try:
            changed = self._reader.read(subject, message.body if message is not None else None)
        except Exception:  # a fault of ours must not look like a broker that is away
            logger.exception("limits: the ledger %s could not be read", subject)
            changed = None
            self._rests_until[subject] = self._clock.monotonic() + AFTER_FAULT
            self._reader.failed(subject)
        if changed:
            self._write(subject, changed, message)
            self._reader.confirmed(subject)
        elif message is not None and changed is None:
            self._put_back(message)
        elif message is not None:
            self._channel.basic_ack(message.delivery_tag)
            self._channel.tx_commit()
        self._pending.discard(subject)
        self._ledgers._done()

    def _put_back(self, message: Any) -> None:
        self._channel.basic_reject(message.delivery_tag, True)
        self._channel.tx_commit()

    def _write(self, subject: str, body: bytes, replaces: Any) -> None:
        channel = self._channel
        properties = {"delivery_mode": 2}
        message = channel.prepare_message(body, 0, "application/octet-stream", "binary", {}, properties)
        channel.basic_publish(message, exchange="", routing_key=ledger_queue(subject))
        if replaces is not None:
            channel.basic_ack(replaces.delivery_tag)
        channel.tx_commit()

    def _nothing_came(self, subject: str) -> None:
        self._cancel(subject, nowait=False)
        if any(came == subject for came, _ in self._came):  # meanwhile it did
            self._waiting[subject] = self._clock.monotonic()
            return
        del self._waiting[subject]
        self._nothing_there(subject, new=False)

    def _nothing_there(self, subject: str, *, new: bool) -> None:
        """Begin it, if this process may and no other one does."""
        if self._reader.may_begin(subject, new) and self._lock_and_begin(subject, new):
            return
        self._pending.discard(subject)
        self._reader.failed(subject)
        if not self._ledgers._stopping:
            self._again[subject] = self._clock.monotonic() + LOOK_AGAIN

    def _lock_and_begin(self, subject: str, new: bool) -> bool:
        queue = ledger_queue(subject)
        lock = self._connection.channel()
        try:
            lock.queue_declare(f"{queue}.begin", exclusive=True, durable=False, auto_delete=True)
        except ResourceLocked:
            lock.close()
            return False
        try:
            if new and self._exists(subject):
                return False  # another one has begun it since
            self._channel.queue_declare(
                queue,
                durable=True,
                auto_delete=False,
                arguments=ARGUMENTS,
            )
            self._there.add(subject)
            self._handle(subject, self._channel.basic_get(queue, no_ack=False))
            return True
        finally:
            lock.queue_delete(f"{queue}.begin")
            lock.close()
