"""`Membership`: a process among those that share limits, circuits and what they learn: replica, gossip, limiter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from kombu.connection import Connection

from ..clock import Clock
from ..cluster import (
    GossipRateLimiter,
    LimitKey,
    RateLimiter,
    Replica,
    RoutingLimiter,
    SharedEstimates,
    StrictRateLimiter,
    TokenEstimates,
)
from ..config import Deployment, InferenceConfig
from ..events import ClockSkewed, Hooks
from ..messaging.gossip import Gossip
from ..messaging.ledgers import Ledgers
from ..messaging.publisher import Publisher
from ..transport.redis_limit import RedisLimitStore
from .process_watch import ProcessWatch, process_identity

__all__ = ["Membership", "MembershipParts"]


class MembershipParts(Protocol):
    """What is needed of the `Inference` object."""

    clock: Clock
    hooks: Hooks

    @property
    def config(self) -> InferenceConfig:
        """The deployments."""

    @property
    def publisher(self) -> Publisher:
        """This process's."""


class Membership:
    """One a process; made again after a fork.

    Args:
        parts: clock, hooks and publisher.
        connection: makes the (unopened) connection to listen on; None: this process is by itself.
        name: for people.
        slots: how many requests this process runs at most.
    """

    def __init__(
        self,
        parts: MembershipParts,
        *,
        connection: Callable[[], Connection] | None = None,
        name: str = "",
        slots: int = 1,
    ) -> None:
        def skewed(seconds: float) -> None:
            parts.hooks(ClockSkewed(deployment="", seconds=seconds))

        config = self._config = parts.config
        self.replica = Replica(
            parts.clock,
            name=name,
            weight=slots,
            period=config.gossip.interval,
            on_skew=skewed,
            process=process_identity() if connection is not None else "",
        )
        gossiped = GossipRateLimiter(parts.clock, self.replica)
        self.limiter: RateLimiter = gossiped
        self._strict: StrictRateLimiter | None = None
        self._served: frozenset[LimitKey] = frozenset()
        if config.redis is not None and any(d.rate_limits.strict for d in config.deployments.values()):
            store = RedisLimitStore(config.redis, clock=parts.clock)
            self._strict = StrictRateLimiter(parts.clock, store)
            self.limiter = RoutingLimiter(self.limiter, self._strict)
        self.estimates = TokenEstimates()
        self._shared_estimates = SharedEstimates(self.replica, self.estimates)
        self._gossip: Gossip | None = None
        self._ledgers: Ledgers | None = None
        self._watch: ProcessWatch | None = None
        if connection is not None:
            self._watch = ProcessWatch(self.replica.process_ended)
            self.replica.on_process = self._watch.watch
            self._ledgers = Ledgers(gossiped.ledgers, connection, clock=parts.clock)
            self._gossip = Gossip(self.replica, connection, parts.publisher, clock=parts.clock)

    @property
    def shared(self) -> Replica | None:
        """The replica, where there may be others."""
        return None if self._gossip is None else self.replica

    def serve(self, deployments: Iterable[Deployment]) -> None:
        """Take part in the limits of these deployments before their first request.

        And of those that share a key with one of them: what they name binds all of the key.
        """
        keys = {LimitKey.of(deployment) for deployment in deployments} - self._served
        self._served |= keys
        for deployment in self._config.deployments.values():
            key = LimitKey.of(deployment)
            if key not in keys:
                continue
            self._shared_estimates.watch(key)
            self.limiter.configure(
                key,
                deployment.rate_limits,
                deployment=deployment.name,
                max_concurrent=deployment.max_concurrent,
            )

    def start(self) -> None:
        """Begin to hear and to be heard."""
        if self._gossip is not None:
            self.replica.start()
            self._gossip.start()
        if self._ledgers is not None:
            self._ledgers.start()

    def close(self) -> None:
        """Say good-bye."""
        if self._strict is not None:
            self._strict.close()
        if self._ledgers is not None:
            self._ledgers.close()
        if self._gossip is not None:
            self._gossip.close()
        if self._watch is not None:
            self._watch.close()

    def __repr__(self) -> str:
        return f"Membership({self.replica!r})"
