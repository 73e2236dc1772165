"""What a task tells the main process survives the way out of a prefork child."""

from __future__ import annotations

import pickle

import pytest
from billiard.einfo import ExceptionInfo

from remote_inference.reasons import GateKind, GateReason
from remote_inference.worker.outcomes import RequestCancelled, Requeue


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_requeue_keeps_its_reason_and_its_time(protocol):
    sent = Requeue(GateReason(GateKind.LIMIT, "tokens"), 12.5)
    got = pickle.loads(pickle.dumps(sent, protocol))
    assert (got.reason, got.until, got.requeue) == (sent.reason, 12.5, True)
    assert got.reason.kind is GateKind.LIMIT


def test_so_it_does_with_its_traceback():
    try:
        raise Requeue(GateReason(GateKind.SHUTDOWN), 1.0)
    except Requeue:
        info = pickle.loads(pickle.dumps(ExceptionInfo()))
    exc = getattr(info.exception, "exc", info.exception)
    assert (exc.reason, exc.until) == (GateReason(GateKind.SHUTDOWN), 1.0)


def test_a_cancel_keeps_its_reason_and_whether_it_is_to_be_told():
    got = pickle.loads(pickle.dumps(RequestCancelled("connection_lost", quiet=True)))
    assert (got.reason, got.quiet) == ("connection_lost", True)
