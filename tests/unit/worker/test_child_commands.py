"""Commands from the main process reach its children, and dead ones are no harm."""

from __future__ import annotations

import logging
import os
import queue
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_inference.worker.child_commands import ChildCommands


@pytest.fixture
def commands() -> Iterator[ChildCommands]:
    made = ChildCommands()
    yield made
    made.close()


def test_a_command_reaches_the_child(commands):
    heard: queue.Queue[dict[str, Any]] = queue.Queue()
    commands.listen(heard.put)
    assert commands.send(os.getpid(), {"kind": "cancel", "id": "ü"})
    assert heard.get(timeout=10) == {"kind": "cancel", "id": "ü"}
    assert commands.send_all({"kind": "connection_lost", "connection": 3}) == 1
    assert heard.get(timeout=10) == {"kind": "connection_lost", "connection": 3}


def test_a_command_that_fails_does_not_make_the_child_deaf(commands, caplog):
    heard: queue.Queue[int] = queue.Queue()
    commands.listen(lambda command: heard.put(command["number"]))
    with caplog.at_level(logging.ERROR):
        commands.send(os.getpid(), {})
        commands.send(os.getpid(), {"number": 2})
        assert heard.get(timeout=10) == 2
    assert "could not be handled" in caplog.text


def test_a_child_that_is_no_more_is_told_from_one_that_heard(commands):
    assert not commands.send(999_999_999, {"kind": "cancel"})


def test_what_a_dead_child_left_is_cleared_away(commands):
    left = Path(commands._path(999_999_999))
    left.touch()
    assert commands.send_all({"kind": "connection_lost"}) == 0
    assert not left.exists()


def test_the_directory_is_this_users_alone_and_goes_with_the_owner():
    commands = ChildCommands()
    directory = Path(commands._directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    commands.close()
    assert not directory.exists()
    commands.close()


def test_commands_after_the_end_are_no_harm():
    commands = ChildCommands()
    commands.close()
    commands.send_all({"kind": "connection_lost"})
    assert not commands.send(os.getpid(), {})


def test_a_child_does_not_take_the_directory_with_it(commands):
    pid = os.fork()
    if pid == 0:
        commands.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert Path(commands._directory).is_dir()


def test_what_a_child_reports_is_there_for_who_asked_and_not_for_a_later_question(commands):
    commands.report(3, {"limits": {"k": "ü"}})
    pid = str(os.getpid())
    assert commands.reports(3) == commands.reports(2) == {pid: {"limits": {"k": "ü"}}}
    assert commands.send_all({"kind": "status"}) == 0, "a report is no child"
    assert commands.reports(4) == {}
    assert os.listdir(commands._reports) == [], "what nobody wants any more is cleared away"
    commands.report(4, {})
    commands.report(4, {"a": 1})
    assert commands.reports(4) == {pid: {"a": 1}}
    commands.close()
    assert commands.reports(4) == {}
