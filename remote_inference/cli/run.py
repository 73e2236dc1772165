"""`BatchRun`: keeps a bounded number of a batch's requests under way, and writes each answer as it comes.

One thread reads lines and submits them, in order, and does all the waiting for room. An asyncio loop in the caller's
thread follows the answers, writes the output and moves the display. Nothing is kept of a line once its answer is
written.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import click

from ..client import InferenceHandle
from ..errors import Backpressure, Cancelled, InferenceError, InvalidRequest, RequestError, SubmitUncertain
from ..events import Event, GateClosed, GateOpened
from ..reasons import LimitReason
from ..types import TokenChunk
from .figures import Figures
from .lines import BadLine, DeploymentNeeded, Item, LineReader, error_record, result_record
from .results import Ledger, Results
from .setup import Backend
from .source import Source

__all__ = ["BatchRun", "Display", "Stream"]

TICK = 0.1
"""Seconds between two looks of the display."""

PREVIEW_CHARS = 4000
"""Of an answer that is under way, for the display: its end."""

COMPLAINTS = 20
"""Faults that are told one by one; the output has all of them."""


@dataclass
class Stream:
    """An answer under way."""

    item: Item
    tail: str = field(default="", repr=False)
    tokens: int = 0


class Display(Protocol):
    """What the user sees of a batch."""

    def note(self, text: str) -> None:
        """A line that stays."""

    def tick(self, run: BatchRun, *, last: bool = False) -> None:
        """Show how things are."""


class BatchRun:
    """One run over one input.

    Args:
        backend: where requests go; started with the first of them.
        reader, source, ledger, results: lines in, records out.
        figures: what is counted.
        display: what is shown.
        window: requests under way at a time.
        begin: starts the backend.
    """

    def __init__(
        self,
        *,
        backend: Backend,
        reader: LineReader,
        source: Source,
        ledger: Ledger,
        results: Results,
        figures: Figures,
        display: Display,
        window: int,
        begin: Callable[[], None],
    ) -> None:
        self.backend = backend
        self.figures = figures
        self.streams: dict[int, Stream] = {}
        self.last_stream: Stream | None = None
        self.gates: dict[str, GateClosed] = {}
        self.waiting = ""
        self.interrupted = False
        self.error: Exception | None = None
        self._reader = reader
        self._source = source
        self._ledger = ledger
        self._results = results
        self._display = display
        self._window = window
        self._begin = begin
        self._begun = False
        self._slots = threading.Semaphore(window)
        self._stopping = threading.Event()
        self._handles: dict[int, InferenceHandle] = {}
        self._followers: set[asyncio.Task[None]] = set()
        self._told = 0
        self._loop: asyncio.AbstractEventLoop
        self._fed: asyncio.Event

    def run(self) -> None:
        """Run to the end, or to Ctrl-C. Afterwards see `figures`, `interrupted` and `error`."""
        asyncio.run(self._main())

    def on_event(self, event: Event) -> None:
        """What happens in this process (a hook, called from any thread)."""
        if isinstance(event, GateClosed):
            self.gates[event.deployment] = event
            refused = event.reason.detail == LimitReason.CREDENTIAL_REFUSED
            if refused and not self._stopping.is_set():
                self._from_thread(self._stop, self._credential_refused(event.deployment))
        elif isinstance(event, GateOpened):
            self.gates.pop(event.deployment, None)

    @property
    def was_begun(self) -> bool:
        """Whether anything had to be asked."""
        return self._begun

    # -- the loop's thread

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._fed = asyncio.Event()
        signals = self._hear_signals()
        feeder = threading.Thread(target=self._feed, name="batch-feeder", daemon=True)
        feeder.start()
        try:
            while not (self._fed.is_set() and not self._followers):
                self._display.tick(self)
                if self.backend.has_ended and not self._stopping.is_set():
                    self._stop(click.ClickException("the embedded worker has ended"))
                if self._stopping.is_set() and not self._followers and not self._may_still_submit(feeder):
                    break
                await asyncio.sleep(TICK)
        finally:
            for number in signals:
                self._loop.remove_signal_handler(number)
            self._display.tick(self, last=True)

    def _may_still_submit(self, feeder: threading.Thread) -> bool:
        """A feeder that waits for a line of a pipe is left to itself; one that submits is waited for."""
        return feeder.is_alive() and not self._reading

    def _hear_signals(self) -> list[int]:
        heard: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._loop.add_signal_handler(number, self._on_signal, number)
                heard.append(number)
            except (ValueError, RuntimeError):  # not in the main thread: somebody else hears them
                break
        return heard

    def _on_signal(self, number: int) -> None:
        self.interrupted = True
        if self._stopping.is_set():  # the second one: at once
            self._loop.remove_signal_handler(number)
            signal.raise_signal(number)
            return
        self._display.note("stopping: cancelling what is under way")
        self._stop(None)

    def _stop(self, error: Exception | None) -> None:
        """Submit no more, and cancel what is under way. What has its answer by then keeps it."""
        if self._stopping.is_set():
            return
        self.error = error
        self._stopping.set()
        for handle in list(self._handles.values()):
            handle.cancel()

    def _credential_refused(self, name: str) -> Exception:
        deployment = self.backend.inference.config.deployments[name]
        label = deployment.api_key.label if deployment.api_key is not None else "none is configured"
        return click.ClickException(
            f"deployment {name}: the provider refuses the credential ({label}); "
            "what has no answer is asked again when the batch is run again"
        )

    def _follow(self, item: Item, handle: InferenceHandle) -> None:
        task = self._loop.create_task(self._answer(item, handle))
        self.figures.outstanding += 1
        self._handles[item.number] = handle
        self._followers.add(task)
        task.add_done_callback(self._followers.discard)
        if self._stopping.is_set():
            handle.cancel()

    async def _answer(self, item: Item, handle: InferenceHandle) -> None:
        """Follow one request to its record."""
        stream = Stream(item)
        try:
            async for chunk in handle:
                self._show(stream, chunk)
            completion = await handle.aresult()
        except InferenceError as error:
            self.figures.streamed(-stream.tokens)
            attempts = error.attempt if isinstance(error, RequestError) else 0
            if isinstance(error, Cancelled) and self._stopping.is_set():
                self.figures.outstanding -= 1
            else:
                self.figures.ended(item.priority, attempts)
                self._complain(item.number, str(error))
                self._write(error_record(item.number, item.line_id, error, openai=item.openai))
        else:
            self.figures.answered(completion, item.priority, stream.tokens)
            self._write(result_record(item, completion))
        finally:
            self._handles.pop(item.number, None)
            if self.streams.pop(item.number, None) is not None:
                self.last_stream = stream
            self._slots.release()

    def _show(self, stream: Stream, chunk: TokenChunk) -> None:
        if chunk.restarted:
            self.figures.streamed(-stream.tokens)
            stream.tail, stream.tokens = "", 0
            return
        text = chunk.reasoning_delta or chunk.text_delta or chunk.refusal_delta
        if not text:
            return
        if not stream.tokens:
            self.streams[stream.item.number] = stream
        tokens = max(1, len(text) // 4)
        stream.tokens += tokens
        stream.tail = (stream.tail + text)[-PREVIEW_CHARS:]
        self.figures.streamed(tokens)

    def _write(self, record: dict[str, Any]) -> None:
        try:
            self._results.append(record)
        except OSError as exc:  # a full disk: nothing that is asked now could be kept
            self._stop(exc)

    def _complain(self, number: int, reason: str) -> None:
        self._told += 1
        if self._told <= COMPLAINTS:
            self._display.note(f"{self._source.name}: line {number}: {reason}")
        elif self._told == COMPLAINTS + 1:
            self._display.note("more lines have faults; the output names all of them")

    def _bad(self, number: int, bad: BadLine) -> None:
        self.figures.bad += 1
        self._complain(number, bad.reason)
        line_id = None if bad.code == "duplicate_id" else bad.line_id
        self._write(error_record(number, line_id, bad, openai=bad.openai))
        self._slots.release()

    # -- the feeder's thread

    _reading = False

    def _from_thread(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop is closed: the run is over
            pass

    def _feed(self) -> None:
        try:
            self._feed_lines()
        except Exception as exc:  # whatever it is, the run ends with it
            self._from_thread(self._stop, exc)
        finally:
            self._from_thread(self._fed.set)

    def _feed_lines(self) -> None:
        gathered: list[Item] = []
        lines = iter(self._source)
        while not self._stopping.is_set():
            self._reading = True
            line = next(lines, None)
            self._reading = False
            if line is None:
                break
            found = self._understand(*line)
            if found is None:
                self.figures.already += 1
                continue
            if not self._slots.acquire(blocking=False):
                self._submit(gathered)
                gathered = []
                if not self._slot():
                    return
            if isinstance(found, BadLine):
                self._from_thread(self._bad, line[0], found)
                continue
            gathered.append(found)
            if not self._source.is_file or len(gathered) >= self._window:
                self._submit(gathered)
                gathered = []
        self._submit(gathered)

    def _slot(self) -> bool:
        while not self._slots.acquire(timeout=0.2):
            if self._stopping.is_set():
                return False
        return True

    def _understand(self, number: int, raw: bytes | BadLine) -> Item | BadLine | None:
        """What is to be done with a line; None if its result is there."""
        if isinstance(raw, BadLine):
            return raw
        try:
            item = self._reader.read(raw, number)
        except BadLine as bad:
            return bad
        except DeploymentNeeded as exc:
            raise click.UsageError(f"{self._source.name}: line {number}: {exc}") from exc
        is_done, earlier = self._ledger.meet(item.key, number)
        if earlier is not None:
            reason = f"{'custom_id' if item.openai else 'id'}: is that of line {earlier}"
            return BadLine(reason, item.line_id, openai=item.openai, code="duplicate_id")
        return None if is_done else item

    def _submit(self, items: Iterable[Item]) -> None:
        """Have them queued, first those that are more urgent; waits for room as long as it takes."""
        by_priority: dict[int, deque[Item]] = {}
        for item in items:
            by_priority.setdefault(int(item.priority), deque()).append(item)
        if not by_priority or self._stopping.is_set():
            return
        if not self._begun:
            self._begun = True
            self._begin()
        for priority in sorted(by_priority, reverse=True):
            left = list(by_priority[priority])
            while left and not self._stopping.is_set():
                left, pause = self._submit_some(left)
                self.waiting = pause.reason.replace("_", " ") if pause is not None else ""
                if left and pause is not None:
                    self._stopping.wait(pause.retry_after)

    def _submit_some(self, items: list[Item]) -> tuple[list[Item], Backpressure | None]:
        """Submit items of one priority; those that were not taken, and why."""
        submit_many = self.backend.inference.submit_many
        try:
            handles = submit_many(
                items[0].request.deployment,
                [item.request for item in items],
                priority=items[0].priority,
                on_restart="announce",
            )
        except Backpressure as refused:
            return items, refused
        except InvalidRequest as exc:
            if len(items) > 1:  # nothing was sent: one by one it shows which it is
                return self._submit_singly(items)
            reason = str(exc).removeprefix("requests[0].")
            bad = BadLine(reason, items[0].line_id, openai=items[0].openai)
            self._from_thread(self._bad, items[0].number, bad)
            return [], None
        left: list[Item] = []
        pause: Backpressure | None = None
        for item, handle in zip(items, handles, strict=True):
            refusal = _refusal(handle)
            if refusal is None:
                self._from_thread(self._follow, item, handle)
            else:
                left.append(item)
                pause = pause or refusal
        return left, pause

    def _submit_singly(self, items: list[Item]) -> tuple[list[Item], Backpressure | None]:
        left: list[Item] = []
        pause: Backpressure | None = None
        for item in items:
            if pause is None:
                rest, pause = self._submit_some([item])
                left += rest
            else:
                left.append(item)
        return left, pause


def _refusal(handle: InferenceHandle) -> Backpressure | None:
    """Why a request was not taken, or None. An uncertain one was cancelled: it is submitted anew."""
    if not handle.done:
        return None
    try:
        handle.result(0)
    except Backpressure as refused:
        return refused
    except SubmitUncertain as uncertain:
        return Backpressure(uncertain.deployment, "no_confirm", 0.5)
    except InferenceError:  # it was taken, and has ended already
        pass
    return None
