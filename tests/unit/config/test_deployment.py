"""A deployment fills in what is left out, and refuses by its path what cannot be."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from datetime import timedelta

import pytest

from remote_inference.config import (
    BreakerPolicy,
    CapacityPolicy,
    Deployment,
    Price,
    RateLimits,
    RetryPolicy,
    Timeouts,
    infer_provider,
)
from remote_inference.credentials import CredentialRef, CredentialWarning, Secret
from remote_inference.errors import ConfigurationError
from remote_inference.types import TokenUsage

SERVER = "https://llm.example/v1"


@pytest.fixture(autouse=True)
def _no_unasked_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def faults_of(make, /, **fields) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        make(**fields)
    return caught.value.faults


def paths(faults: list[str]) -> list[str]:
    return [fault.partition(": ")[0] for fault in faults]


def test_a_name_is_enough_for_a_model_of_openai() -> None:
    deployment = Deployment(name="gpt-4o")
    assert (deployment.model, deployment.provider) == ("gpt-4o", "openai")
    assert deployment.endpoint == "https://api.openai.com/v1"
    assert deployment.api_key == CredentialRef(from_env="OPENAI_API_KEY")
    assert deployment.queue == "inference.gpt-4o"


def test_the_defaults_are_the_designs() -> None:
    deployment = Deployment(name="gpt-4o")
    assert (deployment.queue_capacity, deployment.on_capacity_exhausted) == (1024, CapacityPolicy.QUEUE)
    assert deployment.retry == RetryPolicy(
        max_retries=3, initial_backoff=1.0, max_backoff=60.0, backoff_multiplier=2.0, jitter="equal"
    )
    assert deployment.circuit_breaker == BreakerPolicy(
        failure_threshold=10,
        failure_window=60,
        open_duration=30,
        max_open_duration=300,
        half_open_max_probes=1,
    )
    assert deployment.timeouts == Timeouts(connect=5, first_byte=60, read=60)
    assert deployment.rate_limits == RateLimits()
    assert (deployment.idempotent, deployment.stream, deployment.price) == (True, True, None)


def test_an_endpoint_without_provider_is_an_openai_compatible_server_without_key() -> None:
    deployment = Deployment(name="smollm", endpoint="http://127.0.0.1:8080/v1/")
    assert (deployment.provider, deployment.endpoint) == ("openai", "http://127.0.0.1:8080/v1")
    assert deployment.api_key is None


def test_loopback_has_an_endpoint_of_its_own_name() -> None:
    deployment = Deployment(name="fake", provider="loopback", options={"tokens": ["a"]})
    assert (deployment.endpoint, deployment.api_key) == ("loopback://fake", None)
    assert replace(deployment, queue_capacity=5).endpoint == "loopback://fake"


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("gpt-4o", "openai"),
        ("GPT-5-mini", "openai"),
        ("ft:gpt-4o:acme::1", "openai"),
        ("o1", "openai"),
        ("o3-mini", "openai"),
        ("o4-mini", "openai"),
        ("chatgpt-4o-latest", "openai"),
        ("gpt-oss-120b", None),
        ("claude-sonnet-4", None),
        ("olmo-2", None),
        ("o1x", None),
        ("gptq", None),
        ("", None),
    ],
)
def test_the_provider_is_told_by_the_models_name(model, provider) -> None:
    assert infer_provider(model) == provider


def test_a_model_that_tells_no_provider_says_what_to_write() -> None:
    [fault] = faults_of(Deployment, name="claude-sonnet-4")
    assert fault.startswith("provider: ")
    assert 'provider = "openai"' in fault
    assert "endpoint" in fault


def test_tables_may_be_mappings_and_durations_timedeltas() -> None:
    deployment = Deployment(
        name="gpt-4o",
        api_key={"from_file": "/run/key"},
        on_capacity_exhausted="reject",
        admission_timeout=timedelta(milliseconds=500),
        retry={"initial_backoff": 2, "retry_on": ["timeout"]},
        timeouts={"read": timedelta(minutes=2)},
    )
    assert deployment.api_key == CredentialRef(from_file="/run/key")
    assert deployment.on_capacity_exhausted is CapacityPolicy.REJECT
    assert deployment.admission_timeout == 0.5
    assert deployment.retry == RetryPolicy(initial_backoff=2.0, retry_on=("timeout",))
    assert isinstance(deployment.retry.initial_backoff, float)
    assert deployment.timeouts.read == 120.0


def test_what_was_given_can_be_changed_later_without_effect() -> None:
    body = {"a": {"b": [1]}}
    headers = {"X-Team": "shop"}
    deployment = Deployment(name="gpt-4o", extra_body=body, headers=headers)
    body["a"]["b"].append(2)
    headers["X-Team"] = "other"
    assert deployment.extra_body == {"a": {"b": [1]}}
    assert deployment.headers == {"X-Team": "shop"}


def test_deployments_compare_hash_and_copy() -> None:
    first, second = (Deployment(name="gpt-4o", headers={"X-A": "1"}) for _ in range(2))
    assert first == second == copy.deepcopy(first)
    assert hash(first) == hash(second)
    assert first != replace(first, headers={"X-A": "2"})


NAME = {"name": "gpt-4o"}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "org/model"}, "name"),
        ({"name": ".hidden"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "gpt\n"}, "name"),
        ({"name": 4}, "name"),
        ({"name": "control"}, "name"),
        ({"name": "reply.x"}, "name"),
        ({"name": "dead-letter"}, "name"),
        ({**NAME, "model": 5}, "model"),
        ({**NAME, "model": "a\nb"}, "model"),
        ({**NAME, "provider": "opnai"}, "provider"),
        ({**NAME, "provider": 1}, "provider"),
        ({**NAME, "endpoint": 1}, "endpoint"),
        ({**NAME, "endpoint": "api.openai.com/v1"}, "endpoint"),
        ({**NAME, "endpoint": "ftp://host/"}, "endpoint"),
        ({**NAME, "endpoint": "file:///etc/passwd"}, "endpoint"),
        ({**NAME, "endpoint": "loopback://x"}, "endpoint"),
        ({**NAME, "endpoint": "https://"}, "endpoint"),
        ({**NAME, "endpoint": "https://user:marked@host"}, "endpoint"),
        ({**NAME, "endpoint": "https://marked@host/v1"}, "endpoint"),
        ({**NAME, "endpoint": "https://host/v1?key=marked"}, "endpoint"),
        ({**NAME, "endpoint": "https://host/v1#marked"}, "endpoint"),
        ({**NAME, "endpoint": "https://host:99999"}, "endpoint"),
        ({**NAME, "endpoint": "https://host:0"}, "endpoint"),
        ({**NAME, "endpoint": "https://host:"}, "endpoint"),
        ({**NAME, "endpoint": "https://ho st/"}, "endpoint"),
        ({**NAME, "endpoint": "https://host/\r\nX: y"}, "endpoint"),
        ({**NAME, "endpoint": "https://host\\@other/"}, "endpoint"),
        ({**NAME, "endpoint": "https://höst/"}, "endpoint"),
        ({"name": "x", "provider": "loopback", "endpoint": SERVER}, "endpoint"),
        ({**NAME, "api_key": 5}, "api_key"),
        ({**NAME, "api_key": {}}, "api_key.from_env"),
        ({**NAME, "api_key": {"from_env": ""}}, "api_key.from_env"),
        ({**NAME, "api_key": {"literal": "two\nmarked"}}, "api_key.literal"),
        ({**NAME, "api_key": "two\nmarked"}, "api_key.literal"),
        ({**NAME, "max_concurrent": 0}, "max_concurrent"),
        ({**NAME, "max_concurrent": 1.5}, "max_concurrent"),
        ({**NAME, "max_concurrent": 51, "rate_limits": {"concurrent_requests": 50}}, "max_concurrent"),
        ({**NAME, "queue_capacity": 0}, "queue_capacity"),
        ({**NAME, "queue_capacity": -1}, "queue_capacity"),
        ({**NAME, "queue_capacity": True}, "queue_capacity"),
        ({**NAME, "queue_capacity": "1024"}, "queue_capacity"),
        ({**NAME, "on_capacity_exhausted": "drop"}, "on_capacity_exhausted"),
        ({**NAME, "on_capacity_exhausted": "fallback"}, "on_capacity_exhausted"),
        ({**NAME, "admission_timeout": 0}, "admission_timeout"),
        ({**NAME, "admission_timeout": -1}, "admission_timeout"),
        ({**NAME, "admission_timeout": float("inf")}, "admission_timeout"),
        ({**NAME, "admission_timeout": timedelta(0)}, "admission_timeout"),
        ({**NAME, "fallback": "other"}, "fallback"),
        ({**NAME, "fallback": [1]}, "fallback"),
        ({**NAME, "fallback": ["a", "a"]}, "fallback[1]"),
        ({**NAME, "fallback": ["a", "gpt-4o"]}, "fallback[1]"),
        ({**NAME, "fallback_on_context_length": True}, "fallback_on_context_length"),
        ({**NAME, "fallback_on_context_length": "yes"}, "fallback_on_context_length"),
        ({**NAME, "max_request_bytes": 0}, "max_request_bytes"),
        ({**NAME, "max_request_bytes": 2**28}, "max_request_bytes"),
        ({**NAME, "rate_limits": "Auto"}, "rate_limits"),
        ({**NAME, "rate_limits": ["auto"]}, "rate_limits"),
        ({**NAME, "rate_limits": {"learn": 1}}, "rate_limits.learn"),
        ({**NAME, "rate_limits": {"learn": "auto"}}, "rate_limits.learn"),
        ({**NAME, "rate_limits": {"requests_per_minute": 5, "strict": "yes"}}, "rate_limits.strict"),
        ({**NAME, "rate_limits": {"strict": True}}, "rate_limits.strict"),
        ({**NAME, "rate_limits": {"strict": True, "learn": True}}, "rate_limits.strict"),
        (
            {**NAME, "rate_limits": {"requests_per_minute": 5, "strict": True, "learn": True}},
            "rate_limits.strict",
        ),
        ({**NAME, "rate_limits": {"burst": 5}}, "rate_limits.burst"),
        ({**NAME, "rate_limits": {"burst": 5, "concurrent_requests": 3}}, "rate_limits.burst"),
        ({**NAME, "rate_limits": {"requests_per_minute": 5, "burst": 0}}, "rate_limits.burst"),
        ({**NAME, "rate_limits": {"requests_per_minute": 5, "burst": 61}}, "rate_limits.burst"),
        ({**NAME, "rate_limits": {"requests_per_minute": 5, "burst": "1"}}, "rate_limits.burst"),
        ({**NAME, "rate_limits": None}, "rate_limits"),
        ({**NAME, "rate_limits": {"requests_per_minute": 0}}, "rate_limits.requests_per_minute"),
        ({**NAME, "rate_limits": {"requests_per_minute": -5}}, "rate_limits.requests_per_minute"),
        ({**NAME, "rate_limits": {"requests_per_minute": 1e6}}, "rate_limits.requests_per_minute"),
        ({**NAME, "rate_limits": {"concurrent_requests": 0}}, "rate_limits.concurrent_requests"),
        (
            {**NAME, "rate_limits": {"tokens_per_minute": 10, "input_tokens_per_minute": 11}},
            "rate_limits.input_tokens_per_minute",
        ),
        (
            {**NAME, "rate_limits": {"tokens_per_minute": 10, "output_tokens_per_minute": 11}},
            "rate_limits.output_tokens_per_minute",
        ),
        ({**NAME, "retry": 3}, "retry"),
        ({**NAME, "retry": {"max_retries": -1}}, "retry.max_retries"),
        ({**NAME, "retry": {"initial_backoff": 0}}, "retry.initial_backoff"),
        ({**NAME, "retry": {"initial_backoff": 2.0, "max_backoff": 1.0}}, "retry.max_backoff"),
        ({**NAME, "retry": {"backoff_multiplier": 0.5}}, "retry.backoff_multiplier"),
        ({**NAME, "retry": {"backoff_multiplier": float("nan")}}, "retry.backoff_multiplier"),
        ({**NAME, "retry": {"jitter": "some"}}, "retry.jitter"),
        ({**NAME, "retry": {"jitter": ["equal"]}}, "retry.jitter"),
        ({**NAME, "retry": {"respect_retry_after": 1}}, "retry.respect_retry_after"),
        ({**NAME, "retry": {"retry_on": ["timeout", "bad_request"]}}, "retry.retry_on[1]"),
        ({**NAME, "retry": {"retry_on": "timeout"}}, "retry.retry_on"),
        ({**NAME, "circuit_breaker": {"failure_threshold": 0}}, "circuit_breaker.failure_threshold"),
        ({**NAME, "circuit_breaker": {"failure_window": 0}}, "circuit_breaker.failure_window"),
        ({**NAME, "circuit_breaker": {"max_open_duration": 1}}, "circuit_breaker.max_open_duration"),
        ({**NAME, "circuit_breaker": {"half_open_max_probes": 0}}, "circuit_breaker.half_open_max_probes"),
        ({**NAME, "timeouts": {"connect": 0}}, "timeouts.connect"),
        ({**NAME, "timeouts": {"read": 10**400}}, "timeouts.read"),
        ({**NAME, "price": {"output_usd_per_million": 1}}, "price.input_usd_per_million"),
        (
            {**NAME, "price": {"input_usd_per_million": -1, "output_usd_per_million": 1}},
            "price.input_usd_per_million",
        ),
        ({**NAME, "headers": ["a"]}, "headers"),
        ({**NAME, "headers": {"a b": "c"}}, "headers"),
        ({**NAME, "headers": {"X-A": "marked\r\nX-B: c"}}, "headers.X-A"),
        ({**NAME, "headers": {"X-A": "c", "x-a": "d"}}, "headers.x-a"),
        ({**NAME, "headers": {"X-A": 1}}, "headers.X-A"),
        ({**NAME, "headers": {"authorization": "Bearer marked"}}, "headers.authorization"),
        ({**NAME, "headers": {"Content-Length": "3"}}, "headers.Content-Length"),
        ({**NAME, "extra_body": []}, "extra_body"),
        ({**NAME, "extra_body": {1: 2}}, "extra_body"),
        ({**NAME, "extra_body": {"a": [1, {"b": object()}]}}, "extra_body.a[1].b"),
        ({**NAME, "extra_body": {"a": float("nan")}}, "extra_body.a"),
        ({**NAME, "extra_body": {"stream": False}}, "extra_body.stream"),
        ({**NAME, "ca_file": ""}, "ca_file"),
        ({"name": "x", "endpoint": "http://localhost/v1", "ca_file": "ca.pem"}, "ca_file"),
        ({**NAME, "stream": 1}, "stream"),
        ({**NAME, "idempotent": "no"}, "idempotent"),
        ({**NAME, "options": 1}, "options"),
        ({**NAME, "options": {1: 1}}, "options"),
    ],
)
def test_what_cannot_be_is_refused_by_its_path(fields, path) -> None:
    faults = faults_of(Deployment, **fields)
    assert paths(faults) == [path]
    assert "marked" not in faults[0]


def test_all_faults_are_told_at_once() -> None:
    faults = faults_of(
        Deployment,
        name="",
        queue_capacity=0,
        retry={"max_retries": -1, "jitter": "x", "unknown": 1},
        timeouts={"connect": -1},
        stream="yes",
    )
    expected = "name queue_capacity retry.unknown retry.max_retries retry.jitter timeouts.connect stream"
    assert paths(faults) == expected.split()


def test_json_that_contains_itself_is_refused() -> None:
    body: dict[str, object] = {}
    body["again"] = body
    [fault] = faults_of(Deployment, name="gpt-4o", extra_body=body)
    assert "too deep" in fault


@pytest.mark.parametrize("api_key", ["sk-marked", Secret("sk-marked"), {"literal": "sk-marked"}])
def test_a_literal_key_is_held_as_a_secret_and_draws_a_warning(api_key) -> None:
    with pytest.warns(CredentialWarning, match=r"deployment gpt-4o: api_key.*from_env") as caught:
        deployment = Deployment(name="gpt-4o", api_key=api_key)
    assert len(caught) == 1
    assert "marked" not in str(caught[0].message) + repr(deployment)
    assert deployment.api_key.literal == Secret("sk-marked")


@pytest.mark.parametrize(
    ("endpoint", "warned"),
    [
        ("http://vllm:8000/v1", True),
        ("http://10.0.0.5", True),
        ("http://127.0.0.1.example.com", True),
        ("http://localhost.example.com", True),
        ("http://[2001:db8::1]:80", True),
        ("http://localhost:8000/v1", False),
        ("http://api.localhost", False),
        ("http://127.9.0.1:1", False),
        ("http://[::1]:8000", False),
        ("https://vllm:8000/v1", False),
    ],
)
def test_a_key_in_the_clear_over_the_network_draws_a_warning(endpoint, warned) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Deployment(name="x", endpoint=endpoint, api_key=CredentialRef(from_env="KEY"))
        Deployment(name="x", endpoint=endpoint)
    assert [w.category for w in caught] == [CredentialWarning] * warned


@pytest.mark.parametrize(
    ("header", "warned"), [("api-key", True), ("X-Auth-Token", True), ("Cookie", True), ("X-Team", False)]
)
def test_a_header_that_looks_like_a_key_draws_a_warning_without_its_value(header, warned) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        deployment = Deployment(name="gpt-4o", headers={header: "marked"})
    assert len(caught) == warned
    assert "marked" not in "".join(str(w.message) for w in caught) + repr(deployment)


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ("auto", RateLimits(learn=True)),
        ({"learn": True, "burst": 5}, RateLimits(learn=True, burst=5.0)),
        ({"learn": True, "requests_per_minute": 9}, RateLimits(learn=True, requests_per_minute=9)),
        ({"strict": True, "tokens_per_minute": 9}, RateLimits(strict=True, tokens_per_minute=9)),
        ({"strict": True, "concurrent_requests": 9}, RateLimits(strict=True, concurrent_requests=9)),
        ({"burst": 60, "output_tokens_per_minute": 9}, RateLimits(burst=60.0, output_tokens_per_minute=9)),
        ({"burst": 1.0, "strict": False, "learn": False}, RateLimits()),
    ],
)
def test_limits_are_given_or_found_out_or_both(given, limits) -> None:
    found = Deployment(name="gpt-4o", rate_limits=given).rate_limits
    assert found == limits
    assert isinstance(found.burst, float)


def test_what_there_is_by_the_minute_is_known() -> None:
    assert not RateLimits().by_the_minute
    assert not RateLimits(concurrent_requests=3).by_the_minute
    assert RateLimits(learn=True).by_the_minute
    assert RateLimits(input_tokens_per_minute=1).by_the_minute


def test_accounts_are_told_apart_by_key_and_by_custom_endpoint() -> None:
    key = CredentialRef(from_env="KEY")
    accounts = [
        Deployment(name="gpt-4o").account,
        Deployment(name="gpt-4o", api_key=key).account,
        Deployment(name="gpt-4o", api_key=key, endpoint=SERVER).account,
        Deployment(name="a", endpoint=SERVER).account,
        Deployment(name="b", endpoint="https://other.example").account,
    ]
    assert accounts[:2] == ["env:OPENAI_API_KEY", "env:KEY"]
    assert len(set(accounts)) == 5
    assert Deployment(name="c", model="gpt-4o").account == accounts[0]


def test_the_cost_counts_cached_tokens_at_their_own_price() -> None:
    usage = TokenUsage(prompt_tokens=1_000_000, cached_tokens=400_000, completion_tokens=500_000)
    price = Price(input_usd_per_million=2.5, output_usd_per_million=10, cached_input_usd_per_million=1.25)
    assert price.cost(usage) == pytest.approx(0.6 * 2.5 + 0.4 * 1.25 + 0.5 * 10)
    assert replace(price, cached_input_usd_per_million=None).cost(usage) == pytest.approx(2.5 + 5)
    assert price.cost(TokenUsage()) == 0.0
