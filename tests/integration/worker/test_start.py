"""A worker starts, whatever order Celery's boot steps come in, and an operator's tools find it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery

from remote_inference import Inference
from remote_inference.worker.embedded import EmbeddedWorker

ROOT = Path(__file__).parents[3]
CONFIG = {"deployment": [{"name": "echo", "provider": "loopback", "options": {"echo": True}}]}

SHOP = f"""
from celery import Celery
from remote_inference import Inference
app = Celery("shop", broker="embedded://start")
inference = Inference(app, config={CONFIG!r})
"""

PROGRAM = (
    SHOP
    + """
from remote_inference.worker.embedded import EmbeddedWorker
with EmbeddedWorker(app, concurrency=2, queues=["inference.echo"]):
    print(inference.submit("echo", "hello").result(timeout=30).text)
inference.close()
"""
)


def run(*arguments: str, directory: Path, seed: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{directory}", "PYTHONHASHSEED": str(seed)}
    environment.pop("CELERY_BROKER_URL", None)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("seed", range(1, 6))  # Celery keeps steps in sets: their order is that of the hashes
def test_a_worker_starts_on_a_broker_that_has_nothing_yet_in_every_order_of_the_steps(
    seed: int, tmp_path: Path
) -> None:
    done = run("-c", PROGRAM, directory=tmp_path, seed=seed)

    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr[-2000:]


@pytest.mark.parametrize(
    ("kind", "command"), [("control", ("rebuild_session", "echo")), ("inspect", ("inference_status",))]
)
def test_celerys_command_line_knows_our_control_commands(
    kind: str, command: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)

    done = run("-m", "celery", "-A", "shop", kind, *command, directory=tmp_path)

    assert "not recognized" not in done.stderr
    assert "No nodes replied" in done.stderr


def test_a_worker_of_an_inference_queue_also_consumes_the_control_queue() -> None:
    app = Celery("shop", broker="embedded://start-control", backend="cache+memory://")
    inference = Inference(app, config=CONFIG)

    with EmbeddedWorker(app, concurrency=2, queues=["inference.echo"]) as worker:
        assert "inference.control" in worker.controller.app.amqp.queues.consume_from
        rebuilt = app.tasks["remote_inference.rebuild_session"].apply_async(("echo",), ignore_result=False)
        assert worker.hostname in rebuilt.get(timeout=30)

    inference.close()
