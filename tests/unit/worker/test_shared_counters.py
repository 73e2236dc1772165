"""The counters: what one process of a worker writes, all see."""

from __future__ import annotations

import os

import pytest

from remote_inference.engine import CELLS, MetricsRecorder
from remote_inference.types import EngineMetrics
from remote_inference.worker.shared_counters import STRIPES, SharedCounters


def test_everything_begins_at_nought():
    counters = SharedCounters(["a", "b"])
    assert (counters.connection, counters.rebuild_epoch("a"), counters.rebuild_epoch("b")) == (0, 0, 0)
    assert counters.metrics() == {"a": EngineMetrics(), "b": EngineMetrics()}
    assert repr(counters) == "SharedCounters(2 deployments, connection 0)"


def test_numbers_are_counted_up_apart():
    counters = SharedCounters(["a", "b"])
    assert [counters.next_connection(), counters.next_connection()] == [1, 2]
    assert [counters.advance_rebuild_epoch("b"), counters.advance_rebuild_epoch("b")] == [1, 2]
    assert (counters.connection, counters.rebuild_epoch("a"), counters.rebuild_epoch("b")) == (2, 0, 2)


def test_an_unknown_deployment_has_no_rebuild_epoch_and_cannot_get_one():
    counters = SharedCounters(["a"])
    assert counters.rebuild_epoch("other") == 0
    with pytest.raises(KeyError):
        counters.advance_rebuild_epoch("other")


def test_without_deployments_it_counts_connections_all_the_same():
    counters = SharedCounters([])
    assert counters.next_connection() == 1
    assert counters.metrics() == {}


def test_the_counts_of_all_processes_are_added_up_by_deployment():
    counters = SharedCounters(["a", "b"])
    for stripe in (0, 1, STRIPES - 1):
        with MetricsRecorder(counters.counts("a", stripe)).request() as outcome:
            outcome[0] = "completed"
    MetricsRecorder(counters.counts("b", 1)).add("cost_microusd", 2_000_000)
    assert counters.metrics()["a"] == EngineMetrics(started=3, completed=3)
    assert counters.metrics()["b"] == EngineMetrics(cost_usd=2.0)


def test_no_cell_is_anothers():
    names = ["a", "b", "c"]
    counters = SharedCounters(names)
    for number, name in enumerate(names):
        for stripe in range(STRIPES):
            cells = counters.counts(name, stripe)
            assert list(cells) == [0] * CELLS
            cells[0] = cells[CELLS - 1] = number + 1
    counters.next_connection()
    counters.advance_rebuild_epoch("c")
    assert [counters.rebuild_epoch(name) for name in names] == [0, 0, 1]
    assert all(counters.counts("b", stripe)[0] == 2 for stripe in range(STRIPES))


def test_more_processes_than_stripes_share():
    counters = SharedCounters(["a"])
    counters.counts("a", STRIPES + 3)[0] = 1
    assert counters.counts("a", 3)[0] == 1


def test_what_a_dead_process_had_in_flight_has_failed():
    counters = SharedCounters(["a", "b"])
    for _ in range(2):
        MetricsRecorder(counters.counts("a", 5)).request().__enter__()
    counters.clear_in_flight(5)
    counters.clear_in_flight(5)
    assert counters.metrics()["a"] == EngineMetrics(started=2, failed=2)
    assert counters.metrics()["b"] == EngineMetrics()


def test_a_forked_child_and_its_parent_see_the_same_page():
    counters = SharedCounters(["a"])
    pid = os.fork()
    if pid == 0:
        counters.advance_rebuild_epoch("a")
        MetricsRecorder(counters.counts("a", 1)).add("retried", 3)
        os._exit(0)
    os.waitpid(pid, 0)
    assert counters.rebuild_epoch("a") == 1
    assert counters.metrics()["a"].retried == 3


def test_a_circuit_is_open_where_it_is_in_one_process():
    counters = SharedCounters(["a", "b"])
    assert counters.circuit("a", 100.0) == "closed"
    counters.show_circuit("a", 0, 150.0)
    counters.show_circuit("a", STRIPES + 1, 130.0)
    counters.show_circuit("b", 2, 1e30)
    assert [counters.circuit("a", now) for now in (100.0, 140.0, 160.0)] == ["open", "open", "half_open"]
    counters.show_circuit("a", 0, 0.0)
    assert [counters.circuit("a", now) for now in (100.0, 140.0)] == ["open", "half_open"]
    counters.clear_in_flight(1)
    assert (counters.circuit("a", 100.0), counters.circuit("b", 100.0)) == ("closed", "open")


def test_those_who_obeyed_a_command_are_counted():
    counters = SharedCounters(["a"])
    assert counters.obeyed(1) == 0
    counters.obey(0, 1)
    counters.obey(STRIPES - 1, 2)
    assert [counters.obeyed(command) for command in (1, 2, 3)] == [2, 1, 0]
    assert counters.circuit("a", 0.0) == "closed"
    assert counters.metrics()["a"] == EngineMetrics()
