"""The one error tree of the library.

::

    InferenceError
    ├── ConfigurationError        a deployment, policy or file is wrong; all faults at once
    ├── InvalidRequest            the caller's request is wrong; nothing was sent
    ├── UndecodableMessage        a queue message that no worker of this version can read
    ├── Backpressure              no room, no broker, or no time to get in; nothing was sent
    ├── SubmitUncertain           no confirm in time: the request may or may not be queued
    ├── StreamRestarted           the text that the loop has seen is void; a new attempt began
    ├── RebuildFailed             a credential source failed; the old session stays
    └── RequestError              one request went wrong (deployment, request id, attempt)
        ├── RateLimited           429
        ├── ServerError           5xx, 529, 409, 425, an overload event inside a stream
        ├── Timeout               connect, first byte, read (between data)
        ├── NetworkError          refused, reset, DNS, TLS
        ├── InvalidResponse       the provider broke its own format
        │   └── StreamTruncated   the stream ended without its end
        ├── Unauthorized          401
        ├── Forbidden             403
        ├── BadRequest            400, 404, 413, 422
        │   └── ContextLengthExceeded
        ├── ContentFiltered       refused by the provider's content filter
        ├── CircuitOpen           the breaker refuses; nothing was sent
        ├── LimitReached          no permit within the patience given; nothing was sent
        ├── Cancelled             by the caller, an operator, a lost connection, or a gone reader
        ├── DeadlineExceeded      the caller's deadline
        └── WorkerLost            set aside after workers died under it

Every error is built from JSON-safe positional fields that are its ``args``, so that it survives
pickle, Celery's result backend (which rebuilds ``cls(*args)``) and our own wire format. No error carries
a provider's free text: it may quote the prompt or the key. Codes and parameter names are carried instead.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

__all__ = [
    "Backpressure",
    "BadRequest",
    "Cancelled",
    "CircuitOpen",
    "ConfigurationError",
    "ContentFiltered",
    "ContextLengthExceeded",
    "DeadlineExceeded",
    "Forbidden",
    "InferenceError",
    "InvalidRequest",
    "InvalidResponse",
    "LimitReached",
    "NetworkError",
    "RateLimited",
    "RebuildFailed",
    "RequestError",
    "ServerError",
    "StreamRestarted",
    "StreamTruncated",
    "SubmitUncertain",
    "Timeout",
    "Unauthorized",
    "UndecodableMessage",
    "WorkerLost",
    "error_from_wire",
    "error_to_wire",
]


@dataclass(init=False, eq=False, repr=False)
class InferenceError(Exception):
    """Base of all errors of this library.

    Subclasses are dataclasses: their fields, in order, are the exception's ``args``.
    """

    __match_args__: ClassVar[tuple[str, ...]]  # set by `dataclass`: the names of its fields
    _by_name: ClassVar[dict[str, type[InferenceError]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        InferenceError._by_name[cls.__name__] = cls

    def __post_init__(self) -> None:
        self.args = tuple(getattr(self, name) for name in self.__match_args__)

    def __str__(self) -> str:
        return self.__class__.__name__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


@dataclass(eq=False, repr=False)
class ConfigurationError(InferenceError):
    """A configuration is wrong. ``faults`` has one line each: ``path.to.field: what is wrong``."""

    faults: list[str]

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return self.faults[0]
        return "\n".join(
            [f"{len(self.faults)} faults in the configuration:", *(f"  {line}" for line in self.faults)]
        )


@dataclass(eq=False, repr=False)
class InvalidRequest(InferenceError):
    """The request cannot be sent as it is. ``field`` is the path of the field at fault."""

    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


@dataclass(eq=False, repr=False)
class UndecodableMessage(InferenceError):
    """A worker got a message that it cannot read; it was kept in the dead-letter queue."""

    reason: str
    request_id: str = ""

    def __str__(self) -> str:
        return f"message {self.request_id or '(no id)'} refused: {self.reason}"


@dataclass(eq=False, repr=False)
class Backpressure(InferenceError):
    """The request was not taken, and nothing was sent.

    ``reason``: ``queue_full``, ``class_full`` (this priority's part of the queue), ``broker_blocked``,
    ``broker_down``, ``no_queue`` or ``circuit_open``. ``retry_after``: seconds after which another try makes sense.
    """

    deployment: str
    reason: str
    retry_after: float = 1.0

    def __str__(self) -> str:
        return f"{self.deployment}: {self.reason}; try again in {self.retry_after:g} s"


@dataclass(eq=False, repr=False)
class SubmitUncertain(InferenceError):
    """The broker did not confirm in time. The id was cancelled, so submitting anew makes no second copy."""

    request_id: str
    deployment: str = ""

    def __str__(self) -> str:
        return (
            f"{self.deployment}: request {self.request_id} was not confirmed in time; it has been cancelled"
        )


@dataclass(eq=False, repr=False)
class StreamRestarted(InferenceError):
    """A new attempt began after text had been handed out: throw away what was read, and iterate again."""

    request_id: str
    epoch: str = ""

    def __str__(self) -> str:
        return f"stream of {self.request_id} began anew: discard the text read so far and iterate again"


@dataclass(eq=False, repr=False)
class RebuildFailed(InferenceError):
    """The credential source failed. The session in use stays as it was."""

    deployment: str
    reason: str

    def __str__(self) -> str:
        return f"{self.deployment}: session not rebuilt: {self.reason}"


@dataclass(eq=False, repr=False)
class RequestError(InferenceError):
    """One request went wrong; ``code`` is the provider's (or our) machine-readable word for it."""

    code: str = ""
    deployment: str = ""
    request_id: str = ""
    attempt: int = 0

    def at(self, deployment: str, request_id: str, attempt: int) -> RequestError:
        """This error, told where it happened (in place; the engine knows what a provider does not)."""
        self.deployment, self.request_id, self.attempt = deployment, request_id, attempt
        self.__post_init__()
        return self

    def advised(self, *, should_retry: bool | None = None, told_wait: float | None = None) -> RequestError:
        """This error, with what the server said besides. It is for the engine, and does not travel with the error."""
        self.__dict__["_advice"] = (should_retry, told_wait)
        return self

    @property
    def should_retry(self) -> bool | None:
        """What the server said of another attempt; None: nothing."""
        advice: tuple[bool | None, float | None] = self.__dict__.get("_advice", (None, None))
        return advice[0]

    @property
    def told_wait(self) -> float | None:
        """The seconds that the server named, where they are more than count; else None."""
        advice: tuple[bool | None, float | None] = self.__dict__.get("_advice", (None, None))
        return advice[1]

    def _what(self) -> str:
        return self.code

    def __str__(self) -> str:
        what = ": ".join(part for part in (type(self).__name__, self._what()) if part)
        where = [part for part in (self.deployment, self.request_id) if part]
        if self.attempt:
            where.append(f"attempt {self.attempt}")
        return f"{what} ({', '.join(where)})" if where else what


@dataclass(eq=False, repr=False)
class RateLimited(RequestError):
    """429. ``retry_after``: seconds the provider named, or None. ``quota``: spent for good, waiting is no use."""

    retry_after: float | None = None
    quota: bool = False

    def _what(self) -> str:
        named = "" if self.retry_after is None else f"retry after {self.retry_after:g} s"
        return ", ".join(part for part in (self.code, named) if part)


@dataclass(eq=False, repr=False)
class ServerError(RequestError):
    """The provider failed: 5xx, 529, 409, 425, or an error event that means overload."""

    status: int = 0
    retry_after: float | None = None

    def _what(self) -> str:
        return " ".join(part for part in (str(self.status or ""), self.code) if part)


@dataclass(eq=False, repr=False)
class Timeout(RequestError):
    """``code``: ``connect``, ``first_byte``, ``read`` or ``server`` (408)."""


@dataclass(eq=False, repr=False)
class NetworkError(RequestError):
    """``code``: ``refused``, ``reset``, ``dns``, ``tls``, ``unreachable`` or ``network``."""


@dataclass(eq=False, repr=False)
class InvalidResponse(RequestError):
    """The provider broke its own format; ``code`` says how (``not_json``, ``no_choices`` …)."""


@dataclass(eq=False, repr=False)
class StreamTruncated(InvalidResponse):
    """The stream ended without its end."""


@dataclass(eq=False, repr=False)
class Unauthorized(RequestError):
    """401: the credential is refused."""


@dataclass(eq=False, repr=False)
class Forbidden(RequestError):
    """403: the credential may not do this."""


@dataclass(eq=False, repr=False)
class BadRequest(RequestError):
    """400, 404, 413, 422. ``param``: the parameter that the provider named."""

    status: int = 400
    param: str = ""

    def _what(self) -> str:
        named = f"param {self.param}" if self.param else ""
        return " ".join(part for part in (str(self.status), self.code, named) if part)


@dataclass(eq=False, repr=False)
class ContextLengthExceeded(BadRequest):
    """The prompt and the answer do not fit the model."""


@dataclass(eq=False, repr=False)
class ContentFiltered(RequestError):
    """The provider's content filter refused the prompt or cut the answer."""


@dataclass(eq=False, repr=False)
class CircuitOpen(RequestError):
    """The breaker is open until ``retry_at`` (seconds since the epoch)."""

    retry_at: float = 0.0


@dataclass(eq=False, repr=False)
class LimitReached(RequestError):
    """No permit is due within the patience given; one may be at ``retry_at`` (seconds since the epoch).

    ``code``: one of `remote_inference.reasons.LimitReason`.
    """

    retry_at: float = 0.0


@dataclass(eq=False, repr=False)
class Cancelled(RequestError):
    """``code``: ``caller``, ``revoked``, ``connection_lost``, ``reader_gone``, ``superseded``.

    ``usage`` is the wire form of what the provider had charged for by then (`TokenUsage.to_wire`), or None.
    """

    usage: dict[str, Any] | None = None


@dataclass(eq=False, repr=False)
class DeadlineExceeded(RequestError):
    """The caller's deadline passed; ``code``: ``waiting`` or ``running``."""

    usage: dict[str, Any] | None = None


@dataclass(eq=False, repr=False)
class WorkerLost(RequestError):
    """Workers died ``deaths`` times under this request: it was set aside in the dead-letter queue."""

    deaths: int = 0

    def _what(self) -> str:
        return f"set aside after {self.deaths} workers died under it"


def error_to_wire(error: InferenceError) -> dict[str, Any]:
    """``{"error": class name, "args": [...]}``: JSON-safe by construction."""
    return {"error": type(error).__name__, "args": list(error.args)}


def error_from_wire(wire: dict[str, Any]) -> InferenceError:
    """The error that `error_to_wire` wrote. A name or a field from a newer version degrades to `RequestError`."""
    name, args = str(wire.get("error", "")), wire.get("args", [])
    cls = InferenceError if name == InferenceError.__name__ else InferenceError._by_name.get(name)
    if cls is not None and isinstance(args, list):
        try:
            error = cls(*args[: len(fields(cls))])
            str(error)  # fields of wrong types show here, and not in somebody's log line
            return error
        except (TypeError, ValueError):  # fields of another version
            pass
    return RequestError(name or "unknown")
