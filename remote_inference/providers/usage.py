"""The tokens that a server counted, under whatever names and in whatever form it tells them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..types import TokenUsage

__all__ = ["UsageCount", "read_count"]

_PROMPT = (
    "prompt_tokens", "input_tokens", "promptTokens", "inputTokens", "prompt_token_count", "input_token_count",
    "promptTokenCount", "inputTokenCount", "num_prompt_tokens", "prompt_eval_count",
)  # fmt: skip
_COMPLETION = (
    "completion_tokens", "output_tokens", "completionTokens", "outputTokens", "completion_token_count",
    "output_token_count", "candidatesTokenCount", "outputTokenCount", "generated_tokens", "num_completion_tokens",
    "eval_count",
)  # fmt: skip
_TOTAL = ("total_tokens", "totalTokens", "total_token_count", "totalTokenCount")
_PROMPT_DETAILS = (
    "prompt_tokens_details", "input_tokens_details", "promptTokensDetails", "inputTokensDetails",
    "input_token_details", "prompt_token_details",
)  # fmt: skip
_COMPLETION_DETAILS = (
    "completion_tokens_details", "output_tokens_details", "completionTokensDetails", "outputTokensDetails",
    "output_token_details", "completion_token_details",
)  # fmt: skip
# DeepSeek, Moonshot, Anthropic's by way of gateways, Google's, xAI's
_CACHED = (
    "cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens", "cachedContentTokenCount",
    "cached_prompt_text_tokens", "num_cached_tokens", "cachedTokens", "cache_read", "cacheReadInputTokens",
)  # fmt: skip
_REASONING = ("reasoning_tokens", "thoughtsTokenCount", "reasoningTokens", "thinking_tokens", "reasoning")
_BESIDE_INPUT = ("cache_read_input_tokens", "cache_creation_input_tokens")
_COST = ("cost", "cost_usd", "total_cost", "estimated_cost", "response_cost")

_MOST = 10**12


class UsageCount:
    """Puts together what one answer tells of its usage, in one place or in several, once or with every chunk.

    Counts only grow: a stream's are of all so far, and one that tells zeros at its end has forgotten the rest.

    Attributes:
        told: something other than zeros has been told.
    """

    __slots__ = ("_cached", "_completion", "_cost", "_prompt", "_reasoning", "_total", "told")

    def __init__(self) -> None:
        self.told = False
        self._prompt = self._completion = self._total = self._cached = self._reasoning = 0
        self._cost: float | None = None

    def add(self, usage: Any) -> None:
        """Take what stands in the place of a usage; anything but an object of counts is passed over."""
        if not isinstance(usage, Mapping):
            return
        prompt = _first(usage, _PROMPT)
        if "input_tokens" in usage and "prompt_tokens" not in usage:
            # Anthropic's count, by way of a gateway: what was cached stands beside it
            prompt += sum(read_count(usage.get(name)) for name in _BESIDE_INPUT)
        self._prompt = max(self._prompt, prompt)
        self._completion = max(self._completion, _first(usage, _COMPLETION))
        self._total = max(self._total, _first(usage, _TOTAL))
        prompt_details, completion_details = (
            _table(usage, _PROMPT_DETAILS),
            _table(usage, _COMPLETION_DETAILS),
        )
        self._cached = max(self._cached, _first(prompt_details, _CACHED), _first(usage, _CACHED))
        self._reasoning = max(
            self._reasoning, _first(completion_details, _REASONING), _first(usage, _REASONING)
        )
        cost = next((c for name in _COST if (c := _dollars(usage.get(name))) is not None), None)
        self._cost = self._cost if cost is None else cost
        self.told = self.told or bool(self._prompt or self._completion or self._total)

    def add_timings(self, timings: Any) -> None:
        """Take llama.cpp's ``timings``, which count what its usage does, for servers that tell only them."""
        if isinstance(timings, Mapping) and not self.told:
            prompt = read_count(timings.get("prompt_n")) + read_count(timings.get("cache_n"))
            self.add({"prompt_tokens": prompt, "completion_tokens": timings.get("predicted_n")})

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer, as far as they were told."""
        return self._completion

    def usage(self, prompt_estimate: int) -> TokenUsage | None:
        """The usage; None where none was told.

        Where one side and the total were told, the other is the rest. Of a total alone, our estimate of the prompt is
        the prompt's part.
        """
        if not self.told:
            return None
        prompt, completion, estimated = self._prompt, self._completion, False
        if self._total > prompt + completion:
            if prompt and not completion:
                completion = self._total - prompt
            elif completion and not prompt:
                prompt = self._total - completion
            elif prompt and self._total == prompt + completion + self._reasoning:
                completion += self._reasoning  # xAI's and Google's stand beside the answer's tokens
            elif not prompt:
                prompt = min(prompt_estimate, self._total)
                completion, estimated = self._total - prompt, True
        return TokenUsage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            cached_tokens=min(self._cached, prompt),
            reasoning_tokens=self._reasoning,
            estimated=estimated,
            cost_usd=self._cost,
        )


def read_count(value: Any) -> int:
    """A count: a whole number, also as a float or in a string. What is none, or below 0, is 0."""
    if isinstance(value, str):
        try:
            value = float(value.strip().replace(",", "").replace("_", "x"))
        except ValueError:
            return 0
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return 0
    if isinstance(value, float) and not math.isfinite(value):
        return 0
    return int(value) if 0 <= value <= _MOST else 0


def _first(usage: Mapping[str, Any], names: Iterable[str]) -> int:
    for name in names:
        if name in usage:
            count = read_count(usage[name])
            if count:
                return count
    return 0


def _table(usage: Mapping[str, Any], names: Iterable[str]) -> Mapping[str, Any]:
    found = next((usage[name] for name in names if isinstance(usage.get(name), Mapping)), None)
    return {} if found is None else found


def _dollars(value: Any) -> float | None:
    if isinstance(value, Mapping):  # Perplexity
        value = value.get("total_cost")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None
