"""The one table of providers: under which name each is found, and what configuration has to know of it.

A provider's own module is loaded by workers only. So its endpoint and the variable of its key stand here, where a web
process reads them too. Three ways lead to a provider, in this order, and none replaces one before it:

1. `BUILT_IN`, below.
2. `register_provider`, in the module that web processes and workers both import.
3. The entry point group ``remote_inference.providers`` of installed packages. Only the name that a deployment asks for
   is loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigurationError
from ..value import Value

__all__ = [
    "BUILT_IN",
    "ENTRY_POINT_GROUP",
    "ProviderEntry",
    "provider_entry",
    "provider_names",
    "register_provider",
]

ENTRY_POINT_GROUP = "remote_inference.providers"

DAY = 86_400.0

_NAME = "abcdefghijklmnopqrstuvwxyz0123456789_-"
_OPENAI = "remote_inference.providers.openai:OpenAIProvider"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ProviderEntry(Value):
    """A row of the table.

    Attributes:
        target: ``module:Class`` of the `Provider`, or what makes one when it is called without arguments.
        endpoint: its own, for deployments that name none; None: it has none, and deployments have to name one.
        key_variable: the environment variable that the key of its own endpoint is in by convention.
        options: what holds where a deployment's ``options`` say nothing: a compatible server's quirks.
        windows: seconds that a limit in its headers is of, by what it is of (`policy.quota.DIMENSIONS`), where the
            headers do not say it and it is not a minute.
    """

    target: str | Callable[[], Any]
    endpoint: str | None = None
    key_variable: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    windows: Mapping[str, float] = field(default_factory=dict)


BUILT_IN: Mapping[str, ProviderEntry] = {
    # The variable is the one that OpenAI's own clients read.
    "openai": ProviderEntry(
        target=_OPENAI, endpoint="https://api.openai.com/v1", key_variable="OPENAI_API_KEY"
    ),
    "loopback": ProviderEntry(target="remote_inference.providers.loopback:LoopbackProvider"),
}
"""The providers of this library."""

_registered: dict[str, ProviderEntry] = {}
_lock = threading.Lock()


def register_provider(
    name: str,
    provider: str | Callable[[], Any],
    *,
    endpoint: str | None = None,
    key_variable: str | None = None,
) -> None:
    """Make a provider of your own known under a name, before the configuration is read.

    Args:
        name: for ``provider = "NAME"``: lower-case letters, digits, dashes and underscores.
        provider: the class (or a function) that makes it, or ``"package.module:Class"``, which only workers load.
        endpoint: where it is asked unless a deployment names an endpoint; left out: the class's
            ``default_endpoint``, if it has one.
        key_variable: the environment variable of its own endpoint's key; left out: the class's ``key_variable``.

    Raises:
        ConfigurationError: the name is no such name, or is another provider's already.
    """
    if not isinstance(name, str) or not name or not set(name) <= set(_NAME):
        raise ConfigurationError(
            ["provider: a name has lower-case letters, digits, dashes and underscores only"]
        )
    if name in BUILT_IN:
        raise ConfigurationError([f'provider: "{name}" is a provider of the library, and cannot be replaced'])
    if not (callable(provider) or (isinstance(provider, str) and provider.partition(":")[2])):
        raise ConfigurationError([f'provider: "{name}" must be a class, or "package.module:Class"'])
    entry = _entry_of(provider, endpoint, key_variable)
    with _lock:
        if _registered.setdefault(name, entry) != entry:
            raise ConfigurationError([f'provider: "{name}" is registered already'])


def provider_entry(name: str) -> ProviderEntry | None:
    """The row of that name; None where nobody knows it.

    Raises:
        ConfigurationError: an installed package has an entry point of that name, and it cannot be loaded.
    """
    return BUILT_IN.get(name) or _registered.get(name) or _installed(name)


def provider_names() -> list[str]:
    """The names of the library's own and of the registered ones. Those of entry points are not looked up."""
    return [*BUILT_IN, *_registered]


def _entry_of(
    provider: str | Callable[[], Any], endpoint: str | None = None, key_variable: str | None = None
) -> ProviderEntry:
    return ProviderEntry(
        target=provider,
        endpoint=endpoint or getattr(provider, "default_endpoint", None) or None,
        key_variable=key_variable or getattr(provider, "key_variable", None) or None,
    )


def _installed(name: str) -> ProviderEntry | None:
    from importlib.metadata import entry_points  # 10 ms of import, for names that are in neither table

    found = list(entry_points(group=ENTRY_POINT_GROUP, name=name))
    if not found:
        return None
    if len({point.value for point in found}) > 1:
        raise ConfigurationError([f'provider: "{name}" is an entry point of more than one package'])
    try:
        loaded = found[0].load()
    except Exception as exc:  # whatever a stranger's module does when it is imported
        reason = f'provider: the entry point "{name}" cannot be loaded: {type(exc).__name__}'
        raise ConfigurationError([reason]) from exc
    if not callable(loaded):
        raise ConfigurationError([f'provider: the entry point "{name}" must be a class, or a function'])
    return _entry_of(loaded)
