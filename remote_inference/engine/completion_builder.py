"""Putting an answer together from its chunks, and estimating what a broken one cost."""

from __future__ import annotations

from dataclasses import replace

from ..types import FinishReason, TokenChunk, TokenUsage, ToolCall

__all__ = ["CompletionBuilder"]


class CompletionBuilder:
    """What one attempt has said so far."""

    def __init__(self, prompt_estimate: int) -> None:
        self._prompt_estimate = prompt_estimate
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._calls: dict[int, list[str]] = {}
        self.finish_reason: FinishReason | None = None
        self._usage: TokenUsage | None = None
        self.begun = False

    def add(self, chunk: TokenChunk) -> None:
        """The next chunk."""
        if chunk.text_delta:
            self.begun = True
            self._text.append(chunk.text_delta)
        if chunk.reasoning_delta:
            self.begun = True
            self._reasoning.append(chunk.reasoning_delta)
        if chunk.refusal_delta:
            self.begun = True
            self._refusal.append(chunk.refusal_delta)
        for delta in chunk.tool_calls:
            self.begun = True
            call = self._calls.setdefault(delta.index, ["", "", ""])
            call[0] = call[0] or delta.id
            call[1] = call[1] or delta.name
            call[2] += delta.arguments
        if chunk.finish_reason is not None:
            self.finish_reason = chunk.finish_reason
        if chunk.usage is not None:
            self._usage = chunk.usage

    @property
    def charged(self) -> bool:
        """Whether the provider will want money for it: it said something, or told a usage."""
        return self.begun or self._usage is not None

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        """The reasoning so far."""
        return "".join(self._reasoning)

    @property
    def refusal(self) -> str:
        """The refusal so far."""
        return "".join(self._refusal)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls so far, in their order."""
        return tuple(ToolCall(id=i, name=n, arguments=a) for _, (i, n, a) in sorted(self._calls.items()))

    def usage(self) -> TokenUsage:
        """The provider's figures; ours where it told none: four bytes a token.

        A zero beside a prompt or an answer is none: no answer of any length costs nothing.
        """
        said = (*self._text, *self._reasoning, *self._refusal, *(call[2] for call in self._calls.values()))
        size = sum(len(part.encode("utf-8", "surrogatepass")) for part in said)
        told = self._usage
        if told is None:
            return TokenUsage(
                prompt_tokens=self._prompt_estimate, completion_tokens=-(-size // 4), estimated=True
            )
        if told.prompt_tokens and (told.completion_tokens or not size):
            return told
        return replace(
            told,
            prompt_tokens=told.prompt_tokens or self._prompt_estimate,
            completion_tokens=told.completion_tokens or -(-size // 4),
            estimated=True,
        )
