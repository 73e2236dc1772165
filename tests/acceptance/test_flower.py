"""The real Flower beside a real worker: what happens shows, and no prompt, answer or key does."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection
from local_nodes import ACCEPTANCE, REPOSITORY
from local_process import LocalProcess, free_port, wait_until
from market import APP, QUICK, Market, open_market

from remote_inference import BadRequest, Cancelled, RequestError
from remote_inference.testing.behaviours import Reply, Status
from remote_inference.testing.faults import Cut
from remote_inference.testing.wire import error_body

POOLS = ["threads", "prefork"]
LIMIT = 60.0
PROMPT, ANSWER, KEY = "MARKED-PROMPT-7c1d", "MARKED-ANSWER-03be", "sk-MARKED-KEY-d21f"
MARKS = (PROMPT, ANSWER, KEY)
PAGES = [
    "/",
    "/workers",
    "/tasks",
    "/broker",
    "/api/tasks",
    "/api/workers?refresh=1",
    "/api/queues/length",
    "/metrics",
]


class Flower:
    """A running Flower: what its pages and its API say."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> str:
        """A page, or why there is none."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=20) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as exc:
            return exc.read().decode()

    def json(self, path: str) -> Any:
        """What the API says; None if it does not know."""
        try:
            return json.loads(self.get(path))
        except ValueError:
            return None

    def task(self, task_id: str) -> dict[str, Any]:
        """What it knows of a task; nothing, perhaps."""
        return self.json(f"/api/task/info/{task_id}") or {}

    def wait_for_state(self, task_id: str, state: str) -> dict[str, Any]:
        """The task, as soon as it is in that state."""
        wait_until(lambda: self.task(task_id).get("state") == state, f"{task_id} to be {state}", LIMIT)
        return self.task(task_id)


@contextlib.contextmanager
def running_flower(market: Market, redis_url: str, directory: Path) -> Iterator[Flower]:
    """Flower for a market's workers."""
    port = free_port()
    command = ["-m", "celery", "-A", APP, "flower", f"--port={port}", "--address=127.0.0.1"]
    process = LocalProcess(
        "flower",
        [sys.executable, *command],
        directory,
        cwd=ACCEPTANCE,
        environment={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY),
            "CELERY_BROKER_URL": market.broker_url,
            "CELERY_RESULT_BACKEND": redis_url,
            "FLOWER_UNAUTHENTICATED_API": "1",
            **market.environment,
        },
    )
    process.start()
    flower = Flower(f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: _answers(flower), "Flower to answer", LIMIT)
        yield flower
    finally:
        process.remove()


def _answers(flower: Flower) -> bool:
    try:
        return bool(flower.get("/healthcheck"))
    except OSError:
        return False


def unreadable_messages(market: Market) -> None:
    """Messages with the marked prompt that a worker cannot take."""
    headers = {"task": "remote_inference.infer", "id": "unreadable", "lang": "py"}
    kwargs = {"deployment": "a", "messages": [{"role": "user", "content": PROMPT}]}
    bodies = [
        (f'{{"{PROMPT}": '.encode(), "application/json", {}),
        (json.dumps([[], {**kwargs, "version": 99}, {}]).encode(), "application/json", {}),
        (json.dumps([[], {**kwargs, "role": PROMPT}, {}]).encode(), "application/json", {}),
        (PROMPT.encode(), "application/x-foreign", {}),
        (json.dumps({"not": PROMPT}).encode(), "application/json", {"task": None}),
    ]
    with Connection(market.broker_url) as connection:
        producer = connection.Producer()
        for number, (body, content_type, other) in enumerate(bodies):
            own = {**headers, "id": f"unreadable-{number}", **other}
            producer.publish(
                body,
                routing_key="inference.a",
                content_type=content_type,
                content_encoding="utf-8",
                headers={name: value for name, value in own.items() if value is not None},
                correlation_id=f"unreadable-{number}",
            )


@pytest.mark.parametrize("pool", POOLS)
def test_flower_shows_what_happens_and_no_prompt_answer_or_key(
    start_workers, fresh_broker_url: str, redis_url: str, tmp_path: Path, pool: str
):
    deployment = {"name": "a", "api_key": {"from_env": "MARKED_KEY"}, "retry": {"initial_backoff": 0.05}}
    with (
        open_market(fresh_broker_url, deployment, result_backend=redis_url) as market,
        contextlib.ExitStack() as stack,
    ):
        market.server.default = Reply(ANSWER)
        market.server.keys = {KEY}
        flower = stack.enter_context(running_flower(market, redis_url, tmp_path))
        env = market.environment | {"MARKED_KEY": KEY}
        args = ("-Q", market.queues, QUICK, "-c", "2", "-E", "-l", "DEBUG")
        [node] = start_workers(1, *args, app=APP, env=env, pool=pool)
        wait_until(
            lambda: node.hostname() in (flower.json("/api/workers?status=1") or {}),
            "Flower to see the worker",
            LIMIT,
        )
        history = drive(market)
        shown = {name: flower.wait_for_state(task_id, STATES[name]) for name, task_id in history.items()}

        for task in shown.values():
            assert task["name"] == "remote_inference.infer"
            assert task["args"] == "()"
            assert task["kwargs"].startswith("a · 1 message · ~"), task["kwargs"]
        assert shown["completed"]["runtime"] > 0
        assert shown["retried"]["retried"] is not None
        assert shown["retried"]["retries"] in (0, None)  # Celery's own figure: it delivered the task once
        assert "tokens" in shown["with result"]["result"]
        assert "BadRequest" in shown["failed"]["exception"]

        seen = {path: flower.get(path) for path in [*PAGES, f"/worker/{urllib.parse.quote(node.hostname())}"]}
        for task_id in history.values():
            for path in (f"/task/{task_id}", f"/api/task/info/{task_id}"):
                seen[path] = flower.get(path)
                assert task_id in seen[path], path
        inspected = market.app.control.inspect(timeout=5)
        seen["active"] = json.dumps(inspected.active(), ensure_ascii=False)
        seen["reserved"] = json.dumps(inspected.reserved(), ensure_ascii=False)
        seen["query_task"] = json.dumps(inspected.query_task(list(history.values())), ensure_ascii=False)
        seen["worker's log"] = node.log
        assert history["running"] in seen["active"]
        assert "a · 1 message" in seen["active"]
        for where, text in seen.items():
            for mark in MARKS:
                assert mark not in text, f"{mark} in {where}: …{text[max(0, text.index(mark) - 300) :][:600]}"


STATES = {
    "completed": "SUCCESS",
    "with result": "SUCCESS",
    "retried": "SUCCESS",
    "failed": "FAILURE",
    "refused": "FAILURE",
    "revoked": "REVOKED",
    "running": "STARTED",
}


def drive(market: Market) -> dict[str, str]:
    """Have one request of each fate; gives their ids. One of them still runs."""
    inference, server = market.inference, market.server
    ids = {}

    unreadable_messages(market)

    completed = inference.submit("a", PROMPT)
    assert completed.result(LIMIT).text == ANSWER
    ids["completed"] = completed.request_id

    kwargs = {"deployment": "a", "messages": PROMPT}
    result = inference.infer.apply_async(kwargs=kwargs, ignore_result=False)
    assert result.get(timeout=LIMIT)
    ids["with result"] = result.id

    server.script(Cut(after=1, reply=Reply(ANSWER)), Status(503, error_body(f"{PROMPT} {KEY}", type="e")))
    retried = inference.submit("a", PROMPT)
    assert retried.result(LIMIT).attempts == 3
    ids["retried"] = retried.request_id

    server.script(Status(400, error_body(f"no good: {PROMPT}, {KEY}", type="e")))
    failed = inference.submit("a", PROMPT)
    with pytest.raises(BadRequest):
        failed.result(LIMIT)
    ids["failed"] = failed.request_id

    server.script(Status(403, error_body(f"not you, {KEY}: {PROMPT}", type="e")))
    refused = inference.infer.apply_async(kwargs=kwargs, ignore_result=False)
    with pytest.raises(RequestError):
        refused.get(timeout=LIMIT)
    ids["refused"] = refused.id

    server.script(*[Reply(f"{ANSWER} " * 10_000, token_delay=0.05)] * 2)
    revoked = inference.submit("a", PROMPT)
    next(iter(revoked))
    market.app.control.revoke(revoked.request_id, terminate=True)
    with pytest.raises(Cancelled):
        revoked.result(LIMIT)
    ids["revoked"] = revoked.request_id

    running = inference.submit("a", PROMPT, on_disconnect="finish")
    next(iter(running))
    ids["running"] = running.request_id
    return ids
