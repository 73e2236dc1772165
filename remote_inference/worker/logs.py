"""What Celery's own log lines would show of a prompt, and do not."""

from __future__ import annotations

import logging

from ..messaging.names import INFER_TASK

__all__ = ["redact_pool_log"]


class _WithoutArguments(logging.Filter):
    """The pool's DEBUG line shows all that it is given: the message's body too."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple) and any(INFER_TASK in str(given) for given in record.args):
            record.msg, record.args = f"TaskPool: Apply {INFER_TASK}", ()
        return True


_FILTER = _WithoutArguments()


def redact_pool_log() -> None:
    """Keep our tasks' arguments out of the log of Celery's pools (once a process)."""
    logging.getLogger("celery.pool").addFilter(_FILTER)
