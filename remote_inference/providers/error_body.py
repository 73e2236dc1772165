"""What servers say when they fail: the shapes of their errors, read into ours.

The bodies differ: OpenAI ``{"error": {...}}``, older vLLM ``{"object": "error", "code": ...}``, Gemini's
endpoint a list around it, FastAPI ``{"detail": ...}``, gateways a page of HTML. The status decides where the
body says nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..credentials import Secret
from ..errors import RequestError
from ..policy.classify import error_for_status, parse_retry_after

__all__ = ["error_of_answer", "error_of_object"]

# Servers that give no code for it say it in words. Only whether it matches goes any further.
_TOO_LONG = re.compile(
    r"(maximum|max|exceeds?( the)?( available)?|model'?s?) context (length|window|size)"
    r"|context (length|window) exceeded|prompt is too long|input is too long|too many tokens",
    re.IGNORECASE,
)


def error_of_answer(
    status: int, headers: Mapping[str, str], body: bytes, *, now: float, secret: Secret | None
) -> RequestError:
    """The error for an answer whose status is not 2xx.

    Args:
        status: of HTTP.
        headers: for Retry-After.
        body: what was read of it.
        now: seconds since the epoch.
        secret: the credential, which no code may repeat.
    """
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        parsed = None
    return error_of_object(
        status, _error_in(parsed), secret=secret, retry_after=parse_retry_after(headers, now)
    )


def _error_in(parsed: Any) -> Any:
    if isinstance(parsed, list) and parsed:
        parsed = parsed[0]
    if not isinstance(parsed, Mapping):
        return None
    error = parsed.get("error")
    return parsed if error is None else error


def error_of_object(
    status: int, error: Any, *, secret: Secret | None, retry_after: float | None = None
) -> RequestError:
    """The error for an ``error`` object (or whatever stands in its place), in an answer or in a stream.

    Args:
        status: of the answer; 200 in a stream.
        error: the object.
        secret: the credential, which no code may repeat.
        retry_after: seconds.
    """
    code = kind = param = None
    message: Any = error
    if isinstance(error, Mapping):
        code, kind, param = error.get("code"), error.get("type"), error.get("param")
        message = error.get("message", error.get("detail"))
        inner = error.get("innererror")  # Azure puts the content filter there
        if isinstance(inner, Mapping) and code in (None, ""):
            code = inner.get("code")
    code = None if isinstance(code, bool) or not isinstance(code, (str, int)) else code
    kind = kind if isinstance(kind, str) else None
    param = param if isinstance(param, str) else None
    number = int(code) if code is not None and re.fullmatch("[1-5][0-9][0-9]", str(code)) else 0
    if number:
        # A status in the code's place: it counts where HTTP's own says nothing, and is no word.
        status = number if status < 400 <= number else status
        code = None
    if status in (200, 400, 413, 422) and isinstance(message, str) and _TOO_LONG.search(message[:1000]):
        code, status = "context_length_exceeded", 400
    if secret is not None and secret.reveal():
        key = secret.reveal()
        code, kind, param = (None if isinstance(w, str) and key in w else w for w in (code, kind, param))
    return error_for_status(
        status,
        None if code is None else str(code),
        param if isinstance(param, str) else None,
        kind if isinstance(kind, str) else None,
        retry_after,
    )
