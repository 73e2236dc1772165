"""A plain Celery app, to see that the nodes themselves work: broker and backend come from the environment."""

from __future__ import annotations

import os
import time
from pathlib import Path

from celery import Celery

app = Celery("echo")
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True)


@app.task(name="echo.echo")
def echo(value: str) -> str:
    return value


@app.task(name="echo.hold")
def hold(directory: str) -> int:
    """Leave a file named after this process in `directory`, wait for a file `go` there, return our id."""
    (Path(directory) / str(os.getpid())).touch()
    while not (Path(directory) / "go").exists():
        time.sleep(0.02)
    return os.getpid()
