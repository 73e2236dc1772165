"""`[gossip]`: how often the workers speak."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from remote_inference import ConfigurationError
from remote_inference.config import GossipSettings, InferenceConfig, as_mapping, load_config

DEPLOYMENT = {"name": "gpt-4o"}


def test_it_may_be_left_out() -> None:
    assert load_config({"deployment": [DEPLOYMENT]}).gossip == GossipSettings(interval=0.5)


def test_it_goes_round(tmp_path: Path) -> None:
    path = tmp_path / "inference.toml"
    path.write_text('[gossip]\ninterval = 1\n[[deployment]]\nname = "gpt-4o"\n')
    config = load_config(path)
    assert config.gossip.interval == 1.0
    assert load_config(json.loads(json.dumps(as_mapping(config)))) == config


@pytest.mark.parametrize("interval", [0.1, 2, timedelta(milliseconds=200)])
def test_intervals_that_are_allowed(interval: object) -> None:
    assert 0.1 <= GossipSettings(interval=interval).interval <= 2.0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({"interval": 0.09}, "gossip.interval: must be at least 0.1"),
        ({"interval": 0}, "gossip.interval:"),
        ({"interval": 2.1}, "gossip.interval:"),
        ({"interval": "1"}, "gossip.interval:"),
        ({"interval": True}, "gossip.interval:"),
        ({"period": 1}, "gossip.period: is not known"),
        ([], "gossip: must be a table"),
    ],
)
def test_every_fault_is_told_by_its_field(table: object, field: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config({"deployment": [DEPLOYMENT], "gossip": table})
    assert any(fault.startswith(field) for fault in caught.value.faults), caught.value.faults


def test_made_by_hand_it_is_checked_too() -> None:
    config = load_config({"deployment": [DEPLOYMENT]})
    with pytest.raises(ConfigurationError, match="gossip: must be GossipSettings"):
        InferenceConfig(deployments=config.deployments, gossip={"interval": 1})  # type: ignore[arg-type]
