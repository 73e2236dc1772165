"""``remote-inference status`` and ``rebuild-session``: look at the workers, and tell them something."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from ..inference import Inference
from ..reasons import GateReason
from ..types import EngineMetrics
from .options import Settings, common_options
from .setup import Backend

__all__ = ["rebuild_session", "status"]

_timeout = click.option(
    "--timeout",
    type=click.FloatRange(0.1, 60.0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="For how long workers' answers are gathered.",
)


@contextmanager
def _reached(settings: Settings) -> Iterator[Inference]:
    backend = Backend(settings, settings.config(), embedded=False, concurrency=1)
    try:
        backend.start(())
        yield backend.inference
    finally:
        backend.close()


@click.command(short_help="Show the deployments' figures, and the workers.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@_timeout
@common_options
def status(settings: Settings, as_json: bool, timeout: float) -> int:
    """Show what waits, runs and has been done, by deployment, and what each worker says of itself.

    The figures are sums over the workers that answer, each since it was started.
    """
    with _reached(settings) as inference, ThreadPoolExecutor(2) as together:
        metrics_soon = together.submit(inference.status, timeout=timeout)
        workers_soon = together.submit(inference.workers, timeout=timeout)
        metrics, workers = metrics_soon.result(), workers_soon.result()
    if as_json:
        deployments = {name: dataclasses.asdict(part) for name, part in metrics.items()}
        click.echo(json.dumps({"deployments": deployments, "workers": workers}, indent=2))
        return 0
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(_deployments(metrics))
    if workers:
        console.print(_workers(workers))
    else:
        click.echo("no worker answers")
    return 0


def _deployments(metrics: Mapping[str, EngineMetrics]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("deployment", no_wrap=True)
    names = ("queued", "in_flight", "completed", "failed", "retried", "rejected", "cancelled")
    for name in (*names, "tokens in", "out", "cost"):
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for deployment, part in metrics.items():
        counts = [getattr(part, name) for name in names]
        table.add_row(
            deployment,
            *("-" if count is None else f"{count:,}" for count in counts),
            f"{part.prompt_tokens:,}",
            f"{part.completion_tokens:,}",
            f"${part.cost_usd:.2f}" if part.cost_usd else "-",
        )
    return table


def _workers(workers: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("worker", no_wrap=True)
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("in flight", justify="right", no_wrap=True)
    table.add_column("what it waits for")
    for name, value in sorted(workers.items()):
        running = sum(part.get("in_flight", 0) for part in value.get("metrics", {}).values())
        table.add_row(name, str(value.get("pid", "")), str(running), "\n".join(_hindrances(value)) or "-")
    return table


def _hindrances(value: Mapping[str, Any]) -> list[str]:
    lines = []
    for deployment, gate in value.get("gates", {}).items():
        left = max(0.0, gate.get("until", 0.0) - time.time())
        lines.append(f"{deployment}: {GateReason.from_wire(gate.get('reason'))}, {left:.0f} s more")
    for deployment, engine in value.get("engines", {}).items():
        if engine.get("circuit", "closed") != "closed":
            lines.append(f"{deployment}: circuit {str(engine['circuit']).replace('_', ' ')}")
    return lines


@click.command(short_help="Have all workers use a deployment's credential of now.")
@click.argument("name", metavar="NAME")
@_timeout
@common_options
def rebuild_session(settings: Settings, name: str, timeout: float) -> int:
    """Have all workers swap the session of deployment NAME for one with the credential of now.

    From its answer on, no process of a worker begins a request on the old session; what runs, finishes on it. The
    exit status is 1 if no worker answers, or one of them cannot.
    """
    with _reached(settings) as inference:
        answers = inference.rebuild_session(name, timeout=timeout)
    if not answers:
        raise click.ClickException("no worker answers")
    for worker, answer in sorted(answers.items()):
        said = answer.get("error") or answer.get("ok") if isinstance(answer, Mapping) else answer
        click.echo(f"{worker}: {said}")
    return int(any(isinstance(answer, Mapping) and "error" in answer for answer in answers.values()))
