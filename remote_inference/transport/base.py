"""What the engine needs of a transport: a client that sends, and an answer that arrives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Protocol

from ..cancel import CancelToken

__all__ = ["Client", "Response"]


class Response(Protocol):
    """An answer whose status and headers are here. Leaving it as a context manager ends the call."""

    status: int
    headers: Mapping[str, str]

    def chunks(self) -> Iterator[bytes]:
        """The body in the pieces in which it arrives, none of them empty."""

    def read_error(self) -> bytes:
        """The beginning of an error's body."""

    def progress(self, limit: float | None = None) -> None:
        """Data has come: the clock of the gap between data starts anew, with ``limit`` seconds at most."""

    def __enter__(self) -> Response: ...

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Client(Protocol):
    """Sends requests, from any thread."""

    def send(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "POST",
        token: CancelToken,
        deadline: float | None = None,
        stream: bool = True,
        repeatable: bool = True,
    ) -> Response:
        """Send; see `HttpClient.send`."""

    def retire(self) -> None:
        """Close what is kept open, when the last call has ended."""
