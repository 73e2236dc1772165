"""What the broker remembers of a request under which workers died: deaths are counted, and nothing else is."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from amqp.exceptions import NotFound
from kombu import Connection

from remote_inference.messaging.names import suspect_queue
from remote_inference.messaging.suspects import (
    begin_suspect,
    deaths_under,
    end_suspect,
    note_put_back,
    note_survived,
)


@pytest.fixture
def connection(broker_url: str) -> Iterator[Connection]:
    with Connection(broker_url) as connection:
        yield connection


@pytest.fixture
def request_id() -> str:
    return str(uuid.uuid4())


def test_the_first_delivery_leaves_no_trace_and_counts_as_a_death(connection: Connection, request_id: str):
    assert deaths_under(connection, request_id) == 1


def test_every_beginning_without_an_end_is_a_death(connection: Connection, request_id: str):
    for deaths in (1, 2, 3):
        assert deaths_under(connection, request_id) == deaths
        begin_suspect(connection, request_id)


def test_asking_changes_nothing(connection: Connection, request_id: str):
    begin_suspect(connection, request_id)
    assert [deaths_under(connection, request_id) for _ in range(3)] == [2, 2, 2]


def test_a_first_delivery_that_was_put_back_is_no_death(connection: Connection, request_id: str):
    note_put_back(connection.default_channel, request_id)
    assert deaths_under(connection, request_id) == 0


def test_a_first_delivery_whose_worker_lost_the_broker_is_no_death(connection: Connection, request_id: str):
    note_survived(connection, request_id)
    assert deaths_under(connection, request_id) == 0


def test_a_run_that_is_to_come_again_is_no_death_and_those_before_stay_counted(
    connection: Connection, request_id: str
):
    begin_suspect(connection, request_id)  # and died
    begin_suspect(connection, request_id)
    end_suspect(connection, request_id, finished=False)
    assert deaths_under(connection, request_id) == 2


def test_nothing_is_kept_of_a_request_that_has_ended(connection: Connection, request_id: str):
    begin_suspect(connection, request_id)
    end_suspect(connection, request_id, finished=True)
    with pytest.raises(NotFound):
        connection.channel().queue_declare(suspect_queue(request_id), passive=True)
