"""Orders from the main process reach its children, and dead ones are no harm."""

from __future__ import annotations

import logging
import os
import queue
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_inference.worker.relay import Relay


@pytest.fixture
def relay() -> Iterator[Relay]:
    made = Relay()
    yield made
    made.close()


def test_an_order_reaches_the_child(relay):
    heard: queue.Queue[dict[str, Any]] = queue.Queue()
    relay.listen(heard.put)
    assert relay.send(os.getpid(), {"kind": "cancel", "id": "ü"})
    assert heard.get(timeout=10) == {"kind": "cancel", "id": "ü"}
    assert relay.send_all({"kind": "connection_lost", "connection": 3}) == 1
    assert heard.get(timeout=10) == {"kind": "connection_lost", "connection": 3}


def test_an_order_that_fails_does_not_make_the_child_deaf(relay, caplog):
    heard: queue.Queue[int] = queue.Queue()
    relay.listen(lambda order: heard.put(order["number"]))
    with caplog.at_level(logging.ERROR):
        relay.send(os.getpid(), {})
        relay.send(os.getpid(), {"number": 2})
        assert heard.get(timeout=10) == 2
    assert "could not be handled" in caplog.text


def test_a_child_that_is_no_more_is_told_from_one_that_heard(relay):
    assert not relay.send(999_999_999, {"kind": "cancel"})


def test_what_a_dead_child_left_is_cleared_away(relay):
    left = Path(relay._path(999_999_999))
    left.touch()
    assert relay.send_all({"kind": "connection_lost"}) == 0
    assert not left.exists()


def test_the_directory_is_this_users_alone_and_goes_with_the_owner():
    relay = Relay()
    directory = Path(relay._directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    relay.close()
    assert not directory.exists()
    relay.close()


def test_orders_after_the_end_are_no_harm():
    relay = Relay()
    relay.close()
    relay.send_all({"kind": "connection_lost"})
    assert not relay.send(os.getpid(), {})


def test_a_child_does_not_take_the_directory_with_it(relay):
    pid = os.fork()
    if pid == 0:
        relay.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert Path(relay._directory).is_dir()


def test_what_a_child_reports_is_there_for_who_asked_and_not_for_a_later_question(relay):
    relay.report(3, {"limits": {"k": "ü"}})
    pid = str(os.getpid())
    assert relay.reports(3) == relay.reports(2) == {pid: {"limits": {"k": "ü"}}}
    assert relay.send_all({"kind": "status"}) == 0, "a report is no child"
    assert relay.reports(4) == {}
    assert os.listdir(relay._reports) == [], "what nobody wants any more is cleared away"
    relay.report(4, {})
    relay.report(4, {"a": 1})
    assert relay.reports(4) == {pid: {"a": 1}}
    relay.close()
    assert relay.reports(4) == {}
