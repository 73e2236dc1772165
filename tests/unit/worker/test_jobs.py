"""Orders reach the requests that run, and those that begin a moment later."""

from __future__ import annotations

import pytest

from remote_inference.cancel import CancelToken
from remote_inference.testing.clock import VirtualClock
from remote_inference.worker.jobs import EARLY_MEMORY, EARLY_SECONDS, Jobs


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def jobs(clock) -> Jobs:
    return Jobs(clock)


def test_a_cancel_reaches_the_one_that_runs(jobs):
    one, other = CancelToken(), CancelToken()
    with jobs.running("a", 1, one), jobs.running("b", 1, other):
        assert jobs.cancel("a", "caller")
        assert len(jobs) == 2
    assert (one.reason, other.cancelled) == ("caller", False)
    assert len(jobs) == 0


def test_one_that_has_ended_is_not_reached(jobs):
    token = CancelToken()
    with jobs.running("a", 1, token):
        pass
    assert not jobs.cancel("a", "caller")
    assert not token.cancelled


def test_a_cancel_that_comes_a_moment_early_is_remembered(jobs, clock):
    assert not jobs.cancel("a", "caller")
    clock.advance(EARLY_SECONDS - 1)
    token = CancelToken()
    with jobs.running("a", 1, token):
        assert token.reason == "caller"


def test_but_not_for_ever_and_not_twice(jobs, clock):
    jobs.cancel("a", "caller")
    jobs.cancel("b", "caller")
    with jobs.running("b", 1, CancelToken()):
        pass
    again, late = CancelToken(), CancelToken()
    with jobs.running("b", 1, again):
        assert not again.cancelled
    clock.advance(EARLY_SECONDS)
    with jobs.running("a", 1, late):
        assert not late.cancelled


def test_the_memory_is_bounded_and_the_oldest_go_first(jobs):
    for number in range(EARLY_MEMORY + 1):
        jobs.cancel(str(number), "caller")
    first, second = CancelToken(), CancelToken()
    with jobs.running("0", 1, first), jobs.running("1", 1, second):
        assert (first.cancelled, second.cancelled) == (False, True)


def test_a_redelivered_request_supersedes_its_older_self(jobs):
    older, newer = CancelToken(), CancelToken()
    with jobs.running("a", 1, older):
        with jobs.running("a", 2, newer):
            assert (older.reason, newer.cancelled) == ("superseded", False)
        assert jobs.cancel("a", "caller"), "the older one is still known"
    assert len(jobs) == 0


def test_what_an_older_connection_delivered_is_cancelled(jobs):
    tokens = [CancelToken() for _ in range(3)]
    with jobs.running("a", 1, tokens[0]), jobs.running("b", 2, tokens[1]), jobs.running("c", 3, tokens[2]):
        tokens[1].cancel("caller")
        assert jobs.cancel_older(3, "connection_lost") == 1
    assert [token.reason for token in tokens] == ["connection_lost", "caller", ""]


def test_an_exception_ends_it_too(jobs):
    with pytest.raises(KeyError), jobs.running("a", 1, CancelToken()):
        raise KeyError
    assert len(jobs) == 0
    assert repr(jobs) == "Jobs(0 running)"


def test_draining_ends_those_that_only_wait_and_no_others(jobs):
    waiting, running = CancelToken(), CancelToken()
    waiting.resting = True
    with jobs.running("a", 1, waiting), jobs.running("b", 1, running):
        assert not jobs.draining
        jobs.drain("shutdown")
        assert jobs.draining
    assert (waiting.reason, running.cancelled) == ("shutdown", False)
