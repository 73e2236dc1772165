"""Processes of two versions whose formats do not fit: they say so, refuse, and never double a limit.

The version before the ledger is taken from the repository's history, and runs beside this one on the same broker.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from local_process import wait_until
from market import APP, QUICK, Market, open_market
from services import missing_service

BEFORE = "b17513145a155990d10819ae4c5235ad89504c0f"
"""The last commit whose replicas hold all of a limit among themselves, and tell each other so in format 1."""
REPOSITORY = Path(__file__).parents[2]
LIMIT = 60.0
REFUSES = "speaks format 1 of the shared limits"


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That version's package."""
    directory = tmp_path_factory.mktemp("before")
    archive = subprocess.run(
        ["git", "-C", str(REPOSITORY), "archive", BEFORE, "remote_inference"], capture_output=True
    )
    if archive.returncode:
        missing_service("the repository's history")
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive.stdout, check=True)
    return directory


def spent(market: Market) -> int:
    return len(market.server.requests)


def test_beside_an_older_worker_a_newer_one_says_so_and_sends_nothing_until_it_has_ended(
    start_workers, fresh_broker_url: str, before: Path
):
    deployment = {"name": "a", "rate_limits": {"requests_per_minute": 600}}
    with open_market(fresh_broker_url, deployment) as market:
        options = ("-Q", market.queues, QUICK, "-c", "2")
        older = {**market.environment, "PYTHONPATH": str(before)}
        [old] = start_workers(1, *options, app=APP, env=older)
        for handle in market.inference.submit_many("a", ["old"] * 20):
            assert handle.result(LIMIT).text

        [new] = start_workers(1, *options, app=APP, env=market.environment)
        wait_until(lambda: REFUSES in new.logs(), "the newer worker says so", LIMIT)
        assert REFUSES not in old.logs()
        for handle in market.inference.submit_many("a", ["both"] * 40):
            assert handle.result(LIMIT).text  # the older one goes on
        assert "task-started" not in new.logs()
        assert "AttemptStarted" not in new.logs(), "the newer one has sent nothing"
        assert "AttemptStarted" in old.logs()

        old.kill()
        began = time.monotonic()
        assert market.inference.submit("a", "new").result(LIMIT).text
        assert time.monotonic() - began < 30.0, "a lease of the older one, and no more than a moment"
        assert "AttemptStarted" in new.logs()
