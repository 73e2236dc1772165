"""What providers say of their limits in the headers of an answer: `parse_quota` reads them into a `QuotaReport`.

There is no one format. A name is taken apart into words: what it tells (limit, remaining, reset), of what
(requests, tokens), in what time. So these are understood, of which none has all:

- OpenAI ``x-ratelimit-{limit,remaining,reset}-{requests,tokens,project-tokens}``; a reset is "6m0s", "12ms"
  (platform.openai.com/docs/guides/rate-limits). Azure sends some of them, resets in plain seconds, -1 for what it
  does not know, a remainder below 0 where more was used than there was, and ``renewalperiod`` for the seconds that a
  limit is of.
- Anthropic ``anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}``; a reset is a
  time of RFC 3339 (docs.anthropic.com/en/api/rate-limits).
- Groq as OpenAI, but its requests are *of a day* (console.groq.com/docs/rate-limits), as OpenAI's own are in its free
  tier; no name says so. `Quota.window` tells how that is noticed.
- Cerebras ``…-requests-day``, ``…-tokens-minute`` (inference-docs.cerebras.ai/support/rate-limits); Mistral
  ``…-req-minute``; DigitalOcean ``…-tokens-per-minute`` with resets in seconds since the epoch; Fireworks
  ``…-tokens-prompt`` and ``…-tokens-generated``.
- LiteLLM's proxy: its own for its keys, and those of the provider behind it with ``llm_provider-`` before their names.
- Gateways: ``RateLimit-Limit: 100, 100;w=60`` and its like (draft-ietf-httpapi-ratelimit-headers), which mean
  requests.

A header that is not understood, or says what cannot be, is passed over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from .retry_after import MAX_RETRY_AFTER
from .times import LONGEST, seconds_until

__all__ = ["DIMENSIONS", "Quota", "QuotaReport", "parse_quota"]

DIMENSIONS = ("requests", "tokens", "input_tokens", "output_tokens")
"""What limits are of; ``tokens`` is input and output together."""

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
SHORT_PAUSE = 1.0
"""Seconds; see `QuotaReport.pause`."""

_MOST = 10**12
_SURELY_LONGER = (
    120.0  # seconds: a reset of a minute's limit may pass 60 by skewed clocks, or when it is overdrawn
)
_ROUNDING = 0.01

_PREFIX = re.compile(
    r"(?:x-|anthropic-)?rate-?limit(?:-|$)|x-ratelimit(?P<size>bysize)-|x-(?P<token>token)limit-"
)
_BEHIND = "llm_provider-"
_PARTS = {"limit": "limit", "remaining": "remaining", "reset": "reset", "renewalperiod": "window"}
_SUBJECTS = {
    "requests": "requests",
    "request": "requests",
    "req": "requests",
    "tokens": "tokens",
    "token": "tokens",
}
_SIDES = {
    "input": "input_tokens",
    "prompt": "input_tokens",
    "output": "output_tokens",
    "generated": "output_tokens",
    "completion": "output_tokens",
}
_PERIODS = {"second": 1.0, "minute": MINUTE, "hour": HOUR, "day": DAY, "month": 30 * DAY}
_SCOPES = frozenset({"project", "organization", "org", "workspace"})
_FILLERS = frozenset({"per"})

_NUMBER = re.compile(r"-?\d{1,15}(?:\.\d{0,9})?", re.ASCII)
_OF_SECONDS = re.compile(r";\s*(?:w|window)\s*=\s*(\d{1,9})", re.ASCII)


@dataclass(frozen=True)
class Quota:
    """One limit and how much of it is left. What was not told is None.

    Attributes:
        dimension: One of `DIMENSIONS`.
        limit: Units in a window.
        remaining: Units left now.
        reset: Seconds until it is full again, or until more is there: providers mean the one or the other.
        window: Seconds that the limit is of, where they were told or can be known. A bucket that fills steadily is
            full again when what is used has come back: ``reset / used * limit`` is then its window, and a day or an
            hour is recognised by it. A reset in more than two minutes belongs to a longer window too. None: most
            likely a minute.
    """

    dimension: str
    limit: int | None = None
    remaining: int | None = None
    reset: float | None = None
    window: float | None = None

    @property
    def lasts(self) -> bool:
        """Whether it is of longer than a minute."""
        return self.window is not None and self.window > MINUTE

    @property
    def per_minute(self) -> float | None:
        """The limit of a minute; None where it is not known, or of a longer time."""
        if self.limit is None or self.lasts:
            return None
        return self.limit * MINUTE / (self.window or MINUTE)


@dataclass(frozen=True)
class QuotaReport:
    """What one answer says of the limits. When it came is for the caller to know.

    Attributes:
        quotas: In no order; a dimension may be there more than once (of a minute and of a day, of a project).
        refused: The answer was a 429: something had been used up by then, whether a quota says so or not.
    """

    quotas: tuple[Quota, ...] = ()
    refused: bool = False

    def per_minute(self) -> dict[str, float]:
        """The least limit of a minute, for each dimension that has one."""
        least: dict[str, float] = {}
        for quota in self.quotas:
            limit = quota.per_minute
            if limit is not None:
                least[quota.dimension] = min(limit, least.get(quota.dimension, math.inf))
        return least

    def remaining(self) -> dict[str, int]:
        """How much may still be sent before any of the resets, for each dimension of which that was told."""
        least: dict[str, int] = {}
        for quota in self.quotas:
            if quota.remaining is not None:
                least[quota.dimension] = min(quota.remaining, least.get(quota.dimension, quota.remaining))
        return least

    @property
    def told_pause(self) -> float | None:
        """Seconds for which to send nothing, because something is used up; None: there is something left.

        Until the reset where that is of more than a minute. Else no longer than `SHORT_PAUSE` at a time: for most
        providers the reset is when all is back, and the first of it is there much sooner.
        """
        waits = [
            quota.reset if quota.lasts else min(quota.reset, SHORT_PAUSE)
            for quota in self.quotas
            if quota.remaining == 0 and quota.reset
        ]
        return max(waits, default=None)

    @property
    def pause(self) -> float | None:
        """The same, but an hour at most at a time (`MAX_RETRY_AFTER`): the next answer says what is left then."""
        told = self.told_pause
        return None if told is None else min(told, MAX_RETRY_AFTER)


def parse_quota(
    headers: Mapping[str, str], now: float, windows: Mapping[str, float] | None = None
) -> QuotaReport | None:
    """Read the headers of an answer; None where they say nothing of limits. Never raises.

    Args:
        headers: In any case.
        now: Seconds since the epoch, for resets that are times.
        windows: Seconds that a limit is of, by its dimension, for providers whose headers do not say it.
    """
    found: dict[tuple[str, str, float | None], dict[str, float]] = {}
    for name, value in headers.items():
        if len(name) > 80 or "limit" not in name.lower():
            continue
        meaning = _meaning(name.lower())
        if meaning is None or len(value) > 200:
            continue
        part, dimension, scope, period = meaning
        if part == "limit" and (seconds := _OF_SECONDS.search(value)):
            found.setdefault((dimension, scope, period), {}).setdefault("window", float(seconds[1]))
        number = _reset(value, now) if part == "reset" else _number(value.partition(";")[0].strip())
        if number is not None:
            found.setdefault((dimension, scope, period), {})[part] = number
    known = windows or {}
    quotas = [
        _quota(dimension, period or known.get(dimension), parts)
        for (dimension, _, period), parts in found.items()
    ]
    told = tuple(quota for quota in quotas if quota.limit is not None or quota.remaining is not None)
    return QuotaReport(told) if told else None


@lru_cache(maxsize=256)
def _meaning(name: str) -> tuple[str, str, str, float | None] | None:
    """What a header tells, of what, of whose, and in how many seconds. None: it is another header."""
    part = dimension = scope = ""
    if name.startswith(_BEHIND):
        name, scope = name[len(_BEHIND) :], _BEHIND
    prefix = _PREFIX.match(name)
    if prefix is None:
        return None
    side, period = "", None
    for word in name[prefix.end() :].split("-"):
        if word in _PARTS and not part:
            part = _PARTS[word]
        elif word in _SUBJECTS and not dimension:
            dimension = _SUBJECTS[word]
        elif word in _SIDES and not side:
            side = _SIDES[word]
        elif word in _PERIODS and period is None:
            period = _PERIODS[word]
        elif word in _SCOPES and not scope:
            scope = word
        elif word not in _FILLERS:
            return None
    if not part or (side and dimension != "tokens"):
        return None
    if not dimension:
        dimension = "tokens" if prefix["size"] or prefix["token"] else "requests"
    return part, side or dimension, scope, period


def _quota(dimension: str, period: float | None, parts: Mapping[str, float]) -> Quota:
    limit: float | None = parts.get("limit")
    remaining = parts.get("remaining")
    if limit is not None and not 1 <= limit <= _MOST:
        limit = None
    if remaining is not None:
        # Less than nothing: it is overdrawn. But -1 is what stands there for "not known".
        remaining = None if remaining == -1 or remaining > _MOST else max(remaining, 0.0)
    if limit is not None and remaining is not None:
        remaining = min(remaining, limit)
    reset = parts.get("reset")
    window = period if period is not None else parts.get("window")
    if window is not None and not 0 < window <= LONGEST:
        window = None
    if window is None and reset is not None:
        window = _longer_window(limit, remaining, reset)
    return Quota(
        dimension,
        None if limit is None else int(limit),
        None if remaining is None else int(remaining),
        reset,
        window,
    )


def _longer_window(limit: float | None, remaining: float | None, reset: float) -> float | None:
    """A window of an hour or a day, where the reset gives it away; see `Quota`."""
    if limit is not None and remaining is not None and remaining < limit:
        used = limit - remaining  # rounded up: up to one less is really used
        whole = reset / used * limit
        for window in (HOUR, DAY):
            least = window * (used - 1) / used if used > 1 else window
            if least * (1 - _ROUNDING) <= whole <= window * (1 + _ROUNDING):
                return window
    if reset > _SURELY_LONGER:
        return DAY if reset > HOUR else HOUR
    return None


def _number(text: str) -> float | None:
    text = (
        text.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+", text) else text.partition(",")[0].strip()
    )
    return float(text) if _NUMBER.fullmatch(text) else None


def _reset(text: str, now: float) -> float | None:
    """Seconds from now: of a duration, a number, or a time."""
    number = _number(text.strip())
    seconds = seconds_until(text if number is None else str(number), now)
    return None if seconds is None else min(seconds, LONGEST)
