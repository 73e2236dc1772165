"""Gossip when its broker is killed, loses all it had, or blocks who publishes: replicas are told, and meet again."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest
from chatter import Member
from kombu import Connection
from local_process import wait_until
from pytest_celery import RabbitMQTestBroker

from remote_inference.messaging.names import GOSSIP_EXCHANGE

LIMIT = 60.0  # seconds


@pytest.fixture
def url(private_broker: RabbitMQTestBroker) -> str:
    return str(private_broker.container.celeryconfig["host_url"])


@pytest.fixture
def members(url: str) -> Iterator[list[Member]]:
    """Three of them, who hear each other."""
    members = [Member(name, url) for name in ("first", "second", "third")]
    wait_until(meets(members), "them to hear each other", LIMIT)
    yield members
    for member in members:
        member.close()


def meets(members: list[Member]) -> Callable[[], bool]:
    """Whether each has heard, since now, what all have said since now."""
    said = {member.replica.name: member.replica.said for member in members}
    return lambda: all(
        member.replica.heard.get(name, 0) > number + 1 for member in members for name, number in said.items()
    )


def test_a_broker_that_is_killed_and_started_again_has_them_meet_again(
    private_broker: RabbitMQTestBroker, url: str, members: list[Member]
):
    process = private_broker.container.process

    process.kill()
    wait_until(lambda: all(m.replica.changes[-1] == "offline" for m in members), "all to notice", LIMIT)
    assert not any(member.gossip.wait_online(0) for member in members)
    process.start()

    wait_until(lambda: all(member.gossip.wait_online(0) for member in members), "all to be back", LIMIT)
    wait_until(meets(members), "them to hear each other", LIMIT)
    for member in members:
        assert member.replica.changes == ["online", "offline"] * (len(member.replica.changes) // 2) + [
            "online"
        ]
    with Connection(url) as connection:
        connection.default_channel.exchange_declare(GOSSIP_EXCHANGE, "fanout", passive=True)


def test_a_broker_that_has_forgotten_everything_has_them_meet_again(
    private_broker: RabbitMQTestBroker, members: list[Member]
):
    for command in ("stop_app", "reset", "start_app"):
        rabbitmqctl(private_broker, command)

    wait_until(lambda: all(m.replica.changes.count("online") >= 2 for m in members), "all to be back", LIMIT)
    wait_until(meets(members), "them to hear each other", LIMIT)


def test_a_blocked_publisher_drops_and_the_replica_is_told(
    private_broker: RabbitMQTestBroker, members: list[Member]
):
    rabbitmqctl(private_broker, "set_vm_memory_high_watermark", "0.0000001")
    try:
        wait_until(lambda: all(m.replica.changes[-1] == "offline" for m in members), "all to notice", LIMIT)
        dropped = [member.gossip.dropped for member in members]
        wait_until(
            lambda: all(m.gossip.dropped > before for m, before in zip(members, dropped, strict=True)),
            "more to be dropped",
            LIMIT,
        )
        assert all(not member.publisher._inbox for member in members)
    finally:
        rabbitmqctl(private_broker, "set_vm_memory_high_watermark", "0.8")

    wait_until(lambda: all(member.gossip.wait_online(0) for member in members), "all to be back", LIMIT)
    wait_until(meets(members), "them to hear each other", LIMIT)


def rabbitmqctl(node: RabbitMQTestBroker, *arguments: str) -> None:
    """Returns when it has been done."""
    environment = node.container.process._environment
    program = shutil.which("/usr/lib/rabbitmq/bin/rabbitmqctl") or "rabbitmqctl"
    subprocess.run(
        [program, "-q", "-n", environment["RABBITMQ_NODENAME"], *arguments],
        env={**os.environ, **environment},
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=60,
    )
