"""The outcomes as tables and as JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.cluster.outcome import COLD_START, Outcome, Window
from benchmarks.report import Goal
from benchmarks.sides import ROOT

__all__ = ["print_table", "write_figures"]


def _refused(window: Window | None) -> str:
    if window is None:
        return ""
    if not window.refused:
        return "0"
    return f"{window.refused} ({window.refused_share:.2%})"


def _used(outcome: Outcome, steady: Window) -> str:
    """The shares that are asked for; where none is, that of the whole time."""
    shares = [goal.value for goal in outcome.goals if goal.at_least] or [steady.share]
    return ", ".join(f"{share * 100:.1f} %" for share in shares)


def _percent(value: float) -> str:
    return f"{value * 100:.3g} %" if value else "0"


def _goal(goal: Goal, number: Callable[[float], str]) -> str:
    return f"{'≥' if goal.at_least else '≤'} {number(goal.bound)}"


def _figure(value: float) -> str:
    return f"{value:.4g}"


def _tables(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and rows: the shared limit, then costs and latencies."""
    limits: list[list[str]] = []
    others: list[list[str]] = []
    for outcome in outcomes:
        if outcome.steady is not None:
            goals = (_goal(goal, _percent) for goal in outcome.goals if goal.what != COLD_START)
            row = [outcome.title, _used(outcome, outcome.steady), _refused(outcome.first)]
            limits.append([*row, _refused(outcome.steady), ", ".join(goals), outcome.verdict])
            continue
        for goal in outcome.goals:
            verdict = "reached" if goal.reached else "missed"
            others.append([goal.what, _figure(goal.value), _goal(goal, _figure), verdict])
        if outcome.failed:
            others.append([outcome.title, "", "", outcome.verdict])
    columns = ["limit used", "refused, minute 1", "refused, minutes 2 and 3", "goal", ""]
    if limits:
        yield "One limit for all workers", ["case", *columns], limits
    if others:
        yield "Costs and latencies", ["", "measured", "goal", ""], others


_STYLES = {"reached": "[green]reached[/]", "missed": "[red]missed[/]", "failed": "[red]failed[/]"}


def print_table(outcomes: Sequence[Outcome], console: Console) -> None:
    """The tables, and what kept a case from its end."""
    for title, columns, rows in _tables(outcomes):
        table = Table(title=title, title_justify="left", title_style="bold")
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row[:-1], _STYLES.get(row[-1], row[-1]))
        console.print(table)
    for outcome in outcomes:
        if outcome.failed:
            console.print(f"{outcome.name} failed: {outcome.failed}", style="red", highlight=False)


def _markdown(outcomes: Sequence[Outcome]) -> str:
    """The same tables, for the documentation."""
    lines: list[str] = []
    for title, columns, rows in _tables(outcomes):
        lines += [f"### {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def write_figures(
    outcomes: Sequence[Outcome], *, smoke: bool, folder: Path = ROOT / "benchmarks" / "out"
) -> Path:
    """Write all figures as JSON, and the tables beside it as Markdown; returns the JSON's path."""
    packages = ("celery", "kombu", "amqp", "redis")
    document = {
        "smoke": smoke,
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": {
            "cpus": os.cpu_count(),
            "load": os.getloadavg(),
            "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in packages},
        },
        "cases": {
            outcome.name: {
                **asdict(outcome),
                "goals": [{**asdict(goal), "reached": goal.reached} for goal in outcome.goals],
                "verdict": outcome.verdict,
            }
            for outcome in outcomes
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cluster.json"
    path.write_text(json.dumps(document, indent=2) + "\n")
    path.with_suffix(".md").write_text(_markdown(outcomes))
    return path
