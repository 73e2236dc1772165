"""The main process answers a command when its pool has carried it out, and opens a gate whose circuit is closed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from remote_inference import Inference
from remote_inference.messaging.wire import Command
from remote_inference.reasons import GateKind, GateReason
from remote_inference.worker.main import WorkerMain

CONFIG = {"deployment": [{"name": "a", "provider": "loopback"}, {"name": "b", "provider": "loopback"}]}


class FakeTimer:
    """Celery's timer, turned by the test."""

    def __init__(self) -> None:
        self.later: list[tuple[Any, tuple[Any, ...]]] = []
        self.repeated: list[Any] = []
        self.cancelled = 0

    def call_after(self, seconds: float, function: Any, arguments: tuple[Any, ...]) -> None:
        self.later.append((function, arguments))

    def call_repeatedly(self, seconds: float, function: Any) -> FakeTimer:
        self.repeated.append(function)
        return self

    def cancel(self) -> None:
        self.cancelled += 1

    def turn(self) -> None:
        later, self.later = self.later, []
        for function, arguments in later:
            function(*arguments)


class FakeGate:
    def __init__(self) -> None:
        self.shut: dict[str, GateReason] = {}
        self.opened: list[str] = []

    @property
    def any_closed(self) -> bool:
        return bool(self.shut)

    def status(self) -> dict[str, Any]:
        return {}

    def reasons(self) -> dict[str, GateReason]:
        return self.shut

    def open(self, queue: str) -> None:
        self.opened.append(queue)

    resume = open


class FakeConsumer:
    hostname = "celery@here"

    def __init__(self) -> None:
        self.timer = FakeTimer()


class FakeChildCommands:
    def __init__(self, children: int) -> None:
        self.children = children
        self.commands: list[dict[str, Any]] = []
        self.said: dict[int, dict[str, Any]] = {}

    def reports(self, number: int) -> dict[str, dict[str, Any]]:
        return self.said[number]

    def send_all(self, command: dict[str, Any]) -> int:
        self.commands.append(command)
        return self.children


class Main(WorkerMain):
    """One whose answers are kept."""

    consumer: FakeConsumer
    gate: FakeGate  # type: ignore[assignment]
    child_commands: FakeChildCommands  # type: ignore[assignment]

    def __init__(self, inference: Inference, *, prefork: bool) -> None:
        super().__init__(inference, inference.app)
        self.close()
        self.consumer, self.gate, self.child_commands = FakeConsumer(), FakeGate(), FakeChildCommands(3)
        self.prefork = prefork
        self.answers: list[dict[str, Any]] = []

    def _answer(self, command: Command, value: dict[str, Any]) -> None:
        self.answers.append(value)

    def command(self, kind: str, subject: str = "a", seconds: float = 0.0, token: str = "t1") -> None:
        self.on_bus(Command(kind=kind, subject=subject, seconds=seconds, reply_to="r", token=token).encode())


@pytest.fixture
def inference() -> Iterator[Inference]:
    made = Inference(Celery("main", broker="embedded://main", set_as_current=False), CONFIG)
    yield made
    made.close()


@pytest.fixture
def prefork(inference: Inference) -> Main:
    return Main(inference, prefork=True)


def test_it_answers_when_all_of_its_pool_have_forced_the_circuit(prefork: Main):
    prefork.command("open_circuit", seconds=60)
    [command] = prefork.child_commands.commands
    assert (command["kind"], command["seconds"]) == ("force_circuit", 60)
    for stripe in range(3):
        prefork.consumer.timer.turn()
        assert prefork.answers == []
        prefork.counters.obey(stripe, command["number"])
    prefork.consumer.timer.turn()
    assert prefork.answers == [{"ok": "circuit of a open for 60 s", "processes": 3}]
    assert prefork.consumer.timer.later == []


def test_it_answers_in_time_and_says_how_many_are_missing(prefork: Main, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("remote_inference.worker.main.OBEY_TIMEOUT", 0.0)
    prefork.command("close_circuit")
    prefork.counters.obey(0, prefork.child_commands.commands[0]["number"])
    prefork.consumer.timer.turn()
    assert prefork.answers == [{"ok": "circuit of a closed", "processes": 0, "missing": 3}]
    assert prefork.gate.opened == ["inference.a"]


def test_a_pool_of_threads_has_done_it_when_it_answers(inference: Inference):
    main = Main(inference, prefork=False)
    main.command("open_circuit", seconds=60)
    assert main.answers == [{"ok": "circuit of a open for 60 s", "processes": 1}]
    assert inference.runtime.engine("a").breaker.state == "open"


def test_what_cannot_be_done_is_answered_at_once(prefork: Main):
    prefork.command("open_circuit", "nobody", 60)
    prefork.command("open_circuit", "a", -1)
    assert [list(answer) for answer in prefork.answers] == [["error"], ["error"]]
    assert prefork.child_commands.commands == []


def test_the_pool_is_told_which_command_the_epoch_was_advanced_for(prefork: Main):
    prefork.command("rebuild", token="t7")
    assert prefork.answers == [{"ok": "session of a rebuilt", "rebuilds": 1}]
    assert prefork.child_commands.commands == [{"kind": "rebuild", "deployment": "a", "token": "t7"}]
    prefork.rebuild("a")  # by hand, on this worker alone
    assert len(prefork.child_commands.commands) == 1
    assert prefork.counters.rebuild_epoch("a") == 2


def test_it_opens_the_gate_of_a_circuit_that_was_closed_elsewhere_and_no_other(prefork: Main):
    prefork.look_at_circuits()
    prefork.counters.show_circuit("a", 1, 4e9)
    prefork.gate.shut = {
        "a": GateReason(GateKind.CIRCUIT, "forced"),
        "b": GateReason(GateKind.LIMIT, "requests"),
        "unknown": GateReason(GateKind.CIRCUIT, "open"),
    }
    prefork.look_at_circuits()
    assert prefork.gate.opened == []
    prefork.counters.show_circuit("a", 1, 0.0)
    prefork.look_at_circuits()
    assert prefork.gate.opened == ["inference.a"]


def test_it_looks_once_whatever_number_of_connections_there_were(prefork: Main):
    prefork.watch_circuits()
    prefork.watch_circuits()
    assert (len(prefork.consumer.timer.repeated), prefork.consumer.timer.cancelled) == (2, 1)


def test_its_pool_is_asked_for_the_limits_before_it_says_how_it_is(prefork: Main):
    prefork.command("status", "")
    [command] = prefork.child_commands.commands
    assert command == {"kind": "status", "number": 1}
    for stripe in range(3):
        prefork.consumer.timer.turn()
        assert prefork.answers == []
        prefork.counters.obey(stripe, 1)
    prefork.child_commands.said[1] = {"11": {"limits": {}, "cluster": {}}}
    prefork.consumer.timer.turn()
    [answer] = prefork.answers
    assert answer["processes"] == prefork.child_commands.said[1]
    assert "metrics" in answer


def test_a_pool_of_threads_says_at_once_what_the_limits_are(inference: Inference):
    main = Main(inference, prefork=False)
    main.command("status", "")
    [answer] = main.answers
    assert {"limits", "cluster"} < answer.keys()
    assert "processes" not in answer


def test_the_circuits_of_its_pool_are_in_its_status(prefork: Main):
    prefork.counters.show_circuit("a", 2, 4e9)
    assert prefork.status()["engines"] == {"a": {"circuit": "open"}, "b": {"circuit": "closed"}}
