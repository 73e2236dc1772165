"""`RemoteSession`: swapped whole, rebuilt once for all who ask, old connections kept for those who began on them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest

from remote_inference.clock import SystemClock
from remote_inference.config import Deployment
from remote_inference.credentials import Credential, CredentialError, Secret
from remote_inference.errors import RebuildFailed
from remote_inference.events import Event, Hooks, SessionRebuilt
from remote_inference.testing.clock import VirtualClock
from remote_inference.transport.session import RemoteSession, SessionRebuildCause

OPERATOR, UNAUTHORIZED = SessionRebuildCause.OPERATOR, SessionRebuildCause.UNAUTHORIZED


class Source:
    """A credential that a test can change, slow down and break."""

    def __init__(self, key: str = "key-1") -> None:
        self.key = key
        self.expires_at: float | None = None
        self.fetched = 0
        self.failure: Exception | None = None
        self.before: Callable[[], object] = lambda: None

    def fetch(self) -> Credential:
        self.fetched += 1
        key = self.key
        self.before()
        if self.failure is not None:
            raise self.failure
        return Credential(secret=Secret(key), expires_at=self.expires_at)


class Client:
    def __init__(self) -> None:
        self.retired = 0

    def retire(self) -> None:
        self.retired += 1


class World:
    def __init__(self, clock: object | None = None) -> None:
        self.clock = VirtualClock() if clock is None else clock
        self.source = Source()
        self.clients: list[Client] = []
        self.events: list[Event] = []
        deployment = Deployment(name="m", provider="openai", endpoint="http://127.0.0.1:1/v1")
        self.session = RemoteSession(
            deployment,
            self.source,
            self.make,  # type: ignore[arg-type]
            clock=self.clock,  # type: ignore[arg-type]
            hooks=Hooks([self.events.append]),
        )

    def make(self, deployment: Deployment) -> Client:
        self.clients.append(Client())
        return self.clients[-1]

    @property
    def key(self) -> str:
        secret = self.session.snapshot.credential
        assert secret is not None
        return secret.reveal()


@pytest.fixture
def world() -> World:
    return World()


def test_nothing_is_read_before_the_first_request(world: World) -> None:
    assert world.source.fetched == 0
    assert world.clients == []
    assert world.session.generation == 0
    assert world.key == "key-1"
    assert world.session.generation == 1
    assert world.events == []


def test_a_rebuild_swaps_the_whole_snapshot(world: World) -> None:
    old = world.session.snapshot
    world.source.key = "key-2"
    result = world.session.rebuild(OPERATOR)
    new = world.session.snapshot
    assert (result.generation, result.changed) == (2, True)
    assert new is not old
    assert new.client is not old.client
    assert world.key == "key-2"
    assert old.credential == Secret("key-1")
    assert world.events == [SessionRebuilt(deployment="m", cause="operator", generation=2, changed=True)]


def test_a_snapshot_cannot_be_changed(world: World) -> None:
    with pytest.raises(AttributeError):
        world.session.snapshot.generation = 7  # type: ignore[misc]


def test_the_operator_gets_a_new_session_also_with_the_same_key(world: World) -> None:
    old = world.session.snapshot
    result = world.session.rebuild(OPERATOR)
    assert (result.generation, result.changed) == (2, False)
    assert world.session.snapshot.client is not old.client


def test_the_old_client_closes_with_its_last_lease(world: World) -> None:
    first, second = world.session.acquire(), world.session.acquire()
    world.session.rebuild(OPERATOR)
    with world.session.lease() as third:
        assert third.generation == 2
    world.session.release(first)
    assert world.clients[0].retired == 0
    world.session.release(second)
    assert world.clients[0].retired == 1
    assert world.clients[1].retired == 0


def test_a_lease_given_back_twice_counts_once(world: World) -> None:
    first, second = world.session.acquire(), world.session.acquire()
    world.session.rebuild(OPERATOR)
    world.session.release(first)
    world.session.release(second)
    world.session.release(second)
    assert world.clients[0].retired == 1


def test_an_idle_old_client_closes_at_once(world: World) -> None:
    with world.session.lease():
        pass
    world.session.rebuild(OPERATOR)
    assert world.clients[0].retired == 1


@pytest.mark.parametrize(
    "failure", [CredentialError("env:K", "missing"), ValueError("sk-secret in a message")]
)
def test_a_failed_rebuild_keeps_the_old_session(world: World, failure: Exception) -> None:
    old = world.session.snapshot
    world.source.failure = failure
    with pytest.raises(RebuildFailed) as caught:
        world.session.rebuild(OPERATOR)
    assert world.session.snapshot is old
    assert world.clients[0].retired == 0
    assert "sk-secret" not in str(caught.value)
    world.source.failure = None
    assert world.session.rebuild(OPERATOR).generation == 2


def test_a_first_build_that_failed_is_tried_again(world: World) -> None:
    world.source.failure = CredentialError("env:K", "missing")
    with pytest.raises(RebuildFailed, match="env:K"):
        world.session.acquire()
    world.source.failure = None
    assert world.session.acquire().generation == 1


def test_who_saw_an_older_generation_finds_the_work_done(world: World) -> None:
    old = world.session.snapshot
    world.source.key = "key-2"
    world.session.rebuild(OPERATOR)
    result = world.session.rebuild(UNAUTHORIZED, seen_generation=old.generation)
    assert (result.generation, result.changed) == (2, True)
    assert world.source.fetched == 2


def test_a_401_with_an_unchanged_credential_leaves_the_session(world: World) -> None:
    old = world.session.snapshot
    result = world.session.rebuild(UNAUTHORIZED, seen_generation=old.generation)
    assert (result.generation, result.changed) == (1, False)
    assert world.session.snapshot is old
    assert world.events == []


def test_the_source_is_read_once_a_second_at_most(world: World) -> None:
    world.session.snapshot  # noqa: B018  # it builds
    started = world.clock.monotonic()
    for _ in range(3):
        world.session.rebuild(OPERATOR)
    assert world.clock.monotonic() - started >= 3.0
    assert world.source.fetched == 4


def test_many_401s_at_once_read_the_source_once() -> None:
    world = World(SystemClock())
    old = world.session.snapshot
    world.source.key = "key-2"
    entered, go_on = threading.Event(), threading.Event()
    world.source.before = lambda: (entered.set(), go_on.wait(5))
    results = []

    def refused() -> None:
        results.append(world.session.rebuild(UNAUTHORIZED, seen_generation=old.generation))

    threads = [threading.Thread(target=refused) for _ in range(20)]
    for thread in threads:
        thread.start()
    assert entered.wait(5)
    go_on.set()
    for thread in threads:
        thread.join(5)
    assert world.source.fetched == 2
    assert {(result.generation, result.changed) for result in results} == {(2, True)}


def test_new_requests_join_a_rebuild_after_a_401_but_not_another() -> None:
    for cause, joins in ((UNAUTHORIZED, True), (OPERATOR, False)):
        world = World(SystemClock())
        old = world.session.snapshot
        world.source.key = "key-2"
        entered, go_on = threading.Event(), threading.Event()
        world.source.before = lambda entered=entered, go_on=go_on: (entered.set(), go_on.wait(5))  # type: ignore[misc]
        rebuilder = threading.Thread(target=world.session.rebuild, args=(cause,))
        rebuilder.start()
        assert entered.wait(5)
        acquired: list[int] = []
        newcomer = threading.Thread(
            target=lambda w=world, a=acquired: a.append(w.session.acquire().generation)
        )  # type: ignore[misc]
        newcomer.start()
        newcomer.join(0.1 if joins else 5)
        assert acquired == ([] if joins else [1])
        go_on.set()
        newcomer.join(5)
        rebuilder.join(5)
        assert acquired == ([2] if joins else [1])
        assert old.generation == 1


def test_an_operator_who_asks_during_a_rebuild_gets_a_later_reading() -> None:
    world = World(SystemClock())
    world.session.snapshot  # noqa: B018  # it builds
    entered, go_on = threading.Event(), threading.Event()
    world.source.before = lambda: (entered.set(), go_on.wait(5))
    first = threading.Thread(target=world.session.rebuild, args=(OPERATOR,))
    first.start()
    assert entered.wait(5)
    world.source.key = "key-2"  # too late for the reading under way
    others = [threading.Thread(target=world.session.rebuild, args=(OPERATOR,)) for _ in range(5)]
    for other in others:
        other.start()
    time.sleep(0.05)  # they all ask while it runs; were one late, there would be one reading more
    go_on.set()
    for thread in (first, *others):
        thread.join(10)
    assert world.key == "key-2"
    assert world.source.fetched <= 4


def test_an_expiring_credential_is_fetched_before_its_end(world: World) -> None:
    world.source.expires_at = world.clock.time() + 3600
    assert world.session.acquire().generation == 1
    world.clock.sleep(3530)
    assert world.session.acquire().generation == 1
    world.clock.sleep(15)  # within the margin
    world.source.expires_at = world.clock.time() + 3600
    assert world.session.acquire().generation == 2
    assert isinstance(world.events[0], SessionRebuilt)
    assert world.events[0].cause == "expired"


def test_a_credential_near_its_end_serves_while_its_source_fails_and_then_no_more(world: World) -> None:
    world.source.expires_at = world.clock.time() + 3600
    world.session.acquire()
    world.source.failure = CredentialError("command:x", "exit")
    world.clock.sleep(3590)
    assert world.session.acquire().generation == 1
    world.clock.sleep(20)
    with pytest.raises(RebuildFailed):
        world.session.acquire()


def test_a_short_lived_credential_is_not_fetched_for_every_request(world: World) -> None:
    world.source.expires_at = world.clock.time() + 30
    for _ in range(10):
        world.session.release(world.session.acquire())
    assert world.source.fetched == 1


def test_a_closed_session_lets_those_under_way_finish(world: World) -> None:
    snapshot = world.session.acquire()
    world.session.close()
    assert world.clients[0].retired == 0
    world.session.release(snapshot)
    assert world.clients[0].retired == 1
    with pytest.raises(RebuildFailed):
        world.session.acquire()


def test_a_forked_child_builds_its_own(world: World) -> None:
    parents = world.session.acquire()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            mine = world.session.acquire()
            world.session.release(parents)
            fine = mine is not parents and mine.client is not parents.client and world.source.fetched == 2
            os.write(writer, b"yes" if fine and mine.generation == 2 else b"no")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"yes"
    assert world.session.snapshot is parents


def test_a_fork_in_the_middle_of_a_rebuild_does_not_lock_the_child(world: World) -> None:
    world = World(SystemClock())
    world.session.snapshot  # noqa: B018  # it builds
    entered, go_on = threading.Event(), threading.Event()
    parent = os.getpid()
    world.source.before = lambda: (entered.set(), go_on.wait(5)) if os.getpid() == parent else None
    rebuilder = threading.Thread(target=world.session.rebuild, args=(OPERATOR,))
    rebuilder.start()
    assert entered.wait(5)
    child = os.fork()
    if child == 0:
        try:
            world.session.acquire()
        finally:
            os._exit(0 if world.session.generation == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    go_on.set()
    rebuilder.join(5)


def test_the_repr_shows_no_key(world: World) -> None:
    assert world.key not in repr(world.session) + repr(world.session.snapshot)


def test_under_load_a_rotation_retires_every_client_exactly_once() -> None:
    world = World(SystemClock())
    world.session._debounce = 0.005
    assert world.session.snapshot.generation == 1
    stop = threading.Event()
    wrong: list[str] = []

    def work() -> None:
        while not stop.is_set():
            with world.session.lease() as snapshot:
                if snapshot.client.retired:  # type: ignore[attr-defined]
                    wrong.append("a request on a retired client")
            if snapshot.credential is None:
                wrong.append("no key")

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for number in range(40):
        world.source.key = f"key-{number}"
        assert world.session.rebuild(OPERATOR).generation == number + 2
    stop.set()
    for thread in threads:
        thread.join(5)
    assert wrong == []
    assert [client.retired for client in world.clients[:-1]] == [1] * (len(world.clients) - 1)
