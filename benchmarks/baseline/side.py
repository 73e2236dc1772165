"""Side (b)'s worker process: Celery as its documentation starts it."""

from __future__ import annotations

import sys

import amqp
from kombu import Connection

from benchmarks.sides import ProcessSide

__all__ = ["Baseline"]


class Baseline(ProcessSide):
    """A Celery worker and a caller with redis-py."""

    name = "baseline"
    caller = "benchmarks.baseline.caller:make"

    def worker_command(self) -> list[str]:
        """The worker. Quiet, because a log line a task would be charged to this side alone."""
        setting = self.setting
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.baseline.app", "worker"]
        command += [
            "-P",
            setting.pool,
            "-c",
            str(setting.slots),
            "--loglevel",
            "WARNING",
            "-n",
            f"{self.name}-{setting.run}@%h",
        ]
        if setting.pool == "gevent":
            # With Celery's default options a gevent worker starts some ten tasks a second.
            command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        return command

    def cleanup(self) -> None:
        """Delete the queue."""
        with Connection(self.setting.broker) as connection:
            try:
                connection.default_channel.queue_delete(f"benchmark-baseline-{self.setting.run}")
            except amqp.exceptions.NotFound:
                pass
