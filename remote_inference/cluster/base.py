"""What a limiter is: `RateLimiter` hands out `Permit`s for a key; what a request costs is a `Cost`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

from ..cancel import CancelToken
from ..config import Deployment, RateLimits
from ..policy.quota import QuotaReport
from ..types import Priority

__all__ = ["Cost", "LimitKey", "Permit", "RateLimiter"]


@dataclass(frozen=True)
class LimitKey:
    """What a provider counts by. ``credential`` is a label, never the value."""

    provider: str
    credential: str
    model: str

    @classmethod
    def of(cls, deployment: Deployment) -> LimitKey:
        """What the provider counts the deployment's requests by."""
        return cls(deployment.provider, deployment.account, deployment.model)

    @property
    def digest(self) -> str:
        """What the key is called among replicas: short, and without its parts."""
        return hashlib.blake2b(str(self).encode(), digest_size=8).hexdigest()

    def __str__(self) -> str:
        return f"{self.provider}/{self.credential}/{self.model}"


@dataclass(frozen=True)
class Cost:
    """What one request takes from the limits; estimated before, real after."""

    input_tokens: int
    output_tokens: int
    requests: int = 1

    @property
    def tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


class Permit(Protocol):
    """Leave to send one request. Either call ends it and frees its place; the first call wins."""

    def settle(self, actual: Cost | None = None) -> None:
        """It was sent: the reserved tokens become the real ones.

        The window is corrected where they were reserved, not now. None: nobody knows, the estimate stays.
        """

    def refund(self) -> None:
        """Nothing was sent: all is given back."""


class RateLimiter(Protocol):
    """Requests and tokens in any 60 seconds, and concurrency, by `LimitKey`; times are since the epoch."""

    def configure(
        self, key: LimitKey, limits: RateLimits, *, deployment: str, max_concurrent: int | None = None
    ) -> None:
        """Tell the limits of a deployment on this key; again after a change.

        Deployments that share a key share its limits: of what they name, the least holds.
        """

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
        """Reserve the cost.

        Waits at most ``patience`` seconds (0: not at all) behind what has a higher priority or came earlier.
        Does not wait at all where it can be known that no permit is due within the patience.

        Raises:
            LimitReached: with ``retry_at``, when to ask again; ``code`` tells what is used up: ``requests``,
                ``tokens``, ``input_tokens``, ``output_tokens``, ``concurrency``, ``paused``, ``ramp`` (just
                after a pause) or ``queue`` (others wait before this one).
            Cancelled: the token was cancelled.
            ConfigurationError: the deployment was not configured for this key.
        """

    def observe(self, key: LimitKey, report: QuotaReport) -> None:
        """What the provider just said of its limits.

        Where it leaves less than is counted here, its word holds. Limits that are to be learned are learned from it.
        """

    def pause(self, key: LimitKey, until: float) -> None:
        """Hand out nothing until then. Of several pauses the latest end holds."""

    def resume(self, key: LimitKey) -> None:
        """End a pause now."""

    def paused_until(self, key: LimitKey) -> float:
        """When the pause ends; 0.0 where there is none."""

    def snapshot(self) -> dict[str, Any]:
        """What is used, running, waiting and paused, by key: JSON, for a status page."""
