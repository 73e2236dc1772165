"""Deaths of workers are counted in the broker, on both transports alike."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator

import pytest
from kombu import Connection

from remote_inference.messaging.embedded import register
from remote_inference.messaging.suspects import begin_suspect, deaths_under, end_suspect, note_put_back

_names = itertools.count()


@pytest.fixture(params=["embedded", "rabbitmq"])
def connection(request: pytest.FixtureRequest) -> Iterator[Connection]:
    if request.param == "embedded":
        register()
        url = f"embedded://suspects-{next(_names)}"
    else:
        url = request.getfixturevalue("broker_url")
    with Connection(url) as made:
        yield made


@pytest.fixture
def request_id() -> str:
    return str(uuid.uuid4())


def put_back(connection: Connection, request_id: str) -> None:
    """The first delivery was put back on purpose."""
    channel = connection.channel()
    note_put_back(channel, request_id)
    channel.queue_declare("after-the-note", auto_delete=False)  # its answer comes after the note is there
    channel.close()


def begin(connection: Connection, request_id: str) -> int:
    """As a worker does when a request comes again: how many died under it before."""
    deaths = deaths_under(connection, request_id)
    begin_suspect(connection, request_id)
    return deaths


def test_every_delivery_that_did_not_end_was_a_death(connection, request_id):
    assert [begin(connection, request_id) for _ in range(4)] == [1, 2, 3, 4]


def test_one_that_was_put_back_at_first_did_not_die(connection, request_id):
    put_back(connection, request_id)
    assert [begin(connection, request_id) for _ in range(3)] == [0, 1, 2]


def test_one_that_is_put_back_later_did_not_die_then(connection, request_id):
    assert begin(connection, request_id) == 1
    end_suspect(connection, request_id, finished=False)
    assert begin(connection, request_id) == 1
    assert begin(connection, request_id) == 2


def test_one_that_has_ended_leaves_nothing_behind(connection, request_id):
    begin(connection, request_id)
    begin(connection, request_id)
    end_suspect(connection, request_id, finished=True)
    assert begin(connection, request_id) == 1


def test_ending_what_never_began_is_no_harm(connection, request_id):
    end_suspect(connection, request_id, finished=True)
    end_suspect(connection, request_id, finished=False)


def test_requests_are_told_apart(connection, request_id):
    begin(connection, request_id)
    assert begin(connection, str(uuid.uuid4())) == 1
