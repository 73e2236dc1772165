"""The figures as tables and as JSON, and the goals they are held against."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.crowd import Crowd
from benchmarks.imports import Imports
from benchmarks.measure import ratio
from benchmarks.sides import ROOT
from benchmarks.streams import Figures, FirstToken

__all__ = ["Goal", "Report", "goals", "print_report", "write_report"]

OURS, BASELINE = "ours", "baseline"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One thing to reach: `value` at most (or at least) `bound`."""

    what: str
    value: float
    bound: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        """Whether it is; what could not be measured is not."""
        if math.isnan(self.value):
            return False
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(kw_only=True)
class Report:
    """Everything that was measured; what was not run is empty."""

    fast: Mapping[str, Figures] = field(default_factory=dict)
    paced: Mapping[str, Figures] = field(default_factory=dict)
    first_token: Mapping[str, FirstToken] = field(default_factory=dict)
    crowd: Mapping[str, Crowd] = field(default_factory=dict)
    submitting: Mapping[str, float] = field(default_factory=dict)
    imports: Imports | None = None


def goals(report: Report) -> list[Goal]:
    """The goals for which there are figures."""
    found: list[Goal] = []
    for name, figures, worker, caller in (
        ("fast", report.fast, 1 / 8, 1 / 3),
        ("paced", report.paced, 1 / 3, 3 / 4),
    ):
        if OURS in figures and BASELINE in figures:
            ours, baseline = figures[OURS], figures[BASELINE]
            value = ratio(ours.worker_cpu_ms, baseline.worker_cpu_ms)
            found.append(Goal(what=f"{name}: worker CPU, ours / baseline", value=value, bound=worker))
            value = ratio(ours.caller_cpu_ms, baseline.caller_cpu_ms)
            found.append(Goal(what=f"{name}: caller CPU, ours / baseline", value=value, bound=caller))
    for name, figures in (("fast", report.fast), ("paced", report.paced)):
        if OURS in figures:
            found.append(Goal(what=f"{name}: failed requests", value=figures[OURS].failed, bound=0))
    if OURS in report.first_token:
        first = report.first_token[OURS]
        found.append(Goal(what="added time to first token, p50, ms", value=first.added_p50_ms, bound=10))
        found.append(Goal(what="added time to first token, p99, ms", value=first.added_p99_ms, bound=40))
    if OURS in report.crowd:
        crowd = report.crowd[OURS]
        found.append(Goal(what="crowd: resident memory, MiB", value=crowd.worker_rss_mib, bound=400))
        found.append(Goal(what="crowd: latest token, s", value=crowd.worst_lateness, bound=1))
        found.append(Goal(what="crowd: failed streams", value=crowd.failed, bound=0))
        found.append(
            Goal(what="crowd: streams at once", value=crowd.together, bound=crowd.requests, at_least=True)
        )
    if OURS in report.submitting and BASELINE in report.submitting:
        value = ratio(report.submitting[OURS], report.submitting[BASELINE])
        found.append(
            Goal(what="submit_many / loop of apply_async with confirms", value=value, bound=5, at_least=True)
        )
    if report.imports is not None:
        found.append(Goal(what="import added to Celery's, ms", value=report.imports.added_ms, bound=60))
        count = len(report.imports.unwanted)
        found.append(Goal(what="modules loaded that submitting does not need", value=count, bound=0))
    return found


def _number(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}" if abs(value) < 10 else f"{value:,.1f}"


def _by_side(console: Console, title: str, sides: Mapping[str, Mapping[str, object]]) -> None:
    """A table with a row for each figure and a column for each side."""
    if not sides:
        return
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for name in sides:
        table.add_column(name, justify="right")
    for figure in next(iter(sides.values())):
        if figure != "errors":
            table.add_row(figure.replace("_", " "), *(_number(values[figure]) for values in sides.values()))
    console.print(table)
    for name, values in sides.items():
        errors = values.get("errors")
        if errors:
            console.print(f"{name}: {errors}", style="red", markup=False)


def print_report(report: Report, console: Console) -> None:
    """All tables, and the goals last."""
    tables: Sequence[tuple[str, Mapping[str, Any]]] = (
        ("Streams as fast as the server can", report.fast),
        ("Time to the first token at half of each side's maximum", report.first_token),
        ("Streams paced as a model's", report.paced),
        ("Many slow streams in one gevent worker, over TLS", report.crowd),
    )
    for title, sides in tables:
        _by_side(console, title, {name: figures.to_json() for name, figures in sides.items()})
    rates = {name: {"requests per second": rate} for name, rate in report.submitting.items()}
    _by_side(console, "Submitting, confirmed", rates)
    if report.imports is not None:
        _by_side(console, "Import time", {"": report.imports.to_json()})
    table = Table(title="Goals", title_justify="left", title_style="bold")
    for column in ("", "measured", "bound", ""):
        table.add_column(column, justify="left" if not column else "right")
    for goal in goals(report):
        bound = f"{'≥' if goal.at_least else '≤'} {_number(float(goal.bound))}"
        verdict = "[green]reached[/]" if goal.reached else "[red]missed[/]"
        table.add_row(goal.what, _number(float(goal.value)), bound, verdict)
    if table.row_count:
        console.print(table)


def write_report(report: Report, *, smoke: bool, folder: Path = ROOT / "benchmarks" / "out") -> Path:
    """Write the figures as JSON, under the time of day and as `latest.json`; returns the first one's path."""
    packages = ("celery", "kombu", "amqp", "openai", "redis", "requests", "gevent")
    document = {
        "smoke": smoke,
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": {
            "cpus": os.cpu_count(),
            "load": os.getloadavg(),
            "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in packages},
        },
        "fast": {name: figures.to_json() for name, figures in report.fast.items()},
        "first_token": {name: figures.to_json() for name, figures in report.first_token.items()},
        "paced": {name: figures.to_json() for name, figures in report.paced.items()},
        "crowd": {name: figures.to_json() for name, figures in report.crowd.items()},
        "submitting_per_second": dict(report.submitting),
        "imports": report.imports.to_json() if report.imports else None,
        "goals": [
            {"what": g.what, "value": g.value, "bound": g.bound, "at_least": g.at_least, "reached": g.reached}
            for g in goals(report)
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=2) + "\n"
    path = folder / time.strftime("%Y%m%d-%H%M%S.json")
    for target in (path, folder / "latest.json"):
        target.write_text(text)
    return path
