"""Once the rebuild epoch was advanced, no request begins on the session of before."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from remote_inference.errors import RebuildFailed
from remote_inference.transport.session import RebuildResult, SessionRebuildCause
from remote_inference.worker.rebuild_epoch import EpochSession


class FakeSession:
    def __init__(self) -> None:
        self.generation = 1
        self.rebuilds: list[tuple[SessionRebuildCause, int | None]] = []
        self.fails = False
        self.closed = False
        self.go_on = threading.Event()
        self.go_on.set()

    @contextmanager
    def lease(self) -> Iterator[Any]:
        yield self.generation

    def rebuild(self, cause: SessionRebuildCause, *, seen_generation: int | None = None) -> RebuildResult:
        self.rebuilds.append((cause, seen_generation))
        assert self.go_on.wait(10)
        if self.fails:
            raise RebuildFailed("gpt", "vault is away")
        self.generation += 1
        return RebuildResult(generation=self.generation, changed=True)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


def leased(guarded: EpochSession) -> Any:
    with guarded.lease() as snapshot:
        return snapshot


def test_while_nobody_asks_nothing_is_rebuilt(session):
    guarded = EpochSession(session, lambda: 7)  # type: ignore[arg-type]
    assert [leased(guarded), leased(guarded)] == [1, 1]
    assert session.rebuilds == []


def test_an_advanced_epoch_rebuilds_once(session):
    epoch = [0]
    guarded = EpochSession(session, lambda: epoch[0])  # type: ignore[arg-type]
    epoch[0] = 3
    assert [leased(guarded), leased(guarded)] == [2, 2]
    assert session.rebuilds == [(SessionRebuildCause.OPERATOR, None)]


def test_one_that_runs_keeps_its_snapshot(session):
    epoch = [0]
    guarded = EpochSession(session, lambda: epoch[0])  # type: ignore[arg-type]
    with guarded.lease() as snapshot:
        epoch[0] = 1
        assert leased(guarded) == 2
        assert snapshot == 1


def test_whoever_comes_meanwhile_waits_and_nobody_begins_on_the_old_one(session):
    epoch, got = [0], []
    guarded = EpochSession(session, lambda: epoch[0])  # type: ignore[arg-type]
    session.go_on.clear()
    epoch[0] = 1
    threads = [threading.Thread(target=lambda: got.append(leased(guarded))) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert got == []
    session.go_on.set()
    for thread in threads:
        thread.join(10)
    assert got == [2] * 5
    assert len(session.rebuilds) == 1


def test_a_source_that_fails_leaves_the_old_session_in_use_and_says_so(session, caplog):
    epoch = [0]
    guarded = EpochSession(session, lambda: epoch[0])  # type: ignore[arg-type]
    session.fails = True
    epoch[0] = 1
    with caplog.at_level(logging.ERROR):
        assert [leased(guarded), leased(guarded)] == [1, 1]
    assert "the old session stays" in caplog.text
    assert len(session.rebuilds) == 1
    session.fails = False
    epoch[0] = 2
    assert leased(guarded) == 2


def test_the_rest_is_the_sessions(session):
    guarded = EpochSession(session, lambda: 0)  # type: ignore[arg-type]
    assert guarded.rebuild(SessionRebuildCause.UNAUTHORIZED, seen_generation=1).generation == 2
    assert session.rebuilds == [(SessionRebuildCause.UNAUTHORIZED, 1)]
    guarded.close()
    assert session.closed
    assert "epoch=0" in repr(guarded)
