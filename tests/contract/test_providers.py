"""What every provider does alike: how an answer ends, how it fails, and how it is stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from remote_inference.cancel import CancelToken
from remote_inference.clock import SystemClock
from remote_inference.config import Deployment
from remote_inference.config.provider_table import BUILT_IN
from remote_inference.credentials import Credential
from remote_inference.engine import Attempt, Upstream
from remote_inference.errors import (
    Cancelled,
    ConfigurationError,
    ContentFiltered,
    DeadlineExceeded,
    RateLimited,
    RequestError,
    ServerError,
    StreamTruncated,
)
from remote_inference.providers import provider_named
from remote_inference.testing.behaviours import Reply, overloaded, rate_limited
from remote_inference.testing.faults import Cut
from remote_inference.testing.server import ProviderServer
from remote_inference.transport.clients import Clients
from remote_inference.transport.session import RemoteSession
from remote_inference.types import FinishReason, InferenceRequest, TokenChunk

CLOCK = SystemClock()
# What a provider is told to do: the server's behaviour, and loopback's options.
Case = tuple[Any, dict[str, Any]]
TOKENS = ["the ", "sky ", "is ", "blue"]

GOOD: Case = (Reply(tokens=tuple(TOKENS)), {"tokens": TOKENS})
SLOW: Case = (Reply(tokens=1000, token_delay=0.05), {"tokens": ["t"] * 1000, "delay": 0.05})
LENGTH: Case = (Reply("a b", finish_reason="length"), {"text": "a b", "finish_reason": "length"})
FILTERED: Case = (
    Reply("a b", finish_reason="content_filter"),
    {"text": "a b", "finish_reason": "content_filter"},
)
LIMITED: Case = (
    rate_limited(2),
    {"faults": [{"status": 429, "code": "rate_limit_exceeded", "retry_after": 2}]},
)
BUSY: Case = (overloaded(), {"faults": [{"status": 503, "code": "overloaded"}]})
CUT: Case = (
    Cut(2, reset=False, reply=Reply(tokens=tuple(TOKENS))),
    {"tokens": TOKENS, "faults": [{"cut_after": 2}]},
)

PROVIDERS = ("loopback", "openai")

Ask = Callable[..., Generator[TokenChunk, None, None]]


def test_every_provider_is_under_this_contract() -> None:
    made = {provider_named(name).name for name in BUILT_IN}
    assert made == set(PROVIDERS)


@pytest.fixture(params=sorted(PROVIDERS))
def provider(request: pytest.FixtureRequest) -> Iterator[Callable[[Case], Ask]]:
    """Prepares a provider for a case; what comes back asks it."""
    with ProviderServer() as server:

        def prepare(case: Case) -> Ask:
            if request.param == "loopback":
                deployment = Deployment(name="d", provider="loopback", options=case[1])
            else:
                server.script(case[0])
                deployment = Deployment(name="d", model="m", provider="openai", endpoint=server.url)
            asked = provider_named(request.param)
            asked.check(deployment)
            upstream = Upstream(asked, clock=CLOCK)
            session = RemoteSession(deployment, _NoKey(), Clients(clock=CLOCK), clock=CLOCK)

            def ask(
                token: CancelToken | None = None, deadline: float | None = None
            ) -> Generator[TokenChunk, None, None]:
                return upstream.stream(
                    Attempt(
                        request=InferenceRequest.parse("d", "why?"),
                        deployment=deployment,
                        snapshot=session.snapshot,
                        token=token or CancelToken(),
                        deadline=deadline,
                    )
                )

            return ask

        yield prepare


class _NoKey:
    def fetch(self) -> Credential:
        return Credential(secret=None)


def test_an_answer_ends_in_one_chunk_with_the_finish_reason_and_the_usage(
    provider: Callable[[Case], Ask],
) -> None:
    *chunks, last = provider(GOOD)()
    assert [chunk.text_delta for chunk in chunks if chunk.has_output] == TOKENS
    assert all(chunk.finish_reason is None and chunk.usage is None for chunk in chunks)
    assert last.finish_reason is FinishReason.STOP
    assert not last.has_output
    assert last.usage is not None
    assert last.usage.completion_tokens == len(TOKENS)
    assert last.usage.prompt_tokens > 0


def test_the_finish_reason_is_the_providers(provider: Callable[[Case], Ask]) -> None:
    assert list(provider(LENGTH)())[-1].finish_reason is FinishReason.LENGTH


def test_a_filtered_answer_is_an_error_after_its_text_and_usage(provider: Callable[[Case], Ask]) -> None:
    seen: list[TokenChunk] = []
    with pytest.raises(ContentFiltered):
        seen.extend(provider(FILTERED)())
    assert "".join(chunk.text_delta for chunk in seen) == "a b"
    assert seen[-1].usage is not None
    assert all(chunk.finish_reason is None for chunk in seen)


@pytest.mark.parametrize(("case", "kind"), [(LIMITED, RateLimited), (BUSY, ServerError)], ids=["429", "503"])
def test_a_refusal_is_typed_and_does_not_say_where_it_happened(
    provider: Callable[[Case], Ask], case: Case, kind: type[RequestError]
) -> None:
    with pytest.raises(kind) as caught:
        list(provider(case)())
    assert (caught.value.deployment, caught.value.request_id, caught.value.attempt) == ("", "", 0)
    if isinstance(caught.value, RateLimited):
        assert caught.value.retry_after == 2.0


def test_a_cut_stream_hands_out_what_came_and_fails(provider: Callable[[Case], Ask]) -> None:
    seen: list[TokenChunk] = []
    with pytest.raises(StreamTruncated):
        seen.extend(provider(CUT)())
    assert [chunk.text_delta for chunk in seen] == TOKENS[:2]


def test_a_cancel_ends_it_soon(provider: Callable[[Case], Ask]) -> None:
    token = CancelToken()
    chunks = provider(SLOW)(token=token)
    next(chunks)
    threading.Timer(0.1, token.cancel, ["caller"]).start()
    started = time.monotonic()
    with pytest.raises(Cancelled, match="caller"):
        list(chunks)
    assert time.monotonic() - started < 0.6


def test_a_cancel_beforehand_asks_nothing(provider: Callable[[Case], Ask]) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        list(provider(GOOD)(token=token))


def test_the_deadline_ends_it(provider: Callable[[Case], Ask]) -> None:
    started = CLOCK.monotonic()
    with pytest.raises(DeadlineExceeded, match="running"):
        list(provider(SLOW)(deadline=started + 0.2))
    assert 0.15 < CLOCK.monotonic() - started < 0.7


def test_closing_the_generator_raises_nothing(provider: Callable[[Case], Ask]) -> None:
    chunks = provider(SLOW)()
    next(chunks)
    chunks.close()
    with pytest.raises(StopIteration):
        next(chunks)


@pytest.mark.parametrize("name", sorted(PROVIDERS))
def test_an_option_that_nobody_knows_is_refused_by_its_path(name: str) -> None:
    endpoint = {"endpoint": "http://127.0.0.1:1/v1"} if name != "loopback" else {}
    deployment = Deployment(name="d", model="m", provider=name, **endpoint)
    object.__setattr__(deployment, "options", {"nonsense": 1})
    with pytest.raises(ConfigurationError, match=r"options\.nonsense: "):
        provider_named(name).check(deployment)
