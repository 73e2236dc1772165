"""`RedisSettings`: where the strict limits are counted."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from typing import Any

from ..credentials import CredentialRef, CredentialWarning, Secret
from ..value import Value
from .checks import Checker
from .deployment import as_credential_ref

__all__ = ["RedisSettings"]

_PREFIX = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}"
_URL = r"(rediss?://[^/?#\s]+(/[^\s]*)?|unix://(?!/?$)[^\s]+)"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RedisSettings(Value):
    """The Redis that counts the limits with ``strict = true``. One for all workers.

    Attributes:
        url: ``redis://host:6379/0``, ``rediss://…`` (TLS) or ``unix://…``; where it has a password, a reference like
            ``{ from_env = "REDIS_URL" }``. Never shown.
        prefix: what the names of its keys begin with.
        timeout: for how long a worker waits for an answer, and for a connection.

    Raises:
        ConfigurationError: with every fault. No fault shows the URL.
    """

    url: CredentialRef = field(metadata={"placeholder": Secret("redis://localhost")})
    prefix: str = "inference"
    timeout: float = 1.0

    def __post_init__(self) -> None:
        check = Checker(self)
        _check_url(check)
        prefix = check.get("prefix")
        if not isinstance(prefix, str) or not re.fullmatch(_PREFIX, prefix):
            check.fault("prefix", "must be 1 to 100 letters, digits, dots, dashes, colons and underscores")
        check.seconds("timeout", 60.0)
        check.done()
        literal = self.url.literal
        if literal is not None and _has_password(literal.reveal()):
            warnings.warn(
                'redis.url: a password lies in the configuration; write url = { from_env = "REDIS_URL" }',
                CredentialWarning,
                stacklevel=4,
            )


def _check_url(check: Checker) -> None:
    before = len(check.faults)
    ref = as_credential_ref(check.get("url"), "url", check.faults)
    if len(check.faults) > before:
        check.faults[before:] = [fault.replace("url.literal:", "url:") for fault in check.faults[before:]]
    if ref is None:
        return
    check.put("url", ref)
    if ref.literal is not None and not re.fullmatch(_URL, ref.literal.reveal()):
        check.fault("url", "must be a URL like redis://host:6379/0, rediss://… or unix://…")


def _has_password(url: Any) -> bool:
    return "@" in re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0] or "password=" in url
