"""Why a deployment cannot send: typed here, JSON between processes, words for people."""

from __future__ import annotations

import json
import pickle

import pytest

from remote_inference.errors import CircuitOpen, LimitReached, error_from_wire, error_to_wire
from remote_inference.reasons import GateKind, GateReason, LimitReason

REASONS = [GateReason.of_limit(code) for code in LimitReason]
REASONS += [GateReason(kind) for kind in GateKind]
REASONS.append(GateReason(GateKind.CIRCUIT, "forced"))


@pytest.mark.parametrize("reason", REASONS, ids=repr)
class TestEveryReason:
    def test_survives_json(self, reason):
        assert GateReason.from_wire(json.loads(json.dumps(reason.to_wire()))) == reason

    def test_survives_pickling(self, reason):
        again = pickle.loads(pickle.dumps(reason))
        assert again == reason
        assert again.kind is reason.kind

    def test_is_told_in_words(self, reason):
        assert str(reason)
        assert "_" not in str(reason)
        assert "." not in str(reason)


@pytest.mark.parametrize("code", LimitReason)
def test_every_code_of_a_limit_has_its_kind(code):
    reason = GateReason.of(LimitReached(code, retry_at=1.0))
    assert reason.kind is not GateKind.OTHER
    assert reason.detail == code


@pytest.mark.parametrize("code", LimitReason)
def test_a_code_is_the_same_as_a_plain_string_and_after_its_way_over_the_wire(code):
    assert GateReason.of_limit(code.value) == GateReason.of_limit(code)
    error = error_from_wire(json.loads(json.dumps(error_to_wire(LimitReached(code)))))
    assert error.code == code
    assert error.code in {code}
    assert str(error) == f"LimitReached: {code.value}"


@pytest.mark.parametrize(
    ("code", "urgent_may_pass"),
    [("requests", True), ("queue", True), ("concurrency", True), ("paused", False), ("joining", False)],
)
def test_only_limits_let_an_urgent_request_pass(code, urgent_may_pass):
    assert (GateReason.of_limit(code).kind is GateKind.LIMIT) == urgent_may_pass


def test_a_code_that_is_not_known_is_no_limit():
    assert GateReason.of_limit("sunspots") == GateReason(GateKind.OTHER, "sunspots")


def test_an_open_circuit_tells_its_state():
    reason = GateReason.of(CircuitOpen("forced", retry_at=1.0))
    assert reason == GateReason(GateKind.CIRCUIT, "forced")
    assert str(reason) == "circuit open (forced)"
    assert str(GateReason(GateKind.CIRCUIT, "open")) == "circuit open"


@pytest.mark.parametrize(
    "wire", [None, "LimitReached: requests", [], {}, {"kind": 1}, {"kind": "new", "detail": 2}]
)
def test_what_cannot_be_read_is_another_reason(wire):
    assert GateReason.from_wire(wire) == GateReason(GateKind.OTHER)


def test_a_newer_kind_keeps_its_detail():
    assert str(GateReason.from_wire({"kind": "weather", "detail": "solar_storm"})) == "waiting (solar storm)"
