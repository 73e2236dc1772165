"""`InferenceConfig` and `load_config`: all deployments, from a file or from Python, all faults at once."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any, NamedTuple

from ..credentials import Secret
from ..errors import ConfigurationError
from ..value import Value
from .checks import build, did_you_mean
from .deployment import Deployment
from .gossip import GossipSettings
from .policies import RateLimits
from .redis import RedisSettings

__all__ = ["InferenceConfig", "as_mapping", "load_config", "survey_config"]

_TABLES = "deployment"
_REDIS = "redis"
_GOSSIP = "gossip"
_OTHERS: Mapping[str, type[Value]] = {_REDIS: RedisSettings, _GOSSIP: GossipSettings}
_WAYS_OF_COUNTING = ("burst", "strict", "learn")
_NO_LIMITS = RateLimits()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class InferenceConfig(Value):
    """All deployments, by name, in the order of the file; the Redis of the strict limits; the gossip.

    Raises:
        ConfigurationError: what they say of each other does not hold together.
    """

    deployments: Mapping[str, Deployment] = field(hash=False)
    redis: RedisSettings | None = None
    gossip: GossipSettings = field(default_factory=GossipSettings)

    def __post_init__(self) -> None:
        faults = []
        if self.redis is not None and not isinstance(self.redis, RedisSettings):
            faults.append(f"{_REDIS}: must be RedisSettings")
        if not isinstance(self.gossip, GossipSettings):
            faults.append(f"{_GOSSIP}: must be GossipSettings")
        for name, deployment in self.deployments.items():
            if not isinstance(deployment, Deployment) or deployment.name != name:
                faults.append(f"deployments.{name}: must be a Deployment of that name")
        if not faults:
            drafts = [_Draft.of(index, d) for index, d in enumerate(self.deployments.values())]
            faults = _faults_between(drafts, redis=self.redis is not None)
        if faults:
            raise ConfigurationError(faults)
        object.__setattr__(self, "deployments", dict(self.deployments))


def load_config(
    source: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Deployment] | InferenceConfig,
) -> InferenceConfig:
    """Read and check a configuration.

    Args:
        source: path of a TOML file; a mapping of the same shape (Celery's or Django's settings); a list of
            deployments (or of mappings).

    Raises:
        ConfigurationError: with every fault by its path: ``deployment[0].retry.max_retries: must be …``.
    """
    if isinstance(source, InferenceConfig):
        return source
    deployments, others, faults = _survey(source)
    if faults:
        raise ConfigurationError(faults)
    return InferenceConfig(deployments={d.name: d for d in deployments if d is not None}, **others)


def survey_config(
    source: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Deployment],
) -> tuple[list[Deployment | None], list[str]]:
    """As `load_config`, for who goes on in spite of faults.

    Returns:
        The deployments in their order, None for one with a fault of its own; and all faults.
    """
    deployments, _, faults = _survey(source)
    return deployments, faults


def _survey(
    source: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Deployment],
) -> tuple[list[Deployment | None], dict[str, Any], list[str]]:
    if isinstance(source, (str, os.PathLike)):
        source, fault = _read(os.fspath(source))
        if fault:  # not raised below: a traceback must reach no frame that has held the file's text
            return [], {}, [fault]
    faults: list[str] = []
    given = source if isinstance(source, Mapping) else {}
    others = {
        name: build(cls, given[name], name, faults)
        for name, cls in _OTHERS.items()
        if given.get(name) is not None
    }
    drafts = []
    for index, table in enumerate(_listed(source, faults)):
        deployment = build(Deployment, table, f"{_TABLES}[{index}]", faults)
        drafts.append(_Draft.of(index, table if deployment is None else deployment))
    faults += _faults_between(drafts, redis=_REDIS in others) if drafts or not faults else []
    return [draft.deployment for draft in drafts], others, faults


def as_mapping(config: InferenceConfig) -> dict[str, Any]:
    """The configuration with its defaults, in the shape of the file; `load_config` reads it back.

    A literal key stays a `Secret`, which JSON refuses. What is None is left out: TOML has no word for it.
    """
    tables = {} if config.redis is None else {_REDIS: _plain(config.redis)}
    tables[_GOSSIP] = _plain(config.gossip)
    return tables | {_TABLES: [_plain(deployment) for deployment in config.deployments.values()]}


class _Draft(NamedTuple):
    """What is known of a deployment, right or not: enough to check the others against it."""

    position: int
    name: str
    fallback: tuple[Any, ...]
    deployment: Deployment | None

    @classmethod
    def of(cls, index: int, value: Any) -> _Draft:
        if isinstance(value, Deployment):
            return cls(position=index, name=value.name, fallback=value.fallback, deployment=value)
        table = value if isinstance(value, Mapping) else {}
        name, fallback = table.get("name"), table.get("fallback")
        return cls(
            position=index,
            name=name if isinstance(name, str) else "",
            fallback=tuple(fallback) if isinstance(fallback, (list, tuple)) else (),
            deployment=None,
        )


def _read(path: str) -> tuple[dict[str, Any], str]:
    """The file's tables and "", or nothing and what is wrong."""
    # Here, not at the top: who has no file need not load a parser. Python has one since 3.11.
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError as exc:
        return {}, f"{path}: cannot be read: {exc.strerror}"
    try:
        tables = tomllib.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        return {}, f"{path}: is not UTF-8 in line {text.count(bytes([10]), 0, exc.start) + 1}"
    except tomllib.TOMLDecodeError as exc:  # tells line and column, and quotes no value
        return {}, f"{path}: {exc}"
    except RecursionError:
        return {}, f"{path}: is nested too deep"
    _hide_literals(tables)
    return tables, ""


def _hide_literals(tables: Mapping[str, Any]) -> None:
    """Put literal keys into a `Secret` before anything can raise with them in a local variable."""
    for table in tables.values() if isinstance(tables, Mapping) else ():
        for entry in table if isinstance(table, list) else [table]:
            for name in ("api_key", "url") if isinstance(entry, dict) else ():
                key = entry.get(name)
                if isinstance(key, str):
                    entry[name] = Secret(key)
                elif isinstance(key, dict) and isinstance(key.get("literal"), str):
                    key["literal"] = Secret(key["literal"])


def _listed(tables: Any, faults: list[str]) -> Sequence[Any]:
    if isinstance(tables, Mapping):
        for key in tables:
            if key != _TABLES and key not in _OTHERS:
                faults.append(f"{str(key)[:60]}: is not known{did_you_mean(key, [_TABLES, *_OTHERS])}")
        tables = tables.get(_TABLES, [])
        if isinstance(tables, Mapping):
            faults.append(f"{_TABLES}: must be a list of tables; write [[{_TABLES}]], with two brackets")
            return []
    if not isinstance(tables, (list, tuple)):
        faults.append(f"{_TABLES}: must be a list of tables")
        return []
    return tables


def _faults_between(drafts: Sequence[_Draft], *, redis: bool) -> list[str]:
    if not drafts:
        return [f"{_TABLES}: is missing; at least one is needed"]
    faults: list[str] = []
    first: dict[str, _Draft] = {}
    for draft in drafts:
        taken = first.setdefault(draft.name, draft)
        if taken is not draft and draft.name:
            faults.append(
                f'{_TABLES}[{draft.position}].name: "{draft.name}" is the name of {_TABLES}[{taken.position}]'
            )
    for draft in drafts:
        for place, name in enumerate(draft.fallback):
            if isinstance(name, str) and name not in first:
                where = f"{_TABLES}[{draft.position}].fallback[{place}]"
                faults.append(f'{where}: no deployment is named "{name[:100]}"{did_you_mean(name, first)}')
    if not redis:
        faults += [
            f"{_TABLES}[{draft.position}].rate_limits.strict: needs a Redis; add [{_REDIS}] with its url"
            for draft in drafts
            if draft.deployment is not None and draft.deployment.rate_limits.strict
        ]
    return faults + _circles(first) + _limits_that_differ(drafts)


def _circles(drafts: Mapping[str, _Draft]) -> list[str]:
    """Fallbacks that lead back to where they began: a request would go round for ever."""
    faults: list[str] = []
    edges = {
        name: [to for to in draft.fallback if isinstance(to, str) and to in drafts and to != name]
        for name, draft in drafts.items()
    }
    while True:
        done = [name for name, targets in edges.items() if not targets]
        for name in done:
            del edges[name]
        for name in edges:
            edges[name] = [to for to in edges[name] if to in edges]
        if done:
            continue
        if not edges:
            return faults
        walk = [next(iter(edges))]  # who is left leads to another who is left: this walk meets itself
        while edges[walk[-1]][0] not in walk:
            walk.append(edges[walk[-1]][0])
        circle = walk[walk.index(edges[walk[-1]][0]) :]
        start = min(circle, key=lambda name: drafts[name].position)
        turn = circle.index(start)
        way = " -> ".join([*circle[turn:], *circle[:turn], start])
        faults.append(f"{_TABLES}[{drafts[start].position}].fallback: goes in a circle: {way}")
        edges[circle[-1]].pop(0)


def _limits_that_differ(drafts: Sequence[_Draft]) -> list[str]:
    """A limit belongs to the account and the model: deployments that share them cannot have two of it.

    Nor two ways of counting it. A deployment without limits goes by what the others say.
    """
    faults = []
    first: dict[tuple[str, str, str, str], tuple[_Draft, Any]] = {}
    for draft in drafts:
        deployment = draft.deployment
        if deployment is None:
            continue
        limits = deployment.rate_limits
        for limit in fields(limits):
            value = getattr(limits, limit.name)
            if value is None or (limit.name in _WAYS_OF_COUNTING and limits == _NO_LIMITS):
                continue
            key = (deployment.provider, deployment.account, deployment.model, limit.name)
            other, theirs = first.setdefault(key, (draft, value))
            if theirs != value:
                where = f"{_TABLES}[{draft.position}].rate_limits.{limit.name}"
                faults.append(
                    f"{where}: is {json.dumps(value)}, but {json.dumps(theirs)} in "
                    f"{_TABLES}[{other.position}], which has the same model and key"
                )
    return faults


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        given = {f.name: getattr(value, f.name) for f in fields(value)}
        return {name: _plain(item) for name, item in given.items() if item is not None}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
