"""The worker's side of a token stream: gather what a model says into chunks, and tell the outcome for sure.

The first piece goes out at once, the rest at most every 25 ms. Pushing a piece is an append; merging, encoding and
writing are done in the publisher's thread for all streams together, and what goes to one client goes in one message.
A piece that is lost (the broker gone, the chunk queue full) is no harm: the outcome carries the whole answer, and the
reader repairs the gap from it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

from ..clock import Clock
from ..types import TokenChunk, ToolCallDelta
from .delivery import Delivery, DeliveryState
from .names import chunk_queue, reply_queue
from .publisher import Publisher
from .wire import Chunk, Outcome

__all__ = ["ChunkStream", "merged", "publish_outcome"]


class ChunkStream:
    """One request's stream to its caller, through all attempts of one delivery.

    Args:
        publisher: the process's.
        request_id: the request's id.
        client: the caller's digits.
        on_gone: called (in the I/O thread) when the caller's queue is gone for good.
    """

    def __init__(
        self,
        publisher: Publisher,
        request_id: str,
        client: str,
        on_gone: Callable[[], None] | None,
    ) -> None:
        self._publisher = publisher
        self._request_id = request_id
        self._queue = chunk_queue(client)
        self._lock = threading.Lock()
        self._pending: list[TokenChunk] = []
        self._scheduled = False
        self._sequence = 0
        self._unwatch = publisher.watch(self._queue, on_gone) if on_gone is not None else None
        self.epoch = ""

    def begin(self) -> None:
        """A new attempt: a new epoch; what was not sent of the last one never is."""
        with self._lock:
            self.epoch = os.urandom(6).hex()
            self._sequence = 0
            self._pending = []

    def push(self, chunk: TokenChunk) -> None:
        """Hand on a piece."""
        if not chunk.has_output:
            return
        with self._lock:
            self._pending.append(chunk)
            if self._scheduled:
                return
            self._scheduled = True
            at_once = self._sequence == 0
        self._publisher.schedule(self, at_once)

    def take(self) -> tuple[str, bytes] | None:
        """What has gathered, as one chunk, and where it goes (the publisher's call)."""
        with self._lock:
            self._scheduled = False
            pending, self._pending = self._pending, []
            if not pending:
                return None
            sequence, self._sequence = self._sequence, self._sequence + 1
            epoch = self.epoch
        return self._queue, Chunk(self._request_id, epoch, sequence, merged(pending)).encode()

    def close(self) -> None:
        """The outcome follows: it carries what is still here."""
        if self._unwatch is not None:
            self._unwatch()
        with self._lock:
            self._pending = []

    def __repr__(self) -> str:
        return f"ChunkStream({self._request_id}, epoch={self.epoch}, sequence={self._sequence})"


def merged(chunks: Sequence[TokenChunk]) -> TokenChunk:
    """The same output as one chunk."""
    if len(chunks) == 1:
        return chunks[0]
    calls: list[ToolCallDelta] = []
    for chunk in chunks:
        for delta in chunk.tool_calls:
            last = calls[-1] if calls else None
            if last is not None and last.index == delta.index:
                calls[-1] = ToolCallDelta(
                    index=last.index,
                    id=last.id or delta.id,
                    name=last.name or delta.name,
                    arguments=last.arguments + delta.arguments,
                )
            else:
                calls.append(delta)
    return TokenChunk(
        "".join([c.text_delta for c in chunks]),
        "".join([c.reasoning_delta for c in chunks]),
        "".join([c.refusal_delta for c in chunks]),
        tuple(calls),
    )


def publish_outcome(
    publisher: Publisher,
    client: str,
    outcome: Outcome,
    *,
    clock: Clock,
    timeout: float,
    keep_on: Callable[[], bool],
) -> bool:
    """Tell the caller how its request ended: persistent, mandatory and confirmed.

    Tried again (told twice is no harm) until it is confirmed, the caller's queue is gone, ``timeout`` is over or
    ``keep_on()`` says no.

    Returns:
        Whether the matter is settled: confirmed, or nobody there any more.
    """
    body = outcome.encode()
    end = clock.monotonic() + timeout
    while True:
        delivery = Delivery(
            reply_queue(client),
            body,
            {"correlation_id": outcome.request_id, "delivery_mode": 2},
            confirm=True,
        )
        publisher.publish(delivery)
        while not delivery.wait(min(1.0, max(0.0, end - clock.monotonic()))):
            if clock.monotonic() >= end or not keep_on():
                publisher.withdraw(delivery)
                return False
        if delivery.state in (DeliveryState.CONFIRMED, DeliveryState.UNROUTABLE):
            return True
        if clock.monotonic() >= end or not keep_on():
            return False
        clock.sleep(0.05)
