"""What an engine works with, and what it works on: `EngineContext` and `Job`."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from ..cancel import CancelToken
from ..clock import Clock
from ..cluster import RateLimiter, TokenEstimates
from ..config import Deployment
from ..errors import RequestError
from ..events import Hooks
from ..policy.breaker import CircuitBreaker
from ..transport.session import RebuildResult, SessionRebuildCause, SessionSnapshot
from ..types import Priority
from .metrics import MetricsRecorder
from .upstream import Asker

__all__ = ["CallGuard", "EngineContext", "Job", "Session", "Unguarded"]


class CallGuard(Protocol):
    """Whoever runs the engine may have a say before each call to a provider, and is told when one begins."""

    def enter(self, time_left: float | None) -> bool:
        """Before anything is reserved for an attempt; may wait. False: the request is to go elsewhere.

        Entered once, it stays so until `leave`.
        """

    def begin(self) -> bool:
        """The call is about to begin. False: what was reserved is to be given back, and `enter` asked again.

        Raises:
            RequestError: it must not begin.
        """

    def leave(self) -> None:
        """The call has failed; another one may follow after a rest. One that succeeds is not left here: its answer
        is still to be told."""


class Unguarded:
    """Calls of which nobody needs to know."""

    def enter(self, time_left: float | None) -> bool:
        """At once."""
        return True

    def begin(self) -> bool:
        """Always."""
        return True

    def leave(self) -> None:
        """Nothing was taken."""


@dataclass(kw_only=True)
class Job:
    """One delivery of one request.

    Attributes:
        request_id: the request's id.
        priority: for the order among those that wait for a permit.
        deadline: seconds since the epoch, on this machine's clock.
        submitted: likewise; 0.0 where it is not known.
        token: how it is cancelled.
        on_retry: told the attempt's error before each further attempt.
        draining: whether the process is about to end: then nothing is waited for that may be long.
        guard: asked before each call.
    """

    request_id: str
    priority: Priority = Priority.NORMAL
    deadline: float | None = None
    submitted: float = 0.0
    token: CancelToken = field(default_factory=CancelToken)
    on_retry: Callable[[RequestError], None] | None = None
    draining: Callable[[], bool] = bool
    guard: CallGuard = field(default_factory=Unguarded)


class Session(Protocol):
    """What an engine needs of a `RemoteSession`."""

    def lease(self) -> AbstractContextManager[SessionSnapshot]:
        """A snapshot for one attempt."""

    def rebuild(self, cause: SessionRebuildCause, *, seen_generation: int | None = None) -> RebuildResult:
        """Swap it for one with the source's credential of now."""

    def close(self) -> None:
        """Close its connections, when nobody uses them any more."""


@dataclass(frozen=True, kw_only=True)
class EngineContext:
    """What an engine works with. One a deployment and process; limiter and estimates are shared by all of them."""

    deployment: Deployment
    upstream: Asker
    session: Session
    limiter: RateLimiter
    breaker: CircuitBreaker
    clock: Clock
    hooks: Hooks
    metrics: MetricsRecorder
    rng: random.Random
    estimates: TokenEstimates = field(default_factory=TokenEstimates)
