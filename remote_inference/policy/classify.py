"""What a provider's refusal means: from status and code to an error, and from an error to what is done.

The tables here are the design's "Errors: what each one does". Where a provider answers 200 and puts an error
object into the stream, the code alone decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Literal

from ..errors import (
    BadRequest,
    ContentFiltered,
    ContextLengthExceeded,
    Forbidden,
    InvalidResponse,
    NetworkError,
    RateLimited,
    RequestError,
    ServerError,
    Timeout,
    Unauthorized,
)

__all__ = ["MAX_RETRY_AFTER", "Outcome", "Traits", "error_for_status", "parse_retry_after", "traits"]

MAX_RETRY_AFTER = 86_400.0
"""Seconds; a longer time is taken for this one. Daily quotas are the longest that are known."""

Outcome = Literal["success", "failure", "neutral"]
RetryKind = Literal["rate_limited", "server_error", "timeout", "network"]

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)", re.ASCII)
# A code or a parameter's name, not a sentence: a provider's free text may quote the prompt or the key.
_CODE = re.compile(r"[A-Za-z0-9_.:/-]{1,64}", re.ASCII)
_PARAM = re.compile(r"[A-Za-z0-9_.\[\]$/-]{1,100}", re.ASCII)

_CONTEXT_LENGTH = frozenset(
    {
        "context_length_exceeded",
        "context_window_exceeded",
        "exceed_context_size_error",  # llama.cpp, as the type
    }
)
_QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_CREDENTIAL = frozenset({"invalid_api_key", "authentication_error"})
_FORBIDDEN = frozenset({"permission_error", "permission_denied"})
_FILTERED = frozenset(
    {
        "content_filter",
        "content_policy_violation",
        "responsibleaipolicyviolation",  # Azure's inner code
    }
)
# Only where the status says nothing, in a stream that began with 200.
_RATE = frozenset({"rate_limit_exceeded", "rate_limit_error", "rate_limited", "too_many_requests"})
_BAD_REQUEST = frozenset({"invalid_request_error", "not_found_error", "request_too_large", "model_not_found"})


def parse_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """How many seconds to wait, by the answer's headers; None where they do not say, or not intelligibly.

    In this order: ``retry-after-ms`` (OpenAI, Azure) and ``x-ms-retry-after-ms`` (Azure), because they are
    finer; ``Retry-After`` in seconds or as a date (RFC 9110, section 10.2.3; fractions are not in the
    standard, but are sent). A time in the past is 0, one too far away is `MAX_RETRY_AFTER`.

    Args:
        headers: In any case.
        now: Seconds since the epoch, for dates.
    """
    found = {name.lower(): value for name, value in headers.items()}
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        milliseconds = _number(found.get(name, ""))
        if milliseconds is not None:
            return _bounded(milliseconds / 1000.0)
    value = found.get("retry-after", "").strip()
    seconds = _number(value)
    if seconds is None and value:
        seconds = _seconds_to(value, now)
    return None if seconds is None else _bounded(seconds)


def _number(text: str) -> float | None:
    # Not float() alone: it also takes "nan", "inf" and "1_000".
    text = text.strip()
    return float(text) if _NUMBER.fullmatch(text) else None


def _seconds_to(date: str, now: float) -> float | None:
    try:
        parsed = parsedate_to_datetime(date)
        if parsed.tzinfo is None:  # asctime's form, and "-0000": both are UTC in HTTP
            parsed = parsed.replace(tzinfo=timezone.utc)
        return parsed.timestamp() - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def error_for_status(
    status: int,
    code: str | int | None = None,
    param: str | None = None,
    error_type: str | None = None,
    retry_after: float | None = None,
) -> RequestError:
    """The error for an answer that is not a completion.

    Args:
        status: Of the HTTP answer; 200 (or 0) for an error object inside a stream that began well.
        code: ``error.code``; a number there (vLLM, OpenRouter) is a status, which counts inside a stream.
        param: ``error.param``.
        error_type: ``error.type``; stands in for a missing code.
        retry_after: From `parse_retry_after`.

    Codes and parameters that look like free text are left out.
    """
    if status < 400 and isinstance(code, (int, str)) and str(code).isdecimal() and 400 <= int(code) <= 599:
        status = int(code)
    word = _word(code) or _word(error_type)
    words = {w.lower() for w in (_word(code), _word(error_type)) if w}
    if status >= 500:
        return ServerError(word, status=status, retry_after=retry_after)
    return (
        _by_code(status, word, words, param, retry_after)
        or _by_status(status, word, param, retry_after)
        or _in_stream(status, word, words, param, retry_after)
    )


def _by_code(
    status: int, word: str, words: set[str], param: str | None, retry_after: float | None
) -> RequestError | None:
    """What the code says, whatever the status: providers put the same code under several statuses."""
    if words & _CONTEXT_LENGTH:
        return ContextLengthExceeded(word, status=max(status, 400), param=_param(param))
    if words & _QUOTA:
        return RateLimited(word, retry_after=retry_after, quota=True)
    if words & _FILTERED:
        return ContentFiltered(word)
    if "invalid_api_key" in words:
        return Unauthorized(word)
    return None


def _by_status(status: int, word: str, param: str | None, retry_after: float | None) -> RequestError | None:
    if status < 400:
        return None
    if status == 401:
        return Unauthorized(word)
    if status == 402:  # "payment required": DeepSeek, OpenRouter; waiting is no use
        return RateLimited(word or "payment_required", retry_after=retry_after, quota=True)
    if status == 403:
        return Forbidden(word)
    if status == 408:
        return Timeout("server")
    if status in (409, 425):
        return ServerError(word, status=status, retry_after=retry_after)
    if status == 429:
        return RateLimited(word, retry_after=retry_after)
    return BadRequest(word, status=status, param=_param(param))


def _in_stream(
    status: int, word: str, words: set[str], param: str | None, retry_after: float | None
) -> RequestError:
    if 300 <= status < 400:  # we do not follow: the credential would go along
        return BadRequest(word or "redirect", status=status, param=_param(param))
    if words & _RATE:
        return RateLimited(word, retry_after=retry_after)
    if words & _CREDENTIAL:
        return Unauthorized(word)
    if words & _FORBIDDEN:
        return Forbidden(word)
    if words & _BAD_REQUEST:
        return BadRequest(word, param=_param(param))
    # "server_error", "overloaded", "overloaded_error", and what nobody has seen yet: a provider that accepted
    # the request and then breaks off has failed.
    return ServerError(word or "error_in_stream", retry_after=retry_after)


def _word(code: str | int | None) -> str:
    text = "" if code is None or isinstance(code, bool) else str(code)
    return text if _CODE.fullmatch(text) else ""


def _param(param: str | None) -> str:
    return param if isinstance(param, str) and _PARAM.fullmatch(param) else ""


@dataclass(frozen=True)
class Traits:
    """What is done about an error.

    Attributes:
        retry_kind: The word in ``retry_on`` that allows another attempt, None if none ever helps.
        outcome: What the breaker is told; ``neutral`` says nothing about the upstream's health.
    """

    retry_kind: RetryKind | None
    outcome: Outcome

    @property
    def counts_for_breaker(self) -> bool:
        """Whether the breaker counts it as a failure of the upstream."""
        return self.outcome == "failure"


_SUCCESS = Traits(None, "success")
_FINAL = Traits(None, "neutral")
# The first that fits. A subclass comes before its base.
_TABLE: tuple[tuple[type[RequestError], Traits], ...] = (
    (RateLimited, Traits("rate_limited", "neutral")),
    (ServerError, Traits("server_error", "failure")),
    (Timeout, Traits("timeout", "failure")),
    (NetworkError, Traits("network", "failure")),
    (InvalidResponse, Traits("server_error", "failure")),
)


def traits(error: RequestError | None) -> Traits:
    """What is done about this error; None stands for an answer that came whole.

    408, 409 and 425 are retried like their kind, but do not speak about the upstream's health: they are
    neutral.
    """
    if error is None:
        return _SUCCESS
    if isinstance(error, RateLimited) and error.quota:
        return _FINAL
    for kind, found in _TABLE:
        if isinstance(error, kind):
            spoken = (isinstance(error, ServerError) and error.status in (409, 425)) or (
                isinstance(error, Timeout) and error.code == "server"
            )
            return Traits(found.retry_kind, "neutral") if spoken else found
    return _FINAL
