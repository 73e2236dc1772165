"""`WaitQueue`: the requests that wait, in this process, for a permit of one key.

Waiters stand by deployment, ordered by priority and then by age. The first of those whose deployment has room under
its own bound is the *leader*; only it waits for a time, all others for their event, so that what falls due wakes one
thread and not all. What the leader cannot have, nobody behind it gets, however little they ask for: so a big request
is not starved by small ones.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from ...reasons import LimitReason
from ...types import Priority
from ..base import Cost

__all__ = ["URGENT", "Capacity", "QueuedDeployment", "WaitQueue", "Waiter"]

P = TypeVar("P")

URGENT = int(Priority.HIGH)
"""Requests of this priority and above need not wait for the pace, and find a right kept back for them."""


class QueuedDeployment(ABC, Generic[P]):
    """A deployment, and the requests that wait for it."""

    __slots__ = ("name", "queue")

    def __init__(self, name: str) -> None:
        self.name = name
        self.queue: list[tuple[int, int, Waiter[P]]] = []  # sorted; (-priority, age) is unique

    @property
    @abstractmethod
    def full(self) -> bool:
        """Whether its own bound leaves no room, whatever the key's does."""


class Waiter(Generic[P]):
    """A thread that waits for a permit."""

    __slots__ = ("cost", "deployment", "event", "permit", "place", "wake_at")

    def __init__(self, deployment: QueuedDeployment[P], cost: Cost, place: tuple[int, int]) -> None:
        self.deployment = deployment
        self.cost = cost
        self.place = place
        self.event = threading.Event()
        self.permit: P | None = None
        self.wake_at = math.inf

    @property
    def urgent(self) -> bool:
        """Whether what is kept back for such requests is for it."""
        return -self.place[0] >= URGENT


class Capacity(Protocol[P]):
    """What a queue waits for. Called with the limiter's lock held."""

    @property
    def full(self) -> bool:
        """Whether only the end of a running request makes room, for anybody."""

    def deployments(self) -> Iterator[QueuedDeployment[P]]:
        """All of the key's."""

    def take(self, deployment: QueuedDeployment[P], cost: Cost, now: float, urgent: bool) -> P | None:
        """A permit, if there is one."""

    def due(
        self, deployment: QueuedDeployment[P], cost: Cost, now: float, urgent: bool
    ) -> tuple[float, LimitReason | None]:
        """When there is likely to be one, and what is lacking now."""


class WaitQueue(Generic[P]):
    """See the module. Not thread-safe."""

    __slots__ = ("_capacity", "_count", "leader", "waiting")

    def __init__(self, capacity: Capacity[P]) -> None:
        self._capacity = capacity
        self._count = 0
        self.waiting = 0
        self.leader: Waiter[P] | None = None

    def join(self, deployment: QueuedDeployment[P], cost: Cost, priority: Priority) -> Waiter[P]:
        """Wait behind those that came earlier, and before those of a lower priority."""
        self._count += 1
        waiter = Waiter(deployment, cost, (-int(priority), self._count))
        insort(deployment.queue, (*waiter.place, waiter))
        self.waiting += 1
        return waiter

    def leave(self, waiter: Waiter[P], now: float) -> None:
        """Give the place up."""
        queue = waiter.deployment.queue
        del queue[bisect_left(queue, waiter.place)]  # a shorter tuple sorts before a longer one
        self.waiting -= 1
        self.hand_out(now)

    def hand_out(self, now: float) -> None:
        """Give permits to those at the head while there are any, and find the leader."""
        capacity = self._capacity
        while self.waiting and not capacity.full:
            heads = [
                deployment.queue[0]
                for deployment in capacity.deployments()
                if deployment.queue and not deployment.full
            ]
            if not heads:
                break
            waiter = min(heads)[2]
            permit = capacity.take(waiter.deployment, waiter.cost, now, waiter.urgent)
            if permit is None:
                at, _ = capacity.due(waiter.deployment, waiter.cost, now, waiter.urgent)
                if self.leader is not waiter or at < waiter.wake_at:
                    waiter.event.set()  # it has to wait for another time than it does
                self.leader, waiter.wake_at = waiter, at
                return
            del waiter.deployment.queue[0]
            self.waiting -= 1
            waiter.permit = permit
            waiter.event.set()
        self.leader = None  # only the end of a running request changes anything, and that calls this

    def wake_all(self) -> None:
        """Let everybody look again: some may have to wait for longer than they can."""
        for deployment in self._capacity.deployments():
            for entry in deployment.queue:
                entry[2].event.set()
