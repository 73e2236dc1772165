"""A request that is put back is nothing to warn of."""

from __future__ import annotations

import logging

import pytest

from remote_inference.reasons import GateKind, GateReason
from remote_inference.worker.outcomes import Requeue
from remote_inference.worker.quiet import quiet_requeues


def test_what_was_put_back_is_not_logged_and_all_else_is(caplog: pytest.LogCaptureFixture):
    quiet_requeues()
    logger = logging.getLogger("celery.app.trace")
    with caplog.at_level(logging.DEBUG, logger=logger.name):
        for error in (Requeue(GateReason(GateKind.PAUSE), 1.0), ValueError("shown")):
            try:
                raise error
            except Exception:
                logger.warning("reject", exc_info=True)
        logger.info("succeeded")

    assert [record.exc_info and record.exc_info[0] for record in caplog.records] == [ValueError, None]
