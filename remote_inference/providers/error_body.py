"""What servers say when they fail: the shapes of their errors, read into ours.

The bodies differ: OpenAI ``{"error": {...}}``, older vLLM ``{"object": "error", "code": ...}``, Gemini's
endpoint a list around it, FastAPI ``{"detail": ...}``, Google's ``details`` with a reason in them, gateways an error
within an error, or a page of HTML. The status decides where the body says nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..credentials import Secret
from ..errors import RequestError
from ..policy.classify import Meaning, error_for_status
from ..policy.retry_after import MAX_RETRY_AFTER, parse_should_retry, told_wait
from ..policy.times import seconds_until
from .error_words import meaning_of, wait_in

__all__ = ["error_in", "error_of_answer", "error_of_object"]

_DEEPEST = 8
_GATEWAYS = frozenset({400, 500, 502, 503})
_NO_WAIT = 1e9  # seconds: a time since the epoch, where nobody says what time it is
_CODES = ("code", "error_code", "errorCode", "err_code", "errcode", "status_code", "Code")
_KINDS = ("type", "error_type", "__type")
_REASONS = ("status", "reason", "name")  # say what it means, and are shown by nobody
_SENTENCES = (
    "message", "detail", "error_msg", "error_message", "errorMessage", "status_msg", "msg", "Message", "description",
    "errmsg", "title", "reason",
)  # fmt: skip
_INSIDE = (
    "error", "errors", "detail", "details", "innererror", "inner_error", "base_resp", "fault", "metadata", "raw",
    "response", "err", "Error", "cause", "body", "provider_error", "x_groq",
)  # fmt: skip
_STATUS = re.compile("[1-5][0-9][0-9]")
# In a type's name, and at the end of a word: no "failover".
_FAILURE = re.compile(r"(error|exception|fail|failed|failure)s?(?![a-z])", re.IGNORECASE)
# A code that says that nothing is wrong.
_FINE = frozenset({"", "0", "200", "ok", "success", "none", "null", "false"})
# Words for money and for a limit by the minute alike: a time that is named decides.
_AMBIGUOUS = frozenset({"resource_exhausted", "quota_exceeded", "exceeded_quota"})
# What Google says of limits by the minute too; only a limit by the day is used up for good, as far as we can wait.
_GOOGLE_QUOTA = re.compile(r"per[_-]?minute|perminute", re.IGNORECASE)


def error_of_answer(
    status: int, headers: Mapping[str, str], body: bytes, *, now: float, secret: Secret | None
) -> RequestError:
    """The error for an answer whose status is not 2xx.

    Args:
        status: of HTTP.
        headers: for Retry-After and ``x-should-retry``.
        body: what was read of it.
        now: seconds since the epoch.
        secret: the credential, which no code may repeat.
    """
    try:
        parsed: Any = json.loads(body)
    except (ValueError, RecursionError):
        parsed = body[:4096].decode(errors="replace")
    told = told_wait(headers, now, limited=status == 429)
    error = error_of_object(status, parsed, secret=secret, told=told, now=now)
    return error.advised(should_retry=parse_should_retry(headers), told_wait=error.told_wait)


def error_in(event: Mapping[str, Any], *, guess: bool = True, first: bool = True) -> Any:
    """The error in what should be an answer or a piece of one; None where there is none.

    Besides ``error`` objects: older vLLM's ``object``, flat ones (a code or an error's type beside a message), lists
    of errors, and those of gateways that put their own status beside the answer.

    Args:
        event: which has come.
        guess: whether flat ones are looked for; a vendor's events of other kinds have messages too.
        first: nothing has come before it. Later on, details are no error.
    """
    for name in ("error", "errors", "Error"):
        found = event.get(name)
        if found:
            return event if found is True else found
    if event.get("object") == "error" or event.get("type") == "error" or event.get("event") == "error":
        return event
    response = event.get("Response")  # Tencent
    if isinstance(response, Mapping) and isinstance(response.get("Error"), Mapping):
        return response["Error"]
    base = event.get("base_resp")  # MiniMax
    if isinstance(base, Mapping) and _is_wrong(base.get("status_code")):
        return base
    if event.get("choices") or not guess:
        return None
    kind = event.get("type", event.get("error_type", event.get("status")))
    flat = isinstance(kind, str) and bool(_FAILURE.search(kind))
    code: Any
    name, code = next(((name, event[name]) for name in _CODES if name in event), ("", None))
    if str(code).isdecimal() and int(code) < 400 and not name.startswith("err"):
        code = None  # "processing", a stage's number; under a name of errors (Baidu) it is one's
    sentence = any(isinstance(event.get(name), str) and event.get(name) for name in _SENTENCES)
    if sentence and (flat or (_is_wrong(code) and isinstance(code, (str, int)))):
        return event
    if first and isinstance(event.get("detail"), (str, list)) and event.get("detail") and len(event) <= 3:
        return event  # FastAPI
    return None


def _is_wrong(code: Any) -> bool:
    return code is not None and str(code).lower() not in _FINE


@dataclass
class _Said:
    """Everything that an error's body says, from the outside in."""

    codes: list[str | int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    param: str | None = None
    sentences: list[str] = field(default_factory=list)
    wait: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    per_minute: bool = False


def error_of_object(
    status: int, error: Any, *, secret: Secret | None, told: float | None = None, now: float = 0.0
) -> RequestError:
    """The error for an ``error`` object, or whatever stands in its place, in an answer or in a stream.

    Args:
        status: of the answer; 200 in a stream.
        error: the object, or all that was said.
        secret: the credential, which no code may repeat.
        told: seconds to wait, by the headers.
        now: seconds since the epoch, for times in the body. Without it, only waits are read.
    """
    said = _Said()
    for inner in _objects(error, 0):
        _gather(inner, said)
    number = next((int(c) for c in said.codes if _STATUS.fullmatch(str(c)) and int(c) >= 400), 0)
    if status < 400 and number:
        # A status in the code's place: it counts where HTTP's own says nothing, and is no word.
        status = number
    if status in _GATEWAYS and "429" in map(str, said.codes):
        status = 429  # of the provider behind a gateway, which tells its own
    words = [str(code) for code in said.codes if not _STATUS.fullmatch(str(code))]
    if secret is not None and secret.reveal():
        key = secret.reveal()
        words = [word for word in words if key not in word]
        said.kinds = [kind for kind in said.kinds if key not in kind]
        said.param = None if said.param and key in said.param else said.param
    meaning = _meaning(said, status)
    if told is None:
        told = seconds_until(said.wait, now) if said.wait else None
    if told is None and said.headers:
        # OpenRouter's: of the provider behind it
        told = told_wait(said.headers, now, limited=status == 429)
    if now == 0.0 and told is not None and told > _NO_WAIT:
        told = None
    quota_of_a_minute = said.per_minute or (
        told and _AMBIGUOUS & {w.lower() for w in (*words, *said.kinds, *said.reasons)}
    )
    if meaning == "quota" and quota_of_a_minute:
        meaning = None
    if quota_of_a_minute:
        words = [word for word in words if word.lower() not in _AMBIGUOUS] or ["rate_limit_exceeded"]
    found = error_for_status(
        status,
        words[0] if words else None,
        said.param,
        said.kinds[0] if said.kinds else None,
        None if told is None else min(told, MAX_RETRY_AFTER),
        words=() if quota_of_a_minute else [*words[1:], *said.kinds[1:], *said.reasons],
        meaning=meaning,
    )
    return found.advised(told_wait=told if told is not None and told > MAX_RETRY_AFTER else None)


def _meaning(said: _Said, status: int) -> Meaning | None:
    """Of the sentences; the innermost ones are the provider's own, and what is too long counts before all."""
    found = [m for m in (meaning_of(sentence, status) for sentence in said.sentences) if m is not None]
    return "context_length" if "context_length" in found else next(iter(found), None)


def _objects(value: Any, depth: int) -> Iterator[Any]:
    """The error objects (or sentences) in a value, the outer ones first."""
    if depth > _DEEPEST:
        return
    if isinstance(value, str):
        text = value.strip()
        start = text.find("{")
        if start >= 0:  # an error within an error's message: "400 Bad Request: {...}"
            inner = _parsed(text[start:])
            if inner is not None:
                yield from _objects(inner, depth + 1)
        yield value
    elif isinstance(value, list):
        for item in value[:20]:
            yield from _objects(item, depth + 1)
    elif isinstance(value, Mapping):
        yield value
        for name in _INSIDE:
            if value.get(name):
                yield from _objects(value[name], depth + 1)
        message = value.get("message")
        if isinstance(message, (dict, list)) or (isinstance(message, str) and "{" in message):
            yield from _objects(message, depth + 1)


def _parsed(text: str) -> Any:
    try:
        found, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _gather(error: Any, said: _Said) -> None:
    if isinstance(error, str):
        said.sentences.append(error)
        said.wait = said.wait or wait_in(error)
        if len(error) <= 64 and re.fullmatch(r"[A-Za-z]+(_[A-Za-z]+)+", error):  # "error": "invalid_api_key"
            said.codes.append(error)
        return
    if not isinstance(error, Mapping):
        return
    for name in _CODES:
        code = error.get(name)
        if isinstance(code, (str, int)) and not isinstance(code, bool) and code != "" and _is_wrong(code):
            said.codes.append(code)
    for name in _KINDS:
        kind = error.get(name)
        if isinstance(kind, str) and kind and kind != "error":
            said.kinds.append(kind)
    for name in _REASONS:
        reason = error.get(name)
        if isinstance(reason, str) and reason:
            said.reasons.append(reason)
        elif name == "status" and isinstance(reason, int) and not isinstance(reason, bool):
            said.codes.append(reason)
    if isinstance(error.get("param"), str):
        said.param = said.param or error["param"]
    for name in _SENTENCES:
        sentence = error.get(name)
        if isinstance(sentence, str) and sentence:
            said.sentences.append(sentence)
            said.wait = said.wait or wait_in(sentence)
    for name in ("retryDelay", "retry_after", "retryAfter", "retry_after_seconds"):
        delay = error.get(name)
        if isinstance(delay, (str, int, float)) and not isinstance(delay, bool):
            said.wait = said.wait or str(delay)
    if isinstance(error.get("headers"), Mapping):
        said.headers |= {str(name): str(value) for name, value in error["headers"].items()}
    violations = error.get("violations")
    for violation in violations if isinstance(violations, list) else ():
        if isinstance(violation, Mapping):
            text = f"{violation.get('quotaId')} {violation.get('quotaMetric')}"
            said.per_minute = said.per_minute or bool(_GOOGLE_QUOTA.search(text))
