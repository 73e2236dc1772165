"""What a word for the end of an answer means. There are five words in OpenAI's format, and some hundred in use."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from ..errors import InvalidResponse, RequestError, ServerError, StreamTruncated
from ..types import FinishReason

__all__ = ["End", "read_finish_reason"]

End = FinishReason | Callable[[], RequestError]
"""How an answer ended: with a reason, or as a failure, which is made anew each time that it is raised."""

_NOT_YET = frozenset(
    "null none nil undefined unspecified finish_reason_unspecified in_progress false continue".split()
)
_WORDS: dict[FinishReason, frozenset[str]] = {
    FinishReason.STOP: frozenset(
        """
        stop stopped stop_sequence stop_token stop_word end end_turn end_of_text eos eos_token eot finish finished
        complete completed done success natural
        """.split()
    ),
    FinishReason.LENGTH: frozenset(
        """
        length max_tokens max_token max_length max_output_tokens max_new_tokens max_completion_tokens maxtokens
        max_tokens_reached model_length token_limit tokens_limit limit context_length context_length_exceeded
        context_window_exceeded model_context_window_exceeded context_limit truncated
        """.split()
    ),
    FinishReason.TOOL_CALLS: frozenset(
        "tool_calls tool_call tool_use tool_uses tools tool function_call function_calls function".split()
    ),
    FinishReason.CONTENT_FILTER: frozenset(
        """
        content_filter content_filtered contentfilter content_policy content_policy_violation filter filtered safety
        sensitive prohibited_content recitation blocklist blocked spii language image_safety image_recitation
        image_prohibited_content guardrail guardrail_intervened guardrails error_toxic toxic refusal moderation
        moderated unsafe model_armor policy_violation
        """.split()
    ),
}
# The server gave up: not ends, but failures.
_FAILED = frozenset(
    """
    error failed failure network_error server_error internal_error internal_server_error model_error engine_error
    insufficient_system_resource malformed_function_call malformed_tool_use malformed_tool_call malformed_model_output
    malformed_response unexpected_tool_call too_many_tool_calls missing_thought_signature no_image image_other other
    unknown exception overloaded invalid rate_limit
    """.split()
)
# It was stopped from outside.
_BROKEN_OFF = frozenset(
    """
    abort aborted cancel cancelled canceled interrupted interrupt timeout timed_out time_limit disconnect
    disconnected client_disconnect preempted preemption killed user_cancelled incomplete eviction
    """.split()
)
# Of words that nobody has seen yet, only what cannot be a good end is guessed. The first that is found counts.
_TOO_LONG = (
    r"(max|limit|exceed).*(token|length|context|window)|(token|length|context|window).*(max|limit|exceed)"
)
_FILTER = r"filter|safety|moderat|prohibit|block|polic(y|ies)|sensitive|toxic|unsafe|guardrail"
_STEMS: tuple[tuple[re.Pattern[str], End | None], ...] = (
    (re.compile(r"error|fail|malformed|invalid|exception|overload|unavailable|unexpected"), None),
    (re.compile(_FILTER), FinishReason.CONTENT_FILTER),
    (re.compile(_TOO_LONG), FinishReason.LENGTH),
    (re.compile(r"abort|cancel|interrupt|time_?out|disconnect"), lambda: StreamTruncated("broken_off")),
)


def _squeezed(words: frozenset[str]) -> frozenset[str]:
    return frozenset(word.replace("_", "") for word in words)


_KNOWN = {reason: _squeezed(words) for reason, words in _WORDS.items()}
_KNOWN_FAILED, _KNOWN_BROKEN_OFF = _squeezed(_FAILED), _squeezed(_BROKEN_OFF)


def read_finish_reason(word: str) -> End | None:
    """How the answer ended, by the server's word; None: it has not ended.

    Case and what stands between the parts of a word do not matter. A word that is not known is no good end: the
    attempt has failed.
    """
    plain = re.sub(r"[^a-z0-9]+", "_", word.strip().rpartition(".")[2].lower()).strip("_")
    if not plain or plain in _NOT_YET:
        return None
    plain = plain.removeprefix("finish_reason_")
    squeezed = plain.replace("_", "")
    for reason, words in _KNOWN.items():
        if squeezed in words:
            return reason
    if squeezed in _KNOWN_FAILED:
        return lambda: ServerError(plain)
    if squeezed in _KNOWN_BROKEN_OFF:
        return lambda: StreamTruncated(plain)
    for stem, end in _STEMS:
        found = stem.search(plain)
        if found is not None:
            return end or partial(ServerError, found[0])  # the rest may be anything, also the prompt
    return lambda: InvalidResponse("unknown_finish_reason")
