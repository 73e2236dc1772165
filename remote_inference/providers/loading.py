"""From a name to the provider. Its module is loaded when a worker asks for it, never by a submit."""

from __future__ import annotations

from importlib import import_module

from ..config.provider_table import provider_entry, provider_names
from ..errors import ConfigurationError
from .base import Provider

__all__ = ["provider_named"]


def provider_named(name: str) -> Provider:
    """The provider of that name in the table (`config.provider_table`).

    Raises:
        ConfigurationError: there is none, or it cannot be loaded.
    """
    entry = provider_entry(name)
    if entry is None:
        raise ConfigurationError([f"provider: must be one of {', '.join(sorted(provider_names()))}"])
    make = entry.target
    if isinstance(make, str):
        module, _, attribute = make.partition(":")
        try:
            make = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as exc:
            raise ConfigurationError(
                [f'provider: "{name}" cannot be loaded from {entry.target}: {type(exc).__name__}']
            ) from exc
    made = make()
    if not isinstance(made, Provider):
        raise ConfigurationError([f'provider: "{name}" is no remote_inference.providers.Provider'])
    return made
