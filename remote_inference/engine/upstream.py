"""`Upstream`: where a provider, which does no I/O, and a transport, which knows no format, come together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from ..cancel import CancelToken
from ..clock import Clock
from ..config import Deployment
from ..errors import InvalidResponse, NetworkError, RequestError, Timeout
from ..providers import AnswerFeed, AnswerHead, AnswerReader, Provider, ProviderCall
from ..transport.base import Response
from ..transport.session import SessionSnapshot
from ..types import InferenceRequest, TokenChunk

__all__ = ["Asker", "Attempt", "Upstream"]

TAIL_PATIENCE = 5.0
"""Seconds that a server may take, after a complete answer, for the usage and the stream's end."""

# InvalidResponse has StreamTruncated under it.
_TAIL_FAILURES = (InvalidResponse, NetworkError, Timeout)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at one request.

    Attributes:
        request: checked.
        deployment: the one that is asked, which may be a fallback of the request's.
        snapshot: leased by the engine until the attempt is over.
        token: stops the attempt, wherever it waits.
        deadline: on the clock's `monotonic`; None: none.
        stream: ask the provider to stream.
        on_head: told, once an answer and before its first chunk or its error, what its headers say.
    """

    request: InferenceRequest = field(repr=False)
    deployment: Deployment
    snapshot: SessionSnapshot
    token: CancelToken
    deadline: float | None = None
    stream: bool = True
    on_head: Callable[[AnswerHead], None] | None = None


class Asker(Protocol):
    """What an engine needs of an `Upstream`."""

    def stream(self, attempt: Attempt) -> Generator[TokenChunk, None, None]:
        """See `Upstream.stream`."""


class Upstream:
    """The way to one deployment's provider.

    Args:
        provider: makes the request and reads the answer.
        clock: tells the provider the time.
    """

    def __init__(self, provider: Provider, *, clock: Clock) -> None:
        self._provider = provider
        self._clock = clock

    def stream(self, attempt: Attempt) -> Generator[TokenChunk, None, None]:
        """Ask, and yield the answer's chunks as they arrive.

        A whole answer ends in one chunk with the finish reason, and the usage if the provider told it; the
        end of the generator without an error means that the answer is whole. Usage may come before an error
        too. Closing the generator closes the upstream call.

        Raises:
            RequestError: from the iteration, what went wrong; without deployment, request id and attempt.
        """
        provider, snapshot, deployment = self._provider, attempt.snapshot, attempt.deployment
        call = ProviderCall(
            request=attempt.request,
            deployment=deployment,
            credential=snapshot.credential,
            stream=attempt.stream,
        )
        asked = provider.request(call)
        response = snapshot.client.send(
            deployment.endpoint + asked.path,
            asked.body,
            asked.headers,
            method=asked.method,
            token=attempt.token,
            deadline=attempt.deadline,
            stream=attempt.stream,
            repeatable=deployment.idempotent and attempt.request.idempotent,
        )
        with response:
            now = self._clock.time()
            head = provider.head(call, response.headers, now=now)
            if attempt.on_head is not None:
                attempt.on_head(head)
            if not 200 <= response.status < 300:
                body = response.read_error()
                raise provider.error(call, response.status, response.headers, body, now=now)
            reader = provider.reader(call)
            feed = AnswerFeed(reader, stream=attempt.stream)
            try:
                yield from _read(response, reader, feed)
            except RequestError:
                if reader.usage is not None:
                    yield TokenChunk(usage=reader.usage)  # it is billed all the same
                raise
        yield from feed.end()

    def __repr__(self) -> str:
        return f"Upstream({self._provider!r})"


def _read(response: Response, reader: AnswerReader, feed: AnswerFeed) -> Iterator[TokenChunk]:
    """The chunks of a body, up to its end or the answer's."""
    seen = 0
    take, progress = feed.feed, response.progress
    try:
        for data in response.chunks():
            yield from take(data)
            if reader.done:
                return
            if feed.events != seen:
                seen = feed.events
                progress(TAIL_PATIENCE if reader.complete else None)
    except RequestError as exc:
        # What breaks after the end breaks nothing; but a cancel and the deadline are the caller's.
        if not (reader.complete and isinstance(exc, _TAIL_FAILURES)):
            raise
