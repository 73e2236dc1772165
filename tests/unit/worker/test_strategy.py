"""What a worker does with a message of ours before Celery sees it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from remote_inference.worker import strategy


class Gate:
    def __init__(self) -> None:
        self.shut = False
        self.back: list[str] = []

    def refuses(self, message: Any) -> bool:
        return self.shut

    def bounce(self, message: Any, request_id: str) -> None:
        self.back.append(request_id)

    put_back = bounce


class Place:
    """A worker's parts, and what became of the messages."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run: list[str] = []
        self.refused: list[str] = []
        self.gate = Gate()
        self.pool = SimpleNamespace(active=True)
        main = SimpleNamespace(gate=self.gate, refuse=lambda message, why: self.refused.append(why))
        task = SimpleNamespace(inference=SimpleNamespace(worker_main=main))
        monkeypatch.setattr(strategy, "default", lambda *args, **kwargs: self._celery)
        self.receive = strategy.inference_strategy(task, None, SimpleNamespace(pool=self.pool))

    def _celery(self, message: Any, *args: Any, **options: Any) -> None:
        self.run.append(message.headers["id"])

    def deliver(
        self, request_id: Any = "1", payload: Any = ((), {}, {}), form: str = "application/json"
    ) -> None:
        message = SimpleNamespace(content_type=form, headers={"id": request_id}, payload=payload)
        self.receive(message, None, None, None, [])


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(monkeypatch)


def test_a_message_goes_to_celery(place):
    place.deliver()
    assert (place.run, place.gate.back, place.refused) == (["1"], [], [])


def test_what_arrives_when_the_worker_ends_goes_back(place):
    """Celery would run it in a pool that is closed: with threads the worker ended by an error, without a good-bye."""
    place.pool.active = False
    place.deliver()
    assert (place.run, place.gate.back) == ([], ["1"])


def test_what_arrives_while_its_gate_is_shut_goes_back(place):
    place.deliver()
    place.gate.shut = True
    place.deliver("2")
    assert (place.run, place.gate.back) == (["1"], ["2"])


@pytest.mark.parametrize(
    "message",
    [
        {"form": "application/x-python-serialize"},
        {"request_id": None},
        {"request_id": 7},
        {"payload": "text"},
        {"payload": ((), {})},
        {"payload": ({}, {}, {})},
        {"payload": ((), [], {})},
    ],
)
def test_what_is_not_a_task_s_message_is_refused(place, message):
    place.deliver(**message)
    assert (place.run, len(place.refused)) == ([], 1)
