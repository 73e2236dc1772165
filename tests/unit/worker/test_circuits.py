"""Breakers of several replicas: what happens to one happens to all, whenever they hear of it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from gossip_net import GossipNet
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_inference.cluster import Replica
from remote_inference.cluster.crdt import LwwRegister
from remote_inference.config import load_config
from remote_inference.errors import CircuitOpen
from remote_inference.events import CircuitChanged, Event, Hooks
from remote_inference.policy.breaker import CircuitBreaker
from remote_inference.policy.circuit import circuit_id
from remote_inference.testing.clock import VirtualClock
from remote_inference.worker import circuits as module
from remote_inference.worker.circuits import Circuits

ENDPOINT = "https://api.example/v1"
BREAKER = {"failure_threshold": 2, "open_duration": 30.0, "max_open_duration": 300.0}
CONFIG = {
    "deployment": [
        {"name": "a", "provider": "openai", "endpoint": ENDPOINT, "circuit_breaker": BREAKER},
        {"name": "b", "provider": "openai", "endpoint": ENDPOINT},
        {"name": "other", "provider": "openai", "endpoint": "https://other.example/v1"},
    ]
}
CIRCUIT = circuit_id("openai", ENDPOINT)


class FakeSlots:
    """The broker's slots, held in a list that all share."""

    free: list[int]

    def __init__(self, publisher: Any, circuit: str, count: int, rng: random.Random) -> None:
        self.free = publisher.setdefault(circuit, list(range(count)))

    def take(self) -> FakeSlot | None:
        return FakeSlot(self.free, self.free.pop()) if self.free else None


class FakeSlot:
    def __init__(self, free: list[int], number: int) -> None:
        self.free, self.number = free, number

    def release(self) -> None:
        self.free.append(self.number)


class Parts:
    """What `Circuits` needs of an `Inference`; its publisher stands for the broker."""

    def __init__(self, clock: Any, broker: dict[str, Any], config: Any) -> None:
        self.clock = clock
        self.config = config
        self.publisher = broker
        self.events: list[Event] = []
        self.hooks = Hooks([self.events.append])


class Member:
    """A process with its circuits."""

    def __init__(self, net: GossipNet, broker: dict[str, Any], config: Any, ahead: float = 0.0) -> None:
        self.replica: Replica = net.join(ahead)
        self.shown: dict[str, float] = {}
        self.parts = Parts(self.replica._clock, broker, config)
        self.circuits = Circuits(
            self.parts,  # type: ignore[arg-type]
            replica=self.replica,
            rng=random.Random(1),
            show=self.shown.__setitem__,
        )

    @property
    def breaker(self) -> CircuitBreaker:
        return self.circuits.breaker(self.parts.config.deployments["a"])

    def force(self, seconds: float | None) -> None:
        self.circuits.force(self.parts.config.deployments["a"], seconds)

    def fail(self, times: int = 2) -> None:
        for _ in range(times):
            self.breaker.admit().failure()

    @property
    def left(self) -> float:
        """Seconds until it may be probed."""
        return max(0.0, self.breaker.shared.until - self.parts.clock.monotonic())


class Cluster:
    """Members that share a net and a broker."""

    def __init__(self, count: int, ahead: tuple[float, ...] = ()) -> None:
        self.net = GossipNet()
        self.broker: dict[str, Any] = {}
        self.config = load_config(CONFIG)
        self.members = [self.add(ahead[i] if i < len(ahead) else 0.0) for i in range(count)]
        self.net.run(2.0)

    def add(self, ahead: float = 0.0) -> Member:
        return Member(self.net, self.broker, self.config, ahead)

    @property
    def states(self) -> list[str]:
        return [member.breaker.state for member in self.members]


@pytest.fixture(autouse=True)
def slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BrokerSlots", FakeSlots)
    monkeypatch.setattr(module, "LINGER", 0.0)


def test_one_that_opens_opens_all_at_once_for_the_same_time():
    cluster = Cluster(3)
    cluster.members[0].fail()
    assert cluster.states == ["open"] * 3  # an urgent message: no time has passed
    assert [member.left for member in cluster.members] == [pytest.approx(30.0, abs=0.01)] * 3
    with pytest.raises(CircuitOpen):
        cluster.members[2].breaker.admit()


def test_times_are_told_in_the_tellers_own_clock():
    cluster = Cluster(3, ahead=(1.5, -2.0, 0.3))
    cluster.members[0].fail()
    assert [member.left for member in cluster.members] == [pytest.approx(30.0, abs=0.01)] * 3


def test_failures_are_counted_by_each_alone():
    cluster = Cluster(2)
    cluster.members[0].fail(1)
    cluster.members[1].fail(1)
    assert cluster.states == ["closed"] * 2


def test_a_probe_that_succeeds_anywhere_closes_all():
    cluster = Cluster(3)
    cluster.members[0].fail()
    cluster.net.run(30.1)
    assert cluster.states == ["half_open"] * 3
    cluster.members[2].breaker.admit().success()
    assert cluster.states == ["closed"] * 3


def test_a_probe_that_fails_opens_all_for_twice_as_long():
    cluster = Cluster(3)
    cluster.members[0].fail()
    for left in (60.0, 120.0):
        cluster.net.run(cluster.members[1].left + 0.1)
        cluster.members[1].breaker.admit().failure()
        assert cluster.states == ["open"] * 3
        assert [member.left for member in cluster.members] == [pytest.approx(left, abs=0.01)] * 3


def test_while_one_probes_nobody_else_does():
    cluster = Cluster(3)
    cluster.members[0].fail()
    cluster.net.run(30.1)
    probe = cluster.members[0].breaker.admit()
    for member in cluster.members:
        with pytest.raises(CircuitOpen) as refused:
            member.breaker.admit()
        assert refused.value.code == "probing"
    probe.neutral()
    cluster.net.run(1.1)
    cluster.members[1].breaker.admit().success()
    assert cluster.states == ["closed"] * 3


def test_what_was_under_way_when_another_opened_it_counts_no_more():
    cluster = Cluster(2)
    running = [cluster.members[1].breaker.admit() for _ in range(4)]
    cluster.members[0].fail()
    before = cluster.members[1].breaker.shared
    running[0].success()
    running[1].failure()
    running[2].failure()
    assert cluster.states == ["open"] * 2
    assert cluster.members[1].breaker.shared == before


def test_both_open_it_apart_and_agree_when_they_hear_of_each_other():
    cluster = Cluster(2)
    with cluster.net.without(0, 1):
        cluster.members[0].fail()
        cluster.net.run(3.0)
        cluster.members[1].fail()
    cluster.net.run(5.0)
    first, second = (member.breaker.shared for member in cluster.members)
    assert first.order == second.order == (1, max(member.replica.id for member in cluster.members))
    assert cluster.members[0].left == pytest.approx(cluster.members[1].left, abs=0.01)


def test_one_that_starts_later_learns_the_operators_word_before_it_has_used_the_endpoint():
    cluster = Cluster(2)
    cluster.members[0].force(600.0)
    cluster.net.run(100.0)
    late = cluster.add(ahead=1.0)
    cluster.net.run(2.0)
    assert late.shown["a"] > 0
    assert late.breaker.state == "open"
    assert late.left == pytest.approx(498.0, abs=0.5)
    with pytest.raises(CircuitOpen) as refused:
        late.breaker.admit()
    assert refused.value.code == "forced"


def test_the_operators_word_outlives_all_who_heard_it():
    cluster = Cluster(1)
    cluster.members[0].force(10_000.0)
    for index in range(4):
        cluster.members.append(cluster.add())
        cluster.net.run(2.0)
        cluster.members[index].replica.leave()
        cluster.net.cut.add(index)
        cluster.net.run(200.0)
    assert cluster.members[-1].breaker.state == "open"
    assert cluster.members[-1].left == pytest.approx(10_000.0 - 4 * 202.0, abs=2.0)


def test_one_that_was_away_learns_what_it_missed():
    cluster = Cluster(3)
    cluster.members[0].force(600.0)
    with cluster.net.without(2):
        cluster.net.run(40.0)
        cluster.members[1].force(None)
        assert cluster.states == ["closed", "closed", "open"]
    cluster.net.run(6.0)
    assert cluster.states == ["closed"] * 3


def test_it_is_told_after_a_new_beginning_under_another_id():
    cluster = Cluster(2)
    cluster.members[0].force(600.0)
    before = cluster.members[0].replica.id
    with cluster.net.without(0):
        cluster.net.run(20.0)
    cluster.net.run(3.0)
    replica = cluster.members[0].replica
    assert replica.id != before
    assert replica.state.get(("circuit", CIRCUIT, replica.id), LwwRegister) is not None


def test_closing_by_hand_closes_all_also_who_has_not_heard_yet_that_it_is_open():
    cluster = Cluster(2)
    with cluster.net.without(1):
        cluster.members[0].fail()
    for member in reversed(cluster.members):  # the order comes to each over the bus
        member.force(None)
    cluster.net.run(5.0)
    assert cluster.states == ["closed"] * 2


def test_it_shows_until_when_for_all_deployments_of_the_endpoint_and_nothing_of_others():
    cluster = Cluster(2)
    cluster.members[0].fail()
    for member in cluster.members:
        assert set(member.shown) == {"a", "b"}
        assert member.shown["b"] == pytest.approx(cluster.net.clock.time() + 30.0, abs=0.01)
    cluster.members[0].force(None)
    cluster.net.run(0.1)
    assert [member.shown["a"] for member in cluster.members] == [0.0, 0.0]


def test_the_hooks_of_all_are_told_once_of_each_change():
    cluster = Cluster(2)
    cluster.members[0].fail()
    cluster.net.run(5.0)
    for member in cluster.members:
        assert member.parts.events == [
            CircuitChanged(deployment="a", endpoint=ENDPOINT, old="closed", new="open")
        ]


def test_nothing_is_said_while_nothing_changes():
    cluster = Cluster(2)
    cluster.members[0].fail()
    cluster.net.run(2.0)
    said = [dict(member.replica.state.entries) for member in cluster.members]
    stamps = [[entry.stamp for entry in entries.values()] for entries in said]  # type: ignore[attr-defined]
    cluster.net.run(10.0)
    assert stamps == [
        [entry.stamp for entry in member.replica.state.entries.values()]  # type: ignore[attr-defined]
        for member in cluster.members
    ]


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        [],
        [1, "x", True, 5.0, 30.0, 60.0],
        [0, "x", True, 5.0, 30.0, 60.0, False],
        [2**60, "x", True, 5.0, 30.0, 60.0, False],
        [True, "x", True, 5.0, 30.0, 60.0, False],
        [9, 1, True, 5.0, 30.0, 60.0, False],
        [9, "x", 1, 5.0, 30.0, 60.0, False],
        [9, "x", True, "5", 30.0, 60.0, False],
        [9, "x", True, 5.0, 0.0, 60.0, False],
        [9, "x", True, 5.0, 1e15, 60.0, False],
        [9, "x", True, 5.0, 30.0, -1.0, False],
        [9, "x", True, 5.0, 30.0, 60.0, None],
    ],
)
def test_what_cannot_be_understood_changes_nothing(value: Any):
    cluster = Cluster(1)
    replica = cluster.members[0].replica
    path = ("circuit", CIRCUIT, "stranger")
    with replica.lock:
        replica.state.merge([["l", list(path), [1, "stranger", value]]])
        cluster.members[0].circuits.merged([path, ("circuit",), ("circuit", "unknown", "x")])
    assert cluster.states == ["closed"]


def test_the_time_of_a_stranger_is_taken_for_its_whole_length_and_more_fields_are_ignored():
    cluster = Cluster(1)
    replica = cluster.members[0].replica
    path = ("circuit", CIRCUIT, "stranger")
    with replica.lock:
        value = [9, "x", True, 5.0, 40.0, 60.0, False, "of a later version"]
        replica.state.merge([["l", list(path), [1, "stranger", value]]])
        cluster.members[0].circuits.merged([path])
    assert cluster.members[0].left == pytest.approx(40.0, abs=0.01)


def test_a_newcomer_waits_until_it_has_heard_the_others_but_not_for_ever():
    cluster = Cluster(1)
    clock = cluster.net.clock
    began = clock.monotonic()
    cluster.members[0].circuits.wait_until_heard()
    assert clock.monotonic() == began
    late = cluster.add()
    late.circuits.wait_until_heard()
    assert clock.monotonic() == pytest.approx(began + module.NEWCOMER)
    cluster.net.run(0.5)
    assert late.replica.life.answered.is_set(), "the member that was there before has told it everything"
    began = clock.monotonic()
    late.circuits.wait_until_heard()
    assert clock.monotonic() == began


def test_without_a_replica_each_is_by_itself():
    clock = VirtualClock()
    parts = Parts(clock, {}, load_config(CONFIG))
    shown: dict[str, float] = {}
    alone = Circuits(parts, replica=None, rng=random.Random(1), show=shown.__setitem__)  # type: ignore[arg-type]
    deployment = parts.config.deployments["a"]
    for _ in range(2):
        alone.breaker(deployment).admit().failure()
    assert shown["b"] == pytest.approx(clock.time() + 30.0, abs=0.01)
    clock.advance(30.0)
    alone.breaker(deployment).admit().success()
    assert shown["a"] == 0.0
    assert alone.breaker(deployment) is alone.breaker(parts.config.deployments["b"])
    assert alone.breaker(deployment) is not alone.breaker(parts.config.deployments["other"])


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["fail", "success", "force_open", "force_close", "wait", "cut", "mend"]),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_whatever_happened_apart_all_hold_the_same_in_the_end(steps: list[tuple[int, str]]):
    cluster = Cluster(3)
    for index, what in steps:
        member = cluster.members[index]
        if what == "force_open":
            member.force(50.0)
        elif what == "force_close":
            member.force(None)
        elif what == "wait":
            cluster.net.run(7.0, step=0.25)
        elif what == "cut":
            cluster.net.cut.add(index)
        elif what == "mend":
            cluster.net.cut.discard(index)
        else:
            try:
                admission = member.breaker.admit()
            except CircuitOpen:
                continue
            admission.success() if what == "success" else admission.failure()
    cluster.net.cut.clear()
    cluster.net.run(25.0, step=0.25)
    held = {member.breaker.shared.order for member in cluster.members}
    assert len(held) == 1
    assert len({member.breaker.shared.open for member in cluster.members}) == 1
    left = [member.left for member in cluster.members]
    assert max(left) - min(left) < 0.5
