"""The operator's hand on the circuit: in all workers, acknowledged."""

from __future__ import annotations

import pytest
from celery import Celery

from remote_inference import CircuitOpen, Inference, InvalidRequest
from remote_inference.worker.embedded import EmbeddedWorker

DEPLOYMENT = {
    "name": "forced",
    "provider": "loopback",
    "on_capacity_exhausted": "reject",
    "options": {"echo": True},
}


@pytest.fixture
def inference(broker_url):
    app = Celery("forced", broker=broker_url, set_as_current=False)
    inference = Inference(app, {"deployment": [DEPLOYMENT]})
    with EmbeddedWorker(app, concurrency=2, queues=["inference.forced"]):
        yield inference
    inference.close()


def test_force_open_refuses_requests_until_force_close(inference):
    assert inference.submit("forced", "before").result(10).text == "before"
    opened = inference.force_open("forced", 600)
    assert [answer["ok"] for answer in opened.values()] == ["circuit of forced open for 600 s"]
    with pytest.raises(CircuitOpen):
        inference.submit("forced", "meanwhile").result(10)
    closed = inference.force_close("forced")
    assert [answer["ok"] for answer in closed.values()] == ["circuit of forced closed"]
    assert inference.submit("forced", "after").result(10).text == "after"


def test_the_control_commands_do_the_same(inference):
    def broadcast(command, **arguments):
        replies = inference.app.control.broadcast(
            command, arguments=arguments, reply=True, timeout=2, limit=1
        )
        return next(iter(replies[0].values()))

    assert "ok" in broadcast("force_open", deployment="forced", seconds=600)
    with pytest.raises(CircuitOpen):
        inference.submit("forced", "meanwhile").result(10)
    assert "ok" in broadcast("force_close", deployment="forced")
    assert inference.submit("forced", "after").result(10).text == "after"
    assert "error" in broadcast("force_open", deployment="nobody", seconds=1)


@pytest.mark.parametrize("duration", [0, -1, float("inf"), float("nan"), True, "long"])
def test_a_duration_that_is_none_is_refused(inference, duration):
    with pytest.raises(InvalidRequest, match="duration"):
        inference.force_open("forced", duration)
