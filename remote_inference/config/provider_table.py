"""The one table of providers: under which name each is found, and what configuration has to know of it.

A provider's own module is loaded by workers only. So its endpoint and the variable of its key stand here, where a web
process reads them too. Three ways lead to a provider, in this order, and none replaces one before it:

1. `BUILT_IN`, below.
2. `register_provider`, in the module that web processes and workers both import.
3. The entry point group ``remote_inference.providers`` of installed packages. Only the name that a deployment asks for
   is loaded.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
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
        limit_headers: in which headers of its answers it tells its limits; empty: in none.
        windows: seconds that a limit in them is of, by what it is of (`policy.quota.DIMENSIONS`), where the headers
            do not say it and it is not a minute.
    """

    target: str | Callable[[], Any]
    endpoint: str | None = None
    key_variable: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    limit_headers: str = ""
    windows: Mapping[str, float] = field(default_factory=dict)


_X_RATELIMIT = "x-ratelimit-{limit,remaining,reset}-{requests,tokens}"


def _compatible(
    endpoint: str,
    key_variable: str | None = None,
    options: Mapping[str, Any] | None = None,
    limit_headers: str = "",
    windows: Mapping[str, float] | None = None,
) -> ProviderEntry:
    """A preset: a server that speaks OpenAI's format, with what is its own."""
    return ProviderEntry(
        target=_OPENAI,
        endpoint=endpoint,
        key_variable=key_variable,
        options=options or {},
        limit_headers=limit_headers,
        windows=windows or {},
    )


BUILT_IN: Mapping[str, ProviderEntry] = {
    # The variables are those that the providers' own clients read, or that their documentation names.
    "openai": _compatible("https://api.openai.com/v1", "OPENAI_API_KEY", limit_headers=_X_RATELIMIT),
    "loopback": ProviderEntry(target="remote_inference.providers.loopback:LoopbackProvider"),
    # Hosted. Their documentation: docs.mistral.ai, console.groq.com/docs, api-docs.deepseek.com, docs.x.ai,
    # openrouter.ai/docs, docs.together.ai, docs.fireworks.ai.
    "mistral": _compatible(
        "https://api.mistral.ai/v1",
        "MISTRAL_API_KEY",
        # It refuses fields that it does not know, and tells the usage without being asked.
        options={"include_usage": False, "rename_fields": {"seed": "random_seed"}},
        limit_headers="x-ratelimit-{limit,remaining}-{req,tokens}-minute",
    ),
    "groq": _compatible(
        "https://api.groq.com/openai/v1",
        "GROQ_API_KEY",
        limit_headers=_X_RATELIMIT,
        windows={"requests": DAY},  # tokens are of a minute; no name says so
    ),
    "deepseek": _compatible("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "xai": _compatible("https://api.x.ai/v1", "XAI_API_KEY", limit_headers=_X_RATELIMIT),
    "openrouter": _compatible(
        "https://openrouter.ai/api/v1",
        "OPENROUTER_API_KEY",
        limit_headers="x-ratelimit-{limit,remaining,reset}",
    ),
    "together": _compatible(
        "https://api.together.xyz/v1",
        "TOGETHER_API_KEY",
        limit_headers="x-ratelimit-{limit,remaining,reset}, x-tokenlimit-{limit,remaining}",
    ),
    "fireworks": _compatible(
        "https://api.fireworks.ai/inference/v1",
        "FIREWORKS_API_KEY",
        limit_headers="x-ratelimit-{limit,remaining}-{requests,tokens-prompt,tokens-generated}",
    ),
    # On your own machines: the endpoint is where they listen unless they are told otherwise, and a key is only wanted
    # where api_key names one.
    "vllm": _compatible("http://localhost:8000/v1"),
    "sglang": _compatible("http://localhost:30000/v1"),
    "llama-cpp": _compatible("http://localhost:8080/v1"),
    "ollama": _compatible("http://localhost:11434/v1"),
    # It passes on the headers of the provider behind it, and adds its own for keys with limits.
    "litellm": _compatible(
        "http://localhost:4000/v1",
        "LITELLM_PROXY_API_KEY",
        limit_headers="x-ratelimit-*, llm_provider-x-ratelimit-*",
    ),
}
"""The providers of this library, and the presets of compatible servers."""

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
    return BUILT_IN.get(name) or _registered.get(name) or _installed(name, tuple(sys.path))


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


@lru_cache(maxsize=256)
def _installed(name: str, path: tuple[str, ...]) -> ProviderEntry | None:
    """The entry point of that name. It is looked for on disk once for each search path, as every call asks for it."""
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
