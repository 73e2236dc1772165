"""Keys are rotated under load, by all ways to say so, in every process of a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from local_nodes import ACCEPTANCE, REPOSITORY
from local_process import LocalProcess, wait_until
from market import APP, QUICK, Market, open_market

from remote_inference import InferenceHandle, Unauthorized, credentials_changed
from remote_inference.testing.behaviours import Reply

POOLS = ["threads", "gevent", "prefork"]
LIMIT = 60.0
OLD, NEW = "sk-old", "sk-new"
SLOW = Reply(tokens=2, first_byte_delay=0.1)  # so that all processes of a pool get some
DEPLOYMENT = {"name": "a", "retry": {"max_retries": 0}}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(OLD)
    return path


def rotate(key_file: Path, key: str = NEW) -> None:
    """Write another key as one should: whole or not at all."""
    fresh = key_file.with_suffix(".fresh")
    fresh.write_text(key)
    os.replace(fresh, key_file)


class Load:
    """Requests without a pause, from a thread of its own, until it is left."""

    def __init__(self, market: Market) -> None:
        self.handles: list[InferenceHandle] = []
        self._market = market
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join(LIMIT)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.handles += self._market.inference.submit_many("a", [f"load {len(self.handles)}"] * 5)
            self.handles[-3].result(LIMIT)

    def goes_on(self) -> None:
        """Wait until twenty more requests have been sent and answered."""
        goal = len(self.handles) + 20
        wait_until(lambda: len(self.handles) > goal, "more load", LIMIT)
        self.handles[goal].result(LIMIT)


def keys_of(market: Market, prompts: set[str]) -> set[str]:
    """The keys with which these prompts came."""
    return {r.key for r in market.server.requests if r.body["messages"][-1]["content"] in prompts}


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_rotation_under_load_fails_no_request(
    start_workers, fresh_broker_url: str, key_file: Path, pool: str
):
    with open_market(fresh_broker_url, {**DEPLOYMENT, "api_key": {"from_file": str(key_file)}}) as market:
        market.server.keys = {OLD}
        nodes = start_workers(
            2, "-Q", market.queues, QUICK, "-c", "3", app=APP, env=market.environment, pool=pool
        )
        with Load(market) as load:
            load.goes_on()
            market.server.keys = {OLD, NEW}
            rotate(key_file)

            answers = market.inference.rebuild_session("a", timeout=2.0)
            assert set(answers) == {node.hostname() for node in nodes}
            after = market.inference.submit_many("a", [f"after {number}" for number in range(60)])
            load.goes_on()
            for handle in after:
                handle.result(LIMIT)
            market.server.keys = {NEW}
            load.goes_on()

        assert all(handle.result(LIMIT).text for handle in load.handles)
        assert keys_of(market, {f"after {number}" for number in range(60)}) == {NEW}
        assert {request.status for request in market.server.requests} == {200}


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_key_that_is_refused_is_read_anew_and_fails_no_request(
    start_workers, fresh_broker_url: str, key_file: Path, pool: str
):
    with open_market(fresh_broker_url, {**DEPLOYMENT, "api_key": {"from_file": str(key_file)}}) as market:
        market.server.keys = {OLD, NEW}
        start_workers(1, "-Q", market.queues, QUICK, "-c", "4", app=APP, env=market.environment, pool=pool)
        with Load(market) as load:
            load.goes_on()
            rotate(key_file)
            market.server.keys = {NEW}
            load.goes_on()

        assert all(handle.result(LIMIT).text for handle in load.handles)
        assert 401 in {request.status for request in market.server.requests}
        assert market.server.requests[-1].key == NEW


def by_broadcast(market: Market, node_pid: int) -> None:
    [answer] = market.app.control.broadcast(
        "rebuild_session", {"deployment": "a"}, reply=True, timeout=5, limit=1
    )
    assert "ok" in next(iter(answer.values()))


def by_celery_control(market: Market, node_pid: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", APP, "control", "rebuild_session", "a"],
        env=environment(market),
        cwd=ACCEPTANCE,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    assert "session of a rebuilt" in done.stdout


def by_celery_signal(market: Market, node_pid: int) -> None:
    credentials_changed.send(sender=None, deployment="a")


def by_os_signal(market: Market, node_pid: int) -> None:
    os.kill(node_pid, signal.SIGUSR2)


def environment(market: Market) -> dict[str, str]:
    """Of a Celery command that is no worker."""
    own = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "CELERY_BROKER_URL": market.broker_url}
    return own | market.environment


def answered_with(market: Market, key: str) -> bool:
    """Whether requests are answered with that key in every process (there are twice as many as slots)."""
    prompts = [f"{time.monotonic()} {number}" for number in range(8)]
    for handle in market.inference.submit_many("a", prompts):
        handle.result(LIMIT)
    return keys_of(market, set(prompts)) == {key}


@pytest.mark.parametrize(
    ("pool", "order"),
    [(pool, order) for pool in POOLS for order in (by_broadcast, by_os_signal)]
    + [("threads", by_celery_control), ("prefork", by_celery_signal)],
)
def test_every_way_to_order_a_rebuild_reaches_every_process(
    start_workers, fresh_broker_url: str, key_file: Path, pool: str, order: Callable[[Market, int], None]
):
    with open_market(fresh_broker_url, {**DEPLOYMENT, "api_key": {"from_file": str(key_file)}}) as market:
        market.server.default = SLOW
        [node] = start_workers(
            1, "-Q", market.queues, QUICK, "-c", "4", app=APP, env=market.environment, pool=pool
        )
        assert answered_with(market, OLD)
        rotate(key_file)
        assert answered_with(market, OLD)

        order(market, node.pid)

        if order in (by_broadcast, by_celery_control):  # they return when it has been done
            assert answered_with(market, NEW)
        else:
            wait_until(lambda: answered_with(market, NEW), "the new key", LIMIT)


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_beat_rotates_by_a_schedule(
    start_workers, fresh_broker_url: str, key_file: Path, tmp_path: Path, pool: str
):
    schedule = {"rotate": {"task": "remote_inference.rebuild_session", "schedule": 1.0, "args": ["a"]}}
    deployment = {**DEPLOYMENT, "api_key": {"from_file": str(key_file)}}
    with open_market(fresh_broker_url, deployment, beat_schedule=schedule) as market:
        start_workers(1, "-Q", market.queues, QUICK, "-c", "2", app=APP, env=market.environment, pool=pool)
        assert answered_with(market, OLD)
        rotate(key_file)
        assert answered_with(market, OLD)
        command = ["-m", "celery", "-A", APP, "beat", "-s", str(tmp_path / "schedule"), "--max-interval", "1"]
        beat = LocalProcess(
            "beat", [sys.executable, *command], tmp_path, cwd=ACCEPTANCE, environment=environment(market)
        )
        beat.start()
        try:
            wait_until(lambda: answered_with(market, NEW), "the new key", LIMIT)
        finally:
            beat.remove()


@pytest.mark.parametrize("pool", POOLS)
def test_refused_keys_shut_the_gate_and_a_rebuild_opens_it(
    start_workers, fresh_broker_url: str, key_file: Path, pool: str
):
    with open_market(fresh_broker_url, {**DEPLOYMENT, "api_key": {"from_file": str(key_file)}}) as market:
        market.server.keys = {NEW}
        [node] = start_workers(
            1, "-Q", market.queues, QUICK, "-c", "1", app=APP, env=market.environment, pool=pool
        )
        handles = market.inference.submit_many("a", [f"prompt {number}" for number in range(10)])
        for handle in handles[:3]:
            with pytest.raises(Unauthorized):
                handle.result(LIMIT)
        node.wait_for_log("detail='credential_refused'")
        wait_until(
            lambda: any(w["gates"] for w in market.inference.workers(timeout=0.2).values()), "the gate", LIMIT
        )
        refused = market.server.count

        rotate(key_file)
        asked = time.monotonic()
        assert market.inference.rebuild_session("a")
        for handle in handles[3:]:
            assert handle.result(LIMIT).text
        assert time.monotonic() - asked < 20.0  # by itself it would have looked after 30 s
        assert market.server.count == refused + 7
