"""What a provider's refusal means: from status and code to an error, and from an error to what is done.

The tables here are the design's "Errors: what each one does". Where a provider answers 200 and puts an error
object into the stream, the code alone decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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

__all__ = ["Meaning", "Outcome", "Traits", "error_for_status", "traits"]

Outcome = Literal["success", "failure", "neutral"]
RetryKind = Literal["rate_limited", "server_error", "timeout", "network"]
Meaning = Literal["context_length", "quota", "credential", "filtered", "rate"]

# A code or a parameter's name, not a sentence: a provider's free text may quote the prompt or the key.
_CODE = re.compile(r"[A-Za-z0-9_.:/-]{1,64}", re.ASCII)
_PARAM = re.compile(r"[A-Za-z0-9_.\[\]$/-]{1,100}", re.ASCII)

# What a code means, whatever the status: providers put the same code under several statuses. Lower case, with "_" for
# "-", " " and ".". The numbers are Zhipu's, MiniMax's and Baidu's own.
_MEANINGS: Mapping[Meaning, frozenset[str]] = {
    "context_length": frozenset(
        """
        context_exceeded context_length_exceeded context_length_error context_too_large context_window_exceeded
        exceed_context_size exceed_context_size_error input_too_long input_too_large max_context_length_exceeded
        model_context_window_exceeded prompt_too_long prompt_tokens_exceeded request_too_long
        token_limit_exceeded tokens_exceeded tokens_limit_reached too_many_tokens 1261 1039 336007 336103
        """.split()
    ),
    "quota": frozenset(
        """
        account_overdue arrearage billing_error billing_hard_limit_reached billing_not_active budget_exceeded
        access_terminated credit_balance_exhausted quota_exceeded subscription_quota_exceeded
        credit_limit_reached credits_exhausted exceeded_budget exceeded_current_quota_error exceeded_quota
        free_tier_only insufficient_balance insufficient_balance_error insufficient_credits insufficient_funds
        insufficient_quota insufficient_user_quota overdue_payment out_of_credits payment_required quota_depleted
        spend_limit_exceeded usage_limit_exceeded usage_limit_reached usage_not_included allocationquota_freetieronly
        failedoperation_resourcepackexhausted 1113 1008 336504
        """.split()
    ),
    "credential": frozenset(
        """
        api_key_invalid api_key_expired api_key_service_blocked api_key_not_found apikeymissing authfailure
        authenticationerror authentication_failed access_token_expired expired_api_key expired_token
        expiredtokenexception
        incorrect_api_key invalid_api_key invalid_apikey invalidapikey invalid_authentication
        invalid_authentication_error invalid_authorization invalid_key invalid_token invalidtoken
        incorrect_api_key_provided key_expired key_not_found missing_api_key no_api_key token_expired
        token_not_found_in_db no_db_connection unauthenticated 1000 1001 1003 1004 2049 110 111
        """.split()
    ),
    "filtered": frozenset(
        """
        content_filter content_filtered content_blocked content_policy content_policy_violation
        content_policy_violation_error content_moderation contentfilter datainspectionfailed data_inspection_failed
        flagged guardrail_intervened guardrails_violation image_content_policy_violation input_moderation
        moderation moderation_blocked moderation_error policy_violation prohibited_content
        responsibleaipolicyviolation safety safety_block sensitive sensitive_content unsafe_content 1301 1026 1027
        """.split()
    ),
}
# What is shown where a sentence, or a code in another place, said it: OpenAI's own codes.
_WORD_OF: Mapping[Meaning, str] = {
    "context_length": "context_length_exceeded",
    "quota": "insufficient_quota",
    "credential": "invalid_api_key",
    "filtered": "content_filter",
}
_CREDENTIAL = frozenset({"authentication_error"})
_FORBIDDEN = frozenset({"permission_error", "permission_denied", "forbidden", "access_denied"})
_RATE = frozenset(
    """
    rate_limit rate_limit_error rate_limit_exceeded rate_limit_reached rate_limit_reached_error rate_limited
    ratelimit_exceeded ratelimitexceeded requestlimitexceeded limit_exceeded limit_requests limit_burst_rate
    requests_limit_exceeded resource_exhausted throttled throttling throttling_error throttling_ratequota
    throttling_burstrate throttlingexception tokens_limit_exceeded too_many_requests toomanyrequests
    concurrency_limit_exceeded 1302 1303 1305 1308 18 336501 336502
    """.split()
)
_BAD_REQUEST = frozenset(
    """
    bad_request badrequesterror invalid_argument invalid_parameter invalid_request invalid_request_error
    invalidparameter model_not_found not_found not_found_error notfounderror request_too_large
    unsupported_parameter unprocessable_entity 1210 1211 2013
    """.split()
)
# Beside 409 and 425: Groq's flex tier has no capacity, and TGI's failed generation. They say nothing of the upstream's
# health, or not of all of it.
_NEUTRAL_SERVER_ERRORS = frozenset({409, 424, 425, 498})


def error_for_status(
    status: int,
    code: str | int | None = None,
    param: str | None = None,
    error_type: str | None = None,
    retry_after: float | None = None,
    *,
    words: Iterable[str] = (),
    meaning: Meaning | None = None,
) -> RequestError:
    """The error for an answer that is not a completion.

    Args:
        status: Of the HTTP answer; 200 (or 0) for an error object inside a stream that began well.
        code: ``error.code``; a number there (vLLM, OpenRouter) is a status, which counts inside a stream.
        param: ``error.param``.
        error_type: ``error.type``; stands in for a missing code.
        retry_after: Seconds, from `retry_after.told_wait`, at most `retry_after.MAX_RETRY_AFTER`.
        words: Codes in other places of the body; they say what it means, and are not shown.
        meaning: What the body says in a sentence, where no code says it.

    Codes and parameters that look like free text are left out.
    """
    if status < 400 and isinstance(code, (int, str)) and str(code).isdecimal() and 400 <= int(code) <= 599:
        status = int(code)
    word = _word(code) or _word(error_type)
    said = {_plain(w) for w in (_word(code), _word(error_type), *map(_word, words)) if w}
    if meaning is None or status in (401, 402):
        meaning = next((m for m, known in _MEANINGS.items() if said & known), meaning)
    # A server that fails may say anything, but a prompt that is too long stays so.
    if meaning is not None and (status < 500 or meaning == "context_length"):
        if not said & _MEANINGS.get(meaning, frozenset()):
            word = _WORD_OF.get(meaning, word)
        found = _by_meaning(meaning, status, word, param, retry_after)
        if found is not None:
            return found
    if status >= 500:
        return ServerError(word, status=status, retry_after=retry_after)
    return _by_status(status, word, said, param, retry_after) or _in_stream(
        status, word, said, param, retry_after
    )


def _by_meaning(
    meaning: Meaning, status: int, word: str, param: str | None, retry_after: float | None
) -> RequestError | None:
    """What the body says counts for more than the status."""
    if meaning == "context_length":
        return ContextLengthExceeded(word, status=status if 400 <= status < 500 else 400, param=_param(param))
    if meaning == "quota":
        return RateLimited(word, retry_after=retry_after, quota=True)
    if meaning == "filtered":
        return ContentFiltered(word)
    if meaning == "credential":
        return Unauthorized(word)
    # a limit, in words, where the status does not deny it
    return RateLimited(word, retry_after=retry_after) if status < 400 or status == 403 else None


def _by_status(
    status: int, word: str, said: set[str], param: str | None, retry_after: float | None
) -> RequestError | None:
    if status < 400:
        return None
    if status == 401:
        return Unauthorized(word)
    if status == 402:  # "payment required": DeepSeek, OpenRouter; waiting is no use
        return RateLimited(word or "payment_required", retry_after=retry_after, quota=True)
    if status == 403:
        return RateLimited(word, retry_after=retry_after) if said & _RATE else Forbidden(word)
    if status == 408:
        return Timeout("server")
    if status in _NEUTRAL_SERVER_ERRORS or status == 499:  # 499: a gateway's own client went away
        return ServerError(word, status=status, retry_after=retry_after)
    if status in (420, 429):
        return RateLimited(word, retry_after=retry_after)
    return BadRequest(word, status=status, param=_param(param))


def _in_stream(
    status: int, word: str, said: set[str], param: str | None, retry_after: float | None
) -> RequestError:
    if 300 <= status < 400:  # we do not follow: the credential would go along
        return BadRequest(word or "redirect", status=status, param=_param(param))
    if said & _RATE:
        return RateLimited(word, retry_after=retry_after)
    if said & _CREDENTIAL:
        return Unauthorized(word)
    if said & _FORBIDDEN:
        return Forbidden(word)
    if said & _BAD_REQUEST:
        return BadRequest(word, param=_param(param))
    # "server_error", "overloaded", "overloaded_error", and what nobody has seen yet: a provider that accepted
    # the request and then breaks off has failed.
    return ServerError(word or "error_in_stream", retry_after=retry_after)


def _plain(word: str) -> str:
    return re.sub(r"[-. /:]", "_", word.lower())


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

    408, 409, 424, 425 and 498 are retried like their kind, but do not speak about the upstream's health: they are
    neutral.
    """
    if error is None:
        return _SUCCESS
    if isinstance(error, RateLimited) and error.quota:
        return _FINAL
    for kind, found in _TABLE:
        if isinstance(error, kind):
            spoken = (isinstance(error, ServerError) and error.status in _NEUTRAL_SERVER_ERRORS) or (
                isinstance(error, Timeout) and error.code == "server"
            )
            return Traits(found.retry_kind, "neutral") if spoken else found
    return _FINAL
