"""`RedisLimitStore`: the strict limiter's counts in Redis. One script, one round trip, on Redis's own clock."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..clock import Clock
from ..cluster.base import LimitKey
from ..cluster.strict import StoreUnavailable
from ..config import RedisSettings
from ..credentials import CredentialError, provider_for
from ..errors import ConfigurationError

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["RedisLimitStore"]

_PARTS = ("state", "slots", "leases", "line")
_SCRIPT = "rate_limit.lua"


class RedisLimitStore:
    """Counts in Redis. Safe to use from threads; a connection is made when it is first needed.

    Args:
        settings: Where Redis is.
        clock: For credentials that have to be fetched.
        now: Gives the time in place of Redis's clock; a test's.

    Raises:
        ConfigurationError: redis-py is not installed.
    """

    def __init__(
        self, settings: RedisSettings, *, clock: Clock, now: Callable[[], float] | None = None
    ) -> None:
        try:
            import redis  # optional, and 0.1 s of import: most have no use for it
        except ImportError:
            raise ConfigurationError(
                ['redis: needs redis-py, which is not installed: pip install "remote-inference[redis]"']
            ) from None
        self._redis = redis
        self._settings = settings
        self._credentials = provider_for(settings.url, clock=clock)
        self._now = now
        self._lock = threading.Lock()
        self._script: Callable[..., Any] | None = None
        self._client: Redis | None = None

    def exchange(self, key: LimitKey, message: Mapping[str, Any]) -> dict[str, Any]:
        """See `LimitStore`."""
        if self._now is not None:
            message = {**message, "now": self._now()}
        try:
            answer = self._connected()(self._names(key), [json.dumps(message, separators=(",", ":"))])
            told = json.loads(answer)
        except self._redis.RedisError as exc:
            if not isinstance(exc, self._redis.ResponseError):
                self.close()  # the next one reads the address anew: its password may be another by then
            raise StoreUnavailable(_reason(exc)) from None  # its message may quote what was sent
        except ValueError:
            raise StoreUnavailable("an answer that is not JSON") from None
        if not isinstance(told, dict):
            raise StoreUnavailable("an answer that makes no sense")
        return told

    def close(self) -> None:
        """See `LimitStore`."""
        with self._lock:
            client, self._client, self._script = self._client, None, None
        if client is not None:
            client.close()

    def _connected(self) -> Callable[..., Any]:
        with self._lock:
            if self._script is None:
                self._client = self._make_client()
                self._script = self._client.register_script(_source())
            return self._script

    def _make_client(self) -> Redis:
        redis: Any = self._redis
        try:
            secret = self._credentials.fetch().secret
        except CredentialError as exc:
            raise StoreUnavailable(f"redis.url: {exc.code}") from None
        url = "" if secret is None else secret.reveal()
        timeout = self._settings.timeout
        try:
            client: Redis = redis.Redis.from_url(
                url,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                socket_keepalive=True,
                # Once more at once where the connection turns out to be cut: the script knows a permit that it
                # has given. Not after a timeout, which has taken long enough.
                retry=redis.retry.Retry(
                    redis.backoff.NoBackoff(), 1, supported_errors=(redis.ConnectionError,)
                ),
            )
        except (ValueError, TypeError):  # its message quotes the URL
            raise StoreUnavailable("redis.url: is no URL of a Redis") from None
        return client

    def _names(self, key: LimitKey) -> list[str]:
        """The keys' names: short, with no label in them, and all on one node of a cluster (by what is in braces)."""
        digest = hashlib.blake2b(str(key).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        return [f"{self._settings.prefix}:limit:{{{digest}}}:{part}" for part in _PARTS]

    def __repr__(self) -> str:
        return f"RedisLimitStore({self._settings.url.label})"


def _source() -> str:
    return importlib.resources.files(__package__).joinpath(_SCRIPT).read_text(encoding="utf-8")


def _reason(exc: Exception) -> str:
    """What went wrong, in words that quote nothing: the class, and Redis's own word for the error."""
    word = str(exc).partition(" ")[0]
    known = word.isascii() and word.isupper() and word.isalpha() and len(word) <= 20
    return f"{type(exc).__name__} {word}" if known else type(exc).__name__
