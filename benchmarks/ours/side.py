"""Side (a)'s worker process: Celery's own command, with its default options."""

from __future__ import annotations

import sys

import amqp
from kombu import Connection

from benchmarks.sides import ProcessSide

__all__ = ["Ours"]


class Ours(ProcessSide):
    """A Celery worker on one inference queue, and a caller with a handle a request."""

    name = "ours"
    caller = "benchmarks.ours.caller:make"

    def worker_command(self) -> list[str]:
        """The worker. Quiet, as the other side's."""
        setting = self.setting
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.ours.app", "worker"]
        command += ["-Q", f"inference.bench-{setting.run}"]
        return [
            *command,
            "-P",
            setting.pool,
            "-c",
            str(setting.slots),
            "--loglevel",
            "WARNING",
            "-n",
            f"{self.name}-{setting.run}@%h",
        ]

    def cleanup(self) -> None:
        """Delete the queue."""
        with Connection(self.setting.broker) as connection:
            try:
                connection.default_channel.queue_delete(f"inference.bench-{self.setting.run}")
            except amqp.exceptions.NotFound:
                pass
