"""The providers: one file a wire format, found by name when a worker needs one."""

from __future__ import annotations

from .base import Provider, ProviderCall
from .registry import PROVIDERS, provider_named

__all__ = ["PROVIDERS", "Provider", "ProviderCall", "provider_named"]
