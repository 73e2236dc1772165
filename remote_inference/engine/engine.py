"""`RemoteEngine`: takes one request through all its attempts.

Each attempt: cancelled or past the deadline? → breaker → permit → session → provider → sink → settle. The breaker
comes before the limiter, for an open circuit must not eat permits. Whatever way an attempt goes out, its permit, its
admission and its session are given back.

What concerns the whole deployment (a limit, a pause, an open circuit, a refused credential) is waited for here for a
second at most. Beyond that it is raised as `LimitReached` or `CircuitOpen` with the time at which another try makes
sense, and it is the caller's to wait without holding a slot.
"""

from __future__ import annotations

from ..cluster import LimitKey
from ..errors import Cancelled, CircuitOpen, LimitReached
from ..types import Completion, InferenceRequest
from .context import EngineContext, Job
from .credential_gate import CredentialGate
from .run import Run
from .sink import Sink

__all__ = ["RemoteEngine"]


class RemoteEngine:
    """See the module."""

    def __init__(self, context: EngineContext) -> None:
        self._context = context
        self.deployment = context.deployment
        self.session = context.session
        self.breaker = context.breaker
        self.metrics = context.metrics
        self.gate = CredentialGate(context.deployment.name, context.session, context.clock, context.hooks)
        self.limit_key = LimitKey.of(context.deployment)
        context.limiter.configure(
            self.limit_key,
            context.deployment.rate_limits,
            deployment=context.deployment.name,
            max_concurrent=context.deployment.max_concurrent,
        )

    def execute(self, request: InferenceRequest, job: Job, sink: Sink) -> Completion:
        """Run the request to its end.

        Raises:
            LimitReached, CircuitOpen: not now; what the sink was given is void.
            RequestError: what became of it.
            RebuildFailed: there is no credential to send it with.
        """
        run = Run(self._context, self.limit_key, self.gate, request, job, sink)
        with self.metrics.request() as outcome:
            try:
                completion = run.to_the_end()
            except (LimitReached, CircuitOpen) as error:
                outcome[0] = "handed_back"
                run.finished("handed_back", error)
                raise
            except Cancelled as error:
                outcome[0] = "cancelled"
                run.finished("cancelled", error)
                raise
            except BaseException as error:  # also what a pool throws into its threads: an end is told of all
                run.finished("failed", error)
                raise
            outcome[0] = "completed"
            run.finished("completed")
            return completion

    def rejected(self) -> None:
        """A request that was handed back is not tried again: the policy refuses it (the caller's word)."""
        self.metrics.add("handed_back", -1)
        self.metrics.add("rejected", 1)

    def opens_at(self) -> float:
        """When the next request could be sent, as far as is known; 0.0 for now."""
        return max(self.breaker.retry_at, self._context.limiter.paused_until(self.limit_key), self.gate.until)

    def open_gate(self) -> None:
        """The operator has done something about a credential that was refused."""
        self.gate.open()

    def __repr__(self) -> str:
        in_flight = self.metrics.snapshot().in_flight
        return f"RemoteEngine({self.deployment.name}, {self.breaker!r}, in_flight={in_flight})"
