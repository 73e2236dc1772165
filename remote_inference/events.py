"""What happened, as frozen events, and the hook that is told.

A hook is any callable that takes one event. It runs in the thread where the thing happened, must not block, and
what it raises is logged and goes no further: instrumentation never fails a request. No event carries a prompt, an
answer or a secret.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .reasons import GateReason
from .value import Value

__all__ = [
    "AttemptFailed",
    "AttemptStarted",
    "CapacityMismatch",
    "CircuitChanged",
    "ClockSkewed",
    "Event",
    "GateClosed",
    "GateOpened",
    "Hook",
    "Hooks",
    "RequestFinished",
    "RetryScheduled",
    "SessionRebuilt",
    "WaitShortened",
    "SubmitRejected",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Event(Value):
    """Base of all events; ``deployment`` is the deployment's name."""

    deployment: str


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AttemptStarted(Event):
    """The provider is being asked."""

    request_id: str
    attempt: int


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AttemptFailed(Event):
    """The provider's answer was an error; ``error`` is the class name, ``code`` its word.

    ``call_id``: by which the provider, or a gateway before it, knows the call; empty where it told none.
    """

    request_id: str
    attempt: int
    error: str
    code: str
    call_id: str = ""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RetryScheduled(Event):
    """Another attempt follows in ``delay`` seconds."""

    request_id: str
    attempt: int
    delay: float
    error: str


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class WaitShortened(Event):
    """The provider named a time of ``told`` seconds, which is longer than counts: it is taken for ``counted``."""

    request_id: str
    attempt: int
    told: float
    counted: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RequestFinished(Event):
    """The request ended. ``outcome``: ``completed``, ``failed``, ``cancelled`` or ``handed_back``."""

    request_id: str
    outcome: str
    attempts: int
    duration: float
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CircuitChanged(Event):
    """The breaker of ``endpoint`` changed; states are ``closed``, ``open``, ``half_open``."""

    endpoint: str
    old: str
    new: str


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GateClosed(Event):
    """This worker stops taking the deployment's requests until ``until`` (seconds since the epoch)."""

    reason: GateReason
    until: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GateOpened(Event):
    """This worker takes the deployment's requests again."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ClockSkewed(Event):
    """This machine's clock is so many seconds ahead of the other workers' (negative: behind), which is far too much;
    0.0: no more. It concerns no deployment."""

    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SessionRebuilt(Event):
    """The session was swapped. ``changed``: whether the credential is another one."""

    cause: str
    generation: int
    changed: bool


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SubmitRejected(Event):
    """A submit ended in `Backpressure`."""

    reason: str


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CapacityMismatch(Event):
    """The queue was declared with another capacity than the configuration names."""

    configured: int
    declared: int


Hook = Callable[[Event], None]


class Hooks:
    """Hands every event to every hook."""

    def __init__(self, hooks: Iterable[Hook] = ()) -> None:
        self._hooks = tuple(hooks)

    def add(self, hook: Hook) -> None:
        """Tell this hook too, from now on."""
        self._hooks = (*self._hooks, hook)

    def __call__(self, event: Event) -> None:
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:  # a hook is a stranger's code: it must not fail the request
                logger.exception("hook %r failed on %s", hook, type(event).__name__)

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def __repr__(self) -> str:
        return f"Hooks({len(self._hooks)})"
