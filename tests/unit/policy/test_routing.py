"""Whom to ask instead."""

from __future__ import annotations

from typing import Any

import pytest

from remote_inference import errors
from remote_inference.config import CapacityPolicy, Deployment, InferenceConfig
from remote_inference.policy.routing import next_deployment


def configured(**changes: Any) -> tuple[Deployment, InferenceConfig]:
    known: dict[str, Any] = {
        "provider": "loopback",
        "fallback": ("second", "third"),
        "on_capacity_exhausted": CapacityPolicy.FALLBACK,
    }
    first = Deployment(name="first", **{**known, **changes})
    others = [
        Deployment(name="second", provider="loopback", fallback=("fourth",)),
        Deployment(name="third", provider="loopback"),
        Deployment(name="fourth", provider="loopback"),
    ]
    return first, InferenceConfig(deployments={d.name: d for d in (first, *others)})


CAPACITY = [
    errors.Backpressure("first", "queue_full"),
    errors.Backpressure("first", "class_full"),
    errors.Backpressure("first", "circuit_open"),
    errors.CircuitOpen(),
    errors.LimitReached(),
    errors.RateLimited(quota=True),
    errors.RateLimited(),
    errors.ServerError(),
    errors.Timeout(),
    errors.NetworkError(),
    errors.StreamTruncated(),
]
NEVER = [
    errors.Backpressure("first", "broker_down"),
    errors.Backpressure("first", "broker_blocked"),
    errors.BadRequest(),
    errors.Cancelled(),
    errors.ContentFiltered(),
    errors.ContextLengthExceeded(),
    errors.DeadlineExceeded(),
    errors.Forbidden(),
    errors.InvalidRequest("messages", "missing"),
    errors.LimitReached("marks_unavailable"),
    errors.LimitReached("process_reserved"),
    errors.LimitReached("shutdown"),
    errors.SubmitUncertain("id"),
    errors.Unauthorized(),
    errors.WorkerLost(),
]


@pytest.mark.parametrize("error", CAPACITY, ids=repr)
def test_lacking_capacity_goes_to_the_fallback_where_that_is_the_policy(error: errors.InferenceError) -> None:
    assert next_deployment(*_with(error)) == "second"
    for policy in (CapacityPolicy.QUEUE, CapacityPolicy.REJECT):
        assert next_deployment(*_with(error, on_capacity_exhausted=policy)) is None


@pytest.mark.parametrize("error", NEVER, ids=repr)
def test_what_another_deployment_cannot_mend_stays(error: errors.InferenceError) -> None:
    assert next_deployment(*_with(error)) is None


def test_context_length_goes_to_the_fallback_only_if_configured() -> None:
    error = errors.ContextLengthExceeded()
    for policy in CapacityPolicy:
        assert (
            next_deployment(*_with(error, fallback_on_context_length=True, on_capacity_exhausted=policy))
            == "second"
        )


def test_the_list_is_gone_through_once_and_fallbacks_of_fallbacks_are_not_followed() -> None:
    deployment, config = configured()
    error = errors.CircuitOpen()
    assert next_deployment(deployment, error, config, tried=("first", "second")) == "third"
    assert next_deployment(deployment, error, config, tried=("first", "second", "third")) is None


def test_no_fallback_is_no_fallback() -> None:
    plain = Deployment(name="plain", provider="loopback")
    assert next_deployment(plain, errors.CircuitOpen(), InferenceConfig(deployments={"plain": plain})) is None


def _with(
    error: errors.InferenceError, **changes: Any
) -> tuple[Deployment, errors.InferenceError, InferenceConfig]:
    deployment, config = configured(**changes)
    return deployment, error, config
