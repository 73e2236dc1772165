"""The reply desk: one connection for all replies to a process, handed to the handles that wait for them."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

from kombu.connection import Connection

from ..clock import Clock
from ..messaging.names import chunk_queue, reply_queue
from ..messaging.queues import declare_client_queues
from ..messaging.subscriber import Subscriber
from ..messaging.wire import Answer, ClientIdentity, decode_replies
from .handle import InferenceHandle

__all__ = ["ReplyDesk"]


class ReplyDesk:
    """Listens from the first request on. A handle that its caller dropped is forgotten with it."""

    def __init__(self, connection: Callable[[], Connection], identity: ClientIdentity, clock: Clock) -> None:
        self._identity = identity
        self._clock = clock
        self._handles: weakref.WeakValueDictionary[str, InferenceHandle] = weakref.WeakValueDictionary()
        self._answers: dict[str, list[Answer]] = {}
        self._subscriber = Subscriber(connection, self._declare, self._on_message, name="inference-replies")

    def listen(self, timeout: float, *, patient: bool = True) -> bool:
        """Begin; whether it listens within ``timeout`` seconds. The queues must stand before a worker replies.

        ``patient``: wait for that also while the broker cannot be reached.
        """
        self._subscriber.start()
        return self._subscriber.wait_ready(timeout, patient=patient)

    def expect(self, handle: InferenceHandle) -> None:
        """Hand this handle its replies from now on."""
        self._handles[handle.request_id] = handle

    def gather(self, send: Callable[[str], None], timeout: float) -> list[Answer]:
        """Send a command that is to be answered, and gather the answers for ``timeout`` seconds.

        How many workers there are is not known, so there is nothing to wait for but the time.

        Args:
            send: sends it with the token it is given.
            timeout: seconds.
        """
        token = os.urandom(8).hex()
        answers = self._answers[token] = []
        try:
            send(token)
            self._clock.sleep(timeout)
            return list(answers)
        finally:
            del self._answers[token]

    def close(self) -> None:
        """Stop listening; the broker deletes the queues a minute later."""
        self._subscriber.close()

    def _declare(self, channel: Any) -> dict[str, bool]:
        declare_client_queues(channel, self._identity.token)
        # an outcome comes once: it must not be lost with a connection, as a chunk may be
        return {reply_queue(self._identity.token): True, chunk_queue(self._identity.token): False}

    def _on_message(self, body: bytes | str) -> None:
        for reply in decode_replies(body):
            if isinstance(reply, Answer):
                answers = self._answers.get(reply.token)
                if answers is not None:
                    answers.append(reply)
                continue
            handle = self._handles.get(reply.request_id)
            if handle is not None:
                handle.feed(reply)

    def __repr__(self) -> str:
        return f"ReplyDesk({self._identity.token}, {len(self._handles)} handles)"
