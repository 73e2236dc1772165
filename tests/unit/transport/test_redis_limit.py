"""The strict limiter's storage, as far as it needs no Redis."""

from __future__ import annotations

import sys

import pytest

from remote_inference.cluster import LimitKey
from remote_inference.cluster.strict import StoreUnavailable
from remote_inference.config import RedisSettings
from remote_inference.errors import ConfigurationError
from remote_inference.testing.clock import VirtualClock
from remote_inference.transport.redis_limit import RedisLimitStore

KEY = LimitKey("openai", "env:KEY", "gpt-4o")


def store(url: object, timeout: float = 0.2) -> RedisLimitStore:
    return RedisLimitStore(RedisSettings(url=url, timeout=timeout), clock=VirtualClock())  # type: ignore[arg-type]


def test_without_redis_py_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match=r"remote-inference\[redis\]"):
        store("redis://localhost")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "missing"),
        ("hunter2://x", "no URL"),
        ("redis://localhost:hunter2/0", "no URL"),
        ("redis://:hunter2@127.0.0.1:1/0", "ConnectionError"),
    ],
)
def test_an_address_that_leads_nowhere_is_unavailable_and_not_shown(
    value: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv("LIMITS_URL", raising=False)
    else:
        monkeypatch.setenv("LIMITS_URL", value)
    made = store({"from_env": "LIMITS_URL"})
    with pytest.raises(StoreUnavailable) as caught:
        made.exchange(KEY, {})
    assert reason in caught.value.reason
    assert "hunter2" not in repr(caught.value) + repr(made) + repr(caught.value.__cause__)
    assert caught.value.__cause__ is None


def test_an_address_that_is_mended_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made = store({"from_env": "LIMITS_URL"})
    monkeypatch.setenv("LIMITS_URL", "nonsense")
    with pytest.raises(StoreUnavailable, match="no URL"):
        made.exchange(KEY, {})
    monkeypatch.setenv("LIMITS_URL", "redis://127.0.0.1:1")
    with pytest.raises(StoreUnavailable, match="ConnectionError"):
        made.exchange(KEY, {})
    made.close()
