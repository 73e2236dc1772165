"""OpenAI's chat completions, and every server that speaks them: vLLM, llama.cpp, LiteLLM's proxy, Azure's v1
API."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import ClassVar

from ..clock import Clock
from ..config import Deployment
from ..errors import ConfigurationError, InvalidResponse, NetworkError, RequestError, Timeout
from ..policy.quota import parse_quota
from ..transport.http import HttpResponse
from ..transport.sse import SseLimitExceeded, decode_sse_stream
from ..types import TokenChunk
from .base import ProviderCall
from .openai_answer import AnswerReader
from .openai_errors import error_of_answer, error_of_object
from .openai_request import chat_body

__all__ = ["OpenAIProvider"]

TAIL_PATIENCE = 5.0
"""Seconds that a server may take, after the finish reason, for the usage and ``[DONE]``. The answer is whole
by then."""

# InvalidResponse has StreamTruncated under it.
_TAIL_FAILURES = (InvalidResponse, NetworkError, Timeout)
_OPTIONS = ("auth_header", "include_usage", "max_tokens_field")


class OpenAIProvider:
    """``POST {endpoint}/chat/completions``, streamed or not.

    ``deployment.options``, all of them optional:

    - ``max_tokens_field``: ``max_tokens`` or ``max_completion_tokens`` (see
      `openai_request.max_tokens_field`).
    - ``include_usage``: False for servers that refuse ``stream_options``; usage is then estimated.
    - ``auth_header``: the header that carries the key by itself, for instance ``api-key`` (Azure); without
      it, ``Authorization: Bearer``.
    """

    name: ClassVar[str] = "openai"
    default_endpoint: ClassVar[str] = "https://api.openai.com/v1"

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock

    def check(self, deployment: Deployment) -> None:
        """Check the options.

        Raises:
            ConfigurationError: with the path of each at fault.
        """
        options = deployment.options
        faults = [
            f"options.{name}: is not an option of the provider openai; they are {', '.join(_OPTIONS)}"
            for name in sorted(options.keys() - set(_OPTIONS))
        ]
        if options.get("max_tokens_field", "max_tokens") not in ("max_tokens", "max_completion_tokens"):
            faults.append("options.max_tokens_field: must be max_tokens or max_completion_tokens")
        if not isinstance(options.get("include_usage", True), bool):
            faults.append("options.include_usage: must be true or false")
        header = options.get("auth_header", "Authorization")
        if not isinstance(header, str) or not header.replace("-", "").isalnum() or not header.isascii():
            faults.append("options.auth_header: must be the name of a header")
        if faults:
            raise ConfigurationError(faults)

    def stream(self, call: ProviderCall) -> Generator[TokenChunk, None, None]:
        """See `Provider.stream`."""
        deployment, snapshot = call.deployment, call.snapshot
        reader = AnswerReader(snapshot.credential)
        response = snapshot.client.post_json(
            f"{deployment.endpoint or self.default_endpoint}/chat/completions",
            chat_body(call.request, deployment, stream=call.stream),
            _auth_headers(call),
            token=call.token,
            deadline=call.deadline,
            stream=call.stream,
            repeatable=deployment.idempotent and call.request.idempotent,
        )
        with response:
            if call.on_quota is not None:
                report = parse_quota(response.headers, self._clock.time())
                if report is not None:
                    call.on_quota(report)
            if response.status != 200:
                raise error_of_answer(
                    response.status,
                    response.read_error(),
                    response.headers,
                    now=self._clock.time(),
                    secret=snapshot.credential,
                )
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind in ("text/html", "application/xhtml+xml"):
                raise InvalidResponse("content_type")  # a login page, a gateway's apology
            if call.stream and kind != "application/json":
                yield from _streamed(response, reader)
            else:
                # Also a server that does not stream although it was asked to.
                chunk = reader.whole(response.read())
                if chunk is not None:
                    yield chunk
        if reader.usage is not None and reader.failure() is not None:
            yield TokenChunk(usage=reader.usage)  # it is billed all the same
        yield reader.last()

    def __repr__(self) -> str:
        return "OpenAIProvider()"


def _auth_headers(call: ProviderCall) -> Mapping[str, str]:
    secret = call.snapshot.credential
    if secret is None:
        return {}
    header = call.deployment.options.get("auth_header")
    return {str(header): secret.reveal()} if header else {"Authorization": f"Bearer {secret.reveal()}"}


def _streamed(response: HttpResponse, reader: AnswerReader) -> Iterator[TokenChunk]:
    """The chunks of the events until ``[DONE]``, or the body's end after a finish reason."""
    progress, chunk_of = response.progress, reader.chunk_of
    try:
        for event in decode_sse_stream(response.chunks()):
            data = event.data
            if data.startswith("[DONE]"):
                return
            if event.event == "error":
                raise _error_event(data, reader)
            chunk = chunk_of(data)
            progress(TAIL_PATIENCE if reader.ended else None)
            if chunk is not None:
                yield chunk
    except SseLimitExceeded as exc:
        raise InvalidResponse(f"{exc.kind}_too_long") from exc
    except RequestError as exc:
        # What breaks after the end breaks nothing; but a cancel and the deadline are the caller's.
        if not (reader.ended and isinstance(exc, _TAIL_FAILURES)):
            raise


def _error_event(data: str, reader: AnswerReader) -> RequestError:
    try:
        reader.chunk_of(data)
    except InvalidResponse:
        return error_of_object(200, None, secret=None)
    except RequestError as exc:
        return exc
    return error_of_object(200, None, secret=None)
