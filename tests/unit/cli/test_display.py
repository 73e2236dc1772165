"""What a batch shows."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from remote_inference.cli.display import PLAIN_EVERY, LiveDisplay, PlainDisplay, summary_table
from remote_inference.cli.figures import Figures
from remote_inference.cli.lines import LineReader
from remote_inference.cli.run import Stream
from remote_inference.cli.terminal import clean
from remote_inference.types import Completion, Priority, Timings, TokenUsage


def run_with(figures: Figures, **more: Any) -> Any:
    backend = SimpleNamespace(running=lambda: 2, retried=lambda: 1)
    values = {"streams": {}, "last_stream": None, "gates": {}, "waiting": "", "was_begun": True, **more}
    return SimpleNamespace(figures=figures, backend=backend, **values)


def figures_of(count: int) -> Figures:
    figures = Figures(10, started=0.0)
    figures.outstanding = 5
    for index in range(count):
        completion = Completion(
            request_id="r",
            deployment="d",
            usage=TokenUsage(prompt_tokens=3, completion_tokens=4),
            cost_usd=0.01,
            timings=Timings(queued=0.1, first_token=0.2, total=1.5),
        )
        figures.answered(completion, Priority.HIGH if index % 2 else Priority.NORMAL, 0)
    return figures


def console(width: int = 120) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, force_terminal=False), out


def test_plain_progress_is_a_line_now_and_then_and_one_at_the_end():
    now = [0.0]
    shown, out = console()
    display = PlainDisplay(shown, clock=lambda: now[0])
    run = run_with(figures_of(4))
    display.tick(run)
    assert out.getvalue() == ""
    now[0] = PLAIN_EVERY + 1
    display.tick(run)
    line = out.getvalue()
    for part in ("4/10 done", "2 in flight", "1 retried", "0 failed", "tokens/s", "ETA 0:09"):
        assert part in line
    display.tick(run)
    assert out.getvalue() == line
    run.figures.outstanding = 1
    run.figures.ended(Priority.HIGH, 1)
    display.tick(run, last=True)
    assert "5/10 done" in out.getvalue()


def test_the_live_display_shows_the_answer_that_is_coming_without_commands_to_the_terminal():
    out = io.StringIO()
    shown = Console(file=out, width=100, force_terminal=True, color_system=None)
    item = LineReader(("d",)).read(b'{"id": "sky", "prompt": "the prompt", "priority": "high"}', 1)
    stream = Stream(item, tail="Because\x1b[2J of\nRayleigh", tokens=3)
    display = LiveDisplay(shown, clock=lambda: 3.0)
    with display:
        display.tick(run_with(figures_of(3), streams={1: stream}))
        display.note("in.jsonl: line 2: is not JSON")
    text = out.getvalue()
    for part in ("3/10 done", "sky · high", "Rayleigh", "in.jsonl: line 2: is not JSON"):
        assert part in text
    assert "\x1b[2J" not in text
    assert "the prompt" not in text


def test_text_for_a_terminal_has_no_control_characters():
    assert (
        clean("a\x1b[31m\tb\x07\n\u202e")
        == "a\N{REPLACEMENT CHARACTER}[31m b\N{REPLACEMENT CHARACTER}\n\N{REPLACEMENT CHARACTER}"
    )


def test_the_table_has_a_row_for_each_priority_and_one_for_all():
    shown, out = console()
    shown.print(summary_table(figures_of(4), 120))
    text = out.getvalue()
    rows = [line.split() for line in text.splitlines() if line.strip()]
    assert ["high", "2"] in [row[:2] for row in rows]
    assert ["normal", "2"] in [row[:2] for row in rows]
    [total] = [row for row in rows if row[0] == "all"]
    assert total[1:3] == ["4", "0"]
    assert total[-1] == "$0.0400"
    for heading in ("p50", "p95", "retries", "cost", "tokens", "first"):
        assert heading in text


def test_the_table_fits_a_narrow_terminal():
    shown, out = console(80)
    shown.print(summary_table(figures_of(4), 80))
    assert "…" not in out.getvalue()
    assert "$0.0400" in out.getvalue()
