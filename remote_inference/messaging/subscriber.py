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

__all__ = ["Subscriber"]

logger = logging.getLogger(__name__)

HEARTBEAT = 20.0


class Subscriber:
    """What it reads concerns this process alone.

    Args:
        connection: makes the (unopened) connection.
        declare: declares what is needed on the channel it gets, and names the queues to consume: with True those
            whose messages the broker is to keep until they were handed on (they may then come twice).
        on_message: gets each body, in the thread; must not block or raise.
        name: the thread's.
    """

    def __init__(
        self,
        connection: Callable[[], Connection],
        declare: Callable[[Any], Mapping[str, bool]],
        on_message: Callable[[bytes | str], None],
        *,
        name: str,
    ) -> None:
        self.pid = os.getpid()
        self._make_connection = connection
        self._declare = declare
        self._on_message = on_message
        self._name = name
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
            try:
                connection.heartbeat = HEARTBEAT
                connection.connect()
                self._connection = connection
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
                delay = 0.0
                while not self._stopping.is_set():
                    try:
                        connection.drain_events(timeout=HEARTBEAT / 2)
                    except TimeoutError:
                        pass
                    connection.heartbeat_check(rate=2)
            except Exception as exc:
                if not self._stopping.is_set():
                    if isinstance(exc, errors):
                        logger.warning(
                            "%s: broker connection: %s; connecting anew", self._name, type(exc).__name__
                        )
                    else:
                        logger.exception("%s: unexpected error; connecting anew", self._name)
            self._ready.clear()
            self._tried.set()
            self._connection = None
            try:
                connection.close()
            except Exception:  # a broken connection: nothing left to do for it
                pass
            delay = min(1.0, delay * 2 or 0.05)
            self._stopping.wait(delay)

    def _deliver_kept(self, channel: Any, message: Any) -> None:
        self._deliver(message)
        channel.basic_ack(message.delivery_tag)

    def _deliver(self, message: Any) -> None:
        try:
            self._on_message(message.body)
        except Exception:  # one bad message must not end the reading of all others
            logger.exception("%s: a message could not be handled", self._name)


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
