"""What a provider is: a translator between our request and chunks, and one wire format."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from ..cancel import CancelToken
from ..config import Deployment
from ..policy.quota import QuotaReport
from ..transport.session import SessionSnapshot
from ..types import InferenceRequest, TokenChunk

__all__ = ["Provider", "ProviderCall"]


@dataclass(frozen=True, kw_only=True)
class ProviderCall:
    """One attempt at one request.

    Attributes:
        request: checked.
        deployment: the one that is asked, which may be a fallback of the request's.
        snapshot: leased by the engine until the call is over.
        token: stops the call, wherever it waits.
        deadline: on the clock's `monotonic`; None: none.
        stream: ask the provider to stream.
        on_quota: told, once an answer and before its first chunk or its error, what its headers say of limits; not
            called where they say nothing.
    """

    request: InferenceRequest = field(repr=False)
    deployment: Deployment
    snapshot: SessionSnapshot
    token: CancelToken
    deadline: float | None = None
    stream: bool = True
    on_quota: Callable[[QuotaReport], None] | None = None


class Provider(Protocol):
    """One wire format. Stateless, or safe to share between threads."""

    name: ClassVar[str]
    default_endpoint: ClassVar[str]

    def check(self, deployment: Deployment) -> None:
        """Check what only the provider knows of a deployment: its options.

        Raises:
            ConfigurationError: with the path of each field at fault.
        """
        ...

    def stream(self, call: ProviderCall) -> Generator[TokenChunk, None, None]:
        """Ask, and yield the answer's chunks as they arrive.

        A whole answer ends in one chunk with the finish reason, and the usage if the provider told it; the
        end of the generator without an error means that the answer is whole. Usage may come before an error
        too. Closing the generator closes the upstream call.

        Raises:
            RequestError: from the iteration, what went wrong; without deployment, request id and attempt.
        """
        ...
