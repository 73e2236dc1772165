"""What a provider is: a translator between our request and chunks, and one wire format. It does no I/O.

A provider makes an `HttpRequest` of a `ProviderCall`, reads the answer's events or body into chunks, and an answer that
is none into an error. It opens no connection, waits for nothing and reads no clock. The engine drives it
(`engine.upstream`), and whoever has the bytes can: `providers.feed.AnswerFeed`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config import Deployment
from ..config.provider_table import provider_entry
from ..credentials import Secret
from ..errors import ConfigurationError, RequestError
from ..policy.quota import QuotaReport
from ..types import InferenceRequest, TokenChunk, TokenUsage
from .answer_head import answer_head
from .error_body import error_of_answer

__all__ = ["AnswerHead", "AnswerReader", "HttpRequest", "Provider", "ProviderCall"]


@dataclass(frozen=True, kw_only=True)
class ProviderCall:
    """What is to be asked.

    Attributes:
        request: checked.
        deployment: the one that is asked, which may be a fallback of the request's.
        credential: the key, None where the endpoint wants none.
        stream: ask for a stream.
    """

    request: InferenceRequest = field(repr=False)
    deployment: Deployment
    credential: Secret | None = None
    stream: bool = True

    def option(self, name: str, default: Any = None) -> Any:
        """One of the deployment's ``options``; where they say nothing, what the table of providers says."""
        return option_of(self.deployment, name, default)


def option_of(deployment: Deployment, name: str, default: Any = None) -> Any:
    """See `ProviderCall.option`."""
    if name in deployment.options:
        return deployment.options[name]
    entry = provider_entry(deployment.provider)
    return default if entry is None else entry.options.get(name, default)


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """What is sent.

    Attributes:
        path: goes behind the deployment's endpoint, and begins with ``/``; may have a query. Never holds the key.
        body: encoded JSON; empty for a method that has none.
        headers: with the one that carries the key.
        method: of HTTP.
    """

    path: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    method: str = "POST"


@dataclass(frozen=True, kw_only=True)
class AnswerHead:
    """What an answer's headers say, whatever its status.

    Attributes:
        quota: of the limits; None: nothing.
        call_id: by which the provider, or a gateway before it, knows the call; empty: it told none.
        cost_usd: what a gateway says that the call costs.
    """

    quota: QuotaReport | None = None
    call_id: str = ""
    cost_usd: float | None = None


class AnswerReader(ABC):
    """Reads one answer: its events one by one, or its body as a whole, and then its end.

    Attributes:
        usage: what the provider counted, once it has told it. It is settled also where the answer fails.
        complete: everything that the answer says is here. What follows can only be a usage: a connection that breaks
            now breaks nothing.
        done: nothing that counts follows, and the rest of the stream need not be read.
    """

    usage: TokenUsage | None = None
    complete: bool = False
    done: bool = False

    @abstractmethod
    def event(self, kind: str, data: str) -> TokenChunk | None:
        """The output in one event of a stream, None where there is none in it.

        Args:
            kind: the event's type, ``message`` where the stream names none.
            data: its data.

        Raises:
            RequestError: it is an error, or breaks the format (`InvalidResponse`).
        """

    @abstractmethod
    def body(self, data: bytes) -> TokenChunk | None:
        """The output in an answer that did not come as a stream; likewise."""

    @abstractmethod
    def end(self) -> TokenChunk:
        """The chunk that ends the answer: with the finish reason and the usage, and with output that was held back.

        Raises:
            StreamTruncated: the answer ended without its end.
            RequestError: it ended, but is no whole answer (`ContentFiltered`, `ServerError`).
        """


class Provider(ABC):
    """One wire format. It has no state, and is made without arguments."""

    name: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    """Which ``deployment.options`` it knows."""

    def check(self, deployment: Deployment) -> None:
        """Check what only the provider knows of a deployment: its options.

        Raises:
            ConfigurationError: with the path of each field at fault.
        """
        known = ", ".join(self.options) or "none"
        faults = [
            f"options.{name}: is not an option of the provider {self.name}; they are {known}"
            for name in sorted(deployment.options.keys() - set(self.options))
        ]
        if faults:
            raise ConfigurationError(faults)

    @abstractmethod
    def request(self, call: ProviderCall) -> HttpRequest:
        """What to send for a call.

        Raises:
            BadRequest: the request asks for what this provider cannot do; ``param`` names it.
        """

    @abstractmethod
    def reader(self, call: ProviderCall) -> AnswerReader:
        """A new reader for the call's answer."""

    def head(self, call: ProviderCall, headers: Mapping[str, str], *, now: float) -> AnswerHead:
        """What the headers of an answer say; here: in all the forms of limits that `policy.quota` knows.

        Args:
            call: which was sent.
            headers: in any case.
            now: seconds since the epoch, for headers that name a time.
        """
        entry = provider_entry(call.deployment.provider)
        quota, call_id, cost = answer_head(headers, now, {} if entry is None else entry.windows)
        key = call.credential.reveal() if call.credential is not None else ""
        if key and key in call_id:
            call_id = ""  # a server that echoes what it was sent
        return AnswerHead(quota=quota, call_id=call_id, cost_usd=cost)

    def error(
        self, call: ProviderCall, status: int, headers: Mapping[str, str], body: bytes, *, now: float
    ) -> RequestError:
        """The error for an answer whose status is not 2xx; here: in all the shapes that `error_body` knows.

        Args:
            call: which was sent.
            status: of HTTP.
            headers: in any case.
            body: the beginning of it.
            now: seconds since the epoch, for ``Retry-After`` as a date.
        """
        return error_of_answer(status, headers, body, now=now, secret=call.credential)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
