"""The Redis of the strict limits: needed where they are asked for, and its address shown to nobody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remote_inference.config import InferenceConfig, RedisSettings, as_mapping, load_config, survey_config
from remote_inference.credentials import CredentialRef, CredentialWarning, Secret
from remote_inference.errors import ConfigurationError

STRICT = {"name": "gpt-4o", "rate_limits": {"requests_per_minute": 5, "strict": True}}


def faults_of(source: object) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_config(source)  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)
    return caught.value.faults


def test_strict_limits_need_it() -> None:
    [fault] = faults_of({"deployment": [STRICT]})
    assert fault.startswith("deployment[0].rate_limits.strict: needs a Redis")
    assert load_config({"deployment": [STRICT], "redis": {"url": "redis://localhost"}}).redis is not None


def test_strict_limits_made_by_hand_need_it_too() -> None:
    config = load_config({"deployment": [STRICT], "redis": {"url": "redis://localhost"}})
    with pytest.raises(ConfigurationError, match="strict: needs a Redis"):
        InferenceConfig(deployments=config.deployments)
    with pytest.raises(ConfigurationError, match="redis: must be RedisSettings"):
        InferenceConfig(deployments=config.deployments, redis={"url": "redis://x"})  # type: ignore[arg-type]
    assert InferenceConfig(deployments=config.deployments, redis=config.redis) == config


def test_it_may_be_there_without_them() -> None:
    config = load_config({"deployment": [{"name": "gpt-4o"}], "redis": {"url": "redis://localhost"}})
    assert config.redis == RedisSettings(url="redis://localhost")  # type: ignore[arg-type]
    assert load_config({"deployment": [{"name": "gpt-4o"}]}).redis is None


@pytest.mark.parametrize(
    "url", ["redis://localhost", "rediss://h:6380/3?ssl_ca_certs=ca.pem", "unix:///run/redis.sock"]
)
def test_every_kind_of_address_is_taken(url: str) -> None:
    assert RedisSettings(url=url).url == CredentialRef(literal=Secret(url))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({}, "redis.url: is missing"),
        ({"url": ""}, "redis.url:"),
        ({"url": 5}, "redis.url:"),
        ({"url": "http://hunter2"}, "redis.url:"),
        ({"url": "redis://"}, "redis.url:"),
        ({"url": "hunter2"}, "redis.url:"),
        ({"url": {"from_envv": "X"}}, "redis.url.from_envv:"),
        ({"url": {"literal": "hunter2"}}, "redis.url:"),
        ({"url": "redis://x", "prefix": ""}, "redis.prefix:"),
        ({"url": "redis://x", "prefix": "a{b}"}, "redis.prefix:"),
        ({"url": "redis://x", "timeout": 0}, "redis.timeout:"),
        ({"url": "redis://x", "timeout": "1"}, "redis.timeout:"),
        ({"url": "redis://x", "host": "x"}, "redis.host: is not known"),
        ([], "redis: must be a table"),
        ("redis://hunter2", "redis: must be a table"),
    ],
)
def test_every_fault_is_told_by_its_field_and_no_address_is(table: object, field: str) -> None:
    faults = faults_of({"deployment": [STRICT], "redis": table})
    assert any(fault.startswith(field) for fault in faults), faults
    assert not any("strict" in fault for fault in faults), "that it is there but wrong is told once"


def test_a_password_in_the_file_draws_a_warning_and_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "inference.toml"
    path.write_text('[redis]\nurl = "redis://:hunter2@h"\n[[deployment]]\nname = "gpt-4o"\n')
    with pytest.warns(CredentialWarning, match="from_env") as caught:
        config = load_config(path)
    assert "hunter2" not in str([str(warning.message) for warning in caught]) + repr(config)
    assert config.redis is not None
    with pytest.raises(TypeError):
        json.dumps(as_mapping(config))
    with pytest.warns(CredentialWarning):
        assert load_config(as_mapping(config)) == config


def test_a_reference_goes_round(tmp_path: Path) -> None:
    path = tmp_path / "inference.toml"
    path.write_text(
        '[redis]\nurl = { from_env = "REDIS_URL" }\nprefix = "shop"\ntimeout = 2\n[[deployment]]\nname = "gpt-4o"\n'
    )
    config = load_config(path)
    assert config.redis == RedisSettings(url=CredentialRef(from_env="REDIS_URL"), prefix="shop", timeout=2.0)
    assert load_config(json.loads(json.dumps(as_mapping(config)))) == config
    assert survey_config(path)[1] == []
