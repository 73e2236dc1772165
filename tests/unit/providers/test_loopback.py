"""The loopback provider: its script, its waits on the call's clock, and its options' faults."""

from __future__ import annotations

from typing import Any

import pytest

from remote_inference.cancel import CancelToken
from remote_inference.config import Deployment
from remote_inference.engine import Attempt, Upstream
from remote_inference.errors import (
    Cancelled,
    ConfigurationError,
    ContentFiltered,
    DeadlineExceeded,
    NetworkError,
    RateLimited,
    RequestError,
    ServerError,
    StreamTruncated,
    Timeout,
)
from remote_inference.providers import provider_named
from remote_inference.testing.clock import VirtualClock
from remote_inference.transport.clients import Clients
from remote_inference.transport.session import SessionSnapshot
from remote_inference.types import FinishReason, InferenceRequest, TokenChunk, TokenUsage


class Loop:
    def __init__(self, **options: Any) -> None:
        self.clock = VirtualClock()
        self.provider = provider_named("loopback")
        self.upstream = Upstream(self.provider, clock=self.clock)
        self.clients = Clients(clock=self.clock)
        self.token = CancelToken()
        self.deployment = Deployment(name="loop", provider="loopback", options=options)

    def ask(self, prompt: str = "one two three", deadline: float | None = None) -> list[TokenChunk]:
        seen: list[TokenChunk] = []
        self.seen = seen
        snapshot = SessionSnapshot(
            client=self.clients(self.deployment), credential=None, generation=1, deployment=self.deployment
        )
        attempt = Attempt(
            request=InferenceRequest.parse("loop", prompt),
            deployment=self.deployment,
            snapshot=snapshot,
            token=self.token,
            deadline=deadline,
        )
        for chunk in self.upstream.stream(attempt):
            seen.append(chunk)
        return seen


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["ok"]),
        ({"tokens": ["a", "b"]}, ["a", "b"]),
        ({"text": "all  is well"}, ["all", " ", " is", " well"]),
        ({"echo": True}, ["one", " two", " three"]),
        ({"tokens": []}, []),
    ],
)
def test_the_script_is_the_answer(options: dict[str, Any], expected: list[str]) -> None:
    *chunks, last = Loop(**options).ask()
    assert [chunk.text_delta for chunk in chunks] == expected
    assert last.finish_reason is FinishReason.STOP
    assert last.usage is not None
    assert last.usage.completion_tokens == len(expected)
    assert last.usage.prompt_tokens > 0


def test_delays_pass_on_the_clock() -> None:
    loop = Loop(tokens=["a", "b", "c"], first_delay=5.0, delay=2.0)
    started = loop.clock.monotonic()
    loop.ask()
    assert loop.clock.monotonic() - started == pytest.approx(9.0)


def test_faults_are_used_up_in_order_and_then_all_is_well() -> None:
    loop = Loop(
        tokens=["a", "b", "c"],
        faults=[
            {"status": 429, "retry_after": 2},
            {"status": 503, "code": "overloaded", "cut_after": 1},
            {"cut_after": 2},
            {},
            {"error": "network"},
            {"error": "timeout"},
            {"error": "stall", "cut_after": 1},
        ],
    )
    expected: list[tuple[type[RequestError], int] | None] = [
        (RateLimited, 0),
        (ServerError, 1),
        (StreamTruncated, 2),
        None,
        (NetworkError, 0),
        (Timeout, 0),
        (Timeout, 1),
        None,
    ]
    for outcome in expected:
        if outcome is None:
            assert len(loop.ask()) == 4
        else:
            with pytest.raises(outcome[0]) as caught:
                loop.ask()
            assert type(caught.value) is outcome[0]
            if isinstance(caught.value, RateLimited):
                assert caught.value.retry_after == 2.0


def test_a_cut_comes_after_the_tokens_before_it() -> None:
    loop = Loop(tokens=["a", "b", "c"], faults=[{"cut_after": 2}])
    with pytest.raises(StreamTruncated):
        loop.ask()
    assert [chunk.text_delta for chunk in loop.seen] == ["a", "b"]


def test_a_cancel_ends_the_wait() -> None:
    loop = Loop(delay=100.0, tokens=["a", "b"])
    loop.clock.call_later(5.0, loop.token.cancel)
    started = loop.clock.monotonic()
    with pytest.raises(Cancelled):
        loop.ask()
    assert loop.clock.monotonic() - started == pytest.approx(5.0)


def test_the_deadline_ends_the_wait() -> None:
    loop = Loop(first_delay=100.0)
    started = loop.clock.monotonic()
    with pytest.raises(DeadlineExceeded):
        loop.ask(deadline=started + 3.0)
    assert loop.clock.monotonic() - started == pytest.approx(3.0)


def test_a_filtered_answer_tells_its_usage_and_fails() -> None:
    loop = Loop(
        text="bad", finish_reason="content_filter", usage={"prompt_tokens": 4, "completion_tokens": 1}
    )
    with pytest.raises(ContentFiltered):
        loop.ask()
    usage = TokenUsage(prompt_tokens=4, completion_tokens=1)
    assert Loop(usage={"prompt_tokens": 4, "completion_tokens": 1}).ask()[-1].usage == usage


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"token": ["a"]}, "options.token"),
        ({"tokens": "ab"}, "options.tokens"),
        ({"tokens": [""]}, "options.tokens"),
        ({"text": 1}, "options.text"),
        ({"text": "a", "echo": True}, "options"),
        ({"echo": "yes"}, "options.echo"),
        ({"delay": -1}, "options.delay"),
        ({"first_delay": float("nan")}, "options.first_delay"),
        ({"finish_reason": "tired"}, "options.finish_reason"),
        ({"finish_reason": []}, "options.finish_reason"),
        ({"usage": {"tokens": 1}}, "options.usage.tokens"),
        ({"usage": []}, "options.usage"),
        ({"faults": {}}, "options.faults"),
        ({"faults": [1]}, "options.faults[0]"),
        ({"faults": [{"status": 200}]}, "options.faults[0].status"),
        ({"faults": [{}, {"error": "x"}]}, "options.faults[1].error"),
        ({"faults": [{"error": []}]}, "options.faults[0].error"),
        ({"faults": [{"status": 500, "error": "network"}]}, "options.faults[0].error"),
        ({"faults": [{"cut_after": -1}]}, "options.faults[0].cut_after"),
        ({"faults": [{"retry_after": "x"}]}, "options.faults[0].retry_after"),
        ({"faults": [{"code": 1}]}, "options.faults[0].code"),
        ({"faults": [{"what": 1}]}, "options.faults[0].what"),
    ],
)
def test_a_wrong_option_is_named_by_its_path(options: dict[str, Any], path: str) -> None:
    loop = Loop(**options)
    with pytest.raises(ConfigurationError) as caught:
        loop.provider.check(loop.deployment)
    assert [line.partition(": ")[0] for line in caught.value.faults] == [path]


def test_all_faults_are_reported_at_once() -> None:
    loop = Loop(delay="x", echo=3, faults=[{"status": 1}])
    with pytest.raises(ConfigurationError) as caught:
        loop.provider.check(loop.deployment)
    assert len(caught.value.faults) == 3


def test_an_unknown_provider_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match=r"must be one of .*loopback, .*openai"):
        provider_named("nobody")
