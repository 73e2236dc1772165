"""The subscriber's ticks: at their time, after a message, through faults, and without polling."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from remote_inference.messaging.subscriber import TICK_AFTER_FAULT, TICK_LONGEST, TICK_SHORTEST, Subscriber
from remote_inference.testing.clock import VirtualClock

END = object()  # the script is over
SILENCE = object()


class FakeConnection:
    """Its reads end as the script says: with nothing in time, with a message, or with an error."""

    connection_errors = (ConnectionError,)
    channel_errors = ()
    transport = SimpleNamespace(wake=lambda: None, driver_type="embedded")
    heartbeat = 0.0

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.consume: Callable[[Any], None] = lambda message: None

    def ensure_connection(self, **options: Any) -> None:
        if self.rig.refusals:
            self.rig.refusals -= 1
            raise ConnectionRefusedError

    def channel(self) -> FakeConnection:
        return self

    def basic_consume(self, queue: str, *, no_ack: bool, callback: Any, consumer_tag: str) -> None:
        self.consume = callback

    def drain_events(self, timeout: float) -> None:
        self.rig.waits.append(timeout)
        event = next(self.rig.script, END)
        if event is SILENCE:
            self.rig.clock.advance(timeout)
            raise TimeoutError
        if event is END:
            self.rig.subscriber.close()
            raise TimeoutError
        if isinstance(event, Exception):
            raise event
        self.consume(SimpleNamespace(body=event))

    def heartbeat_check(self, rate: int) -> None:
        """Nothing to check."""

    def close(self) -> None:
        """Nothing to close."""


class Rig:
    """A subscriber whose thread is this one."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.script: Iterator[Any] = iter(())
        self.waits: list[float] = []
        self.ticks: list[float] = []
        self.changes: list[bool] = []
        self.bodies: list[Any] = []
        self.refusals = 0
        self.tick: Callable[[], float] = lambda: 0.5
        self.subscriber = Subscriber(
            lambda: FakeConnection(self),  # type: ignore[arg-type, return-value]
            lambda channel: {"queue": False},
            self.bodies.append,
            name="test",
            tick=self._tick,
            on_change=self.changes.append,
            clock=self.clock,
        )
        self.begun = self.clock.monotonic()

    def _tick(self) -> float:
        self.ticks.append(round(self.clock.monotonic() - self.begun, 6))
        return self.tick()

    def run(self, *script: Any) -> None:
        self.script = iter(script)
        self.subscriber._run()


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_ticks_come_at_their_time_and_not_between(rig):
    rig.run(*[SILENCE] * 4)
    assert rig.ticks[:5] == [0, 0.5, 1.0, 1.5, 2.0]
    assert rig.waits == [0.5] * 5


def test_a_message_may_bring_the_next_tick_forward(rig):
    pauses = iter([0.5, 0.02, 0.4])
    rig.tick = lambda: next(pauses, 0.5)
    rig.run(b"one", SILENCE)
    assert rig.bodies == [b"one"]
    assert rig.ticks[:3] == [0, 0, 0.02]
    assert rig.waits == [0.5, 0.02, 0.4]


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        (0.0, TICK_SHORTEST),
        (-3.0, TICK_SHORTEST),
        (float("nan"), TICK_SHORTEST),
        (float("inf"), TICK_LONGEST),
        (3600.0, TICK_LONGEST),
    ],
)
def test_no_wait_is_so_short_that_it_spins_or_so_long_that_heartbeats_are_missed(rig, wanted, given):
    rig.tick = lambda: wanted
    rig.run(SILENCE)
    assert rig.waits == [given] * 2


def test_a_tick_that_raises_is_logged_and_called_again_a_second_later_whatever_comes(rig, caplog):
    faults = iter([ValueError("one"), ValueError("two")])

    def tick() -> float:
        fault = next(faults, None)
        if fault is not None:
            raise fault
        return 0.5

    rig.tick = tick
    with caplog.at_level(logging.ERROR):
        rig.run(b"message", b"message", SILENCE, SILENCE, SILENCE)
    assert rig.ticks[:4] == [0, TICK_AFTER_FAULT, 2 * TICK_AFTER_FAULT, 2 * TICK_AFTER_FAULT + 0.5]
    assert [str(record.exc_info[1]) for record in caplog.records] == ["one", "two"]
    assert rig.bodies == [b"message"] * 2
    assert rig.changes == [True, False]


def test_ticks_go_on_while_there_is_no_connection(rig):
    rig.refusals = 5
    rig.tick = lambda: 0.1
    rig.run()
    assert rig.changes == [True, False]
    apart = [round(later - earlier, 6) for earlier, later in zip(rig.ticks, rig.ticks[1:], strict=False)]
    assert max(apart) <= 0.1
    assert rig.ticks[-1] > 1.5


def test_a_broker_that_stays_away_is_told_once_a_minute(rig, caplog):
    rig.refusals = 100
    with caplog.at_level(logging.WARNING):
        rig.run(ConnectionResetError(), ConnectionResetError())
    refused = "test: broker connection: ConnectionRefusedError; connecting anew"
    lost = "test: broker connection: ConnectionResetError; connecting anew"
    assert [record.getMessage() for record in caplog.records] == [refused, refused, lost, lost]


def test_a_lost_connection_is_told_and_made_anew(rig):
    rig.run(b"one", ConnectionResetError(), b"two", RuntimeError("unexpected"), b"three")
    assert rig.bodies == [b"one", b"two", b"three"]
    assert rig.changes == [True, False] * 3


def test_a_message_that_cannot_be_handled_does_not_keep_others_from_it(rig):
    def refuse(body: Any) -> None:
        rig.bodies.append(body)
        raise ValueError(body)

    rig.subscriber._on_message = refuse
    rig.run(b"one", b"two")
    assert rig.bodies == [b"one", b"two"]
    assert rig.changes == [True, False]


def test_a_tick_may_have_it_connect_anew(rig):
    calls = iter([False, True])

    def tick() -> float:
        if next(calls, False):
            rig.subscriber.renew()
        return 0.5

    rig.tick = tick
    rig.run(b"one", b"two")
    assert rig.changes == [True, False, True, False]
    assert rig.bodies == [b"one", b"two"]


def test_who_is_told_of_the_connection_may_fail(rig):
    def fail(ready: bool) -> None:
        rig.changes.append(ready)
        raise ValueError(ready)

    rig.subscriber._on_change = fail
    rig.run(b"one")
    assert rig.bodies == [b"one"]
    assert rig.changes == [True, False]


def test_without_ticks_it_only_reads():
    rig = Rig()
    rig.subscriber._tick = None
    rig.run(SILENCE, b"one")
    assert rig.waits == [TICK_LONGEST] * 3
    assert rig.ticks == []
