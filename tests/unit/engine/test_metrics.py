"""The counts always agree with one another."""

from __future__ import annotations

import threading

import pytest

from remote_inference.engine import CELLS, MetricsRecorder, metrics_from_cells
from remote_inference.types import EngineMetrics


@pytest.mark.parametrize("outcome", ["completed", "failed", "rejected", "cancelled", "handed_back"])
def test_a_request_is_in_flight_and_then_what_became_of_it(outcome):
    recorder = MetricsRecorder()
    with recorder.request() as told:
        assert recorder.snapshot() == EngineMetrics(in_flight=1, started=1)
        told[0] = outcome
    assert recorder.snapshot() == EngineMetrics(started=1, **{outcome: 1})


def test_one_that_flies_out_has_failed():
    recorder = MetricsRecorder()
    with pytest.raises(SystemExit), recorder.request():
        raise SystemExit
    assert recorder.snapshot() == EngineMetrics(started=1, failed=1)


def test_costs_are_kept_as_whole_millionths():
    recorder = MetricsRecorder()
    recorder.add("cost_microusd", 1_500_000)
    assert recorder.snapshot().cost_usd == 1.5


def test_every_count_has_a_cell():
    metrics = metrics_from_cells(range(1, CELLS + 1))
    found = {name: value for name, value in vars(metrics).items() if name != "queued"}
    assert len(found) == CELLS
    assert 0 not in found.values()


def test_nothing_is_lost_between_threads():
    recorder = MetricsRecorder()

    def count() -> None:
        for _ in range(2000):
            with recorder.request() as outcome:
                outcome[0] = "completed"

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert recorder.snapshot() == EngineMetrics(started=8000, completed=8000)
