"""OpenAI's chat completions, and every server that speaks them. Presets of some are in `config.provider_table`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ..config import Deployment
from ..errors import ConfigurationError
from .base import AnswerReader, HttpRequest, Provider, ProviderCall
from .openai_reader import ChatReader
from .openai_request import chat_body

__all__ = ["OpenAIProvider"]


_FIXED = ("messages", "model", "stream")
_MEANINGS = ("stop", "length", "tool_calls", "content_filter", "error")


class OpenAIProvider(Provider):
    """``POST {endpoint}/chat/completions``, streamed or not.

    ``deployment.options``, all of them optional:

    - ``max_tokens_field``: ``max_tokens`` or ``max_completion_tokens`` (see
      `openai_request.max_tokens_field`).
    - ``include_usage``: False for servers that refuse ``stream_options``; usage is then estimated.
    - ``done_is_finish``: True for servers that end a stream with ``[DONE]`` and never name a finish reason; the
      answer is whole by then.
    - ``finish_reasons``: the server's own words for the end of an answer, each with what it means in OpenAI's:
      ``stop``, ``length``, ``tool_calls``, ``content_filter``, or ``error``.
    - ``rename_fields``: fields of the request, each with the server's own name of it.
    - ``auth_header``: the header that carries the key by itself, for instance ``api-key`` (Azure); without
      it, ``Authorization: Bearer``.
    """

    name: ClassVar[str] = "openai"
    options: ClassVar[tuple[str, ...]] = (
        "auth_header",
        "done_is_finish",
        "finish_reasons",
        "include_usage",
        "max_tokens_field",
        "rename_fields",
    )

    def check(self, deployment: Deployment) -> None:
        """Check the options.

        Raises:
            ConfigurationError: with the path of each at fault.
        """
        faults: list[str] = []
        try:
            super().check(deployment)
        except ConfigurationError as exc:
            faults += exc.faults
        options = deployment.options
        if options.get("max_tokens_field", "max_tokens") not in ("max_tokens", "max_completion_tokens"):
            faults.append("options.max_tokens_field: must be max_tokens or max_completion_tokens")
        for name in ("done_is_finish", "include_usage"):
            if not isinstance(options.get(name, True), bool):
                faults.append(f"options.{name}: must be true or false")
        words = options.get("finish_reasons", {})
        if not isinstance(words, Mapping) or not all(
            isinstance(word, str) and meaning in _MEANINGS for word, meaning in words.items()
        ):
            faults.append(f"options.finish_reasons: must have one of {', '.join(_MEANINGS)} for each word")
        renamed = options.get("rename_fields", {})
        if not isinstance(renamed, Mapping) or not all(
            isinstance(theirs, str) and theirs and name not in _FIXED for name, theirs in renamed.items()
        ):
            faults.append(
                f"options.rename_fields: must have a name for each field, but not for {', '.join(_FIXED)}"
            )
        header = options.get("auth_header", "Authorization")
        if not isinstance(header, str) or not header.replace("-", "").isalnum() or not header.isascii():
            faults.append("options.auth_header: must be the name of a header")
        if faults:
            raise ConfigurationError(faults)

    def request(self, call: ProviderCall) -> HttpRequest:
        """See `Provider.request`."""
        return HttpRequest(path="/chat/completions", body=chat_body(call), headers=_auth_headers(call))

    def reader(self, call: ProviderCall) -> AnswerReader:
        """See `Provider.reader`."""
        return ChatReader(
            call.credential,
            prompt_estimate=call.request.estimated_prompt_tokens(),
            done_is_finish=bool(call.option("done_is_finish", False)),
            finish_reasons=call.option("finish_reasons"),
        )


def _auth_headers(call: ProviderCall) -> Mapping[str, str]:
    if call.credential is None:
        return {}
    header = call.option("auth_header")
    key = call.credential.reveal()
    return {str(header): key} if header else {"Authorization": f"Bearer {key}"}
