"""The virtual clock: time moves only as it should."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from remote_inference.clock import Clock
from remote_inference.testing.clock import VirtualClock


def test_both_times_move_together_when_somebody_sleeps() -> None:
    clock: Clock = VirtualClock(start=500.0)
    assert clock.time() == 500.0
    before = clock.monotonic()
    clock.sleep(2.5)
    assert (clock.time(), clock.monotonic() - before) == (502.5, 2.5)


def test_waiting_moves_to_the_timeout_unless_the_event_is_set() -> None:
    clock, event = VirtualClock(start=0.0), threading.Event()
    assert not clock.wait(event, 3.0)
    assert clock.time() == 3.0
    clock.call_later(1.0, event.set)
    assert clock.wait(event, 3.0)
    assert clock.time() == 4.0
    assert clock.wait(event, 3.0)
    assert clock.time() == 4.0


def test_a_wait_that_cannot_end_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="never end"):
        VirtualClock().wait(threading.Event(), None)


def test_callbacks_run_at_their_times_in_order() -> None:
    clock, seen = VirtualClock(start=100.0), list[tuple[str, float]]()
    for name, when in (("c", 107.0), ("a", 101.0), ("b", 101.0), ("late", 120.0)):
        clock.call_at(when, lambda name=name: seen.append((name, clock.time())))  # type: ignore[misc]
    clock.advance(10.0)
    assert seen == [("a", 101.0), ("b", 101.0), ("c", 107.0)]
    assert clock.time() == 110.0


def test_threads_run_in_lock_step() -> None:
    clock, event, seen = VirtualClock(start=0.0), threading.Event(), list[tuple[str, float]]()

    def sleeper(name: str, seconds: float) -> str:
        for _ in range(3):
            clock.sleep(seconds)
            seen.append((name, clock.time()))
        return name

    def waiter() -> bool:
        woken = clock.wait(event, 100.0)
        seen.append(("woken", clock.time()))
        return woken

    def setter() -> None:
        clock.sleep(2.5)
        event.set()

    assert clock.run(lambda: sleeper("a", 1.0), lambda: sleeper("b", 2.0), waiter, setter) == [
        "a",
        "b",
        True,
        None,
    ]
    assert seen == [("a", 1.0), ("b", 2.0), ("a", 2.0), ("woken", 2.5), ("a", 3.0), ("b", 4.0), ("b", 6.0)]


def test_lock_step_hands_on_what_a_thread_raises() -> None:
    def fails() -> None:
        raise KeyError("x")

    clock = VirtualClock()
    with pytest.raises(KeyError):
        clock.run(fails, lambda: clock.sleep(1.0))


def test_threads_that_wait_for_each_other_are_an_error() -> None:
    clock, event = VirtualClock(), threading.Event()
    with pytest.raises(RuntimeError, match="all threads wait"):
        clock.run(lambda: clock.wait(event, None))
    with pytest.raises(RuntimeError, match="something else"):
        clock.run(lambda: event.wait(5.0), limit=0.05)
    event.set()


def test_a_clock_that_does_not_move_itself_blocks_until_another_thread_moves_it() -> None:
    clock, event, seen = VirtualClock(start=0.0, moves_itself=False), threading.Event(), list[bool]()
    for timeout in (5.0, 50.0):
        threading.Thread(target=lambda t=timeout: seen.append(clock.wait(event, t)), daemon=True).start()  # type: ignore[misc]
    _until(lambda: clock.waiting == 2)
    clock.advance(4.0)
    assert seen == []
    clock.advance(1.0)
    _until(lambda: seen == [False])
    event.set()
    _until(lambda: seen == [False, True])


def _until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(5_000):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError("not within 5 s")
