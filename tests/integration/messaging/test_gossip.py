"""Gossip over a broker: everyone hears everyone and themselves, in every pool, through lost connections and stalls."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chatter
import pytest
from chatter import GOOD_BYE, Chatterbox, Member
from kombu import Connection, Exchange
from kombu.utils.url import parse_url
from local_process import wait_until
from tcp_proxy import TCPProxy

from remote_inference.messaging import gossip as module
from remote_inference.messaging.gossip import gossip_queue
from remote_inference.messaging.names import GOSSIP_EXCHANGE

LIMIT = 30.0  # seconds
ROOT = Path(__file__).parents[3]

Join = Callable[..., Member]


@pytest.fixture
def join() -> Iterator[Join]:
    """`join(name, url, publisher_url=url)` gives a `Member`, which is closed after the test."""
    members: list[Member] = []

    def make(*args: str) -> Member:
        members.append(Member(*args))
        return members[-1]

    yield make
    for member in members:
        member.close()


@pytest.fixture
def proxy(fresh_broker_url: str, tmp_path: Path) -> Iterator[TCPProxy]:
    broker = parse_url(fresh_broker_url)
    proxy = TCPProxy(tmp_path, broker["hostname"], broker["port"])
    proxy.start()
    yield proxy
    proxy.drop()


@pytest.fixture
def proxy_url(fresh_broker_url: str, proxy: TCPProxy) -> str:
    """The same broker, through the proxy."""
    return fresh_broker_url.replace(f":{parse_url(fresh_broker_url)['port']}/", f":{proxy.port}/")


@pytest.fixture
def process(fresh_broker_url: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """`process(name, mode, heartbeat=20)` starts a chatterbox in a process of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, mode: str = "threads", heartbeat: float = 20.0) -> subprocess.Popen[bytes]:
        patched = ["-m", "gevent.monkey"] if mode == "gevent" else []
        command = [sys.executable, *patched, chatter.__file__, name, fresh_broker_url, mode, str(heartbeat)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, cwd=ROOT))
        return started[-1]

    yield start
    for child in started:
        child.kill()  # a child of its own ends with it
        child.wait()
        assert child.stderr is not None
        child.stderr.close()


def all_hear_all(*members: Member) -> bool:
    names = [member.replica.name for member in members]
    return all(member.replica.hears(*names) for member in members)


def test_everyone_hears_everyone_and_themselves_and_a_latecomer_too(either_url: str, join: Join):
    first, second = join("first", either_url), join("second", either_url)
    assert first.gossip.wait_online(LIMIT)
    assert second.gossip.wait_online(LIMIT)
    wait_until(lambda: all_hear_all(first, second), "both to hear both", LIMIT)

    late = join("late", either_url)
    wait_until(lambda: all_hear_all(first, second, late), "the latecomer to hear and be heard", LIMIT)
    assert all(member.replica.changes == ["online"] for member in (first, second, late))


def test_who_closes_says_good_bye_and_nothing_after_it(either_url: str, join: Join):
    stays, leaves = join("stays", either_url), join("leaves", either_url)
    wait_until(lambda: all_hear_all(stays, leaves), "both to hear both", LIMIT)

    leaves.close()

    wait_until(lambda: stays.replica.knows_of["leaves"] == [GOOD_BYE], "the good-bye", LIMIT)
    last = stays.replica.heard["leaves"]
    assert leaves.replica.changes == ["online", "leave"]
    said = leaves.replica.said
    wait_until(lambda: stays.replica.heard["stays"] > said + 5, "time to pass", LIMIT)
    assert (leaves.replica.said, stays.replica.heard["leaves"]) == (said, last)


@pytest.mark.parametrize("mode", ["threads", "gevent", "fork"])
def test_every_process_is_heard(mode: str, process: Callable[..., object], fresh_broker_url: str, join: Join):
    member = join("here", fresh_broker_url)
    process("there", mode)
    names = ["there", "there.child"] if mode == "fork" else ["there"]
    wait_until(lambda: member.replica.hears(*names), "them to be heard", LIMIT)
    wait_until(lambda: member.replica.is_heard_by(*names), "them to hear", LIMIT)


def test_a_process_that_was_stopped_until_the_broker_gave_it_up_comes_back(
    process: Callable[..., subprocess.Popen[bytes]], fresh_broker_url: str, join: Join
):
    member = join("here", fresh_broker_url)
    child = process("there", "threads", 1)
    wait_until(lambda: member.replica.is_heard_by("there"), "it to be there", LIMIT)

    child.send_signal(signal.SIGSTOP)
    time.sleep(6.0)  # the broker gives it up after two or three missed heartbeats of a second
    before = member.replica.heard["there"]
    late = join("late", fresh_broker_url)
    child.send_signal(signal.SIGCONT)

    wait_until(lambda: late.replica.is_heard_by("there"), "it to hear who came meanwhile", LIMIT)
    assert member.replica.heard["there"] > before
    child.kill()
    assert child.stderr is not None
    assert b"inference-gossip: broker connection" in child.stderr.read()


@pytest.mark.parametrize("cut", ["both", "publisher"])
def test_a_cut_connection_is_told_and_made_anew(
    cut: str, proxy: TCPProxy, proxy_url: str, fresh_broker_url: str, join: Join
):
    here = join("here", fresh_broker_url)
    cut_off = join("cut off", proxy_url if cut == "both" else fresh_broker_url, proxy_url)
    wait_until(lambda: all_hear_all(here, cut_off), "both to hear both", LIMIT)

    proxy.drop()
    wait_until(lambda: cut_off.replica.changes[-1] == "offline", "it to notice", LIMIT)
    assert not cut_off.gossip.wait_online(0)
    said = cut_off.replica.said
    wait_until(lambda: cut_off.replica.said > said + 3, "its ticks to go on", LIMIT)
    proxy.start()

    assert cut_off.gossip.wait_online(LIMIT)
    now = cut_off.replica.said
    wait_until(lambda: here.replica.heard["cut off"] > now, "it to be heard again", LIMIT)
    wait_until(lambda: cut_off.replica.heard["here"] > now, "it to hear again", LIMIT)
    assert here.replica.changes == ["online"]
    assert cut_off.gossip.dropped > 0


def test_a_publisher_that_connects_anew_alone_is_told_too(fresh_broker_url: str, join: Join):
    member = join("here", fresh_broker_url)
    wait_until(lambda: member.replica.hears("here"), "its echo", LIMIT)

    member.publisher.renew()

    wait_until(lambda: member.replica.changes[-2:] == ["offline", "online"], "both changes", LIMIT)


@pytest.mark.parametrize("what", ["queue", "exchange"])
def test_what_an_operator_deletes_is_declared_anew(
    what: str, fresh_broker_url: str, join: Join, monkeypatch: pytest.MonkeyPatch
):
    queues: list[tuple[Any, str]] = []

    def declare(channel: Any) -> str:
        queues.append((channel, gossip_queue(channel)))
        return queues[-1][1]

    monkeypatch.setattr(module, "gossip_queue", declare)
    member = join("here", fresh_broker_url)
    wait_until(lambda: member.replica.hears("here"), "its echo", LIMIT)
    if what == "exchange":
        with Connection(fresh_broker_url) as connection:
            connection.default_channel.exchange_delete(GOSSIP_EXCHANGE)
    else:  # only its own connection may, in its own thread: an exclusive queue
        channel, name = queues[0]
        member.replica.once = lambda: channel.queue_delete(name, nowait=True)

    wait_until(lambda: len(queues) >= 2 and member.gossip.wait_online(0), "a new one", LIMIT)
    said = member.replica.said
    wait_until(lambda: member.replica.heard["here"] > said, "its echo again", LIMIT)


def test_messages_that_are_not_ours_and_a_replica_that_fails_stop_nothing(
    fresh_broker_url: str, join: Join, monkeypatch: pytest.MonkeyPatch
):
    faults: list[bytes | str] = []
    receive = Chatterbox.receive

    def fails(self: Chatterbox, body: bytes | str) -> None:
        if body == "fail":
            faults.append(body)
            raise RecursionError
        receive(self, body)

    monkeypatch.setattr(Chatterbox, "receive", fails)
    member = join("here", fresh_broker_url)
    assert member.gossip.wait_online(LIMIT)
    foreign = [b"", b"\xff\xfe", b"null", b"[" * 5000, os.urandom(300), json.dumps({"from": 3}).encode()]
    with Connection(fresh_broker_url) as connection:
        producer = connection.Producer(exchange=Exchange(GOSSIP_EXCHANGE), auto_declare=False)
        for body in foreign:
            producer.publish(body, content_type="application/x-other", content_encoding="utf-16")
            producer.publish(body, content_type="", content_encoding="", headers={"deep": [{"er": None}]})
        producer.publish("fail", content_type="text/plain", content_encoding="utf-8")
    wait_until(lambda: bool(faults), "the last of them", LIMIT)

    said = member.replica.said
    wait_until(lambda: member.replica.heard.get("here", 0) > said, "its echo", LIMIT)
    assert member.replica.foreign == 2 * len(foreign)
    assert member.replica.changes == ["online"]


def test_a_replica_that_stands_still_costs_the_broker_a_bounded_queue(
    fresh_broker_url: str, monkeypatch: pytest.MonkeyPatch
):
    def depth() -> int:
        return int(channel.queue_declare(queue, passive=True).message_count)

    monkeypatch.setattr(module, "QUEUE_TTL_MS", 2000)
    with Connection(fresh_broker_url) as connection:
        channel = connection.default_channel
        queue = gossip_queue(channel)
        producer = connection.Producer(
            exchange=Exchange(GOSSIP_EXCHANGE), auto_declare=False, serializer="json"
        )
        for number in range(module.QUEUE_LENGTH + 50):
            producer.publish(number, delivery_mode=1)
        oldest = channel.basic_get(queue, no_ack=True)
        assert depth() <= module.QUEUE_LENGTH
        assert oldest is None or json.loads(oldest.body) >= 49  # the oldest go first
        wait_until(lambda: depth() == 0, "them to be too old", LIMIT)


def test_sending_never_blocks_while_nothing_moves(
    proxy: TCPProxy, proxy_url: str, fresh_broker_url: str, join: Join
):
    member = join("here", fresh_broker_url, proxy_url)
    wait_until(lambda: member.replica.hears("here"), "its echo", LIMIT)
    proxy.freeze()
    try:
        done = threading.Event()

        def send() -> None:
            for _ in range(2000):
                member.replica.send(b"x" * 10_000)  # type: ignore[misc]
            done.set()

        threading.Thread(target=send, daemon=True).start()
        assert done.wait(LIMIT)
        ticks = member.replica.ticks
        wait_until(lambda: member.replica.ticks > ticks + 5, "the thread to go on", LIMIT)
    finally:
        proxy.thaw()
    said = member.replica.said
    wait_until(lambda: member.replica.heard["here"] > said, "its echo again", LIMIT)
