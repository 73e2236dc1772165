"""`InferenceHandle`: one submitted request, as its caller sees it.

Chunks are kept in order; of two epochs the newer wins (an epoch is one attempt on one delivery; a chunk of an epoch
never seen before voids the one before). A gap in the chunks ends what can be handed out before the outcome, which
brings the whole answer, and so the rest. Any number of loops, threads and tasks may read one handle.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from ..clock import Clock
from ..errors import Cancelled, DeadlineExceeded, InferenceError, StreamRestarted
from ..messaging.wire import Chunk, Outcome
from ..types import Completion, TokenChunk

if TYPE_CHECKING:
    import asyncio

__all__ = ["InferenceHandle"]

CANCEL_PATIENCE = 0.4
"""Seconds that a worker has to say how a cancelled request ended (with its usage) before we say it ourselves."""

DEADLINE_GRACE = 2.0
"""Seconds past its deadline after which a request that nobody answered for is given up."""


class _Cursor:
    """How far one loop has read."""

    __slots__ = ("generation", "index")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.index = 0


class InferenceHandle:
    """Iterate it (``for`` or ``async for``) for `TokenChunk`s, or wait for its `Completion`.

    Attributes:
        request_id: the request's id, which is the Celery task's id as well.
        deployment: the deployment that took it (a fallback's name, if it went there).
    """

    def __init__(
        self,
        request_id: str,
        deployment: str,
        *,
        clock: Clock,
        cancel: Callable[[str], None],
        deadline: float | None = None,
        announce_restarts: bool = False,
    ) -> None:
        self.request_id = request_id
        self.deployment = deployment
        self._clock = clock
        self._send_cancel = cancel
        self._announce = announce_restarts
        self._give_up_at = None if deadline is None else deadline + DEADLINE_GRACE
        self._cancel_at: float | None = None
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], None]] = []
        self._epoch = ""
        self._void: set[str] = set()
        self._generation = 0
        self._chunks: list[TokenChunk] = []
        self._expected = 0
        self._completion: Completion | None = None
        self._error: InferenceError | None = None

    # -- reading

    def __iter__(self) -> Iterator[TokenChunk]:
        """The chunks from the first one on, as they come.

        Raises:
            StreamRestarted: text that this loop has handed out is void; iterate again for the new one.
            InferenceError: what became of the request, if it did not complete.
        """
        cursor = _Cursor(self._generation)
        while True:
            with self._changed:
                chunk = self._step(cursor)
                while chunk is _WAIT:
                    self._changed.wait(self._patience(None))
                    chunk = self._step(cursor)
            if chunk is None:
                return
            yield chunk

    async def __aiter__(self) -> AsyncIterator[TokenChunk]:
        """As ``for``, in asyncio."""
        cursor = _Cursor(self._generation)
        while True:
            with self._changed:
                chunk = self._step(cursor)
                waiter = self._waiter() if chunk is _WAIT else None
            if waiter is not None:
                await self._async_wait(waiter, None)
            elif chunk is None:
                return
            else:
                yield chunk

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the whole answer.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutError: it did not end in time (the request goes on).
            InferenceError: what became of the request, if it did not complete.
        """
        end = None if timeout is None else self._clock.monotonic() + timeout
        with self._changed:
            while not self._ended():
                left = None if end is None else end - self._clock.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"request {self.request_id} did not end within {timeout:g} s")
                self._changed.wait(self._patience(left))
        return self._answer()

    async def aresult(self, timeout: float | None = None) -> Completion:
        """As `result`, in asyncio."""
        end = None if timeout is None else self._clock.monotonic() + timeout
        while True:
            with self._changed:
                if self._ended():
                    return self._answer()
                waiter = self._waiter()
            left = None if end is None else end - self._clock.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"request {self.request_id} did not end within {timeout:g} s")
            await self._async_wait(waiter, left)

    def __await__(self) -> Generator[Any, None, Completion]:
        return self.aresult().__await__()

    @property
    def text(self) -> str:
        """The whole text; waits for it, raises as `result` does."""
        return self.result().text

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        with self._changed:
            return self._ended()

    # -- acting

    def cancel(self) -> None:
        """Cancel it, wherever it is. Whoever waits gets `Cancelled` (with the usage, if it was running)."""
        with self._changed:
            if self._ended() or self._cancel_at is not None:
                return
            self._cancel_at = self._clock.monotonic() + CANCEL_PATIENCE
            self._notify()
        self._send_cancel(self.request_id)

    # -- fed by the reply desk

    def feed(self, reply: Chunk | Outcome) -> None:
        """Take a reply (the reply desk's call)."""
        with self._changed:
            if self._completion is not None or self._error is not None:
                return
            if isinstance(reply, Chunk):
                self._take_chunk(reply)
            elif reply.notice:
                if self._cancel_at is None:  # revoked by an operator: as if we had cancelled
                    self._cancel_at = self._clock.monotonic() + CANCEL_PATIENCE
                    self._notify()
            else:
                self._take_outcome(reply)

    def fail(self, error: InferenceError) -> None:
        """It ended before it was sent."""
        with self._changed:
            if self._completion is None and self._error is None:
                self._error = error
                self._notify()

    def _take_chunk(self, reply: Chunk) -> None:
        if reply.epoch != self._epoch:
            if reply.epoch in self._void:
                return
            self._begin(reply.epoch)
        if reply.sequence != self._expected:
            return  # a gap: the outcome brings the rest
        self._expected += 1
        self._chunks.append(reply.chunk)
        self._notify()

    def _take_outcome(self, reply: Outcome) -> None:
        if reply.completion is not None:
            if reply.epoch != self._epoch:
                self._begin(reply.epoch)
            rest = reply.completion.remainder(self._chunks)
            self._chunks.append(rest)
            self._completion = reply.completion
        else:
            self._error = reply.error or InferenceError()
        self._notify()

    def _begin(self, epoch: str) -> None:
        if self._epoch:
            self._void.add(self._epoch)
        if self._chunks:
            self._generation += 1
            self._chunks = []
        self._epoch, self._expected = epoch, 0

    # -- under the lock

    def _step(self, cursor: _Cursor) -> TokenChunk | None:
        """The next chunk; None at the end; `_WAIT` when there is nothing yet."""
        if cursor.generation != self._generation:
            seen, cursor.generation, cursor.index = cursor.index, self._generation, 0
            if seen:
                if not self._announce:
                    raise StreamRestarted(self.request_id, self._epoch)
                return TokenChunk(restarted=True, request_id=self.request_id, epoch=self._epoch)
        if cursor.index < len(self._chunks):
            chunk = self._chunks[cursor.index]
            cursor.index += 1
            return chunk
        if not self._ended():
            return _WAIT
        if self._error is not None:
            raise self._error
        return None

    def _ended(self) -> bool:
        if self._completion is not None or self._error is not None:
            return True
        if self._cancel_at is not None and self._clock.monotonic() >= self._cancel_at:
            self._error = Cancelled("caller", self.deployment, self.request_id)
            self._notify()
            return True
        if self._give_up_at is not None and self._clock.time() >= self._give_up_at:
            self._error = DeadlineExceeded("waiting", self.deployment, self.request_id)
            self._notify()
            self._send_cancel(self.request_id)  # puts into an inbox: no I/O under the lock
            return True
        return False

    def _answer(self) -> Completion:
        if self._completion is None:
            assert self._error is not None
            raise self._error
        return self._completion

    def _patience(self, left: float | None) -> float | None:
        """How long to wait for a change: a cancel and a deadline end the wait without one."""
        limits = [] if left is None else [left]
        if self._cancel_at is not None:
            limits.append(self._cancel_at - self._clock.monotonic())
        if self._give_up_at is not None:
            limits.append(self._give_up_at - self._clock.time())
        return max(0.0, min(limits)) if limits else None

    def _notify(self) -> None:
        self._changed.notify_all()
        if self._wakers:
            wakers, self._wakers = self._wakers, []
            for wake in wakers:
                wake()

    def _waiter(self) -> asyncio.Future[None]:
        import asyncio  # 10 ms of import that a web process without it does not need

        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(_set, future)
            except RuntimeError:  # the loop was closed meanwhile: nobody waits there
                pass

        self._wakers.append(wake)
        return future

    async def _async_wait(self, waiter: asyncio.Future[None], left: float | None) -> None:
        import asyncio

        try:
            await asyncio.wait_for(waiter, self._patience(left))
        except asyncio.TimeoutError:
            pass

    def __repr__(self) -> str:
        state = "completed" if self._completion else type(self._error).__name__ if self._error else "waiting"
        return f"InferenceHandle({self.request_id}, {self.deployment}, {state}, {len(self._chunks)} chunks)"


_WAIT: TokenChunk = TokenChunk()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
