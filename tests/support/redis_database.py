"""One of Redis's numbered databases for a test session: two on one machine do not empty each other's."""

from __future__ import annotations

import contextlib
import os
import urllib.parse
import uuid
from collections.abc import Iterator

import redis

DEFAULT_URL = "redis://localhost:6379/0"
DATABASES = range(1, 16)  # Redis has 16 unless told; 0 is the one that everybody uses, and holds our claims
CLAIM_LIFETIME = 3600  # seconds; a session that was killed gives its database back after that


class RedisUnavailable(Exception):
    """There is no Redis, or it has no database left; the message says what to do."""


@contextlib.contextmanager
def claimed_database() -> Iterator[str]:
    """Claim a database that no other test session uses, and give its URL.

    Raises:
        RedisUnavailable: Nothing answers, or every database is claimed.
    """
    url = os.environ.get("REDIS_URL", DEFAULT_URL)
    owner = uuid.uuid4().hex
    with redis.Redis.from_url(url) as client:
        try:
            number = next(
                (n for n in DATABASES if client.set(_claim(n), owner, nx=True, ex=CLAIM_LIFETIME)), None
            )
        except redis.ConnectionError as exc:
            raise RedisUnavailable("no Redis answers at localhost or REDIS_URL: run `make services`") from exc
        if number is None:
            raise RedisUnavailable(
                f"all of Redis's databases are claimed: delete the keys {_claim('*')} in database 0"
            )
        try:
            yield urllib.parse.urlsplit(url)._replace(path=f"/{number}").geturl()
        finally:
            client.delete(_claim(number))


def flush(url: str) -> None:
    """Empty the database at `url`."""
    with redis.Redis.from_url(url) as client:
        client.flushdb()


def _claim(number: int | str) -> str:
    return f"ri-test:database:{number}"
