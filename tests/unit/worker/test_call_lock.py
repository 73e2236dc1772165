"""Who may call: many at a time, or one that must be alone; no wait is without an end."""

from __future__ import annotations

import pytest

from remote_inference.cancel import CancelToken
from remote_inference.testing.clock import VirtualClock
from remote_inference.worker.call_lock import CallLock


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def lock(clock) -> CallLock:
    return CallLock(clock)


def test_many_call_at_a_time_and_none_beside_one_that_must_be_alone(lock):
    assert lock.acquire(alone=False)
    assert lock.acquire(alone=False)
    assert not lock.acquire(alone=True)
    lock.release(alone=False)
    assert not lock.acquire(alone=True)
    lock.release(alone=False)
    assert lock.acquire(alone=True)
    assert not lock.acquire(alone=True)
    assert not lock.acquire(alone=False)
    lock.release(alone=True)
    assert lock.acquire(alone=False)


def test_one_that_must_be_alone_waits_for_those_before_it_and_goes_before_those_after_it(lock, clock):
    order: list[str] = []

    def together(name: str, seconds: float, later: float = 0.0) -> None:
        clock.sleep(later)
        assert lock.acquire(alone=False, patience=100.0)
        order.append(f"{name} begins")
        clock.sleep(seconds)
        order.append(f"{name} ends")
        lock.release(alone=False)

    def alone(name: str, later: float) -> None:
        clock.sleep(later)
        assert lock.acquire(alone=True, patience=100.0)
        order.append(f"{name} begins")
        clock.sleep(5.0)
        order.append(f"{name} ends")
        lock.release(alone=True)

    clock.run(
        lambda: together("first", 10.0),
        lambda: alone("alone", 1.0),
        lambda: alone("alone too", 2.0),
        lambda: together("late", 1.0, later=3.0),
        lambda: together("later", 1.0, later=4.0),
    )
    assert order[:6] == [
        "first begins",
        "first ends",
        "alone begins",
        "alone ends",
        "alone too begins",
        "alone too ends",
    ]
    assert order[6:] == ["late begins", "later begins", "late ends", "later ends"]


@pytest.mark.parametrize("alone", [False, True])
def test_a_wait_ends_after_its_patience(lock, clock, alone):
    lock.acquire(alone=True)
    began = clock.monotonic()
    assert not lock.acquire(alone=alone, patience=3.0)
    assert clock.monotonic() == began + 3.0
    lock.release(alone=True)
    assert lock.acquire(alone=True)


@pytest.mark.parametrize("alone", [False, True])
def test_a_cancel_ends_the_wait(lock, clock, alone):
    lock.acquire(alone=True)
    began = clock.monotonic()
    token = CancelToken()
    clock.call_later(1.0, lambda: token.cancel("caller"))
    assert not lock.acquire(alone=alone, patience=100.0, token=token)
    assert clock.monotonic() == began + 1.0
    assert not lock.acquire(alone=alone, patience=100.0, token=token)  # at once
    assert clock.monotonic() == began + 1.0


def test_when_one_that_must_be_alone_gives_up_those_behind_it_go_on(lock, clock):
    lock.acquire(alone=False)
    waited: dict[str, float] = {}

    def alone() -> None:
        assert not lock.acquire(alone=True, patience=2.0)

    def together() -> None:
        clock.sleep(1.0)
        assert lock.acquire(alone=False, patience=100.0)
        waited["together"] = clock.monotonic() - began

    began = clock.monotonic()
    clock.run(alone, together)
    assert waited == {"together": 2.0}


def test_what_was_granted_in_the_moment_of_a_cancel_is_held(lock, clock):
    """Whoever has it gives it back; else it would be nobody's for ever."""
    lock.acquire(alone=True)
    token = CancelToken()

    def both() -> None:
        lock.release(alone=True)
        token.cancel("caller")

    clock.call_later(1.0, both)
    assert lock.acquire(alone=True, patience=10.0, token=token)
    lock.release(alone=True)
    assert lock.acquire(alone=False)


def test_it_says_what_it_is_held_for(lock):
    lock.acquire(alone=False)
    assert repr(lock) == "CallLock(1 together, waiting=0+0)"
