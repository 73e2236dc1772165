"""A cancel reaches whoever waits, once, and never a descriptor that is not theirs any more."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from remote_inference.cancel import CancelToken
from remote_inference.errors import Cancelled


def test_a_fresh_token_lets_everything_go_on():
    token = CancelToken()
    token.check()
    assert not token.cancelled
    assert repr(token) == "CancelToken()"


def test_a_cancelled_one_raises_with_the_reason():
    token = CancelToken()
    assert token.cancel("revoked")
    with pytest.raises(Cancelled) as caught:
        token.check()
    assert caught.value.code == "revoked"
    assert repr(token) == "CancelToken('revoked')"


def test_the_first_reason_stays():
    token = CancelToken()
    assert [token.cancel("one"), token.cancel("two")] == [True, False]
    assert token.reason == "one"


def test_of_many_threads_exactly_one_cancels_and_the_reader_is_interrupted_once():
    for _ in range(50):
        token, interrupted, barrier = CancelToken(), [], threading.Barrier(8)

        def cancel(number: int, token=token, barrier=barrier) -> bool:
            barrier.wait(10)
            return token.cancel(str(number))

        with token.interrupting(lambda interrupted=interrupted: interrupted.append(1)):
            with ThreadPoolExecutor(8) as pool:
                won = list(pool.map(cancel, range(8)))
        assert won.count(True) == 1
        assert token.reason == str(won.index(True))
        assert interrupted == [1]


def test_whoever_waits_is_woken():
    token, woken = CancelToken(), threading.Event()

    def wait() -> None:
        token.event.wait(10)
        woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    token.cancel()
    assert woken.wait(10)
    thread.join(10)


def test_a_cancel_that_came_before_interrupts_at_once():
    token, interrupted = CancelToken(), []
    token.cancel()
    with token.interrupting(lambda: interrupted.append(1)):
        assert interrupted == [1]


def test_a_cancel_that_comes_after_interrupts_nobody():
    token, interrupted = CancelToken(), []
    with token.interrupting(lambda: interrupted.append(1)):
        pass
    token.cancel()
    assert interrupted == []


def test_the_block_does_not_end_while_it_is_being_interrupted():
    """A descriptor must not be closed, and its number used by another, while it is being cut."""
    token, in_interrupt, go_on, left = (CancelToken(), *(threading.Event() for _ in range(3)))
    order: list[str] = []

    def interrupt() -> None:
        in_interrupt.set()
        go_on.wait(10)
        order.append("interrupted")

    def read() -> None:
        with token.interrupting(interrupt):
            in_interrupt.wait(10)
        order.append("left")
        left.set()

    reader = threading.Thread(target=read)
    reader.start()
    canceller = threading.Thread(target=token.cancel)
    canceller.start()
    assert in_interrupt.wait(10)
    go_on.set()
    assert left.wait(10)
    assert order == ["interrupted", "left"]
    for thread in (reader, canceller):
        thread.join(10)


def test_an_exception_in_the_block_goes_on_and_ends_the_interrupting():
    token, interrupted = CancelToken(), []
    with pytest.raises(KeyError), token.interrupting(lambda: interrupted.append(1)):
        raise KeyError
    token.cancel()
    assert interrupted == []
