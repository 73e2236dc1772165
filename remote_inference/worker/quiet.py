"""Keeps the requests that were put back out of the log, where Celery warns of each with a trace.

The gate says once that it shut; five hundred requests that wait behind it are nothing to warn of.
"""

from __future__ import annotations

import logging

from .orders import HandBack

__all__ = ["quiet_hand_backs"]

_LOGGER = "celery.app.trace"


class _NoHandBacks(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HandBack))


_filter = _NoHandBacks()


def quiet_hand_backs() -> None:
    """Begin (before the pool forks; once a process is enough)."""
    logging.getLogger(_LOGGER).addFilter(_filter)
