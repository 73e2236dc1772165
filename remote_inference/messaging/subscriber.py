"""A thread that consumes a few queues on a connection of its own, and connects again when that is lost."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from kombu.connection import Connection

from ..clock import Clock, SystemClock
from .read_ahead import ReadAhead

__all__ = ["Subscriber"]

logger = logging.getLogger(__name__)

HEARTBEAT = 20.0

TICK_SHORTEST, TICK_LONGEST = 0.001, HEARTBEAT / 2
"""Seconds between two ticks: who always has something due must not spin, and heartbeats want to be sent."""

TICK_AFTER_FAULT = 1.0
"""Seconds until a tick that raised is called again."""

COMPLAIN = 60.0
"""Seconds between two log lines about a broker that stays away."""


class Subscriber:
    """What it reads concerns this process alone.

    Args:
        connection: makes the (unopened) connection.
        declare: declares what is needed on the channel it gets, and names the queues to consume: with True those
            whose messages the broker is to keep until they were handed on (they may then come twice).
        on_message: gets each body, in the thread; must not block or raise.
        name: the thread's.
        tick: called in the thread, also while there is no connection; returns the seconds until it is to be called
            again. It is called earlier after each message, which may have changed what it has to do.
        on_change: called in the thread with True when it consumes, with False when it does no more.
        clock: for the waits.
    """

    def __init__(
        self,
        connection: Callable[[], Connection],
        declare: Callable[[Any], Mapping[str, bool]],
        on_message: Callable[[bytes | str], None],
        *,
        name: str,
        tick: Callable[[], float] | None = None,
        on_change: Callable[[bool], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.pid = os.getpid()
        self._make_connection = connection
        self._declare = declare
        self._on_message = on_message
        self._name = name
        self._tick = tick
        self._tick_again = 0.0
        self._on_change = on_change
        self._clock = clock or SystemClock()
        self._renewing = False
        self._quiet_until = 0.0
        self._ready = threading.Event()
        self._tried = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Begin, if it has not begun."""
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()
                self._thread = thread

    def wait_ready(self, timeout: float | None, *, patient: bool = True) -> bool:
        """Whether it is consuming, or is within ``timeout`` seconds; ``patient``: also after a first failure."""
        if not patient:
            self._tried.wait(timeout)
            return self._ready.is_set()
        return self._ready.wait(timeout)

    def renew(self) -> None:
        """Connect and declare anew; in the thread (in a tick)."""
        self._renewing = True

    def close(self, timeout: float = 5.0) -> None:
        """End the thread and its connection."""
        self._stopping.set()
        connection = self._connection
        if connection is not None and self.pid == os.getpid():
            _interrupt(connection)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def __repr__(self) -> str:
        return f"Subscriber({self._name}, {'ready' if self._ready.is_set() else 'not connected'})"

    def _run(self) -> None:
        delay = 0.0
        while not self._stopping.is_set():
            connection = self._make_connection()
            errors = (*connection.connection_errors, *connection.channel_errors, OSError)
            self._renewing = False
            try:
                self._serve(connection)
            except Exception as exc:
                if not self._stopping.is_set():
                    if isinstance(exc, errors):
                        self._complain(exc)
                    else:
                        logger.exception("%s: unexpected error; connecting anew", self._name)
            if self._ready.is_set():
                delay = 0.0
                self._ready.clear()
                self._changed(False)
            self._tried.set()
            self._connection = None
            try:
                connection.close()
            except Exception:  # a broken connection: nothing left to do for it
                pass
            delay = min(1.0, delay * 2 or 0.05)
            self._idle(delay)

    def _serve(self, connection: Connection) -> None:
        """Connect and read, until the connection is lost or to be left."""
        connection.heartbeat = HEARTBEAT
        # `connect` would sleep two seconds between its two attempts
        connection.ensure_connection(
            max_retries=1, interval_start=0, interval_step=0, reraise_as_library_errors=False
        )
        self._connection = connection
        drain = _drain_of(connection)
        channel = connection.channel()
        for queue, kept in self._declare(channel).items():
            channel.basic_consume(
                queue,
                no_ack=not kept,
                callback=partial(self._deliver_kept, channel) if kept else self._deliver,
                consumer_tag=f"{self._name}:{queue}",
            )
        self._ready.set()
        self._tried.set()
        self._changed(True)
        while True:
            timeout = self._until_tick()
            if self._stopping.is_set() or self._renewing:
                return
            drain(timeout)
            connection.heartbeat_check(rate=2)

    def _complain(self, exc: Exception) -> None:
        """Once when the connection is lost, then once a minute."""
        now = self._clock.monotonic()
        if self._ready.is_set() or now >= self._quiet_until:
            self._quiet_until = now + COMPLAIN
            logger.warning("%s: broker connection: %s; connecting anew", self._name, type(exc).__name__)

    def _idle(self, delay: float) -> None:
        """Not connected for so long."""
        end = self._clock.monotonic() + delay
        while not self._stopping.is_set() and (left := end - self._clock.monotonic()) > 0:
            self._clock.wait(self._stopping, min(left, self._until_tick()))

    def _until_tick(self) -> float:
        """Do what is due; how long there is time to wait then."""
        if self._tick is None:
            return TICK_LONGEST
        left = self._tick_again - self._clock.monotonic()
        if left > 0:
            return left
        try:
            return max(TICK_SHORTEST, min(self._tick(), TICK_LONGEST))
        except Exception:
            logger.exception("%s: what was due could not be done", self._name)
            self._tick_again = self._clock.monotonic() + TICK_AFTER_FAULT
            return TICK_AFTER_FAULT

    def _changed(self, ready: bool) -> None:
        if self._on_change is not None:
            try:
                self._on_change(ready)
            except Exception:  # its fault is none of the connection's
                logger.exception("%s: could not tell of the connection", self._name)

    def _deliver_kept(self, channel: Any, message: Any) -> None:
        self._deliver(message)
        channel.basic_ack(message.delivery_tag)

    def _deliver(self, message: Any) -> None:
        try:
            self._on_message(message.body)
        except Exception:  # one bad message must not end the reading of all others
            logger.exception("%s: a message could not be handled", self._name)


def _drain_of(connection: Connection) -> Callable[[float], None]:
    """What handles the messages that have come, or waits for some for so many seconds."""
    if connection.transport.driver_type == "amqp":
        return ReadAhead(connection.connection).drain

    def drain(timeout: float) -> None:
        try:
            connection.drain_events(timeout=timeout)
        except TimeoutError:
            pass

    return drain


def _interrupt(connection: Connection) -> None:
    """End a blocked read from another thread."""
    transport = connection.transport
    wake = getattr(transport, "wake", None)
    if wake is not None:
        wake()
        return
    sock = getattr(getattr(connection.connection, "transport", None), "sock", None)
    if sock is not None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
