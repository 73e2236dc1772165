"""Keeps the requests that were put back out of the log, where Celery warns of each with a trace.

The gate says once that it shut; five hundred requests that wait behind it are nothing to warn of.
"""

from __future__ import annotations

import logging

from .outcomes import Requeue

__all__ = ["quiet_requeues"]

_LOGGER = "celery.app.trace"


class _NoRequeues(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], Requeue))


_filter = _NoRequeues()


def quiet_requeues() -> None:
    """Begin (before the pool forks; once a process is enough)."""
    logging.getLogger(_LOGGER).addFilter(_filter)
