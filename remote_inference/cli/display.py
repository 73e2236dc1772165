"""What the user sees of a batch: a live bar with a stream beneath it, or plain lines where there is no terminal."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..types import Priority
from .figures import Figures, Part
from .run import BatchRun, Stream
from .terminal import clean

__all__ = ["LiveDisplay", "PlainDisplay", "summary_table"]

STREAM_LINES = 4
PLAIN_EVERY = 5.0
"""Seconds between two lines of progress where there is no terminal."""


class PlainDisplay:
    """A line every few seconds."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._next = clock() + PLAIN_EVERY
        self._shown = ""

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(Text(clean(text)), soft_wrap=True)

    def tick(self, run: BatchRun, *, last: bool = False) -> None:
        """Say how things are, if it is time."""
        now = self._clock()
        if not run.was_begun or (now < self._next and not last):
            return
        self._next = now + PLAIN_EVERY
        line = _in_words(run, now)
        if line != self._shown:
            self._shown = line
            self.note(line)


class LiveDisplay:
    """A bar, figures, and one answer as it comes."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._number = 0

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        """A line that stays, above the bar."""
        self._console.print(Text(clean(text), style="yellow"), soft_wrap=True)

    def tick(self, run: BatchRun, *, last: bool = False) -> None:
        """Draw anew."""
        if not run.was_begun:
            return
        parts: list[RenderableType] = [_bar(run.figures), _in_figures(run, self._clock())]
        hindrance = _hindrance(run)
        if hindrance and not last:
            parts.append(Text(hindrance, style="yellow"))
        stream = None if last else self._chosen(run)
        if stream is not None:
            parts.append(self._stream(stream))
        self._live.update(Group(*parts), refresh=True)

    def _chosen(self, run: BatchRun) -> Stream | None:
        """The answer that was shown before, to its end; then the one that began first."""
        stream = run.streams.get(self._number)
        if stream is None:
            stream = next(iter(run.streams.values()), None) or run.last_stream
        if stream is not None:
            self._number = stream.item.number
        return stream

    def _stream(self, stream: Stream) -> RenderableType:
        width = max(20, shutil.get_terminal_size().columns - 2)
        text = Text(clean(stream.tail).strip() or "…")
        lines = text.wrap(self._console, width)[-STREAM_LINES:]
        heading = Text(f"{stream.item.line_id} · {stream.item.priority.name.lower()}", style="bold")
        body = Text("\n").join(lines)
        body.stylize("dim")
        return Group(Text(""), heading, body)


def _bar(figures: Figures) -> RenderableType:
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    if figures.lines is None:
        bar = ProgressBar(total=None, pulse=True)
    else:
        bar = ProgressBar(total=max(1, figures.lines), completed=figures.done)
    grid.add_row(bar, Text(_share(figures), style="bold"))
    return grid


def _share(figures: Figures) -> str:
    if figures.lines is None:
        return f"{figures.done} done"
    share = 100 * figures.done // max(1, figures.lines)
    return f"{figures.done}/{figures.lines} done · {share} %"


def _in_figures(run: BatchRun, now: float) -> Text:
    failed = run.figures.failed + run.figures.bad
    text = Text()
    for index, part in enumerate(_parts(run, now)):
        text.append(" · " if index else "", style="dim")
        text.append(part, style="red" if failed and part.endswith("failed") else "")
    return text


def _in_words(run: BatchRun, now: float) -> str:
    hindrance = _hindrance(run)
    return ", ".join(
        [_share(run.figures).replace(" · ", ", "), *_parts(run, now), *([hindrance] if hindrance else [])]
    )


def _parts(run: BatchRun, now: float) -> list[str]:
    figures = run.figures
    running, retried = run.backend.running(), run.backend.retried()
    parts = [f"{figures.outstanding if running is None else running} in flight"]
    if running is not None:
        parts.append(f"{max(0, figures.outstanding - running)} queued")
    parts.append(f"{figures.retried if retried is None else retried} retried")
    parts.append(f"{figures.failed + figures.bad} failed")
    parts.append(f"{figures.tokens_per_second(now):.0f} tokens/s")
    left = figures.seconds_left(now)
    parts.append(f"ETA {'-:--' if left is None else _clock_time(left)}")
    return parts


def _hindrance(run: BatchRun) -> str:
    """Why it does not go on, where that is known."""
    for name, gate in list(run.gates.items()):
        left = gate.until - time.time()
        if left > 0:
            return f"{name} waits {left:.0f} s more: {gate.reason}"
    return f"waiting: {run.waiting}" if run.waiting else ""


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def summary_table(figures: Figures, width: int) -> Table:
    """The figures of a run that has ended: by priority where there are several, and of all.

    Args:
        figures: of the run.
        width: of the terminal; on a narrow one some columns are left out.
    """
    wide = width >= 100
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1) if wide else (0, 0), collapse_padding=True
    )
    table.add_column("priority", no_wrap=True)
    for heading in _headings(wide):
        table.add_column(heading, justify="right", no_wrap=True)
    parts = [(Priority(p).name.lower(), figures.parts[p]) for p in sorted(figures.parts, reverse=True)]
    if len(parts) > 1:
        for name, part in parts:
            table.add_row(name, *_cells(part, part.failed, wide))
        table.add_section()
    table.add_row("all", *_cells(figures.all, figures.all.failed + figures.bad, wide), style="bold")
    return table


def _headings(wide: bool) -> list[str]:
    queued = ["queued\np50"] if wide else []
    tokens = ["tokens\nin", "\nout"] if wide else ["tokens"]
    times = ["first\np50", "token\np95", "total\np50", "time\np95"]
    return ["count", "failed", *queued, *times, *tokens, "retries", "cost"]


def _cells(part: Part, failed: int, wide: bool) -> list[str]:
    durations = [*([part.queued.at(0.5)] if wide else [])]
    durations += [
        part.first_token.at(0.5),
        part.first_token.at(0.95),
        part.total.at(0.5),
        part.total.at(0.95),
    ]
    tokens = [part.prompt_tokens, part.completion_tokens]
    return [
        str(part.completed),
        str(failed),
        *(_duration(seconds) for seconds in durations),
        *(f"{count:,}" for count in (tokens if wide else [sum(tokens)])),
        str(part.retried),
        f"${part.cost_usd:.4f}" if part.priced else "-",
    ]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return "<1 ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    return (
        f"{seconds:.2f} s"
        if seconds < 9.995
        else f"{seconds:.1f} s"
        if seconds < 99.95
        else f"{seconds:.0f} s"
    )
