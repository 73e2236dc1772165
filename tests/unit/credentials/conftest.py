"""What the tests of the sources share."""

from __future__ import annotations

import threading

import pytest

from remote_inference.credentials import CredentialError


class StandingClock:
    """A clock that moves when it is told to."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        self.now += timeout or 0.0
        return event.is_set()


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


def failure(provider) -> CredentialError:
    """The error that ``fetch`` raises, after a look into all that a crash reporter could collect of it."""
    with pytest.raises(CredentialError) as caught:
        provider.fetch()
    error = caught.value
    assert "marked" not in f"{error} {error!r} {error.args}"
    assert error.__context__ is None
    assert error.__cause__ is None
    frames = error.__traceback__.tb_next if error.__traceback__ else None  # the first frame is this one
    assert frames is not None
    while frames:
        assert "marked" not in repr(frames.tb_frame.f_locals), frames.tb_frame
        frames = frames.tb_next
    assert type(error)(*error.args).args == error.args
    return error


@pytest.fixture(name="failure")
def failure_fixture():
    return failure
