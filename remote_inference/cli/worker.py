"""``remote-inference worker``: Celery's own worker, with this configuration and its queues."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

import click

from ..config import InferenceConfig
from ..messaging.names import CONTROL_QUEUE
from .options import BROKER_VARIABLE, CONFIG_VARIABLE, Settings, common_options

__all__ = ["celery_arguments", "worker"]

POOL = "threads"


@click.command(
    short_help="Run a Celery worker for the deployments.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True},
)
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
@common_options
def worker(settings: Settings, celery_options: tuple[str, ...]) -> None:
    """Run a Celery worker that answers the requests of all deployments.

    CELERY_OPTIONS are those of `celery worker`: -c 32, -P gevent, -Q inference.local, -n one@%h, -l INFO …. Without -P
    the pool is threads; without -Q it consumes the queues of all deployments and inference.control.
    """
    arguments = celery_arguments(
        settings.config(), celery_options, level="DEBUG" if settings.debug else "INFO"
    )
    # a process of its own kind: gevent has to patch before anything else is imported
    os.execve(sys.executable, [sys.executable, "-m", "celery", *arguments], environment(settings, os.environ))


def celery_arguments(config: InferenceConfig, options: Sequence[str], level: str = "INFO") -> list[str]:
    """The arguments of Celery's program."""
    arguments = ["-A", "remote_inference.cli.worker_app:app", "worker", *options]
    if not _given(options, "-P", "--pool"):
        arguments += ["--pool", POOL]
    if not _given(options, "-Q", "--queues"):
        queues = [deployment.queue for deployment in config.deployments.values()]
        arguments += ["--queues", ",".join([*queues, CONTROL_QUEUE])]
    if not _given(options, "-l", "--loglevel"):
        arguments += ["--loglevel", level]
    return arguments


def environment(settings: Settings, inherited: Mapping[str, str]) -> dict[str, str]:
    """What the worker's app reads. The broker's password stays off the command line, where all users see it."""
    return {
        **inherited,
        CONFIG_VARIABLE: os.path.abspath(settings.config_path),
        BROKER_VARIABLE: settings.broker,
    }


def _given(options: Sequence[str], short: str, long: str) -> bool:
    return any(option == long or option.startswith((f"{long}=", short)) for option in options)
