"""`RemoteEngine`: takes one request through all its attempts.

Each attempt: cancelled or past the deadline? → breaker → permit → session → provider → sink → settle. The breaker
comes before the limiter, for an open circuit must not eat permits. Whatever way an attempt goes out, its permit, its
admission and its session are given back.

What concerns the whole deployment (a limit, a pause, an open circuit, a refused credential) is waited for here for a
second at most. Beyond that it is raised as `LimitReached` or `CircuitOpen` with the time at which another try makes
sense, and it is the caller's to wait without holding a slot.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import Protocol

from ..cancel import CancelToken
from ..clock import Clock
from ..cluster import Cost, LimitKey, Permit, RateLimiter
from ..config import Deployment
from ..errors import (
    Cancelled,
    CircuitOpen,
    DeadlineExceeded,
    InvalidResponse,
    LimitReached,
    NetworkError,
    RebuildFailed,
    RequestError,
    Timeout,
    Unauthorized,
)
from ..events import AttemptFailed, AttemptStarted, GateClosed, Hooks, RequestFinished, RetryScheduled
from ..policy.breaker import Admission, CircuitBreaker
from ..policy.classify import traits
from ..policy.retry import decide
from ..providers.base import Provider, ProviderCall
from ..transport.session import RebuildResult, SessionRebuildCause, SessionSnapshot
from ..types import Completion, InferenceRequest, Priority, Timings, TokenUsage
from .answer import Answer
from .metrics import MetricsRecorder
from .sink import Sink

__all__ = ["PATIENCE", "EnginePart", "Job", "RemoteEngine", "Session"]

PATIENCE = 1.0
"""Seconds for which a gate is waited for in the slot."""

REFUSALS = 3
"""401s in a row with one credential that shut the gate."""

REFUSED_RECHECK = 30.0
"""Seconds after which a shut gate looks whether the credential's source has another one."""


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
    """

    request_id: str
    priority: Priority = Priority.NORMAL
    deadline: float | None = None
    submitted: float = 0.0
    token: CancelToken = field(default_factory=CancelToken)
    on_retry: Callable[[RequestError], None] | None = None


class Session(Protocol):
    """What an engine needs of a `RemoteSession`."""

    def lease(self) -> AbstractContextManager[SessionSnapshot]:
        """A snapshot for one attempt."""

    def rebuild(self, cause: SessionRebuildCause, *, seen_generation: int | None = None) -> RebuildResult:
        """Swap it for one with the source's credential of now."""

    def close(self) -> None:
        """Close its connections, when nobody uses them any more."""


@dataclass(frozen=True, kw_only=True)
class EnginePart:
    """What an engine works with. One a deployment and process; the limiter is shared by all of them."""

    deployment: Deployment
    provider: Provider
    session: Session
    limiter: RateLimiter
    breaker: CircuitBreaker
    clock: Clock
    hooks: Hooks
    metrics: MetricsRecorder
    rng: random.Random


class RemoteEngine:
    """See the module."""

    def __init__(self, part: EnginePart) -> None:
        self._part = part
        self.deployment = part.deployment
        self.session = part.session
        self.breaker = part.breaker
        self.metrics = part.metrics
        self._clock = part.clock
        self._refusals = 0
        self._refused_until = 0.0
        self.limit_key = LimitKey(part.provider.name, part.deployment.account, part.deployment.model)
        part.limiter.configure(
            self.limit_key,
            part.deployment.rate_limits,
            deployment=part.deployment.name,
            max_concurrent=part.deployment.max_concurrent,
        )

    def execute(self, request: InferenceRequest, job: Job, sink: Sink) -> Completion:
        """Run the request to its end.

        Raises:
            LimitReached, CircuitOpen: not now; nothing of it was handed to the sink that a reader would see again.
            RequestError: what became of it.
        """
        run = _Run(self._part, self, request, job, sink)
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
            except RequestError as error:
                run.finished("failed", error)
                raise
            outcome[0] = "completed"
            run.finished("completed", None, completion)
            return completion

    def rejected(self) -> None:
        """A request that was handed back is not tried again: the policy refuses it (the caller's word)."""
        self.metrics.add("handed_back", -1)
        self.metrics.add("rejected", 1)

    def opens_at(self) -> float:
        """When the next request could be sent, as far as is known; 0.0 for now."""
        return max(
            self.breaker.retry_at, self._part.limiter.paused_until(self.limit_key), self._refused_until
        )

    # -- the credential's gate

    def check_credential(self) -> None:
        """Raise `LimitReached` while the provider refuses the credential; look for another one now and then."""
        if not self._refused_until:
            return
        now = self._clock.time()
        if now < self._refused_until:
            raise LimitReached("credential_refused", self.deployment.name, retry_at=self._refused_until)
        self._refused_until = now + REFUSED_RECHECK  # one looks, the others wait
        try:
            changed = self.session.rebuild(SessionRebuildCause.UNAUTHORIZED).changed
        except RebuildFailed:
            changed = False
        if not changed:
            raise LimitReached("credential_refused", self.deployment.name, retry_at=self._refused_until)
        self.open_gate()

    def credential_refused(self) -> None:
        """A 401 that no rebuild could mend."""
        self._refusals += 1
        if self._refusals >= REFUSALS and not self._refused_until:
            self._refused_until = self._clock.time() + REFUSED_RECHECK
            self._part.hooks(
                GateClosed(
                    deployment=self.deployment.name, reason="credential_refused", until=self._refused_until
                )
            )

    def open_gate(self) -> None:
        """The credential is taken, or the operator says so."""
        self._refusals = 0
        self._refused_until = 0.0

    def __repr__(self) -> str:
        return f"RemoteEngine({self.deployment.name}, {self.breaker!r}, in_flight={self.metrics.snapshot().in_flight})"


class _Run:
    """One request's way through the attempts."""

    def __init__(
        self, part: EnginePart, engine: RemoteEngine, request: InferenceRequest, job: Job, sink: Sink
    ) -> None:
        self._part = part
        self._engine = engine
        self._clock = part.clock
        self._request = request
        self._job = job
        self._sink = sink
        self._attempts = 0
        self._retries = 0
        self._refreshed = False
        self._emitted = False
        self._began = part.clock.monotonic()
        self._began_at = part.clock.time()
        self._first_token: float | None = None
        self._usage: TokenUsage | None = None
        self._prompt = request.estimated_prompt_tokens()

    def to_the_end(self) -> Completion:
        while True:
            self._check()
            self._engine.check_credential()
            admission = self._admit()
            if admission is None:
                continue
            try:
                permit = self._permit()
            except BaseException:
                admission.neutral()
                raise
            try:
                return self._attempt(admission, permit)
            except RequestError as error:
                error.at(self._part.deployment.name, self._job.request_id, self._attempts)
                self._part.hooks(
                    AttemptFailed(
                        deployment=self._part.deployment.name,
                        request_id=self._job.request_id,
                        attempt=self._attempts,
                        error=type(error).__name__,
                        code=error.code,
                    )
                )
                if not self._again(error):
                    raise

    # -- before an attempt

    def _check(self) -> None:
        try:
            self._job.token.check()
        except Cancelled as error:
            error.at(self._part.deployment.name, self._job.request_id, self._attempts)
            error.usage = self._usage.to_wire() if self._usage else None
            raise
        if self._job.deadline is not None and self._clock.time() >= self._job.deadline:
            raise self._too_late("running" if self._attempts else "waiting")

    def _too_late(self, code: str) -> DeadlineExceeded:
        usage = self._usage.to_wire() if self._usage else None
        error = DeadlineExceeded(code, usage=usage)
        error.at(self._part.deployment.name, self._job.request_id, self._attempts)
        return error

    def _deadline_left(self) -> float | None:
        return None if self._job.deadline is None else self._job.deadline - self._clock.time()

    def _patience(self) -> float:
        left = self._deadline_left()
        return PATIENCE if left is None else max(0.0, min(PATIENCE, left))

    def _admit(self) -> Admission | None:
        """The breaker's leave; None after a short wait for it."""
        try:
            return self._part.breaker.admit()
        except CircuitOpen as error:
            wait = error.retry_at - self._clock.time()
            if wait > self._patience():
                error.at(self._part.deployment.name, self._job.request_id, self._attempts)
                raise
            self._clock.wait(self._job.token.event, max(wait, 0.005))
            return None

    def _permit(self) -> Permit:
        cost = Cost(self._prompt, self._request.sampling.max_tokens or 512)
        try:
            return self._part.limiter.acquire(
                self._engine.limit_key,
                self._part.deployment.name,
                cost,
                priority=self._job.priority,
                patience=self._patience(),
                token=self._job.token,
            )
        except RequestError as error:
            error.at(self._part.deployment.name, self._job.request_id, self._attempts)
            raise

    # -- an attempt

    def _attempt(self, admission: Admission, permit: Permit) -> Completion:
        answer = Answer(self._prompt)
        sent = False
        try:
            try:
                with self._part.session.lease() as snapshot:
                    self._attempts += 1
                    if self._attempts > 1:
                        self._part.metrics.add("retried", 1)
                    self._part.hooks(
                        AttemptStarted(
                            deployment=self._part.deployment.name,
                            request_id=self._job.request_id,
                            attempt=self._attempts,
                        )
                    )
                    sent = True
                    self._generation = snapshot.generation
                    left = self._deadline_left()
                    call = ProviderCall(
                        request=self._request,
                        deployment=self._part.deployment,
                        snapshot=snapshot,
                        token=self._job.token,
                        deadline=None if left is None else self._clock.monotonic() + left,
                        stream=self._part.deployment.stream,
                    )
                    self._sink.begin()
                    self._read(call, answer)
            except RequestError as error:
                raise self._as_it_was(error, answer) from error
            if answer.finish_reason is None:
                raise InvalidResponse("no_finish_reason")
        except RequestError as error:
            self._settle_failed(error, admission, permit, answer)
            raise
        except BaseException:
            admission.neutral()
            permit.settle(None) if sent else permit.refund()
            raise
        admission.success()
        usage = answer.usage()
        permit.settle(Cost(usage.prompt_tokens, usage.completion_tokens))
        self._engine.open_gate()
        return self._completion(answer, usage)

    def _read(self, call: ProviderCall, answer: Answer) -> None:
        push = self._sink.push
        add = answer.add
        with closing(self._part.provider.stream(call)) as chunks:
            for chunk in chunks:
                add(chunk)
                if chunk.has_output:
                    if self._first_token is None:
                        self._first_token = self._clock.monotonic() - self._began
                    push(chunk)
        self._job.token.check()  # a body that was cut can end cleanly
        self._emitted = self._emitted or answer.begun

    def _as_it_was(self, error: RequestError, answer: Answer) -> RequestError:
        """What really happened, where an error is only its consequence: a cut socket, a clamped time-out."""
        self._emitted = self._emitted or answer.begun
        if self._job.token.cancelled:
            self._usage = answer.usage()
            return Cancelled(self._job.token.reason, usage=self._usage.to_wire())
        late = self._job.deadline is not None and self._clock.time() >= self._job.deadline
        if isinstance(error, DeadlineExceeded) or (late and isinstance(error, Timeout)):
            self._usage = answer.usage()
            return DeadlineExceeded("running", usage=self._usage.to_wire())
        return error

    def _settle_failed(
        self, error: RequestError, admission: Admission, permit: Permit, answer: Answer
    ) -> None:
        outcome = traits(error).outcome
        if outcome == "failure":
            admission.failure()
        elif outcome == "success":
            admission.success()
        else:
            admission.neutral()
        if isinstance(error, NetworkError) and error.code in ("refused", "dns", "unreachable", "tls"):
            permit.refund()  # nothing was sent
        elif isinstance(error, (Cancelled, DeadlineExceeded)) or answer.begun:
            usage = answer.usage()
            permit.settle(Cost(usage.prompt_tokens, usage.completion_tokens))
        else:
            permit.settle(Cost(0, 0))

    def _completion(self, answer: Answer, usage: TokenUsage) -> Completion:
        price = self._part.deployment.price
        now = self._clock.monotonic()
        return Completion(
            request_id=self._job.request_id,
            deployment=self._part.deployment.name,
            model=self._part.deployment.model,
            text=answer.text,
            reasoning=answer.reasoning,
            refusal=answer.refusal,
            tool_calls=answer.tool_calls,
            finish_reason=answer.finish_reason,  # type: ignore[arg-type]  # checked: not None
            usage=usage,
            cost_usd=None if price is None else price.cost(usage),
            attempts=self._attempts,
            timings=Timings(
                queued=max(0.0, self._began_at - self._job.submitted) if self._job.submitted else 0.0,
                first_token=self._first_token,
                total=now - self._began,
            ),
        )

    # -- after a failed attempt

    def _again(self, error: RequestError) -> bool:
        """Whether to try again; waits for it."""
        if isinstance(error, Unauthorized):
            return self._after_401()
        decision = decide(
            self._part.deployment.retry,
            error,
            retries_used=self._retries,
            idempotent=self._request.idempotent and self._part.deployment.idempotent,
            emitted=self._emitted,
            deadline_left=self._deadline_left(),
            rng=self._part.rng,
        )
        if decision.pause is not None:
            self._part.limiter.pause(self._engine.limit_key, self._clock.time() + decision.pause)
        if not decision.retry:
            return False
        if decision.uses_retry:
            self._retries += 1
        self._tell_retry(error, decision.delay)
        if decision.pause is None and decision.delay > 0:
            self._clock.wait(self._job.token.event, decision.delay)
        return True

    def _tell_retry(self, error: RequestError, delay: float) -> None:
        self._part.hooks(
            RetryScheduled(
                deployment=self._part.deployment.name,
                request_id=self._job.request_id,
                attempt=self._attempts,
                delay=delay,
                error=type(error).__name__,
            )
        )
        if self._job.on_retry is not None:
            self._job.on_retry(error)

    def _after_401(self) -> bool:
        """Once more, after a rebuild that changed the credential."""
        if not self._refreshed:
            self._refreshed = True
            try:
                rebuilt = self._part.session.rebuild(
                    SessionRebuildCause.UNAUTHORIZED, seen_generation=self._generation
                )
            except RebuildFailed:
                pass
            else:
                if rebuilt.changed:
                    return True
        self._engine.credential_refused()
        return False

    def finished(
        self, outcome: str, error: RequestError | None, completion: Completion | None = None
    ) -> None:
        """Tell the hooks and the counts."""
        usage = completion.usage if completion is not None else self._usage
        cost = completion.cost_usd if completion is not None else None
        if usage is not None:
            if cost is None and self._part.deployment.price is not None:
                cost = self._part.deployment.price.cost(usage)
            self._part.metrics.add("prompt_tokens", usage.prompt_tokens)
            self._part.metrics.add("completion_tokens", usage.completion_tokens)
            if cost:
                self._part.metrics.add("cost_microusd", round(cost * 1e6))
        self._part.hooks(
            RequestFinished(
                deployment=self._part.deployment.name,
                request_id=self._job.request_id,
                outcome=outcome,
                attempts=self._attempts,
                duration=self._clock.monotonic() - self._began,
                error="" if error is None else type(error).__name__,
                prompt_tokens=usage.prompt_tokens if usage else 0,
                completion_tokens=usage.completion_tokens if usage else 0,
                cost_usd=cost,
            )
        )
