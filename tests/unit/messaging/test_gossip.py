"""When a replica is told that it is online, what becomes of what it sends, and its good-bye."""

from __future__ import annotations

import os
from typing import Any

import pytest

from remote_inference.messaging import gossip as module
from remote_inference.messaging.delivery import Delivery
from remote_inference.messaging.gossip import Gossip, gossip_queue
from remote_inference.messaging.names import GOSSIP_EXCHANGE, is_inference_queue
from remote_inference.messaging.publisher import PublisherClosed
from remote_inference.testing.clock import VirtualClock


class FakePublisher:
    def __init__(self) -> None:
        self.trouble = ""
        self.connections = 0
        self.deliveries: list[Delivery] = []
        self.closed = False

    def publish(self, delivery: Delivery) -> None:
        if self.closed:
            raise PublisherClosed("closed")
        self.connections = self.connections or 1
        self.deliveries.append(delivery)

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.deliveries]


class FakeSubscriber:
    """The connection's thread is this one."""

    def __init__(self, gossip: Gossip) -> None:
        self.gossip = gossip
        self.renewed = 0
        self.closed = False

    def start(self) -> None:
        """It has begun."""

    def renew(self) -> None:
        self.renewed += 1

    def close(self, timeout: float) -> None:
        self.closed = True
        self.gossip._on_change(False)


class Replica:
    send: Any = None

    def __init__(self) -> None:
        self.told: list[str] = []
        self.pause = 5.0
        self.fault: Exception | None = None

    def receive(self, body: bytes | str) -> None:
        raise AssertionError("nothing comes here")

    def tick(self) -> float:
        self.told.append("tick")
        return self.pause

    def _tell(self, what: str) -> None:
        self.told.append(what)
        if self.fault is not None:
            raise self.fault

    def online(self) -> None:
        self._tell("online")
        self.send(b"full")

    def offline(self) -> None:
        self._tell("offline")
        self.send(b"too late")

    def leave(self) -> None:
        self._tell("leave")
        self.send(b"good-bye")


class Rig:
    def __init__(self) -> None:
        self.replica = Replica()
        self.publisher = FakePublisher()
        self.gossip = Gossip(
            self.replica,
            lambda: None,  # type: ignore[arg-type, return-value]
            self.publisher,  # type: ignore[arg-type]
            clock=VirtualClock(),
        )
        self.subscriber = FakeSubscriber(self.gossip)
        self.gossip._subscriber = self.subscriber  # type: ignore[assignment]
        self.gossip.start()

    def told(self) -> list[str]:
        """Since the last call."""
        told, self.replica.told = self.replica.told, []
        return told


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def online(rig: Rig) -> Rig:
    rig.gossip._on_change(True)
    rig.gossip._tick()
    assert rig.told() == ["online", "tick"]
    return rig


def test_nothing_is_sent_before_its_queue_stands(rig):
    rig.gossip._tick()
    rig.replica.send(b"early")
    assert rig.publisher.bodies == []
    assert rig.told() == ["tick"]
    assert not rig.gossip.wait_online(0)
    rig.gossip._on_change(True)
    assert rig.told() == ["online"]
    assert rig.publisher.bodies == [b"full"]
    assert rig.gossip.wait_online(0)


def test_a_message_is_for_all_is_not_kept_and_not_confirmed(online):
    [delivery] = online.publisher.deliveries
    assert (delivery.exchange, delivery.routing_key) == (GOSSIP_EXCHANGE, "")
    assert delivery.properties == {"delivery_mode": 1}
    assert not delivery.confirm


def test_a_lost_connection_is_told_and_nothing_sent(online):
    online.gossip._on_change(False)
    online.replica.send(b"lost")
    assert online.told() == ["offline"]
    assert online.publisher.bodies == [b"full"]
    assert online.gossip.dropped == 2
    online.gossip._on_change(True)
    assert online.told() == ["online"]


@pytest.mark.parametrize("trouble", ["broker_blocked", "broker_down"])
def test_what_a_publisher_in_trouble_cannot_send_is_dropped_and_the_replica_told(online, trouble):
    online.publisher.trouble = trouble
    online.replica.send(b"dropped")
    assert online.gossip._tick() == module.LOOK  # it looks again soon, whatever the replica wants
    assert online.told() == ["offline", "tick"]
    online.gossip._tick()
    assert online.told() == ["tick"]
    online.publisher.trouble = ""
    assert online.gossip._tick() == online.replica.pause
    assert online.told() == ["online", "tick"]
    assert online.publisher.bodies == [b"full", b"full"]


def test_trouble_that_came_and_went_between_two_ticks_is_told_if_something_was_lost(online):
    online.publisher.trouble = "broker_blocked"
    online.replica.send(b"dropped")
    online.publisher.trouble = ""
    online.gossip._tick()
    assert online.told() == ["offline", "online", "tick"]
    online.gossip._tick()
    assert online.told() == ["tick"]


def test_a_new_publishing_connection_has_the_exchange_declared_anew(online):
    assert online.publisher.connections == 1
    online.gossip._tick()
    assert online.subscriber.renewed == 0  # the publisher's first one
    online.publisher.connections = 2
    online.gossip._tick()
    assert online.subscriber.renewed == 1
    online.gossip._on_change(False)
    online.gossip._on_change(True)
    online.gossip._tick()
    assert online.subscriber.renewed == 1


def test_a_publisher_that_comes_back_after_the_queue_makes_no_second_round(online):
    online.publisher.trouble = "broker_down"
    online.gossip._on_change(False)
    online.gossip._on_change(True)
    online.gossip._tick()
    online.publisher.trouble, online.publisher.connections = "", 2
    online.gossip._tick()
    online.gossip._tick()
    assert online.told() == ["offline", "tick", "online", "tick", "tick"]
    assert online.subscriber.renewed == 0


def test_close_ends_the_thread_and_then_says_good_bye_once(online):
    online.gossip.close()
    online.gossip.close()
    assert online.subscriber.closed
    assert online.told() == ["leave"]
    assert online.publisher.bodies == [b"full", b"good-bye"]
    online.gossip._tick()
    online.replica.send(b"after it")
    assert online.told() == []
    assert online.publisher.bodies == [b"full", b"good-bye"]
    assert repr(online.gossip) == "Gossip(left, dropped=1)"


def test_a_good_bye_that_nobody_can_hear_is_not_waited_for(rig):
    rig.gossip.close()
    assert rig.told() == ["leave"]
    assert rig.publisher.bodies == []


def test_a_closed_publisher_is_no_error(online):
    online.publisher.closed = True
    online.replica.send(b"dropped")
    assert online.gossip.dropped == 1


def test_a_forked_child_says_no_good_bye_for_its_parent(online, monkeypatch):
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    online.gossip.close()
    assert online.told() == []
    assert not online.subscriber.closed


def test_a_replica_that_fails_is_logged_and_told_of_the_next_change(rig, caplog):
    rig.replica.fault = ValueError("its own")
    rig.gossip._on_change(True)
    rig.gossip._on_change(False)
    rig.gossip.close()
    assert rig.told() == ["online", "offline", "leave"]
    assert [record.getMessage() for record in caplog.records] == [
        f"gossip: the replica could not {call}" for call in ("online", "offline", "leave")
    ]


def test_its_queue_is_its_own_bounded_and_of_a_new_name_each_time():
    class Channel:
        def __init__(self) -> None:
            self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: self.calls.append((name, args, kwargs))

    channel = Channel()
    first, second = gossip_queue(channel), gossip_queue(channel)
    assert first != second
    assert not is_inference_queue(first)
    exchange, queue, binding = channel.calls[:3]
    assert exchange[0:2] == ("exchange_declare", (GOSSIP_EXCHANGE, "fanout"))
    assert queue[1] == (first,)
    assert queue[2]["exclusive"]
    assert queue[2]["auto_delete"]
    assert queue[2]["arguments"] == {
        "x-max-length": 1000,
        "x-overflow": "drop-head",
        "x-message-ttl": 15_000,
    }
    assert binding[:2] == ("queue_bind", (first, GOSSIP_EXCHANGE, ""))
