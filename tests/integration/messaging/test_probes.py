"""Probe slots: locks in the broker, which go with whoever holds them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
from kombu import Connection

from remote_inference.messaging import probes
from remote_inference.messaging.probes import BrokerSlots
from remote_inference.messaging.publisher import Publisher

LIMIT = 30.0

HOLDER = """
import random, sys, time
from kombu import Connection
from remote_inference.messaging.probes import BrokerSlots
from remote_inference.messaging.publisher import Publisher
url, circuit = sys.argv[1:]
print(BrokerSlots(Publisher(lambda: Connection(url)), circuit, 1, random.Random()).take() is not None, flush=True)
time.sleep(600)
"""


@pytest.fixture
def make_slots(broker_url: str) -> Iterator[Callable[..., BrokerSlots]]:
    """Slots of one circuit as another process sees them: on a connection of its own."""
    circuit = uuid.uuid4().hex[:16]
    publishers: list[Publisher] = []

    def make(count: int = 1) -> BrokerSlots:
        publishers.append(Publisher(lambda: Connection(broker_url)))
        return BrokerSlots(publishers[-1], circuit, count, random.Random(len(publishers)))

    make.circuit = circuit  # type: ignore[attr-defined]
    yield make
    for publisher in publishers:
        publisher.close()


def taken(slots: BrokerSlots) -> probes.BrokerSlot:
    """A slot, as soon as there is one."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        slot = slots.take()
        if slot is not None:
            return slot
        time.sleep(0.02)
    raise TimeoutError("no slot")


def test_there_are_as_many_as_were_configured_for_all_together(make_slots):
    one, two = make_slots(3), make_slots(3)
    held = [slots.take() for slots in (one, two, one)]
    assert None not in held
    assert {slot.number for slot in held} == {0, 1, 2}
    assert (one.take(), two.take()) == (None, None)
    held[1].release()
    assert taken(one).number == held[1].number
    assert two.take() is None


def test_many_who_ask_at_once_get_exactly_that_many(make_slots):
    processes = [make_slots(2) for _ in range(6)]
    got: list[object] = []
    start = threading.Barrier(24)

    def ask(slots: BrokerSlots) -> None:
        start.wait()
        got.append(slots.take())

    threads = [threading.Thread(target=ask, args=(slots,)) for slots in processes for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert len(got) == 24
    assert sum(slot is not None for slot in got) == 2


def test_the_same_process_gets_each_of_them_once(make_slots):
    slots = make_slots(2)
    first, second = slots.take(), slots.take()
    assert {first.number, second.number} == {0, 1}
    assert slots.take() is None
    first.release()
    again = taken(slots)
    assert again.number == first.number
    first.release()  # twice does no harm to the one who has it now
    assert make_slots(2).take() is None


def test_one_that_is_killed_frees_its_slot(make_slots, broker_url: str):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, broker_url, make_slots.circuit], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        other = make_slots()
        assert other.take() is None
        os.kill(holder.pid, signal.SIGKILL)
        assert taken(other)
    finally:
        holder.kill()
        holder.wait()


def test_one_that_loses_its_connection_has_lost_its_slot_and_may_release_it_all_the_same(make_slots):
    one, two = make_slots(), make_slots()
    lost = taken(one)
    one._publisher.renew()
    kept = taken(two)
    assert one.take() is None
    lost.release()
    assert one.take() is None  # the release did not take the other's away
    kept.release()
    assert taken(one)


def test_a_broker_that_does_not_answer_gives_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probes, "ANSWER_TIMEOUT", 0.2)
    publisher = Publisher(lambda: Connection("amqp://guest:guest@localhost:1/"))
    slots = BrokerSlots(publisher, "c", 1, random.Random(1))
    assert slots.take() is None
    publisher.close()
    assert slots.take() is None
    assert repr(slots) == "BrokerSlots(c, 0 of 1 here)"


def test_a_slot_that_comes_too_late_is_given_back(make_slots, monkeypatch: pytest.MonkeyPatch):
    slots, other = make_slots(), make_slots()
    taken(slots).release()
    go_on = threading.Event()
    slots._publisher.call(lambda connection: go_on.wait(LIMIT))  # it is busy with something else
    monkeypatch.setattr(probes, "ANSWER_TIMEOUT", 0.1)
    assert slots.take() is None
    monkeypatch.undo()
    go_on.set()
    assert taken(other)
