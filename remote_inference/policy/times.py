"""Times in headers, in every form in which servers write them, as seconds from now."""

from __future__ import annotations

import math
import re
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

__all__ = ["LONGEST", "seconds_until"]

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0

LONGEST = 31 * DAY
"""Seconds; what is further away counts as this far."""

# The smallest number that is a time since the epoch in that unit (the year 2001), and the unit. A wait of 30 years
# is none.
_EPOCHS = ((1e18, 1e-9), (1e15, 1e-6), (1e12, 1e-3), (1e9, 1.0))

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)", re.ASCII)
_AMOUNT = r"(\d{1,12}(?:\.\d{1,9})?)\s*"
_DURATION = re.compile(
    rf"(?:{_AMOUNT}d(?:ays?)?)?\s*(?:{_AMOUNT}h(?:(?:ou)?rs?)?)?\s*(?:{_AMOUNT}m(?!s|illi|icro)(?:in(?:ute)?s?)?)?"
    rf"\s*(?:{_AMOUNT}s(?:ec(?:ond)?s?)?)?\s*(?:{_AMOUNT}(?:ms|milliseconds?))?\s*(?:{_AMOUNT}(?:us|µs))?"
    rf"\s*(?:{_AMOUNT}ns)?",
    re.ASCII | re.IGNORECASE,
)
_UNITS = (DAY, HOUR, MINUTE, 1.0, 1e-3, 1e-6, 1e-9)
_ISO_DURATION = re.compile(
    rf"P(?:{_AMOUNT}D)?(?:T(?:{_AMOUNT}H)?(?:{_AMOUNT}M)?(?:{_AMOUNT}S)?)?", re.ASCII | re.IGNORECASE
)
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|z|[+-]\d\d:\d\d)", re.ASCII)


def seconds_until(text: str, now: float, *, unit: float = 1.0) -> float | None:
    """Seconds from now, never below 0; None where the text names no time.

    - A number: in ``unit``; from the year 2001 on it is a time since the epoch, in seconds, milli-, micro- or
      nanoseconds.
    - A duration: ``1m30s``, ``6ms``, ``2 minutes`` (OpenAI, Groq), ``PT30S`` (ISO 8601).
    - A moment: RFC 3339, or a date of HTTP in its three forms (RFC 9110, section 5.6.7).

    Args:
        text: of a header.
        now: seconds since the epoch.
        unit: seconds that a plain number is of.
    """
    text = text.strip()[:100]
    seconds = _number(text, now, unit)
    if seconds is None and text:
        seconds = _duration(text)
        if seconds is None:
            moment = _moment(text)
            seconds = None if moment is None else moment - now
    return None if seconds is None or math.isnan(seconds) else max(seconds, 0.0)


def _number(text: str, now: float, unit: float) -> float | None:
    # Not float() alone: it also takes "nan", "inf" and "1_000".
    if not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    for least, epoch_unit in _EPOCHS:
        if number >= least:
            return number * epoch_unit - now
    return number * unit


def _duration(text: str) -> float | None:
    for pattern, units in ((_DURATION, _UNITS), (_ISO_DURATION, _UNITS[:4])):
        found = pattern.fullmatch(text)
        if found and any(found.groups()):
            return sum(
                float(amount) * unit for amount, unit in zip(found.groups(), units, strict=True) if amount
            )
    return None


def _moment(text: str) -> float | None:
    """Seconds since the epoch, of RFC 3339 or of HTTP."""
    try:
        parts = _RFC3339.fullmatch(text)
        if parts:
            zone = "+00:00" if parts[4] in "Zz" else parts[4]
            return datetime.fromisoformat(f"{parts[1]}T{parts[2]}{zone}").timestamp() + float(parts[3] or 0)
        moment = parsedate_to_datetime(text)
        # asctime's form, and "-0000": both are UTC in HTTP
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
