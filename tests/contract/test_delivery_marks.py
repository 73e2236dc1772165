"""The marks of calls that did not end are kept in the broker, on both transports alike."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator

import pytest
from kombu import Connection

from remote_inference.messaging.delivery_marks import Deaths, Mark, forget_marks, leave_mark, take_mark_away
from remote_inference.messaging.embedded import register
from remote_inference.messaging.names import marks_queue
from remote_inference.messaging.queues import declare_marks_queue

_names = itertools.count()


@pytest.fixture(params=["embedded", "rabbitmq"])
def connection(request: pytest.FixtureRequest) -> Iterator[Connection]:
    if request.param == "embedded":
        register()
        url = f"embedded://marks-{next(_names)}"
    else:
        url = request.getfixturevalue("broker_url")
    with Connection(url) as made:
        yield made


@pytest.fixture
def request_id() -> str:
    return str(uuid.uuid4())


def begin(connection: Connection, request_id: str, run: str, *, alone: bool = False) -> Deaths:
    """A call begins; the deaths before it."""
    return leave_mark(connection, request_id, Mark(run, alone), lambda deaths: True)


def deaths(connection: Connection, request_id: str) -> Deaths:
    """A look that leaves no mark."""
    return leave_mark(connection, request_id, Mark("look"), lambda deaths: False)


def exists(connection: Connection, request_id: str) -> bool:
    """Whether there is a queue of its marks."""
    channel = connection.channel()
    try:
        channel.queue_declare(marks_queue(request_id), passive=True)
    except connection.channel_errors:
        return False
    finally:
        channel.close()
    return True


def test_every_call_that_did_not_end_is_a_death(connection, request_id):
    found = [begin(connection, request_id, run, alone=run > "b") for run in "abcd"]
    assert found == [Deaths(0, 0), Deaths(1, 0), Deaths(2, 0), Deaths(3, 1)]
    assert deaths(connection, request_id) == Deaths(4, 2)


def test_a_call_that_may_not_begin_leaves_no_mark_and_looking_changes_nothing(connection, request_id):
    begin(connection, request_id, "a")
    assert [deaths(connection, request_id) for _ in range(3)] == [Deaths(1, 0)] * 3


def test_the_first_delivery_is_no_death(connection, request_id):
    assert begin(connection, request_id, "a") == Deaths(0, 0)


def test_a_mark_that_is_taken_away_is_no_death_and_those_of_others_stay(connection, request_id):
    for run in "abc":
        begin(connection, request_id, run)
    take_mark_away(connection, request_id, "b")
    assert deaths(connection, request_id) == Deaths(2, 0)


def test_the_queue_goes_with_its_last_mark(connection, request_id):
    begin(connection, request_id, "a")
    begin(connection, request_id, "b")
    take_mark_away(connection, request_id, "a")
    assert exists(connection, request_id)
    take_mark_away(connection, request_id, "b")
    assert not exists(connection, request_id)


def test_nothing_is_kept_of_a_request_that_has_ended(connection, request_id):
    begin(connection, request_id, "a")
    begin(connection, request_id, "b")
    forget_marks(connection, request_id)
    assert not exists(connection, request_id)


def test_taking_away_what_is_not_there_makes_nothing(connection, request_id):
    take_mark_away(connection, request_id, "a")
    forget_marks(connection, request_id)
    assert not exists(connection, request_id)


def test_a_mark_that_another_one_reads_just_now_is_not_counted_later(connection, request_id):
    begin(connection, request_id, "a")
    begin(connection, request_id, "b")
    reader = connection.channel()
    assert reader.basic_get(marks_queue(request_id), no_ack=False) is not None
    take_mark_away(connection, request_id, "a")
    reader.close()
    assert deaths(connection, request_id) == Deaths(1, 0)


def test_what_is_no_mark_is_not_counted_and_what_a_newer_version_adds_is_ignored(connection, request_id):
    channel = connection.channel()
    declare_marks_queue(channel, request_id)
    for body in (b"\xff", b"mark", b"[]", b'{"run": 1}', b'{"v": 2, "run": "a", "alone": true, "more": 1}'):
        message = channel.prepare_message(body, 0, "application/json", "utf-8", {}, {"delivery_mode": 2})
        channel.basic_publish(message, exchange="", routing_key=marks_queue(request_id))
    channel.close()
    assert deaths(connection, request_id) == Deaths(1, 1)


def test_requests_are_told_apart(connection, request_id):
    begin(connection, request_id, "a")
    assert begin(connection, str(uuid.uuid4()), "b") == Deaths(0, 0)
