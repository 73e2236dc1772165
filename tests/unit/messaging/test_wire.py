"""What travels beside the request: read as it was written, and refused in a known way where it was not."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import completions, pieces, texts

from remote_inference.errors import Cancelled, ServerError, UndecodableMessage
from remote_inference.messaging import wire
from remote_inference.messaging.names import HEADER
from remote_inference.messaging.wire import (
    Answer,
    Chunk,
    ClientIdentity,
    Command,
    Envelope,
    Outcome,
    client_of,
    decode_replies,
    dumps,
    loads,
)
from remote_inference.types import WIRE_VERSION, TokenChunk

ids = st.uuids().map(str)
epochs = st.text("0123456789abcdef", min_size=12, max_size=12)
times = st.floats(0, 4e9)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=10,
)


@given(JSON.filter(lambda value: "nan" not in repr(value)))
def test_json_is_read_as_it_was_written(value):
    assert loads(dumps(value)) == value
    assert loads(memoryview(dumps(value))) == value
    assert loads(dumps(value).decode()) == value


class TestClientIdentity:
    def test_ids_are_uuids_in_form_and_all_different(self):
        identities = [ClientIdentity() for _ in range(4)]
        made = [identity.new_id() for identity in identities for _ in range(1000)]
        assert len(set(made)) == len(made)
        assert all(str(uuid.UUID(one)) == one for one in made)

    def test_an_id_tells_whose_it_is(self):
        identity = ClientIdentity()
        assert {client_of(identity.new_id()) for _ in range(100)} == {identity.token}

    @given(texts)
    def test_a_foreign_id_is_nobodys(self, request_id):
        assert client_of(request_id) != ClientIdentity().token
        assert len(client_of(request_id)) <= 16


envelopes = st.builds(
    Envelope,
    reply_to=st.text("0123456789abcdef", min_size=16, max_size=16),
    sent=times,
    deadline=st.none() | times,
    on_disconnect=st.sampled_from(["cancel", "finish"]),
    tokens=st.integers(0, 10**9),
)


class TestEnvelope:
    @given(envelopes)
    def test_is_read_as_it_was_written(self, envelope):
        assert Envelope.from_headers(json.loads(json.dumps(envelope.to_headers()))) == envelope

    @pytest.mark.parametrize("headers", [None, {}, {"other": 1}])
    def test_a_message_without_one_has_no_reader_and_no_deadline(self, headers):
        assert Envelope.from_headers(headers) == Envelope()

    @pytest.mark.parametrize(
        "changes",
        [
            {"v": WIRE_VERSION + 1},
            {"v": None},
            {"v": "1"},
            {"sent": "soon"},
            {"sent": []},
            {"deadline": float("nan")},
            {"deadline": float("inf")},
            {"tokens": float("inf")},
            {"tokens": None},
        ],
        ids=str,
    )
    def test_one_that_cannot_be_read_is_undecodable(self, changes):
        headers = Envelope(sent=1.0, deadline=2.0).to_headers()
        headers[HEADER].update(changes)
        with pytest.raises(UndecodableMessage):
            Envelope.from_headers(headers)

    @given(JSON)
    def test_whatever_the_header_is_it_is_read_or_undecodable(self, value):
        for header in (value, {"v": 1, "sent": value}, {"v": 1, "deadline": value, "tokens": value}):
            try:
                Envelope.from_headers({HEADER: header})
            except UndecodableMessage:
                pass

    def test_without_a_deadline_there_is_none(self):
        assert Envelope(sent=100.0).local_deadline(50.0) is None

    @given(
        sent=st.floats(1e6, 1e9),
        seconds=st.floats(0.1, 3600),
        skew=st.floats(-1e4, 1e4),
        way=st.floats(0, 60),
    )
    def test_the_local_deadline_is_never_later_than_meant_by_more_than_the_way_took(
        self, sent, seconds, skew, way
    ):
        """``skew``: how far the sender's clock is ahead of the reader's."""
        meant = sent - skew + seconds
        found = Envelope(sent=sent, deadline=sent + seconds).local_deadline(sent - skew + way)
        assert found is not None
        if skew >= way:  # it is seen that the sender's clock is ahead
            assert found == pytest.approx(meant + way)
        elif skew <= 0:  # a clock that is behind errs on the short side
            assert found <= meant + 1e-3
        else:
            assert found <= meant + way + 1e-3

    def test_with_clocks_that_agree_it_is_what_was_meant(self):
        assert Envelope(sent=100.0, deadline=130.0).local_deadline(105.0) == 130.0

    def test_without_the_senders_clock_it_is_taken_as_it_stands(self):
        assert Envelope(deadline=130.0).local_deadline(5.0) == 130.0


class TestReplies:
    @given(st.data(), completions, ids, epochs, st.integers(0, 10**6))
    def test_a_chunk(self, data, completion, request_id, epoch, sequence):
        for piece in data.draw(pieces(completion)):
            chunk = Chunk(request_id, epoch, sequence, piece)
            [found] = decode_replies(chunk.encode())
            assert isinstance(found, Chunk)
            assert (found.request_id, found.epoch, found.sequence) == (request_id, epoch, sequence)
            assert found.chunk.to_wire() == piece.to_wire()
            assert (found.chunk.request_id, found.chunk.epoch) == (request_id, epoch)

    @given(completions, ids, epochs)
    def test_a_completion(self, completion, request_id, epoch):
        outcome = Outcome(request_id, epoch, completion)
        assert decode_replies(outcome.encode()) == [outcome]

    @given(ids, epochs, st.none() | st.just({"prompt_tokens": 3}))
    def test_an_error(self, request_id, epoch, usage):
        error = Cancelled("caller", "gpt", request_id, 2, usage)
        [found] = decode_replies(Outcome(request_id, epoch, error=error).encode())
        assert isinstance(found, Outcome)
        assert type(found.error) is Cancelled
        assert found.error.args == error.args

    @given(ids)
    def test_a_notice(self, request_id):
        outcome = Outcome(request_id, "", notice=True)
        assert decode_replies(outcome.encode()) == [outcome]

    @given(st.text(max_size=8), st.dictionaries(st.text(max_size=3), st.integers()))
    def test_an_answer(self, worker, value):
        answer = Answer("token", worker, value)
        assert decode_replies(answer.encode()) == [answer]

    def test_several_in_one_message(self):
        chunks = [Chunk("a", "e", number, TokenChunk("x")) for number in range(3)]
        body = b"[" + b",".join(chunk.encode() for chunk in chunks) + b"]"
        assert [reply.sequence for reply in decode_replies(body)] == [0, 1, 2]

    @given(JSON, JSON, JSON, st.sampled_from(["completion", "error", "answer", "s", "c", "notice"]))
    def test_a_foreign_one_is_refused_in_a_known_way(self, value, other, third, key):
        whole = {"i": "id", "e": "", "worker": "w", "s": None}
        for body in (
            value,
            [value],
            {"i": value, "e": other},
            {**whole, key: third},
            {**whole, "s": 1, key: third},
        ):
            self.refused_or_read(json.dumps(body).encode())

    @given(st.binary(max_size=30))
    def test_bytes_that_are_no_json_too(self, body):
        self.refused_or_read(body)

    def test_and_what_is_nested_too_deeply(self):
        self.refused_or_read(b"[" * 100_000)

    @staticmethod
    def refused_or_read(body: bytes) -> None:
        try:
            for reply in decode_replies(body):
                assert isinstance(reply.encode(), bytes)
        except (ValueError, KeyError, TypeError):
            pass


orders = st.builds(
    Command,
    kind=st.sampled_from(["cancel", "rebuild", "status"]),
    subject=texts,
    reason=texts,
)


class TestOrder:
    @given(orders)
    def test_is_read_as_it_was_written(self, order):
        assert Command.decode(order.encode()) == order

    def test_one_that_wants_an_answer_says_where(self):
        order = Command(kind="status", reply_to="client", token="t")
        assert Command.decode(order.encode()) == order

    def test_a_newer_version_is_refused(self):
        newer = json.loads(Command(kind="cancel").encode()) | {"v": WIRE_VERSION + 1}
        with pytest.raises(ValueError, match="version"):
            Command.decode(json.dumps(newer))

    @given(JSON, JSON)
    def test_a_foreign_one_is_refused_in_a_known_way(self, value, other):
        for body in (value, {"v": value}, {"v": 1, "kind": other, "subject": value}):
            try:
                order = Command.decode(json.dumps(body))
            except (ValueError, KeyError, TypeError):
                continue
            assert isinstance(order.subject, str)


def test_an_error_shows_in_no_reply_what_a_provider_said():
    body = Outcome("id", "", error=ServerError("overloaded", status=529)).encode()
    assert json.loads(body)["error"] == {"error": "ServerError", "args": ["overloaded", "", "", 0, 529, None]}


def test_everything_public_is_listed():
    assert {name for name in vars(wire) if name in wire.__all__} == set(wire.__all__)


def test_every_body_is_one_line_of_utf8() -> None:
    bodies: list[Any] = [Command(kind="cancel", subject="ü"), Outcome("i", "e", notice=True)]
    assert all("\n" not in body.encode().decode() for body in bodies)
