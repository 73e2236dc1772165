"""When a server says that another attempt makes sense: ``Retry-After``, its relatives, and ``x-should-retry``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .times import seconds_until

__all__ = ["MAX_RETRY_AFTER", "parse_retry_after", "parse_should_retry", "told_wait"]

MAX_RETRY_AFTER = 3600.0
"""Seconds; a longer time counts as this, and an event says so. Servers were seen to send an epoch in their clock's
stead, and keys to rest for a day."""

_NAMES = (
    # The finer ones first: OpenAI and Azure send both.
    ("retry-after-ms", 1e-3),
    ("x-ms-retry-after-ms", 1e-3),
    ("retry-after", 1.0),
    ("x-retry-after", 1.0),
)
_RESET = re.compile(r"(?=.*limit).*(?:^|-)reset(?:-.*)?")


def parse_retry_after(headers: Mapping[str, str], now: float, *, limited: bool = False) -> float | None:
    """How many seconds to wait, by the answer's headers, at most `MAX_RETRY_AFTER`; None where they do not say.

    See `told_wait`.
    """
    told = told_wait(headers, now, limited=limited)
    return None if told is None else min(told, MAX_RETRY_AFTER)


def told_wait(headers: Mapping[str, str], now: float, *, limited: bool = False) -> float | None:
    """How many seconds to wait, as the headers say it; None where they do not say, or not intelligibly.

    ``Retry-After`` (RFC 9110, section 10.2.3) is met in seconds, with fractions, as a date, a duration, and as a time
    since the epoch; the finer ``retry-after-ms`` (OpenAI, Azure) comes before it. A time in the past is 0.

    Where a refusal for a limit has none of them, the resets of the limits stand in: the latest of those that are used
    up, or that do not say what is left; else the soonest.

    Args:
        headers: In any case.
        now: Seconds since the epoch.
        limited: The answer is a 429.
    """
    found = {name.lower(): value for name, value in headers.items()}
    for name, unit in _NAMES:
        if name in found:
            seconds = seconds_until(found[name].partition(",")[0].partition(";")[0], now, unit=unit)
            if seconds is None:
                seconds = seconds_until(found[name], now, unit=unit)  # a date has a comma
            if seconds is not None:
                return seconds
    return _by_resets(found, now) if limited else None


def _by_resets(headers: Mapping[str, str], now: float) -> float | None:
    used_up: list[float] = []
    left: list[float] = []
    for name, value in headers.items():
        if not _RESET.fullmatch(name):
            continue
        seconds = seconds_until(value.partition(",")[0], now)
        if seconds is None:
            seconds = seconds_until(value, now)
        if seconds is None:
            continue
        remaining = headers.get(name.replace("reset", "remaining"), "0").strip()
        (left if re.fullmatch(r"0*[1-9]\d*(\.\d+)?", remaining) else used_up).append(seconds)
    return max(used_up, default=min(left, default=None))


def parse_should_retry(headers: Mapping[str, str]) -> bool | None:
    """``x-should-retry``, which OpenAI's servers send and its client obeys; None where it is not there."""
    for name, value in headers.items():
        if name.lower() == "x-should-retry":
            return {"true": True, "false": False}.get(value.strip().lower())
    return None
