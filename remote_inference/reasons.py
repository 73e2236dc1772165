"""Why a deployment cannot send: `LimitReason`, the codes of `LimitReached`; `GateReason`, why its gate is shut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .errors import CircuitOpen, LimitReached
from .value import Value

__all__ = ["GateKind", "GateReason", "LimitReason"]


class LimitReason(str, Enum):
    """The codes of `LimitReached`. They are strings, and equal to those that come from elsewhere."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"
    CONCURRENCY = "concurrency"
    QUEUE = "queue"
    """Others wait before this one."""
    PAUSED = "paused"
    RAMP = "ramp"
    """A pause has just ended."""
    JOINING = "joining"
    """The process does not know yet, or no more, what the others spend."""
    STORE_UNAVAILABLE = "store_unavailable"
    """The Redis of strict limits is away."""
    CREDENTIAL_REFUSED = "credential_refused"
    CREDENTIAL_UNAVAILABLE = "credential_unavailable"
    """The credential's source gives none, and there is none from before."""
    MARKS_UNAVAILABLE = "marks_unavailable"
    """The broker does not take the mark of a call that would begin."""
    PROCESS_RESERVED = "process_reserved"
    """The process is kept for one request that must be alone."""
    SHUTDOWN = "shutdown"
    """The process is about to end, and the request waited for another attempt."""

    def __str__(self) -> str:
        return self.value


class GateKind(str, Enum):
    """What concerns a whole deployment, or the worker."""

    LIMIT = "limit"
    """A limit; an urgent request may yet be sent."""
    PAUSE = "pause"
    """The provider asked for it, or it has just ended."""
    JOINING = "joining"
    CIRCUIT = "circuit"
    CREDENTIAL = "credential"
    STORE = "store"
    BROKER = "broker"
    PROCESS = "process"
    SHUTDOWN = "shutdown"
    OTHER = "other"
    """A kind that is not known here."""

    def __str__(self) -> str:
        return self.value


_KINDS: dict[str, GateKind] = {
    LimitReason.REQUESTS: GateKind.LIMIT,
    LimitReason.TOKENS: GateKind.LIMIT,
    LimitReason.INPUT_TOKENS: GateKind.LIMIT,
    LimitReason.OUTPUT_TOKENS: GateKind.LIMIT,
    LimitReason.CONCURRENCY: GateKind.LIMIT,
    LimitReason.QUEUE: GateKind.LIMIT,
    LimitReason.PAUSED: GateKind.PAUSE,
    LimitReason.RAMP: GateKind.PAUSE,
    LimitReason.JOINING: GateKind.JOINING,
    LimitReason.STORE_UNAVAILABLE: GateKind.STORE,
    LimitReason.CREDENTIAL_REFUSED: GateKind.CREDENTIAL,
    LimitReason.CREDENTIAL_UNAVAILABLE: GateKind.CREDENTIAL,
    LimitReason.MARKS_UNAVAILABLE: GateKind.BROKER,
    LimitReason.PROCESS_RESERVED: GateKind.PROCESS,
    LimitReason.SHUTDOWN: GateKind.SHUTDOWN,
}

_PHRASES = {
    GateKind.LIMIT: "limit reached",
    GateKind.PAUSE: "paused",
    GateKind.JOINING: "joining the cluster",
    GateKind.CIRCUIT: "circuit open",
    GateKind.CREDENTIAL: "no credential",
    GateKind.STORE: "limits not known",
    GateKind.BROKER: "broker trouble",
    GateKind.PROCESS: "process reserved",
    GateKind.SHUTDOWN: "shutting down",
    GateKind.OTHER: "waiting",
}


@dataclass(frozen=True, eq=False, repr=False)
class GateReason(Value):
    """Why a worker takes no requests of a deployment.

    Attributes:
        kind: what is the matter.
        detail: more of it: a `LimitReason`, the circuit's state, what the broker did not take.
    """

    kind: GateKind
    detail: str = ""

    @classmethod
    def of(cls, error: LimitReached | CircuitOpen) -> GateReason:
        """Why this error shuts the gate."""
        if isinstance(error, CircuitOpen):
            return cls(GateKind.CIRCUIT, str(error.code))
        return cls.of_limit(error.code)

    @classmethod
    def of_limit(cls, code: str) -> GateReason:
        """Why a `LimitReached` with that code shuts the gate."""
        return cls(_KINDS.get(code, GateKind.OTHER), str(code))

    def to_wire(self) -> dict[str, str]:
        """JSON."""
        return {"kind": self.kind.value, "detail": str(self.detail)}

    @classmethod
    def from_wire(cls, wire: Any) -> GateReason:
        """Read `to_wire`; what is not known is `GateKind.OTHER`."""
        if not isinstance(wire, Mapping):
            return cls(GateKind.OTHER)
        detail = wire.get("detail")
        try:
            kind = GateKind(wire.get("kind"))
        except ValueError:
            kind = GateKind.OTHER
        return cls(kind, detail if isinstance(detail, str) else "")

    def __str__(self) -> str:
        """For people."""
        phrase = _PHRASES[self.kind]
        detail = str(self.detail).replace("_", " ")
        return phrase if not detail or phrase.endswith(detail) else f"{phrase} ({detail})"
