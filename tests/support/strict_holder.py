"""A process that takes permits of a strict limiter: `python strict_holder.py '{"url": …}'`.

``hammer`` takes them as quickly as it may for some seconds, and prints when each was held (monotonic, which all
processes of a machine share). ``hold`` takes some, prints ``held`` and keeps them until it is killed.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from remote_inference.cancel import CancelToken
from remote_inference.clock import Clock, SystemClock
from remote_inference.cluster import Cost, LimitKey
from remote_inference.cluster.base import Permit
from remote_inference.cluster.strict import StrictRateLimiter
from remote_inference.config import RateLimits, RedisSettings
from remote_inference.errors import LimitReached
from remote_inference.transport.redis_limit import RedisLimitStore
from remote_inference.types import Priority

KEY = LimitKey("openai", "env:KEY", "gpt-4o")
ONE = Cost(1, 0)


class VirtualStore(RedisLimitStore):
    """Counts on a virtual clock. Nobody's time is read before another's and told after it, as if it went back."""

    _one_by_one = threading.Lock()

    def __init__(self, url: str, prefix: str, clock: Clock) -> None:
        super().__init__(RedisSettings(url=url, prefix=prefix), clock=clock, now=clock.monotonic)  # type: ignore[arg-type]

    def exchange(self, key: LimitKey, message: Mapping[str, Any]) -> dict[str, Any]:
        with self._one_by_one:
            return super().exchange(key, message)


def make(
    url: str, prefix: str, limits: dict[str, Any], *, timeout: float = 1.0, **how: Any
) -> StrictRateLimiter:
    """A limiter on real time, with a deployment ``a`` on `KEY`."""
    clock = SystemClock()
    store = RedisLimitStore(RedisSettings(url=url, prefix=prefix, timeout=timeout), clock=clock)  # type: ignore[arg-type]
    limiter = StrictRateLimiter(clock, store, **how)
    limiter.configure(KEY, RateLimits(**limits), deployment="a")
    return limiter


def take(limiter: StrictRateLimiter, patience: float = 0.0, cost: Cost = ONE) -> Permit:
    """One permit."""
    return limiter.acquire(KEY, "a", cost, priority=Priority.NORMAL, patience=patience, token=CancelToken())


def hammer(
    limiter: StrictRateLimiter, seconds: float, threads: int, hold: float
) -> list[tuple[float, float]]:
    """From when until when each permit was held."""
    held: list[tuple[float, float]] = []
    end = time.monotonic() + seconds

    def one() -> None:
        while time.monotonic() < end:
            try:
                permit = take(limiter, 1.0)
            except LimitReached as exc:
                time.sleep(min(max(exc.retry_at - time.time(), 0.0), 1.0))
                continue
            since = time.monotonic()
            time.sleep(hold)
            held.append((since, time.monotonic()))
            permit.settle(Cost(1, 0))

    running = [threading.Thread(target=one) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return held


def main() -> None:
    given = json.loads(sys.argv[1])
    limiter = make(given["url"], given["prefix"], given["limits"], **given["how"])
    if given["do"] == "hammer":
        print(json.dumps(hammer(limiter, given["seconds"], given["threads"], given["hold"])))
        return
    for _ in range(given["count"]):
        take(limiter, cost=Cost(*given["cost"]))
    print("held", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
