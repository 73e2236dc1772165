"""Every replica rebuilds once for a command, whether the bus or the others have told it."""

from __future__ import annotations

from typing import Any

import pytest
from gossip_net import GossipNet

from remote_inference.cluster import Replica
from remote_inference.worker import missed_rebuilds as module
from remote_inference.worker.missed_rebuilds import GRACE, MissedRebuilds


class Member:
    """A process: the worker's rebuild epoch, advanced by the bus, and what the others tell."""

    def __init__(self, net: GossipNet, ahead: float = 0.0) -> None:
        self.replica: Replica = net.join(ahead)
        self.missed = MissedRebuilds(self.replica, self.replica._clock, ["a", "b"])
        self.raised = 0
        self.rebuilt = 0
        self._seen = 0

    def on_bus(self, token: str) -> None:
        self.raised += 1
        self.missed.on_bus("a", token)

    def work(self) -> None:
        """Begin a request."""
        epoch = self.raised + self.missed.rebuild_epoch("a")
        self.rebuilt += epoch != self._seen
        self._seen = epoch


class Cluster:
    def __init__(self, count: int) -> None:
        self.net = GossipNet()
        self.members = [Member(self.net, ahead=0.5 * index) for index in range(count)]
        self.run(2.0)

    def run(self, seconds: float) -> None:
        end = self.net.clock.monotonic() + seconds
        while self.net.clock.monotonic() < end:
            self.net.run(0.25, step=0.25)
            for member in self.members:
                member.work()

    @property
    def rebuilt(self) -> list[int]:
        return [member.rebuilt for member in self.members]


def test_a_command_that_the_bus_brought_to_all_is_carried_out_once_by_each():
    cluster = Cluster(3)
    for token in ("o1", "o2"):
        for member in cluster.members:
            member.on_bus(token)
        cluster.run(10.0)
    assert cluster.rebuilt == [2, 2, 2]


def test_one_that_the_bus_reached_a_little_later_does_not_rebuild_twice():
    cluster = Cluster(2)
    cluster.members[0].on_bus("o1")
    cluster.run(0.75)
    assert cluster.rebuilt == [1, 0]
    cluster.members[1].on_bus("o1")
    cluster.run(10.0)
    assert cluster.rebuilt == [1, 1]


def test_one_that_the_bus_did_not_reach_learns_it_and_rebuilds_once():
    cluster = Cluster(3)
    cluster.members[0].on_bus("o1")
    cluster.members[1].on_bus("o1")
    cluster.run(2 * GRACE + 0.5)
    assert cluster.rebuilt == [1, 1, 1]
    cluster.run(60.0)
    assert cluster.rebuilt == [1, 1, 1]


def test_one_that_was_away_rebuilds_once_for_all_that_it_missed():
    cluster = Cluster(2)
    with cluster.net.without(1):
        for number in range(20):
            cluster.members[0].on_bus(f"o{number}")
        cluster.run(60.0)
    assert cluster.rebuilt == [1, 0]
    cluster.run(10.0)
    assert cluster.rebuilt == [1, 1]


def test_commands_on_both_sides_of_a_cut_are_carried_out_on_both():
    cluster = Cluster(4)
    with cluster.net.without(2, 3):
        for member, token in zip(cluster.members, ("o1", "o1", "o2", "o2"), strict=True):
            member.on_bus(token)
        cluster.run(30.0)
    assert cluster.rebuilt == [1, 1, 1, 1]
    cluster.run(30.0)
    assert cluster.rebuilt == [2, 2, 2, 2]


def test_who_starts_later_has_nothing_to_rebuild_when_it_begins():
    cluster = Cluster(2)
    for member in cluster.members:
        member.on_bus("o1")
    cluster.run(5.0)
    late = Member(cluster.net)
    cluster.net.run(1.0)  # it listens, and does not work yet
    before = late.missed.rebuild_epoch("a")
    cluster.members.append(late)
    cluster.run(30.0)
    assert late.missed.rebuild_epoch("a") == before


def test_deployments_are_apart_and_unknown_ones_ignored():
    cluster = Cluster(2)
    cluster.members[0].missed.on_bus("b", "o1")
    cluster.members[0].missed.on_bus("c", "o1")
    cluster.run(5.0)
    assert cluster.rebuilt == [0, 0]
    missed = cluster.members[1].missed
    assert [missed.rebuild_epoch(name) for name in ("a", "b", "c")] == [0, 1, 0]
    assert repr(missed) == "MissedRebuilds(rebuilds={'b': 1})"


def test_it_does_not_grow_without_end():
    cluster = Cluster(2)
    for number in range(3 * module.REMEMBERED):
        for member in cluster.members:
            member.on_bus(f"o{number}")
    cluster.run(10.0)
    assert cluster.rebuilt == [1, 1]
    for member in cluster.members:
        assert len(member.missed._commands["a"].heard) == module.REMEMBERED


@pytest.mark.parametrize("value", [None, 1, "o1", {"o1": 1}, [1, None, "", "x" * 65, ["o1"]]])
def test_what_cannot_be_understood_asks_for_nothing(value: Any):
    cluster = Cluster(1)
    replica, missed = cluster.members[0].replica, cluster.members[0].missed
    path = ("rebuild", "a", "stranger")
    with replica.lock:
        replica.state.merge([["l", list(path), [1, "stranger", value]]])
        missed.merged([path, ("rebuild",), ("rebuild", "c", "stranger")])
    cluster.run(5.0)
    assert cluster.rebuilt == [0]
    cluster.members[0].missed.on_bus("a", "x" * 65)
    assert missed._commands["a"].heard == {}
