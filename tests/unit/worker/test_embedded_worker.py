"""The parts of the embedded worker that need no broker."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future

import pytest

from remote_inference.worker.embedded import PromptTimer, _log_lost_error


def test_the_timer_applies_its_entries_in_their_order() -> None:
    timer, applied, done = PromptTimer(), [], threading.Event()
    timer.call_after(0.02, lambda: (applied.append("second"), done.set()))
    timer.call_after(0.01, lambda: applied.append("first"))
    assert done.wait(5)
    assert applied == ["first", "second"]
    timer.stop()
    assert not timer.is_alive()


def test_a_nearer_entry_does_not_wait_for_a_farther_one() -> None:
    timer, done = PromptTimer(), threading.Event()
    timer.call_after(3600, lambda: None)
    timer.call_after(0, done.set)
    assert done.wait(1)
    timer.stop()


@pytest.mark.parametrize("delay", [None, 0, 3600])
def test_stopping_the_timer_waits_for_nothing(delay: float | None) -> None:
    timer = PromptTimer()
    if delay is not None:
        timer.call_after(delay, lambda: None)
    begun = time.monotonic()
    timer.stop()
    timer.stop()
    assert time.monotonic() - begun < 0.5
    assert not timer.is_alive()


def test_an_entry_that_fails_does_not_end_the_timer() -> None:
    errors: list[BaseException] = []
    timer, done = PromptTimer(on_error=errors.append), threading.Event()
    timer.call_after(0, lambda: 1 / 0)
    timer.call_after(0.01, done.set)
    assert done.wait(5)
    assert [type(error) for error in errors] == [ZeroDivisionError]
    timer.stop()


def test_an_error_that_nobody_reads_is_logged_and_a_cancelled_future_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed: Future[object] = Future()
    failed.set_exception(KeyError("unregistered"))
    cancelled: Future[object] = Future()
    cancelled.cancel()
    fine: Future[object] = Future()
    fine.set_result(None)
    with caplog.at_level(logging.ERROR):
        for future in (failed, cancelled, fine):
            _log_lost_error(future)
    assert [record.getMessage() for record in caplog.records] == [
        "a task's thread failed outside the task: KeyError"
    ]
