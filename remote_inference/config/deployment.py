"""`Deployment`: one model behind one endpoint with one key, and how it is to be used."""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..credentials import CredentialRef, CredentialWarning, Secret
from ..errors import ConfigurationError
from ..value import Value
from .checks import Checker, build, did_you_mean, json_fault
from .endpoints import endpoint_fault, infer_provider, is_in_the_clear
from .policies import BreakerPolicy, CapacityPolicy, Price, RateLimits, RetryPolicy, Timeouts
from .provider_table import ProviderEntry, provider_entry, provider_names

__all__ = ["Deployment"]

# Compiled (and kept, by re) when they are first used.
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_RESERVED = (
    "reply.",
    "marks.",
    "bus.",
    "dead-letter",
    "cancelled",
    "control.",
    "gossip.",
    "ledger.",
    "probe.",
)
_HEADER = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # RFC 9110, 5.1: a token
_OUR_HEADERS = frozenset(
    "accept accept-encoding connection content-encoding content-length content-type expect host te trailer "
    "transfer-encoding upgrade".split()
)
_KEY_HEADER = r"cookie|.*(api-?key|token|secret|password)"
_OUR_FIELDS = frozenset({"messages", "model", "n", "stream"})


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Deployment(Value):
    """A model behind an endpoint. Durations are seconds (or a timedelta), sizes bytes.

    Tables may be given as mappings, ``api_key`` also as a function or (with a warning) as the key itself.

    Attributes:
        name: what requests are sent to; its queue is ``inference.<name>``.
        model: the provider's name of it; left out: the same.
        provider: ``openai`` (also every server that speaks its API, with ``endpoint``), a preset of one of those
            (``mistral``, ``groq``, ``vllm`` …), ``loopback``, or one that is registered; left out: told by the
            model's name, or ``openai`` where an endpoint is given.
        endpoint: base URL; left out: the provider's own.
        api_key: where the key is; left out: the variable that the provider's own client reads, for its own
            endpoint; no key for others.
        max_concurrent: requests in flight here, over all workers; None: no bound of its own.
        queue_capacity: requests that wait in the queue.
        on_capacity_exhausted: what a submit does when the queue has no room: ``queue`` (wait), ``reject`` or
            ``fallback``.
        admission_timeout: for how long a submit may wait to get in.
        fallback: the deployments to go to instead, in this order.
        fallback_on_context_length: go there too with a prompt that is too long for this model.
        max_request_bytes: larger requests are refused (RabbitMQ takes 128 MiB in one message by default).
        rate_limits: what the provider allows (`RateLimits`), or ``"auto"``: it is found out.
        retry: whether and when a failed attempt is made again (`RetryPolicy`).
        circuit_breaker: when the endpoint is left alone (`BreakerPolicy`).
        timeouts: how long a call may wait (`Timeouts`).
        price: what tokens cost (`Price`); without it no costs are told.
        headers: sent with each call.
        extra_body: fields put into each call's body.
        ca_file: certificates of authorities to trust, in PEM, a file or a directory; left out: what the environment
            names (``REQUESTS_CA_BUNDLE``, ``SSL_CERT_FILE``), else the bundled ones.
        stream: ask the provider to stream, also for callers that want only the result.
        idempotent: False: a request is never tried again.
        options: settings of the provider's own, which it checks itself (`Provider.check`).

    Raises:
        ConfigurationError: with every fault.
    """

    name: str = field(metadata={"placeholder": "gpt-unnamed"})
    model: str = ""
    provider: str = ""
    endpoint: str = ""
    api_key: CredentialRef | None = None
    max_concurrent: int | None = None
    queue_capacity: int = 1024
    on_capacity_exhausted: CapacityPolicy = CapacityPolicy.QUEUE
    admission_timeout: float = 5.0
    fallback: tuple[str, ...] = ()
    fallback_on_context_length: bool = False
    max_request_bytes: int = 8 * 1024 * 1024
    rate_limits: RateLimits = field(default_factory=RateLimits)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    circuit_breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    timeouts: Timeouts = field(default_factory=Timeouts)
    price: Price | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    extra_body: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    ca_file: str | None = None
    stream: bool = True
    idempotent: bool = True
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_left_out", _left_out(self))
        check = Checker(self)
        _check_key(check)
        _check_target(check, named=_check_name(check))
        _check_admission(check)
        limits = _check_limits(check)
        together = limits and self.rate_limits.concurrent_requests
        own = check.whole("max_concurrent", 1, 1_000_000, optional=True) and self.max_concurrent
        if own and together and own > together:
            reason = f"is above rate_limits.concurrent_requests ({together}), and can never be reached"
            check.fault("max_concurrent", reason)
        for name, cls in (("retry", RetryPolicy), ("circuit_breaker", BreakerPolicy), ("timeouts", Timeouts)):
            check.table(name, cls)
        check.table("price", Price, optional=True)
        _check_headers(check)
        _check_body(check)
        _check_options(check)
        check.flag("stream")
        check.flag("idempotent")
        check.done()
        self._warn()

    @property
    def queue(self) -> str:
        """The name of its queue."""
        return f"inference.{self.name}"

    @property
    def inferred(self) -> Mapping[str, str]:
        """What was not given, by the field, with what told it."""
        left_out: frozenset[str] = self.__dict__["_left_out"]
        by_model = infer_provider(self.model) == self.provider
        told = {
            "model": "the deployment's name",
            "provider": "the model's name" if by_model else "that there is an endpoint",
            "endpoint": "the provider's own",
            "api_key": "the variable of the provider's own client" if self.api_key else "no key is known",
        }
        return {name: by for name, by in told.items() if name in left_out}

    @property
    def account(self) -> str:
        """What tells accounts apart where limits are counted: the key's label, and a custom endpoint.

        Two servers without a key do not share a limit, nor do two that happen to be given the same key.
        """
        label = self.api_key.label if self.api_key else "none"
        entry = provider_entry(self.provider)
        own = entry is not None and entry.endpoint == self.endpoint
        return label if own else f"{label}@{self.endpoint}"

    def _warn(self) -> None:
        lines = []
        if self.api_key is not None and self.api_key.literal is not None:
            lines.append(
                'api_key is the key itself; refer to it instead: api_key = { from_env = "VARIABLE" }, '
                "from_file, from_command or from_callable"
            )
        if self.api_key is not None and is_in_the_clear(self.endpoint):
            lines.append(
                "the key goes over http:// to another machine, where the network can read it; use https://"
            )
        keys = [header for header in self.headers if re.fullmatch(_KEY_HEADER, header, re.IGNORECASE)]
        if keys:
            lines.append(f"headers.{keys[0]} looks like a key; it stays readable in the configuration")
        for line in lines:
            warnings.warn(f"deployment {self.name}: {line}", CredentialWarning, stacklevel=4)


def _left_out(deployment: Deployment) -> frozenset[str]:
    return frozenset(
        name
        for name in ("api_key", "endpoint", "model", "provider")
        if getattr(deployment, name) in ("", None)
    )


def as_credential_ref(value: Any, path: str, faults: list[str]) -> CredentialRef | None:
    """A reference from what ``api_key`` may be; None where ``faults`` grew."""
    if isinstance(value, Secret):
        value = {"literal": value}
    elif isinstance(value, str):
        value = {"literal": Secret(value)}
    elif callable(value):
        value = {"from_callable": value}
    elif isinstance(value, Mapping) and isinstance(value.get("literal"), str):
        value = {**value, "literal": Secret(value["literal"])}
    if not isinstance(value, (Mapping, CredentialRef)):
        faults.append(f'{path}: must be a table like {{ from_env = "VARIABLE" }}')
        return None
    return build(CredentialRef, value, path, faults)


def _check_key(check: Checker) -> None:
    value = check.get("api_key")
    if value is not None:
        ref = as_credential_ref(value, "api_key", check.faults)
        check.put("api_key", ref)


def _check_name(check: Checker) -> bool:
    name = check.get("name")
    if not isinstance(name, str) or not re.fullmatch(_NAME, name):
        reason = (
            "must be 1 to 100 letters, digits, dots, dashes and underscores, and begin with a letter or digit"
        )
        hint = (
            '; the provider\'s name of it goes into "model"' if isinstance(name, str) and "/" in name else ""
        )
        return check.fault("name", reason + hint)
    if name == "control" or name.startswith(_RESERVED):
        return check.fault("name", "is taken by a queue of the library's own")
    return True


def _check_limits(check: Checker) -> bool:
    limits = check.get("rate_limits")
    if isinstance(limits, str):
        if limits != "auto":
            return check.fault("rate_limits", f'must be a table or "auto"{did_you_mean(limits, ["auto"])}')
        check.put("rate_limits", RateLimits(learn=True))
    return check.table("rate_limits", RateLimits)


def _check_target(check: Checker, *, named: bool) -> None:
    """Model, provider, endpoint, certificates: what is left out is told by the others."""
    known_model = True
    if check.get("model") in ("", None):
        known_model = named
        check.put("model", check.get("name"))
    elif not _is_text(check.get("model")) or len(check.get("model")) > 256:
        known_model = check.fault("model", "must be the provider's name of the model")
    endpoint, provider = check.get("endpoint") or None, check.get("provider") or None
    if provider is None and known_model:
        provider = infer_provider(check.get("model")) or ("openai" if endpoint is not None else None)
        if provider is None:
            check.fault(
                "provider",
                f'cannot be told from the model "{check.get("model")}"; write provider = "openai" and the '
                "endpoint of a server that speaks OpenAI's API",
            )
    entry = None
    if provider is not None:
        entry = _entry(check, provider)
        provider = provider if entry is not None else None
    if provider is not None:
        check.put("provider", provider)
    _check_endpoint(check, endpoint, provider, entry)


def _entry(check: Checker, provider: Any) -> ProviderEntry | None:
    """The provider's row of the table; None where a fault was noted."""
    try:
        entry = provider_entry(provider) if isinstance(provider, str) else None
    except ConfigurationError as exc:
        check.faults += exc.faults
        return None
    if entry is None:
        names = provider_names()
        hint = did_you_mean(provider, names) or '; "openai" with an endpoint is every compatible server'
        check.fault("provider", f"must be one of {', '.join(names)}{hint}")
    return entry


def _check_endpoint(check: Checker, endpoint: Any, provider: str | None, entry: ProviderEntry | None) -> None:
    own = entry.endpoint if entry is not None else None
    if endpoint is not None:
        if fault := endpoint_fault(endpoint, provider):
            check.fault("endpoint", fault)
            endpoint = None
        else:
            endpoint = endpoint.rstrip("/")
            check.put("endpoint", endpoint)
    elif provider == "loopback":
        endpoint = f"loopback://{check.get('name')}"
        check.put("endpoint", endpoint)
    elif own is not None:
        endpoint = own
        check.put("endpoint", endpoint)
    elif entry is not None:
        check.fault("endpoint", f'is missing: the provider "{provider}" has none of its own')
    if own is not None and endpoint == own and entry is not None and entry.key_variable:
        if check.get("api_key") is None:
            check.put("api_key", CredentialRef(from_env=entry.key_variable))
    ca_file = check.get("ca_file")
    if isinstance(ca_file, os.PathLike):
        ca_file = os.fspath(ca_file)
        check.put("ca_file", ca_file)
    if ca_file is not None and not _is_text(ca_file):
        check.fault("ca_file", "must be the path of a file")
    elif ca_file is not None and endpoint is not None and not endpoint.startswith("https://"):
        check.fault("ca_file", "has a use only with an https:// endpoint")


def _check_options(check: Checker) -> None:
    options = check.get("options")
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        check.fault("options", "must be a table")
        return
    check.put("options", dict(options))


def _check_admission(check: Checker) -> None:
    check.whole("queue_capacity", 1, 10_000_000)
    check.whole("max_request_bytes", 1024, 128 * 1024 * 1024)
    check.seconds("admission_timeout", 3600)
    listed = check.words("fallback")
    for index, name in enumerate(check.get("fallback") if listed else ()):
        if name == check.get("name"):
            listed = check.fault(f"fallback[{index}]", "is the deployment itself")
    nowhere = listed and not check.get("fallback")
    if check.choice("on_capacity_exhausted", [policy.value for policy in CapacityPolicy]):
        policy = CapacityPolicy(check.get("on_capacity_exhausted"))
        check.put("on_capacity_exhausted", policy)
        if policy is CapacityPolicy.FALLBACK and nowhere:
            check.fault("on_capacity_exhausted", 'is "fallback", but there is no deployment in fallback')
    if check.flag("fallback_on_context_length") and check.get("fallback_on_context_length") and nowhere:
        check.fault("fallback_on_context_length", "is true, but there is no deployment in fallback")


def _check_headers(check: Checker) -> None:
    headers = check.get("headers")
    if not isinstance(headers, Mapping):
        check.fault("headers", "must be a table of strings")
        return
    seen: set[str] = set()
    for name, value in headers.items():
        if not isinstance(name, str) or not re.fullmatch(_HEADER, name):
            check.fault("headers", "must have names of letters, digits and dashes")
            continue
        path, lower = f"headers.{name}", name.lower()
        if lower in ("authorization", "proxy-authorization"):
            check.fault(path, "must be left out; the key goes into api_key")
        elif lower in _OUR_HEADERS:
            check.fault(path, "must be left out; the library sets it")
        elif lower in seen:
            check.fault(path, "is there twice (case does not matter)")
        elif not isinstance(value, str) or value != value.strip() or not all(" " <= c <= "~" for c in value):
            check.fault(path, "must be a string of printable ASCII")
        seen.add(lower)
    check.put("headers", dict(headers))


def _check_body(check: Checker) -> None:
    body = check.get("extra_body")
    if not isinstance(body, Mapping):
        check.fault("extra_body", "must be a table")
    elif fault := json_fault(body, "extra_body"):
        check.faults.append(fault)
    else:
        check.put("extra_body", copy.deepcopy(dict(body)))
        for name in sorted(_OUR_FIELDS & body.keys()):
            check.fault(f"extra_body.{name}", "must be left out; the library sets it")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()
