"""`Run`: one request's way through its attempts, and what each of them leaves behind.

Each attempt: the guard's leave → cancelled or too late? → credential's gate → breaker → permit → session → provider →
sink → settle.
"""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import replace

from ..cluster import Cost, LimitKey, Permit
from ..errors import (
    Cancelled,
    CircuitOpen,
    DeadlineExceeded,
    InvalidResponse,
    LimitReached,
    NetworkError,
    RateLimited,
    RebuildFailed,
    RequestError,
    Timeout,
    Unauthorized,
)
from ..events import AttemptFailed, AttemptStarted, RequestFinished, RetryScheduled, WaitShortened
from ..policy.breaker import Admission
from ..policy.classify import traits
from ..policy.quota import QuotaReport
from ..policy.retry import decide
from ..policy.retry_after import MAX_RETRY_AFTER
from ..providers import AnswerHead
from ..reasons import LimitReason
from ..transport.session import SessionRebuildCause, SessionSnapshot
from ..types import Completion, InferenceRequest, Priority, Timings, TokenUsage
from .completion_builder import CompletionBuilder
from .context import EngineContext, Job
from .credential_gate import CredentialGate
from .sink import Sink
from .upstream import Attempt

__all__ = ["PATIENCE", "PERMIT_PATIENCE", "Run"]

logger = logging.getLogger(__name__)

PATIENCE = 1.0
"""Seconds for which a circuit that is about to open is waited for in the slot."""

PERMIT_PATIENCE = 0.25
"""Seconds for which a permit is waited for in the slot. Whoever waits there keeps the slot from a more urgent request
that arrives in the queue meanwhile. (In a pause nobody is let through: its end is waited for as a circuit's is.)"""

_AFTER_PAUSE = frozenset({LimitReason.PAUSED, LimitReason.RAMP})

RESERVED_RECHECK = 2.0
"""Seconds until a process that was kept for one request may be free again."""

UNAVAILABLE_RECHECK = 5.0
"""Seconds until the source is asked again."""

_USUAL_ANSWER = 512  # tokens, where nothing bounds them
_SHORTEST_WAIT = 0.005  # seconds: a gate that should be open already must not be a hot loop
_NOTHING_SENT = frozenset({"refused", "dns", "unreachable", "tls"})  # codes of `NetworkError`


class Run:
    """One delivery of one request."""

    def __init__(
        self,
        context: EngineContext,
        limit_key: LimitKey,
        gate: CredentialGate,
        request: InferenceRequest,
        job: Job,
        sink: Sink,
    ) -> None:
        self._context = context
        self._limit_key = limit_key
        self._gate = gate
        self._clock = context.clock
        self._request = request
        self._job = job
        self._sink = sink
        self._attempts = 0
        self._retries = 0
        self._refreshed = False
        self._generation = 0
        self._sent = False
        self._began = context.clock.monotonic()
        self._began_at = context.clock.time()
        self._first_token: float | None = None
        self._usage: TokenUsage | None = None  # of all attempts
        self._prompt = request.estimated_prompt_tokens()
        self._estimate = Cost(self._prompt, _USUAL_ANSWER)
        self._head = AnswerHead()

    def to_the_end(self) -> Completion:
        while True:
            self._enter()
            self._check()
            self._gate.check()
            admission = self._admit()
            try:
                permit = self._permit()
            except BaseException:
                admission.neutral()
                raise
            if not admission.holds:  # the circuit has changed while the permit was waited for
                admission.neutral()
                permit.refund()
                continue
            started = self._attempts
            try:
                completion = self._attempt(admission, permit)
            except RequestError as error:
                self._at(error)
                self._job.guard.leave()
                if self._attempts > started:
                    self._tell_failed(error)
                if not self._again(error):
                    raise
            else:
                if completion is not None:
                    return completion

    def _at(self, error: RequestError) -> RequestError:
        """The error, told where it happened and what was used by then."""
        if isinstance(error, (Cancelled, DeadlineExceeded)) and self._usage is not None:
            error.usage = self._usage.to_wire()
        return error.at(self._context.deployment.name, self._job.request_id, self._attempts)

    # -- before an attempt

    def _enter(self) -> None:
        """Have leave to call; before anything is reserved, for it may be waited for."""
        if not self._job.guard.enter(self._deadline_left()):
            self._check()
            raise self._at(
                LimitReached(LimitReason.PROCESS_RESERVED, retry_at=self._clock.time() + RESERVED_RECHECK)
            )

    def _check(self) -> None:
        if self._job.token.cancelled:
            raise self._at(self._cancelled())
        if self._is_late():
            raise self._at(DeadlineExceeded("running" if self._attempts else "waiting"))

    def _cancelled(self) -> RequestError:
        """What a cancelled token means: for the end of the process, only that another one is to take the request."""
        if self._job.token.reason == LimitReason.SHUTDOWN:
            return LimitReached(LimitReason.SHUTDOWN, retry_at=self._clock.time())
        return Cancelled(self._job.token.reason)

    def _is_late(self) -> bool:
        return self._job.deadline is not None and self._clock.time() >= self._job.deadline

    def _deadline_left(self) -> float | None:
        return None if self._job.deadline is None else self._job.deadline - self._clock.time()

    def _patience(self, most: float) -> float:
        left = self._deadline_left()
        return most if left is None else max(0.0, min(most, left))

    def _admit(self) -> Admission:
        """The breaker's leave, after a short wait for it."""
        end = self._clock.monotonic() + self._patience(PATIENCE)
        while True:
            try:
                return self._context.breaker.admit()
            except CircuitOpen as error:
                wait = max(error.retry_at - self._clock.time(), _SHORTEST_WAIT)
                if self._clock.monotonic() + wait > end:
                    raise self._at(error) from None
            self._clock.wait(self._job.token.event, wait)
            self._check()

    def _permit(self) -> Permit:
        most = self._request.sampling.max_tokens
        self._estimate = Cost(self._prompt, most or _USUAL_ANSWER)
        cost = self._context.estimates.cost(self._limit_key, self._estimate, most=most)
        # nobody has to get past one that is urgent itself
        patience = PATIENCE if self._job.priority >= Priority.HIGH else PERMIT_PATIENCE
        end = self._clock.monotonic() + self._patience(PATIENCE)
        while True:
            try:
                return self._context.limiter.acquire(
                    self._limit_key,
                    self._context.deployment.name,
                    cost,
                    priority=self._job.priority,
                    patience=self._patience(patience),
                    token=self._job.token,
                )
            except LimitReached as error:
                wait = error.retry_at - self._clock.time()
                if error.code not in _AFTER_PAUSE or self._clock.monotonic() + wait > end:
                    raise self._at(error) from None
            except RequestError as error:
                self._at(error)
                raise
            self._clock.wait(self._job.token.event, max(wait, _SHORTEST_WAIT))
            self._check()

    # -- an attempt

    def _attempt(self, admission: Admission, permit: Permit) -> Completion | None:
        """The answer; None where the call may not begin yet, and leave for it is to be asked again."""
        answer = CompletionBuilder(self._prompt)
        self._sent = False
        self._head = AnswerHead()
        try:
            with self._context.session.lease() as snapshot:
                begun = self._job.guard.begin()  # when the credential is there, and nothing is sent yet
                if begun:
                    self._ask(snapshot, answer)
        except BaseException as exc:
            error = self._what_happened(exc)
            self._settle_failed(error, exc, admission, permit, answer)
            if error is exc:
                raise
            raise error from exc
        if not begun:
            admission.neutral()
            permit.refund()
            return None
        usage = answer.usage()
        if usage.cost_usd is None and self._head.cost_usd is not None:
            usage = replace(usage, cost_usd=self._head.cost_usd)
        self._used(usage)
        admission.success()
        actual = Cost(usage.prompt_tokens, usage.completion_tokens)
        permit.settle(actual)
        self._context.estimates.learn(self._limit_key, self._estimate, actual)
        self._gate.open()
        return self._completion(answer, usage)

    def _ask(self, snapshot: SessionSnapshot, answer: CompletionBuilder) -> None:
        self._attempts += 1
        self._generation = snapshot.generation
        if self._attempts > 1:
            self._context.metrics.add("retried", 1)
        self._context.hooks(
            AttemptStarted(
                deployment=self._context.deployment.name,
                request_id=self._job.request_id,
                attempt=self._attempts,
            )
        )
        left = self._deadline_left()
        attempt = Attempt(
            request=self._request,
            deployment=self._context.deployment,
            snapshot=snapshot,
            token=self._job.token,
            deadline=None if left is None else self._clock.monotonic() + left,
            stream=self._context.deployment.stream,
            on_head=self._on_head,
        )
        self._sink.begin()
        self._sent = True
        with closing(self._context.upstream.stream(attempt)) as chunks:
            for chunk in chunks:
                answer.add(chunk)
                if chunk.has_output:
                    if self._first_token is None:
                        self._first_token = self._clock.monotonic() - self._began
                    self._sink.push(chunk)
        self._job.token.check()  # a body that was cut can end cleanly
        if answer.finish_reason is None:
            raise InvalidResponse("no_finish_reason")

    def _on_head(self, head: AnswerHead) -> None:
        self._head = head
        if head.quota is not None:
            self._context.limiter.observe(self._limit_key, head.quota)
            told = head.quota.told_pause
            if told is not None and told > MAX_RETRY_AFTER:
                self._tell_shortened(told)

    def _tell_shortened(self, told: float) -> None:
        self._context.hooks(
            WaitShortened(
                deployment=self._context.deployment.name,
                request_id=self._job.request_id,
                attempt=self._attempts,
                told=told,
                counted=MAX_RETRY_AFTER,
            )
        )

    def _what_happened(self, exc: BaseException) -> BaseException:
        """The real cause, where an error is only its consequence: a cut socket, a clamped time-out."""
        if self._job.token.cancelled and isinstance(exc, Exception):
            return self._cancelled()
        if isinstance(exc, DeadlineExceeded) or (isinstance(exc, Timeout) and self._is_late()):
            return DeadlineExceeded("running")
        if isinstance(exc, RebuildFailed) and not self._sent:
            # a vault may be away for a moment: the request waits in its queue, as for anything that concerns them all
            logger.warning("%s", exc)
            return LimitReached(
                LimitReason.CREDENTIAL_UNAVAILABLE, retry_at=self._clock.time() + UNAVAILABLE_RECHECK
            )
        return exc

    def _settle_failed(
        self,
        error: BaseException,
        seen: BaseException,
        admission: Admission,
        permit: Permit,
        answer: CompletionBuilder,
    ) -> None:
        """Give back what is not needed. ``seen`` tells how far the attempt came, ``error`` what is said of it."""
        outcome = traits(error).outcome if isinstance(error, RequestError) else "neutral"
        if outcome == "failure":
            admission.failure()
        else:
            admission.neutral()
        not_connected = (isinstance(seen, NetworkError) and seen.code in _NOTHING_SENT) or (
            isinstance(seen, Timeout) and seen.code == "connect"
        )
        if not self._sent or not_connected:
            permit.refund()
        elif isinstance(error, (Cancelled, DeadlineExceeded)) or answer.charged:
            usage = answer.usage()
            self._used(usage)
            permit.settle(Cost(usage.prompt_tokens, usage.completion_tokens))
        else:  # refused, as it seems; of what is none of the provider's errors nobody knows
            permit.settle(Cost(0, 0) if isinstance(error, RequestError) else None)

    def _cost(self, usage: TokenUsage) -> float | None:
        """By the prices that are configured; where there are none, what the provider or a gateway says."""
        price = self._context.deployment.price
        return usage.cost_usd if price is None else price.cost(usage)

    def _used(self, usage: TokenUsage) -> None:
        self._usage = usage if self._usage is None else self._usage + usage

    def _completion(self, answer: CompletionBuilder, usage: TokenUsage) -> Completion:
        now = self._clock.monotonic()
        return Completion(
            request_id=self._job.request_id,
            deployment=self._context.deployment.name,
            model=self._context.deployment.model,
            text=answer.text,
            reasoning=answer.reasoning,
            refusal=answer.refusal,
            tool_calls=answer.tool_calls,
            finish_reason=answer.finish_reason,  # type: ignore[arg-type]  # checked: not None
            usage=usage,
            cost_usd=self._cost(usage),
            call_id=self._head.call_id,
            attempts=self._attempts,
            timings=Timings(
                queued=max(0.0, self._began_at - self._job.submitted) if self._job.submitted else 0.0,
                first_token=self._first_token,
                total=now - self._began,
            ),
        )

    # -- after a failed attempt

    def _tell_failed(self, error: RequestError) -> None:
        self._context.hooks(
            AttemptFailed(
                deployment=self._context.deployment.name,
                request_id=self._job.request_id,
                attempt=self._attempts,
                error=type(error).__name__,
                code=error.code,
                call_id=self._head.call_id,
            )
        )

    def _again(self, error: RequestError) -> bool:
        """Whether to try again; waits for it."""
        if error.told_wait is not None:
            self._tell_shortened(error.told_wait)
        if isinstance(error, Unauthorized):
            return self._after_401(error)
        decision = decide(
            self._context.deployment.retry,
            error,
            retries_used=self._retries,
            idempotent=self._request.idempotent and self._context.deployment.idempotent,
            deadline_left=self._deadline_left(),
            rng=self._context.rng,
        )
        if isinstance(error, RateLimited) and not error.quota:
            quota = self._head.quota
            said = quota.quotas if quota is not None else ()
            self._context.limiter.observe(self._limit_key, QuotaReport(said, refused=True))
        if decision.pause is not None:
            self._context.limiter.pause(self._limit_key, self._clock.time() + decision.pause)
        if not decision.retry:
            return False
        if decision.uses_retry:
            self._retries += 1
        self._tell_retry(error, decision.delay)
        if decision.pause is None and decision.delay > 0:
            self._rest(decision.delay)
        return True

    def _rest(self, delay: float) -> None:
        """The request's own backoff. It ends at once when the process is about to end: another one goes on."""
        token = self._job.token
        token.resting = True  # before the look: whoever drains does it the other way round
        try:
            if self._job.draining():
                token.cancel(LimitReason.SHUTDOWN)
            self._clock.wait(token.event, delay)
        finally:
            token.resting = False

    def _tell_retry(self, error: RequestError, delay: float) -> None:
        self._context.hooks(
            RetryScheduled(
                deployment=self._context.deployment.name,
                request_id=self._job.request_id,
                attempt=self._attempts,
                delay=delay,
                error=type(error).__name__,
            )
        )
        if self._job.on_retry is not None:
            self._job.on_retry(error)

    def _after_401(self, error: Unauthorized) -> bool:
        """Once more, after a rebuild that changed the credential."""
        if not self._refreshed:
            self._refreshed = True
            try:
                rebuilt = self._context.session.rebuild(
                    SessionRebuildCause.UNAUTHORIZED, seen_generation=self._generation
                )
            except RebuildFailed:
                pass
            else:
                if rebuilt.changed:
                    self._tell_retry(error, 0.0)
                    return True
        self._gate.refused()
        return False

    def finished(self, outcome: str, error: BaseException | None = None) -> None:
        """Tell the hooks and the counts, of all attempts together."""
        usage, cost = self._usage, None
        if usage is not None:
            cost = self._cost(usage)
            self._context.metrics.add("prompt_tokens", usage.prompt_tokens)
            self._context.metrics.add("completion_tokens", usage.completion_tokens)
            if cost:
                self._context.metrics.add("cost_microusd", round(cost * 1e6))
        self._context.hooks(
            RequestFinished(
                deployment=self._context.deployment.name,
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
