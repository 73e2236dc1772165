"""The engine: what each way out of an attempt leaves behind, and whether another one follows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_inference.cluster import Cost, LimitKey
from remote_inference.config import Price
from remote_inference.engine import Job, NullSink
from remote_inference.errors import (
    BadRequest,
    Cancelled,
    CircuitOpen,
    ContentFiltered,
    ContextLengthExceeded,
    DeadlineExceeded,
    Forbidden,
    InvalidResponse,
    LimitReached,
    NetworkError,
    RateLimited,
    RebuildFailed,
    RequestError,
    ServerError,
    StreamTruncated,
    Timeout,
    Unauthorized,
)
from remote_inference.events import (
    AttemptFailed,
    GateClosed,
    GateOpened,
    RequestFinished,
    RetryScheduled,
    WaitShortened,
)
from remote_inference.policy.quota import Quota, QuotaReport
from remote_inference.providers import AnswerHead
from remote_inference.reasons import GateKind, GateReason
from remote_inference.testing.clock import VirtualClock
from remote_inference.types import FinishReason, InferenceRequest, Priority, TokenChunk, TokenUsage

from .conftest import ANSWER, USAGE, Rig

PRICE = Price(input_usd_per_million=1000.0, output_usd_per_million=2000.0)
HALF = (TokenChunk("Hel"),)
FIRST_MINUTE = 61.0
"""Seconds in which a limiter that has just begun takes the limit for spent: it does not know who ran before."""


class TestSuccess:
    def test_the_completion_has_everything(self, make_rig):
        rig = make_rig(price=PRICE)
        completion = rig.run()
        assert completion.text == "Hello"
        assert completion.usage == USAGE
        assert completion.finish_reason is FinishReason.STOP
        assert completion.cost_usd == pytest.approx(10e-3 + 8e-3)
        assert completion.attempts == 1
        assert completion.timings.queued == pytest.approx(2.0)
        assert completion.timings.first_token is not None
        assert (completion.request_id, completion.deployment, completion.model) == ("id", "gpt", "gpt")

    def test_the_text_goes_into_one_epoch_of_the_sink(self, rig):
        rig.run()
        assert rig.sink.epochs == ["Hello"]

    def test_the_provider_is_given_request_snapshot_token_and_deadline(self, rig):
        rig.run(deadline=30)
        [call] = rig.provider.calls
        assert call.snapshot.generation == 1
        assert call.token is rig.token
        assert call.deadline == pytest.approx(rig.clock.monotonic() + 30)
        assert call.stream is True

    def test_the_reserved_tokens_become_the_real_ones(self, rig):
        rig.run()
        assert rig.used["tokens"] == 14
        assert rig.used["requests"] == 1

    def test_without_a_usage_by_the_provider_it_is_estimated(self, rig):
        completion = rig.run(
            (TokenChunk("four"), TokenChunk("teen"), TokenChunk(finish_reason=FinishReason.STOP))
        )
        assert completion.usage == TokenUsage(
            prompt_tokens=InferenceRequest.parse("gpt", "hi").estimated_prompt_tokens(),
            completion_tokens=2,
            estimated=True,
        )

    def test_hooks_and_counts_are_told(self, make_rig):
        rig = make_rig(price=PRICE)
        rig.run()
        assert rig.event_names == ["AttemptStarted", "RequestFinished"]
        finished = rig.events[-1]
        assert (finished.outcome, finished.attempts, finished.error) == ("completed", 1, "")
        metrics = rig.engine.metrics.snapshot()
        assert (metrics.started, metrics.completed, metrics.prompt_tokens) == (1, 1, 10)
        assert metrics.completion_tokens == 4
        assert metrics.cost_usd == pytest.approx(0.018)

    def test_the_generator_is_closed_and_no_lock_is_held_across_the_call(self, rig):
        """Two requests are under way at the same time: each waits within its call for the other."""
        inside = threading.Barrier(2)
        script = (lambda: inside.wait(10), *ANSWER)
        rig.provider.scripts = [script, script]
        request = InferenceRequest.parse("gpt", "hi")
        ended: list[str] = []

        def execute(name: str) -> None:
            ended.append(rig.engine.execute(request, Job(request_id=name), NullSink()).text)

        threads = [threading.Thread(target=execute, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert ended == ["Hello", "Hello"]


# error, whether it is retried, what the breaker is told, whether the permit comes back whole
TABLE: list[tuple[Callable[[], RequestError], bool, str, bool]] = [
    (lambda: RateLimited("slow"), True, "neutral", False),
    (lambda: RateLimited("insufficient_quota", quota=True), False, "neutral", False),
    (lambda: ServerError("overloaded", status=500), True, "failure", False),
    (lambda: ServerError("overloaded", status=529), True, "failure", False),
    (lambda: ServerError("conflict", status=409), True, "neutral", False),
    (lambda: ServerError("early", status=425), True, "neutral", False),
    (lambda: ServerError("error_in_stream"), True, "failure", False),
    (lambda: Timeout("connect"), True, "failure", True),
    (lambda: Timeout("first_byte"), True, "failure", False),
    (lambda: Timeout("read"), True, "failure", False),
    (lambda: Timeout("server"), True, "neutral", False),
    (lambda: NetworkError("refused"), True, "failure", True),
    (lambda: NetworkError("dns"), True, "failure", True),
    (lambda: NetworkError("tls"), True, "failure", True),
    (lambda: NetworkError("unreachable"), True, "failure", True),
    (lambda: NetworkError("reset"), True, "failure", False),
    (lambda: InvalidResponse("not_json"), True, "failure", False),
    (lambda: StreamTruncated("no_finish_reason"), True, "failure", False),
    (lambda: Unauthorized("invalid_api_key"), False, "neutral", False),
    (lambda: Forbidden("no"), False, "neutral", False),
    (lambda: BadRequest("wrong", status=422), False, "neutral", False),
    (lambda: ContextLengthExceeded("context_length_exceeded"), False, "neutral", False),
    (lambda: ContentFiltered("content_filter"), False, "neutral", False),
    (lambda: DeadlineExceeded("running"), False, "neutral", False),
]
IDS = [f"{type(make()).__name__}-{make().code}-{getattr(make(), 'status', '')}" for make, *_ in TABLE]


@pytest.mark.parametrize(("make", "retried", "outcome", "refunded"), TABLE, ids=IDS)
class TestTheTableOfErrors:
    def test_is_retried_or_not(self, rig, make, retried, outcome, refunded):
        if retried:
            assert rig.run((make(),)).attempts == 2
            assert rig.retries == [type(make()).__name__]
            assert rig.engine.metrics.snapshot().retried == 1
        else:
            error = rig.failing((make(),))
            assert type(error) is type(make())
            assert (error.deployment, error.request_id, error.attempt) == ("gpt", "id", 1)
            assert error.args[1:4] == ("gpt", "id", 1)
            assert rig.retries == []

    def test_the_breaker_is_told_or_not(self, make_rig, make, retried, outcome, refunded):
        rig = make_rig(retry={"max_retries": 0}, circuit_breaker={"failure_threshold": 1})
        rig.failing((make(),))
        assert rig.breaker.state == ("open" if outcome == "failure" else "closed")

    def test_the_permit_is_settled_or_refunded(self, make_rig, make, retried, outcome, refunded):
        rig = make_rig(retry={"max_retries": 0})
        rig.failing((make(),))
        assert rig.used["requests"] == (0 if refunded else 1)
        spent = rig.used["output_tokens"]
        assert spent == 0

    def test_never_again_where_it_is_not_idempotent(self, make_rig, make, retried, outcome, refunded):
        rig = make_rig(idempotent=False)
        assert type(rig.failing((make(),))) is type(make())
        assert len(rig.provider.calls) == 1

    def test_never_again_where_the_request_says_that_it_is_not_idempotent(
        self, rig, make, retried, outcome, refunded
    ):
        rig.failing((make(),), idempotent=False)
        assert len(rig.provider.calls) == 1

    def test_what_was_said_before_it_is_spent_and_paid(self, make_rig, make, retried, outcome, refunded):
        rig = make_rig(retry={"max_retries": 0}, price=PRICE)
        error = rig.failing((*HALF, make()))
        if not refunded:  # those come before anything is said
            prompt = InferenceRequest.parse("gpt", "hi").estimated_prompt_tokens()
            assert rig.used["output_tokens"] == 1
            assert rig.engine.metrics.snapshot().completion_tokens == 1
            finished = rig.events[-1]
            assert (finished.prompt_tokens, finished.completion_tokens) == (prompt, 1)
            assert finished.cost_usd == pytest.approx(prompt * 1e-3 + 2e-3)
        assert type(error) is type(make())


class TestRetries:
    def test_backoff_grows_and_the_retries_end(self, rig):
        began = rig.clock.monotonic()
        error = rig.failing(*[(ServerError("x", status=500),)] * 9)
        assert isinstance(error, ServerError)
        assert error.attempt == 4
        assert rig.clock.monotonic() - began == pytest.approx(1 + 2 + 4)
        assert [event.delay for event in rig.events if isinstance(event, RetryScheduled)] == [1, 2, 4]

    def test_a_restart_begins_a_new_epoch_and_the_completion_has_only_the_last_text(self, rig):
        completion = rig.run((*HALF, ServerError("x", status=500)))
        assert rig.sink.epochs == ["Hel", "Hello"]
        assert completion.text == "Hello"
        assert completion.usage == USAGE

    def test_failed_attempts_that_said_something_are_paid_too(self, make_rig):
        rig = make_rig(price=PRICE)
        completion = rig.run((*HALF, ServerError("x", status=500)))
        prompt = InferenceRequest.parse("gpt", "hi").estimated_prompt_tokens()
        assert completion.cost_usd == pytest.approx(0.018)
        metrics = rig.engine.metrics.snapshot()
        assert (metrics.prompt_tokens, metrics.completion_tokens) == (10 + prompt, 4 + 1)

    def test_an_answer_without_its_finish_reason_is_no_answer(self, rig):
        assert rig.run(HALF).attempts == 2
        failed = next(event for event in rig.events if isinstance(event, AttemptFailed))
        assert (failed.error, failed.code) == ("InvalidResponse", "no_finish_reason")

    def test_events_come_in_their_order(self, rig):
        rig.run((ServerError("x", status=500),))
        assert rig.event_names == [
            "AttemptStarted",
            "AttemptFailed",
            "RetryScheduled",
            "AttemptStarted",
            "RequestFinished",
        ]

    def test_no_permit_is_held_while_backing_off(self, rig):
        held: list[int] = []
        rig.clock.call_later(0.5, lambda: held.append(rig.used["concurrent"]))
        rig.run((ServerError("x", status=500),))
        assert held == [0]


class TestRateLimited:
    def test_a_long_named_time_pauses_the_key_and_hands_the_request_back(self, rig):
        now = rig.clock.time()
        error = rig.failing((RateLimited("slow", retry_after=20.0),))
        assert isinstance(error, LimitReached)
        assert error.code == "paused"
        assert error.retry_at == pytest.approx(now + 20, abs=0.01)
        assert rig.engine.opens_at() == pytest.approx(now + 20)
        assert rig.clock.time() == now, "it must not wait in the slot"
        assert rig.engine.metrics.snapshot().handed_back == 1

    def test_other_requests_of_the_key_do_not_try_in_the_mean_time(self, rig):
        rig.failing((RateLimited("slow", retry_after=20.0),))
        assert isinstance(rig.failing(), LimitReached)
        assert len(rig.provider.calls) == 1

    def test_a_short_named_time_is_waited_for_in_the_slot_and_costs_no_retry(self, make_rig):
        rig = make_rig(retry={"max_retries": 1})
        began = rig.clock.monotonic()
        completion = rig.run(*[(RateLimited("slow", retry_after=0.2),)] * 5)
        assert completion.attempts == 6
        assert rig.clock.monotonic() - began >= 1.0

    def test_and_leaves_the_retries_to_other_errors(self, make_rig):
        paced = {"requests_per_minute": 6000}  # so that no ramp follows a moment's pause
        rig = make_rig(retry={"max_retries": 1, "initial_backoff": 0.1}, rate_limits=paced)
        rig.clock.advance(FIRST_MINUTE)
        named = (RateLimited("slow", retry_after=0.2),)
        assert rig.run(named, named, (ServerError("x", status=500),)).attempts == 4

    def test_without_a_named_time_it_costs_a_retry(self, make_rig):
        rig = make_rig(retry={"max_retries": 1, "initial_backoff": 0.1})
        error = rig.failing(*[(RateLimited("slow"),)] * 5)
        assert isinstance(error, RateLimited)
        assert error.attempt == 2

    def test_a_request_that_must_not_be_retried_pauses_the_key_all_the_same(self, make_rig):
        rig = make_rig(idempotent=False)
        assert isinstance(rig.failing((RateLimited("slow", retry_after=20.0),)), RateLimited)
        assert rig.engine.opens_at() == pytest.approx(rig.clock.time() + 20)


class TestUnauthorized:
    def test_another_credential_gives_one_more_attempt(self, rig):
        rig.session.rebuilds = [True]
        completion = rig.run((Unauthorized("no"),))
        assert completion.attempts == 2
        assert rig.session.seen == [1]
        assert [call.snapshot.generation for call in rig.provider.calls] == [1, 2]
        assert rig.retries == ["Unauthorized"]

    def test_the_same_credential_gives_none(self, rig):
        rig.session.rebuilds = [False]
        assert isinstance(rig.failing((Unauthorized("no"),)), Unauthorized)
        assert len(rig.provider.calls) == 1

    def test_only_once(self, rig):
        rig.session.rebuilds = [True, True]
        assert isinstance(rig.failing((Unauthorized("no"),), (Unauthorized("no"),)), Unauthorized)
        assert len(rig.provider.calls) == 2

    def test_a_source_that_fails_gives_none(self, rig):
        rig.session.rebuilds = [RebuildFailed("gpt", "vault is away")]
        assert isinstance(rig.failing((Unauthorized("no"),)), Unauthorized)

    def shut(self, rig: Rig) -> float:
        for _ in range(3):
            assert isinstance(rig.failing((Unauthorized("no"),)), Unauthorized)
        return rig.clock.time()

    def test_three_in_a_row_shut_the_gate(self, rig):
        now = self.shut(rig)
        [closed] = [event for event in rig.events if isinstance(event, GateClosed)]
        assert (closed.reason, closed.until) == (
            GateReason(GateKind.CREDENTIAL, "credential_refused"),
            now + 30,
        )
        error = rig.failing()
        assert isinstance(error, LimitReached)
        assert (error.code, error.retry_at) == ("credential_refused", now + 30)
        assert len(rig.provider.calls) == 3
        assert rig.engine.opens_at() == now + 30

    def test_refusals_of_requests_that_were_under_way_shut_it_no_second_time(self, rig):
        now = self.shut(rig)
        rig.clock.advance(5)
        rig.engine.gate.refused()
        assert rig.engine.opens_at() == now + 30
        assert rig.event_names.count("GateClosed") == 1

    def test_a_success_in_between_begins_the_row_anew(self, rig):
        for _ in range(4):
            rig.failing((Unauthorized("no"),))
            rig.failing((Unauthorized("no"),))
            rig.run()
        assert rig.engine.opens_at() == 0.0

    def test_a_shut_gate_looks_for_another_credential_and_opens(self, rig):
        self.shut(rig)
        rig.clock.advance(30)
        rig.session.rebuilds = [True]
        assert rig.run().text == "Hello"
        assert isinstance(rig.events[-3], GateOpened)
        assert rig.engine.opens_at() == 0.0

    @pytest.mark.parametrize("found", [False, RebuildFailed("gpt", "vault is away")], ids=["same", "failed"])
    def test_and_stays_shut_where_there_is_none(self, rig, found):
        self.shut(rig)
        rig.clock.advance(30)
        looked = len(rig.session.seen)
        rig.session.rebuilds = [found]
        error = rig.failing()
        assert isinstance(error, LimitReached)
        assert error.retry_at == pytest.approx(rig.clock.time() + 30)
        assert isinstance(rig.failing(), LimitReached)
        assert len(rig.session.seen) == looked + 1, "one look in thirty seconds"

    def test_the_operator_opens_it(self, rig):
        self.shut(rig)
        rig.engine.open_gate()
        assert rig.run().text == "Hello"
        assert any(isinstance(event, GateOpened) for event in rig.events)


class TestCircuit:
    def open(self, rig: Rig, seconds: float) -> None:
        rig.breaker.force_open(seconds)

    def test_an_open_circuit_hands_the_request_back_and_eats_no_permit(self, rig):
        self.open(rig, 20)
        error = rig.failing()
        assert isinstance(error, CircuitOpen)
        assert error.retry_at == pytest.approx(rig.clock.time() + 20, abs=0.01)
        assert (error.deployment, error.request_id) == ("gpt", "id")
        assert rig.used["requests"] == 0

    def test_one_that_opens_within_a_second_is_waited_for(self, rig):
        self.open(rig, 0.5)
        assert rig.run().text == "Hello"

    def test_a_probe_under_way_is_not_waited_for_longer_than_a_second(self, rig):
        self.open(rig, 0.01)
        rig.clock.advance(0.02)
        probe = rig.breaker.admit()
        began = rig.clock.monotonic()
        error = rig.failing()
        assert isinstance(error, CircuitOpen)
        assert error.code == "probing"
        assert rig.clock.monotonic() - began <= 1.0
        probe.neutral()

    def test_the_admission_is_given_back_where_there_is_no_permit(self, make_rig):
        rig = make_rig(rate_limits={"requests_per_minute": 1})
        rig.clock.advance(FIRST_MINUTE)
        rig.run()
        rig.breaker.force_open(0.01)
        rig.clock.advance(0.02)
        assert isinstance(rig.failing(), LimitReached)  # the probe's slot is free again: see the fixture

    def test_the_policy_may_refuse_what_was_handed_back(self, rig):
        self.open(rig, 20)
        rig.failing()
        rig.engine.rejected()
        metrics = rig.engine.metrics.snapshot()
        assert (metrics.rejected, metrics.handed_back) == (1, 0)

    def test_one_that_opens_while_a_permit_is_waited_for_sends_nothing_and_the_permit_goes_back(
        self, rig, monkeypatch
    ):
        acquire = rig.limiter.acquire

        def slowly(*args, **kwargs):
            permit = acquire(*args, **kwargs)
            rig.breaker.force_open(60.0)
            return permit

        monkeypatch.setattr(rig.limiter, "acquire", slowly)
        assert isinstance(rig.failing(), CircuitOpen)
        assert rig.provider.calls == []
        assert rig.used["requests"] == 0


class TestLimits:
    def test_a_permit_that_is_due_later_than_the_patience_hands_back_with_its_time(self, make_rig):
        rig = make_rig(rate_limits={"requests_per_minute": 1})
        rig.clock.advance(FIRST_MINUTE)
        rig.run()
        now = rig.clock.time()
        error = rig.failing()
        assert isinstance(error, LimitReached)
        assert now + 59 < error.retry_at < now + 62
        assert (error.code, error.deployment, error.request_id) == ("requests", "gpt", "id")
        assert rig.clock.time() == now

    def test_one_that_is_due_within_it_is_waited_for(self, make_rig):
        rig = make_rig(rate_limits={"requests_per_minute": 1})
        rig.clock.advance(FIRST_MINUTE)
        rig.run()
        rig.clock.advance(60.1)
        assert rig.run().text == "Hello"

    def test_one_that_is_due_within_a_second_does_not_keep_the_slot(self, make_rig):
        rig = make_rig(rate_limits={"requests_per_minute": 1})
        rig.clock.advance(FIRST_MINUTE)
        rig.run()
        rig.clock.advance(59.7)
        began = rig.clock.monotonic()
        assert isinstance(rig.failing(), LimitReached)
        assert rig.clock.monotonic() == began


class TestWhatTheProviderSaysBesides:
    """The call's id, its cost, and times that are too long."""

    def say(self, rig, head: AnswerHead) -> Callable[[], None]:
        return lambda: rig.provider.calls[-1].on_head(head)

    def test_the_calls_id_is_in_the_completion_and_in_the_event_of_a_failure(self, rig):
        first, second = AnswerHead(call_id="call-1"), AnswerHead(call_id="call-2")
        completion = rig.run(
            (self.say(rig, first), ServerError(status=500)), (self.say(rig, second), *ANSWER)
        )
        assert completion.call_id == "call-2"
        [failed] = [event for event in rig.events if isinstance(event, AttemptFailed)]
        assert failed.call_id == "call-1"

    def test_a_gateways_cost_is_told_where_there_are_no_prices(self, make_rig):
        rig = make_rig()
        assert rig.run((self.say(rig, AnswerHead(cost_usd=0.5)), *ANSWER)).cost_usd == 0.5
        [finished] = [event for event in rig.events if isinstance(event, RequestFinished)]
        assert finished.cost_usd == 0.5
        assert rig.engine.metrics.snapshot().cost_usd == pytest.approx(0.5)

    def test_the_usages_own_cost_comes_before_the_headers(self, rig):
        told = TokenUsage(prompt_tokens=10, completion_tokens=4, cost_usd=0.25)
        answer = (TokenChunk("a"), TokenChunk(finish_reason=FinishReason.STOP, usage=told))
        assert rig.run((self.say(rig, AnswerHead(cost_usd=0.5)), *answer)).cost_usd == 0.25

    def test_the_configured_prices_come_before_both(self, make_rig):
        rig = make_rig(price=PRICE)
        assert rig.run((self.say(rig, AnswerHead(cost_usd=0.5)), *ANSWER)).cost_usd == pytest.approx(0.018)

    @pytest.mark.parametrize(
        ("told", "expected"),
        [
            (TokenUsage(prompt_tokens=10), TokenUsage(prompt_tokens=10, completion_tokens=2, estimated=True)),
            (TokenUsage(prompt_tokens=10, completion_tokens=4), USAGE),
        ],
    )
    def test_a_zero_beside_an_answer_is_estimated(self, rig, told, expected):
        answer = (TokenChunk("fourteen"), TokenChunk(finish_reason=FinishReason.STOP, usage=told))
        assert rig.run(answer).usage == expected

    def test_a_zero_of_the_prompt_is_estimated(self, rig):
        told = TokenUsage(completion_tokens=500)
        answer = (TokenChunk("fourteen"), TokenChunk(finish_reason=FinishReason.STOP, usage=told))
        usage = rig.run(answer).usage
        assert usage.prompt_tokens == InferenceRequest.parse("gpt", "hi").estimated_prompt_tokens()
        assert (usage.completion_tokens, usage.estimated) == (500, True)

    def test_a_time_that_is_too_long_is_told(self, make_rig):
        rig = make_rig(retry={"max_retries": 0})
        rig.failing((RateLimited("x", retry_after=3600.0).advised(told_wait=86_400.0),))
        [event] = [event for event in rig.events if isinstance(event, WaitShortened)]
        assert (event.told, event.counted, event.attempt) == (86_400.0, 3600.0, 1)

    def test_a_reset_that_is_too_long_is_told(self, rig):
        report = QuotaReport((Quota("requests", 100, 0, 7200.0, 86_400.0),))
        rig.run((self.say(rig, AnswerHead(quota=report)), *ANSWER))
        [event] = [event for event in rig.events if isinstance(event, WaitShortened)]
        assert (event.told, event.counted) == (7200.0, 3600.0)

    def test_the_servers_word_on_another_attempt_is_obeyed(self, rig):
        rig.failing((ServerError(status=503).advised(should_retry=False),))
        assert len(rig.provider.calls) == 1
        assert rig.run((BadRequest("odd").advised(should_retry=True),)).attempts == 2


class TestQuota:
    """What the provider says of its limits reaches the limiter."""

    REPORT = QuotaReport((Quota("requests", 600, 599, 0.1),))

    @pytest.fixture
    def heard(self, rig) -> list[tuple[LimitKey, QuotaReport]]:
        found: list[tuple[LimitKey, QuotaReport]] = []
        rig.limiter.observe = lambda key, report: found.append((key, report))
        return found

    def say(self, rig) -> Callable[[], None]:
        return lambda: rig.provider.calls[-1].on_head(AnswerHead(quota=self.REPORT))

    def test_of_an_answer(self, rig, heard):
        rig.run((self.say(rig), *ANSWER))
        assert heard == [(rig.engine.limit_key, self.REPORT)]

    def test_of_a_refusal_which_is_told_as_one(self, rig, heard):
        rig.run((self.say(rig), RateLimited("x", retry_after=0.2)))
        assert [report for _, report in heard] == [
            self.REPORT,
            QuotaReport(self.REPORT.quotas, refused=True),
        ]

    def test_a_refusal_without_a_word_is_told_too(self, rig, heard):
        rig.run((self.say(rig), ServerError("x", status=500)), (RateLimited("x"),))
        assert [report for _, report in heard] == [self.REPORT, QuotaReport(refused=True)]

    def test_a_spent_budget_is_no_limit_of_a_minute(self, rig, heard):
        rig.failing((RateLimited("x", quota=True),))
        assert heard == []


class TestEstimates:
    @pytest.fixture
    def reserved(self, rig, monkeypatch) -> list[Cost]:
        costs: list[Cost] = []
        acquire = rig.limiter.acquire

        def noted(key, deployment, cost, **more):
            costs.append(cost)
            return acquire(key, deployment, cost, **more)

        rig.limiter.acquire = noted
        return costs

    def test_what_is_reserved_comes_near_to_what_is_used(self, rig, reserved):
        prompt = "x" * 400
        for _ in range(20):
            rig.run(prompt=prompt)
        estimate = InferenceRequest.parse("gpt", prompt).estimated_prompt_tokens()
        assert reserved[0] == Cost(2 * estimate, 1024)
        assert reserved[-1].input_tokens <= estimate / 8 + 2, "it was ten tokens; the bound is an eighth"
        assert reserved[-1].output_tokens <= 512 / 32

    def test_an_answer_is_never_reserved_longer_than_it_may_be(self, rig, reserved):
        rig.run(max_tokens=7)
        assert reserved[0].output_tokens == 7

    def test_only_whole_answers_are_learned_from(self, rig, reserved):
        rig.failing((*HALF, BadRequest("x")))
        rig.failing((*HALF, DeadlineExceeded("running")), deadline=5)
        rig.run()
        assert reserved[0] == reserved[1] == reserved[2]


class TestDeadline:
    def test_passed_before_the_first_attempt(self, rig):
        error = rig.failing(deadline=-1)
        assert isinstance(error, DeadlineExceeded)
        assert (error.code, error.attempt, error.usage) == ("waiting", 0, None)
        assert rig.provider.calls == []

    def test_a_gate_that_opens_after_it_is_not_waited_for_in_the_slot(self, rig):
        rig.breaker.force_open(0.5)
        began = rig.clock.monotonic()
        assert isinstance(rig.failing(deadline=0.4), CircuitOpen)
        assert rig.clock.monotonic() == began

    def test_passed_while_streaming_with_what_was_used(self, rig):
        error = rig.failing((*HALF, DeadlineExceeded("running")), deadline=5)
        assert isinstance(error, DeadlineExceeded)
        assert error.code == "running"
        assert error.usage is not None
        assert error.usage["completion_tokens"] == 1
        assert error.args[-1] == error.usage, "what is not in its args is lost on the way to the caller"

    def test_a_timeout_that_was_clamped_to_it_is_it(self, rig):
        error = rig.failing((lambda: rig.clock.advance(5), Timeout("read")), deadline=5)
        assert isinstance(error, DeadlineExceeded)

    def test_a_retry_that_would_begin_after_it_is_not_made(self, rig):
        error = rig.failing((ServerError("x", status=500),), deadline=0.5)
        assert isinstance(error, ServerError)
        assert len(rig.provider.calls) == 1

    def test_counts_as_a_failure(self, rig):
        rig.failing(deadline=-1)
        assert rig.engine.metrics.snapshot().failed == 1


class TestCancel:
    def test_before_the_first_attempt(self, rig):
        rig.token.cancel("caller")
        error = rig.failing()
        assert isinstance(error, Cancelled)
        assert (error.code, error.request_id, error.attempt, error.usage) == ("caller", "id", 0, None)
        assert rig.engine.metrics.snapshot().cancelled == 1

    def test_while_waiting_for_a_permit(self, make_rig):
        rig = make_rig(max_concurrent=1)
        permit = rig.limiter.acquire(
            rig.engine.limit_key, "gpt", Cost(1, 1), priority=Priority.HIGH, patience=0, token=rig.token
        )
        rig.clock.call_later(0.2, lambda: rig.token.cancel("caller"))
        error = rig.failing()
        assert isinstance(error, Cancelled)
        assert error.deployment == "gpt"
        permit.refund()

    def test_while_waiting_for_the_circuit(self, rig):
        rig.breaker.force_open(0.9)
        rig.clock.call_later(0.5, lambda: rig.token.cancel("caller"))
        began = rig.clock.monotonic()
        assert isinstance(rig.failing(), Cancelled)
        assert rig.clock.monotonic() - began == pytest.approx(0.5)

    def test_while_backing_off_with_what_was_used(self, rig):
        rig.clock.call_later(0.5, lambda: rig.token.cancel("caller"))
        began = rig.clock.monotonic()
        error = rig.failing((*HALF, ServerError("x", status=500)))
        assert isinstance(error, Cancelled)
        assert rig.clock.monotonic() - began == pytest.approx(0.5)
        assert error.args[-1] is not None
        assert error.args[-1]["completion_tokens"] == 1

    @pytest.mark.parametrize(
        "consequence",
        [
            NetworkError("reset"),
            StreamTruncated("x"),
            Cancelled("caller"),
            ValueError("read of closed file"),
            None,
        ],
        ids=repr,
    )
    def test_while_streaming_whatever_the_cut_socket_looked_like(self, make_rig, consequence):
        rig = make_rig(circuit_breaker={"failure_threshold": 1}, price=PRICE)
        script = (*HALF, lambda: rig.token.cancel("reader_gone"))
        end = ANSWER if consequence is None else (consequence,)
        error = rig.failing((*script, *end))
        assert isinstance(error, Cancelled)
        assert error.code == "reader_gone"
        assert error.args[-1]["completion_tokens"] >= 1
        assert rig.used["output_tokens"] == error.usage["completion_tokens"]
        assert rig.breaker.state == "closed"
        assert len(rig.provider.calls) == 1
        assert rig.events[-1].outcome == "cancelled"
        assert rig.events[-1].cost_usd > 0

    def test_what_the_provider_told_of_the_usage_counts(self, rig):
        usage = TokenChunk(usage=TokenUsage(prompt_tokens=70, completion_tokens=8))
        error = rig.failing((usage, lambda: rig.token.cancel(), NetworkError("reset")))
        assert error.usage == {"prompt_tokens": 70, "completion_tokens": 8}


class TestOtherWaysOut:
    @pytest.mark.parametrize(
        "exc", [KeyboardInterrupt(), SystemExit(1), GeneratorExit(), RuntimeError("bug")], ids=repr
    )
    def test_everything_is_given_back_and_told_whatever_flies_out(self, make_rig, exc):
        rig = make_rig(circuit_breaker={"failure_threshold": 1})
        error = rig.failing((*HALF, exc))
        assert type(error) in (type(exc), RuntimeError)  # a generator turns some into a RuntimeError
        assert rig.breaker.state == "closed"
        assert rig.events[-1].outcome == "failed"
        assert rig.engine.metrics.snapshot().failed == 1
        assert rig.used["requests"] == 1

    def test_a_sink_that_fails_closes_the_upstream_call(self, rig):
        def fail() -> None:
            raise OSError("sink")

        rig.sink.on_push = fail
        assert isinstance(rig.failing(), OSError)
        assert rig.provider.open == 0

    def test_no_credential_at_all_is_waited_for_elsewhere_and_nothing_is_spent(self, rig):
        rig.session.fails = [RebuildFailed("gpt", "vault is away")]
        error = rig.failing()
        assert isinstance(error, LimitReached)
        assert error.code == "credential_unavailable"
        finished = rig.events[-1]
        assert isinstance(finished, RequestFinished)
        assert (finished.outcome, finished.error) == ("handed_back", "LimitReached")
        assert rig.used["requests"] == 0


class TestTheEndOfTheProcess:
    def test_a_backoff_that_would_begin_is_left_to_another_process(self, rig):
        rig.draining = True
        error = rig.failing((ServerError(status=500),))
        assert isinstance(error, LimitReached)
        assert error.code == "shutdown"
        assert rig.engine.metrics.snapshot().handed_back == 1
        rig.all_given_back()

    def test_a_backoff_that_has_begun_is_ended(self, make_rig):
        rig = make_rig(retry={"jitter": "none", "initial_backoff": 50.0})
        began = rig.clock.time()

        def drain() -> None:
            assert rig.token.resting
            rig.token.cancel("shutdown")

        rig.clock.call_at(began + 5, drain)
        error = rig.failing((ServerError(status=500),))
        assert isinstance(error, LimitReached)
        assert error.code == "shutdown"
        assert rig.clock.time() < began + 50
        assert not rig.token.resting
        rig.all_given_back()

    def test_an_attempt_that_runs_is_finished(self, rig):
        rig.draining = True
        assert rig.run().attempts == 1


STEPS: dict[str, Callable[[Rig], tuple[Any, ...]]] = {
    "well": lambda rig: ANSWER,
    "half": lambda rig: HALF,
    "429": lambda rig: (RateLimited("slow"),),
    "429 named": lambda rig: (RateLimited("slow", retry_after=0.3),),
    "429 long": lambda rig: (RateLimited("slow", retry_after=30),),
    "500": lambda rig: (*HALF, ServerError("x", status=500)),
    "401": lambda rig: (Unauthorized("no"),),
    "400": lambda rig: (BadRequest("no"),),
    "refused": lambda rig: (NetworkError("refused"),),
    "bug": lambda rig: (*HALF, RuntimeError("bug")),
    "killed": lambda rig: (*HALF, SystemExit(1)),
    "cancelled": lambda rig: (*HALF, lambda: rig.token.cancel(), NetworkError("reset")),
    "late": lambda rig: (lambda: rig.clock.advance(20), Timeout("read")),
}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(sorted(STEPS)), max_size=5),
            st.none() | st.sampled_from([-1.0, 0.5, 15.0]),
        ),
        max_size=12,
    ),
    st.lists(st.booleans(), max_size=6),
    st.lists(st.sampled_from([0.0, 0.5, 5.0, 60.0]), min_size=12, max_size=12),
    st.sampled_from([None, 3]),
)
def test_after_any_mixture_of_outcomes_everything_is_given_back_and_the_counts_agree(
    requests, rebuilds, pauses, limit
):
    rig = Rig(
        price=PRICE,
        circuit_breaker={"failure_threshold": 3, "open_duration": 2.0},
        rate_limits={"requests_per_minute": limit},
    )
    rig.session.rebuilds = list(rebuilds)
    for (steps, deadline), pause in zip(requests, pauses, strict=False):
        rig.token = type(rig.token)()
        rig.sink.epochs = []
        calls = len(rig.provider.calls)
        try:
            completion = rig.run(*(STEPS[step](rig) for step in steps), deadline=deadline)
        except CircuitOpen:
            if pause == 0.5:
                rig.engine.rejected()
        except (RequestError, RuntimeError, SystemExit):
            pass
        else:
            assert rig.sink.epochs[-1] == completion.text == "Hello"
            assert completion.attempts == len(rig.provider.calls) - calls
        assert len(rig.sink.epochs) == len(rig.provider.calls) - calls
        rig.all_given_back()
        rig.clock.advance(pause)
    metrics = rig.engine.metrics.snapshot()
    finished = [event for event in rig.events if isinstance(event, RequestFinished)]
    assert metrics.started == len(finished) == len(requests)
    assert metrics.completed == sum(event.outcome == "completed" for event in finished)
    assert metrics.cancelled == sum(event.outcome == "cancelled" for event in finished)
    assert metrics.prompt_tokens == sum(event.prompt_tokens for event in finished)
    assert metrics.completion_tokens == sum(event.completion_tokens for event in finished)
    assert metrics.cost_usd == pytest.approx(sum(event.cost_usd or 0.0 for event in finished), abs=1e-5)


def test_a_repr_says_how_it_stands(rig):
    assert "in_flight=0" in repr(rig.engine)
    assert "closed" in repr(rig.engine)


def test_waiting_is_done_on_the_clock_that_was_given(rig):
    assert isinstance(rig.clock, VirtualClock)
    rig.run(*[(ServerError("x", status=500),)] * 3)  # seven seconds, in no time
