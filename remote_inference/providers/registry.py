"""Which providers there are. A provider's module is loaded when a worker asks for it, never by a submit."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from ..clock import Clock
from ..errors import ConfigurationError
from .base import Provider

__all__ = ["PROVIDERS", "provider_named"]

PROVIDERS: dict[str, str] = {
    "loopback": "remote_inference.providers.loopback:LoopbackProvider",
    "openai": "remote_inference.providers.openai:OpenAIProvider",
}
"""``module:Class`` by the name in a deployment's ``provider``."""


def provider_named(name: str, *, clock: Clock) -> Provider:
    """A new provider of that name. It may be shared by threads; loopback's script belongs to the one object.

    Raises:
        ConfigurationError: there is none.
    """
    path = PROVIDERS.get(name)
    if path is None:
        raise ConfigurationError([f"provider: must be one of {', '.join(sorted(PROVIDERS))}"])
    module, _, attribute = path.partition(":")
    return cast(Provider, getattr(import_module(module), attribute)(clock=clock))
