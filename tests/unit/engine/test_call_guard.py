"""Whoever runs the engine is asked before each call, told when it begins, and reserves nothing while it waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from remote_inference.errors import (
    Cancelled,
    LimitReached,
    NetworkError,
    RebuildFailed,
    ServerError,
    WorkerLost,
)
from remote_inference.reasons import LimitReason

from .conftest import Rig


class Guard:
    """Writes down what it is asked, with what was reserved then; answers as scripted, else with yes."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.asked: list[tuple[str, int]] = []
        self.entering: list[Callable[[], bool]] = []
        self.beginning: list[Callable[[], bool]] = []

    def enter(self, time_left: float | None) -> bool:
        self.time_left = time_left
        return self._answer("enter", self.entering)

    def begin(self) -> bool:
        return self._answer("begin", self.beginning)

    def leave(self) -> None:
        self._answer("leave", [])

    def _answer(self, question: str, answers: list[Callable[[], bool]]) -> bool:
        self.asked.append((question, self._rig.used["concurrent"] + self._rig.session.leased))
        return answers.pop(0)() if answers else True


@pytest.fixture
def guard(rig) -> Guard:
    rig.guard = Guard(rig)
    return rig.guard


def raising(error: Exception) -> Callable[[], bool]:
    def answer() -> bool:
        raise error

    return answer


def test_leave_is_asked_before_anything_is_reserved_and_the_call_begins_when_all_is(rig, guard):
    rig.run()
    assert guard.asked == [("enter", 0), ("begin", 2)]
    assert len(rig.provider.calls) == 1


def test_a_call_that_succeeds_is_not_left_for_its_answer_is_still_to_be_told(rig, guard):
    rig.run()
    assert "leave" not in dict(guard.asked)


def test_each_attempt_asks_anew_and_none_is_under_way_while_the_request_rests(rig, guard):
    resting: list[str] = []
    rig.clock.call_later(0.5, lambda: resting.append(guard.asked[-1][0]))
    rig.run((ServerError("x", status=500),))
    assert [question for question, _ in guard.asked] == ["enter", "begin", "leave", "enter", "begin"]
    assert resting == ["leave"]


def test_a_call_that_may_not_begin_yet_gives_all_back_and_asks_again(rig, guard):
    guard.beginning = [lambda: False]
    assert rig.run().attempts == 1
    assert guard.asked == [("enter", 0), ("begin", 2), ("enter", 0), ("begin", 2)]
    assert rig.used["requests"] == 1
    assert rig.event_names == ["AttemptStarted", "RequestFinished"]


def test_one_that_is_not_let_in_goes_elsewhere(rig, guard):
    guard.entering = [lambda: False]
    error = rig.failing(deadline=30)
    assert isinstance(error, LimitReached)
    assert error.code == LimitReason.PROCESS_RESERVED
    assert error.retry_at > rig.clock.time()
    assert guard.time_left == pytest.approx(30)
    assert rig.engine.metrics.snapshot().handed_back == 1
    assert rig.provider.calls == []


def test_one_that_was_cancelled_while_it_waited_is_cancelled(rig, guard):
    def cancelled() -> bool:
        rig.token.cancel("caller")
        return False

    guard.entering = [cancelled]
    assert isinstance(rig.failing(), Cancelled)


def test_one_that_was_cancelled_and_let_in_does_not_call(rig, guard):
    def cancelled() -> bool:
        rig.token.cancel("caller")
        return True

    guard.entering = [cancelled]
    assert isinstance(rig.failing(), Cancelled)
    assert rig.provider.calls == []


@pytest.mark.parametrize(
    "error", [WorkerLost("poison", deaths=4), LimitReached("x", retry_at=1.0)], ids=["poison", "not now"]
)
def test_what_keeps_a_call_from_beginning_is_raised_and_is_no_failed_attempt(rig, guard, error):
    guard.beginning = [raising(error)]
    assert rig.failing() is error
    assert error.deployment == "gpt"
    assert error.attempt == 0
    assert rig.provider.calls == []
    assert rig.event_names == ["RequestFinished"]
    assert rig.used["requests"] == 0


def test_without_a_credential_no_call_begins(rig, guard):
    rig.session.fails = [RebuildFailed("gpt", "no vault")]
    rig.failing()
    assert [question for question, _ in guard.asked] == ["enter", "leave"]


def test_a_call_that_found_no_connection_is_left_too(rig, guard):
    rig.failing(*[(NetworkError("refused"),)] * 4)
    questions = [question for question, _ in guard.asked]
    assert questions == ["enter", "begin", "leave"] * 4
