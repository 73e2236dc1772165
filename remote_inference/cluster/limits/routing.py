"""`RoutingLimiter`: one limiter before two; what is to be counted strictly goes to the strict one."""

from __future__ import annotations

import threading
from typing import Any

from ...cancel import CancelToken
from ...config import RateLimits
from ...policy.quota import QuotaReport
from ...types import Priority
from ..base import Cost, LimitKey, Permit, RateLimiter

__all__ = ["RoutingLimiter"]


class RoutingLimiter:
    """A `RateLimiter` that sends each key to one of two.

    A key is strict when one of its deployments says so: those that share it share its limits, however they say it.

    Args:
        shared: For the keys that are not strict.
        strict: For those that are.
    """

    def __init__(self, shared: RateLimiter, strict: RateLimiter) -> None:
        self._shared = shared
        self._strict = strict
        self._lock = threading.Lock()
        self._deployments: dict[LimitKey, dict[str, tuple[RateLimits, int | None]]] = {}
        self._strict_keys: frozenset[LimitKey] = frozenset()

    def configure(
        self, key: LimitKey, limits: RateLimits, *, deployment: str, max_concurrent: int | None = None
    ) -> None:
        """See `RateLimiter`."""
        with self._lock:
            for deployments in self._deployments.values():
                deployments.pop(deployment, None)
            self._deployments.setdefault(key, {})[deployment] = (limits, max_concurrent)
            before = self._strict_keys
            self._strict_keys = frozenset(
                name
                for name, deployments in self._deployments.items()
                if any(one.strict for one, _ in deployments.values())
            )
            moved = key in before ^ self._strict_keys
            told = self._deployments[key] if moved else {deployment: (limits, max_concurrent)}
            for limiter in (self._shared, self._strict) if moved else (self._of(key),):
                for name, (its, most) in told.items():
                    limiter.configure(key, its, deployment=name, max_concurrent=most)

    def acquire(
        self,
        key: LimitKey,
        deployment: str,
        cost: Cost,
        *,
        priority: Priority,
        patience: float,
        token: CancelToken,
    ) -> Permit:
        """See `RateLimiter`."""
        return self._of(key).acquire(key, deployment, cost, priority=priority, patience=patience, token=token)

    def observe(self, key: LimitKey, report: QuotaReport) -> None:
        """See `RateLimiter`."""
        self._of(key).observe(key, report)

    def pause(self, key: LimitKey, until: float) -> None:
        """See `RateLimiter`."""
        self._of(key).pause(key, until)

    def resume(self, key: LimitKey) -> None:
        """See `RateLimiter`."""
        self._of(key).resume(key)

    def paused_until(self, key: LimitKey) -> float:
        """See `RateLimiter`."""
        return self._of(key).paused_until(key)

    def snapshot(self) -> dict[str, Any]:
        """See `RateLimiter`."""
        strict = {str(key) for key in self._strict_keys}
        shared = {name: what for name, what in self._shared.snapshot().items() if name not in strict}
        return shared | {name: what for name, what in self._strict.snapshot().items() if name in strict}

    def _of(self, key: LimitKey) -> RateLimiter:
        return self._strict if key in self._strict_keys else self._shared

    def __repr__(self) -> str:
        return f"RoutingLimiter({self._shared!r}, {self._strict!r})"
