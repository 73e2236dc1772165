"""Configuration: deployments and their policies, checked as a whole before anything uses them."""

from __future__ import annotations

from .deployment import Deployment
from .endpoints import infer_provider
from .gossip import GossipSettings
from .load import InferenceConfig, as_mapping, load_config, survey_config
from .policies import BreakerPolicy, CapacityPolicy, Price, RateLimits, RetryPolicy, Timeouts
from .provider_table import register_provider
from .redis import RedisSettings

__all__ = [
    "BreakerPolicy",
    "CapacityPolicy",
    "Deployment",
    "GossipSettings",
    "InferenceConfig",
    "Price",
    "RateLimits",
    "RedisSettings",
    "RetryPolicy",
    "Timeouts",
    "as_mapping",
    "infer_provider",
    "load_config",
    "register_provider",
    "survey_config",
]
