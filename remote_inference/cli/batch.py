"""``remote-inference batch``: a file of prompts, answered into another file."""

from __future__ import annotations

import logging
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import click
from rich.console import Console

from ..config import Deployment, InferenceConfig
from ..types import Priority
from .display import LiveDisplay, PlainDisplay, summary_table
from .figures import Figures
from .lines import LineReader
from .options import Settings, common_options, pick_deployment
from .results import Ledger, Results
from .run import BatchRun
from .setup import Backend
from .source import Source

__all__ = ["batch"]

INTERRUPTED = 130


@click.command(short_help="Answer a file of prompts into another file.")
@click.argument("prompts", metavar="IN.jsonl")
@click.option(
    "-o", "--output", required=True, metavar="OUT.jsonl", help="Where answers are appended as they come."
)
@click.option(
    "--deployment",
    metavar="NAME",
    help="For lines that name none; needed where the configuration has several.",
)
@click.option(
    "--priority",
    type=click.Choice([p.name.lower() for p in Priority], case_sensitive=False),
    default="normal",
    show_default=True,
    help="For lines that have none.",
)
@click.option("--embedded", is_flag=True, help="Run broker and worker in this process: no server is needed.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1000),
    default=8,
    show_default=True,
    metavar="N",
    help="Requests that the embedded worker runs at a time.",
)
@click.option(
    "--window",
    type=click.IntRange(1, 100_000),
    default=256,
    show_default=True,
    metavar="N",
    help="Requests submitted and not yet answered, at most; among these, priorities count.",
)
@click.option(
    "--resume/--no-resume",
    default=True,
    show_default=True,
    help="Go on from what OUT.jsonl has, or write over it.",
)
@common_options
def batch(
    settings: Settings,
    prompts: str,
    output: str,
    deployment: str | None,
    priority: str,
    embedded: bool,
    concurrency: int,
    window: int,
    resume: bool,
) -> int:
    """Answer each line of IN.jsonl (- for standard input) by a line of OUT.jsonl.

    A line is {"id", "prompt"}, with "messages" in place of the prompt, "priority", "deployment" and OpenAI's
    parameters as they are wanted; or a line of OpenAI's batch files, whose body's model may be the name of a
    deployment. Each is answered in its own shape, in the order in which answers come.

    Run it again to go on where it stopped, for whatever reason: what has its result is not asked again, what
    ended in an error is. A line that cannot be sent is reported with its number, and the others go on.

    The exit status is 0 if every line has its result, 1 if not, 130 after Ctrl-C.
    """
    config = settings.config()
    named = None if deployment is None else pick_deployment(config, deployment).name
    output_path = Path(output)
    with closing(Source(prompts)) as source:
        if source.is_same_file(output_path):
            raise click.UsageError("IN.jsonl and OUT.jsonl are the same file")
        with closing(Ledger()) as ledger, closing(Results(output_path, ledger, resume=resume)) as results:
            figures = Figures(source.count(), time.monotonic())
            backend = Backend(settings, config, embedded=embedded, concurrency=concurrency)
            reader = LineReader(tuple(config.deployments), named, Priority.parse(priority))
            console = Console(stderr=True, highlight=False)
            display: LiveDisplay | PlainDisplay
            display = LiveDisplay(console) if console.is_terminal else PlainDisplay(console)
            if not logging.getLogger().handlers:
                logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")

            def begin() -> None:
                backend.start(_certain(config, named))
                looker = threading.Thread(target=backend.without_workers, args=(display.note,), daemon=True)
                looker.start()
                figures.started = time.monotonic()

            run = BatchRun(
                backend=backend,
                reader=reader,
                source=source,
                ledger=ledger,
                results=results,
                figures=figures,
                display=display,
                window=_within(config, window),
                begin=begin,
            )
            backend.inference.hooks.add(run.on_event)
            try:
                with display:
                    run.run()
            finally:
                backend.close()
    return _report(run, output_path)


def _certain(config: InferenceConfig, named: str | None) -> list[Deployment]:
    """The deployments that requests go to, as far as that is known before the input is read."""
    if named is not None:
        return [config.deployments[named]]
    return list(config.deployments.values()) if len(config.deployments) == 1 else []


def _within(config: InferenceConfig, window: int) -> int:
    """No more than a queue takes of the lowest priority: our own requests are not to refuse each other."""
    least = min(deployment.queue_capacity for deployment in config.deployments.values())
    return max(1, min(window, least * 8 // 10))


def _report(run: BatchRun, output: Path) -> int:
    figures = run.figures
    answered = figures.already + figures.completed
    missing = figures.failed + figures.bad
    if run.was_begun and (figures.completed or missing):
        # the width of a pipe is not known: the table is not to be cut there
        stdout = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        stdout.print(summary_table(figures, stdout.width))
    if run.error is not None:
        raise run.error
    if run.interrupted:
        click.echo(f"stopped: {answered} lines have their result in {output}; run it again to go on")
        return INTERRUPTED
    if missing:
        click.echo(
            f"{answered} lines have their result in {output}, {missing} have an error; run it again to ask for these"
        )
        return 1
    if not run.was_begun:
        click.echo(f"all done: {answered} lines have their result in {output}, nothing was asked")
    else:
        click.echo(f"all done: {answered} lines have their result in {output}")
    return 0
