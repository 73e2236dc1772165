"""The board: what one process of a worker writes, all see."""

from __future__ import annotations

import os

import pytest

from remote_inference.engine import CELLS, MetricsRecorder
from remote_inference.types import EngineMetrics
from remote_inference.worker.board import STRIPES, Board


def test_everything_begins_at_nought():
    board = Board(["a", "b"])
    assert (board.connection, board.fence("a"), board.fence("b")) == (0, 0, 0)
    assert board.metrics() == {"a": EngineMetrics(), "b": EngineMetrics()}
    assert repr(board) == "Board(2 deployments, connection 0)"


def test_numbers_are_counted_up_apart():
    board = Board(["a", "b"])
    assert [board.next_connection(), board.next_connection()] == [1, 2]
    assert [board.raise_fence("b"), board.raise_fence("b")] == [1, 2]
    assert (board.connection, board.fence("a"), board.fence("b")) == (2, 0, 2)


def test_an_unknown_deployment_has_no_fence_and_cannot_get_one():
    board = Board(["a"])
    assert board.fence("other") == 0
    with pytest.raises(KeyError):
        board.raise_fence("other")


def test_without_deployments_it_counts_connections_all_the_same():
    board = Board([])
    assert board.next_connection() == 1
    assert board.metrics() == {}


def test_the_counts_of_all_processes_are_added_up_by_deployment():
    board = Board(["a", "b"])
    for stripe in (0, 1, STRIPES - 1):
        with MetricsRecorder(board.counts("a", stripe)).request() as outcome:
            outcome[0] = "completed"
    MetricsRecorder(board.counts("b", 1)).add("cost_microusd", 2_000_000)
    assert board.metrics()["a"] == EngineMetrics(started=3, completed=3)
    assert board.metrics()["b"] == EngineMetrics(cost_usd=2.0)


def test_no_cell_is_anothers():
    names = ["a", "b", "c"]
    board = Board(names)
    for number, name in enumerate(names):
        for stripe in range(STRIPES):
            cells = board.counts(name, stripe)
            assert list(cells) == [0] * CELLS
            cells[0] = cells[CELLS - 1] = number + 1
    board.next_connection()
    board.raise_fence("c")
    assert [board.fence(name) for name in names] == [0, 0, 1]
    assert all(board.counts("b", stripe)[0] == 2 for stripe in range(STRIPES))


def test_more_processes_than_stripes_share():
    board = Board(["a"])
    board.counts("a", STRIPES + 3)[0] = 1
    assert board.counts("a", 3)[0] == 1


def test_what_a_dead_process_had_in_flight_has_failed():
    board = Board(["a", "b"])
    for _ in range(2):
        MetricsRecorder(board.counts("a", 5)).request().__enter__()
    board.clear_in_flight(5)
    board.clear_in_flight(5)
    assert board.metrics()["a"] == EngineMetrics(started=2, failed=2)
    assert board.metrics()["b"] == EngineMetrics()


def test_a_forked_child_and_its_parent_see_the_same_page():
    board = Board(["a"])
    pid = os.fork()
    if pid == 0:
        board.raise_fence("a")
        MetricsRecorder(board.counts("a", 1)).add("retried", 3)
        os._exit(0)
    os.waitpid(pid, 0)
    assert board.fence("a") == 1
    assert board.metrics()["a"].retried == 3


def test_a_circuit_is_open_where_it_is_in_one_process():
    board = Board(["a", "b"])
    assert board.circuit("a", 100.0) == "closed"
    board.show_circuit("a", 0, 150.0)
    board.show_circuit("a", STRIPES + 1, 130.0)
    board.show_circuit("b", 2, 1e30)
    assert [board.circuit("a", now) for now in (100.0, 140.0, 160.0)] == ["open", "open", "half_open"]
    board.show_circuit("a", 0, 0.0)
    assert [board.circuit("a", now) for now in (100.0, 140.0)] == ["open", "half_open"]
    board.clear_in_flight(1)
    assert (board.circuit("a", 100.0), board.circuit("b", 100.0)) == ("closed", "open")


def test_those_who_obeyed_an_order_are_counted():
    board = Board(["a"])
    assert board.obeyed(1) == 0
    board.obey(0, 1)
    board.obey(STRIPES - 1, 2)
    assert [board.obeyed(order) for order in (1, 2, 3)] == [2, 1, 0]
    assert board.circuit("a", 0.0) == "closed"
    assert board.metrics()["a"] == EngineMetrics()
