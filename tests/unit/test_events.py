"""Events are values, and a hook that fails takes nothing down with it."""

from __future__ import annotations

import inspect
import logging
from dataclasses import FrozenInstanceError, fields, is_dataclass

import pytest

from remote_inference import events
from remote_inference.events import AttemptStarted, Event, GateOpened, Hooks, RequestFinished

EVENTS = [cls for cls in vars(events).values() if inspect.isclass(cls) and issubclass(cls, Event)]


@pytest.mark.parametrize("cls", EVENTS)
def test_every_event_is_public_and_documented(cls):
    assert cls.__name__ in events.__all__
    assert cls.__dict__.get("__doc__")


@pytest.mark.parametrize("cls", EVENTS)
def test_every_event_is_a_frozen_dataclass_of_plain_values(cls):
    assert is_dataclass(cls)
    assert {str(f.type) for f in fields(cls)} <= {"str", "int", "float", "bool", "float | None", "GateReason"}
    event = object.__new__(cls)
    with pytest.raises(FrozenInstanceError):
        event.deployment = "other"


def test_every_hook_is_told_in_order():
    told: list[tuple[str, Event]] = []
    hooks = Hooks([lambda event: told.append(("first", event))])
    hooks.add(lambda event: told.append(("second", event)))
    event = GateOpened(deployment="gpt")
    hooks(event)
    assert told == [("first", event), ("second", event)]


def test_a_hook_that_fails_is_logged_and_the_others_are_told(caplog):
    told: list[Event] = []

    def broken(event: Event) -> None:
        raise KeyError("broken hook")

    hooks = Hooks([broken, told.append])
    with caplog.at_level(logging.ERROR):
        hooks(AttemptStarted(deployment="gpt", request_id="id", attempt=1))
    assert len(told) == 1
    assert "failed on AttemptStarted" in caplog.text


def test_no_hooks_are_false():
    assert not Hooks()
    assert Hooks([print])
    assert repr(Hooks([print])) == "Hooks(1)"


def test_a_request_that_ended_has_no_cost_where_there_is_no_price():
    finished = RequestFinished(
        deployment="gpt", request_id="id", outcome="completed", attempts=1, duration=1.0
    )
    assert finished.cost_usd is None
