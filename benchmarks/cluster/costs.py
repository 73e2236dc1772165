"""The cases about costs: a permit, a delta that is merged, and a cluster that has nothing to say."""

from __future__ import annotations

import contextlib
import gc
import heapq
import itertools
import math
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator

from celery import Celery

from benchmarks.cluster.outcome import Outcome, at_most
from benchmarks.cluster.plan import Plan
from benchmarks.cluster.stage import Say
from benchmarks.measure import median
from remote_inference import Priority
from remote_inference.cancel import CancelToken
from remote_inference.clock import SystemClock
from remote_inference.cluster import Cost, GossipRateLimiter, LimitKey, Replica
from remote_inference.config import RateLimits
from remote_inference.errors import LimitReached
from remote_inference.messaging.gossip import Gossip
from remote_inference.messaging.publisher import Publisher
from remote_inference.testing.clock import VirtualClock
from remote_inference.testing.ledgers import VirtualLedgers

__all__ = ["COSTS", "IDLE", "run_costs", "run_idle"]

COSTS = "CPU of a permit, and of a delta that is merged, at 1, 8 and 64 replicas"
IDLE = "50 idle replicas"

_KEY = LimitKey("openai", "benchmark", "cluster")
_COST = Cost(20, 20)
_LIMIT = 600_000  # requests a minute
_STEP = 0.25  # virtual seconds
_FIRST_MINUTE = 61.0  # virtual seconds: who comes first does not know what was spent before
_AT_ONCE = 4  # replicas that join in a step
_WARM_UP = 6.0  # virtual seconds in which rights are shared out
_LOOK = 0.3  # seconds
_TURNS = 4
_PER_STEP = 20  # permits of each replica


class _Net:
    """Replicas with their limiters on a virtual clock, and the broadcast between them."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self._sent: list[bytes] = []
        self._count = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._ledgers = VirtualLedgers(self.clock.monotonic, self._after, random.Random(1))
        self.replicas: list[Replica] = []
        self.limiters: list[GossipRateLimiter] = []
        self.deltas: list[float] = []
        self.token = CancelToken()

    def join(self) -> None:
        """One more."""
        number = len(self.replicas)
        replica = Replica(self.clock, name=str(number), rng=random.Random(number))
        limiter = GossipRateLimiter(self.clock, replica)
        self._ledgers.desk(limiter.ledgers)
        replica.send = self._sent.append
        replica.start()
        replica.online()
        limits = RateLimits(requests_per_minute=_LIMIT, tokens_per_minute=100 * _LIMIT)
        limiter.configure(_KEY, limits, deployment="benchmark")
        self.replicas.append(replica)
        self.limiters.append(limiter)

    def step(self) -> list[bytes]:
        """Let a little time pass, and carry the messages, which are returned."""
        self.clock.advance(_STEP)
        messages = self._sent[:]
        self._sent.clear()
        for replica in self.replicas:
            for body in messages:
                replica.receive(body)
        for replica in self.replicas:
            replica.tick()
        self._bring_ledgers()
        return messages

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.clock.monotonic() + seconds, next(self._count), action))

    def _bring_ledgers(self) -> None:
        """All that takes milliseconds is over before the next step."""
        until = self.clock.monotonic() + _STEP / 2
        while self._due and self._due[0][0] <= until:
            heapq.heappop(self._due)[2]()

    def foretell(self, steps: int) -> list[list[bytes]]:
        """The messages of the coming steps, in which all spend; a copy of this process goes through them."""
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)

        def go_on() -> None:
            heard = []
            for _ in range(steps):
                heard.append(self.step())
                for limiter in self.limiters:
                    self.permits(limiter)
            sender.send(heard)

        process = context.Process(target=go_on)
        process.start()
        sender.close()
        messages: list[list[bytes]] = receiver.recv()
        process.join()
        return messages

    def live_through(self, messages: list[bytes]) -> float:
        """A step of the first replica alone, as it is alone in its process, with its caches and its heap to itself.

        What each delta costs it is kept; returned is what a permit costs it.
        """
        self.clock.advance(_STEP)
        first = self.replicas[0]
        own = f'"i":"{first.id}"'.encode()
        deltas = [body for body in messages if b'"k":"d"' in body and own not in body]
        rest = [body for body in messages if body not in deltas]
        gc.freeze()
        began = time.process_time_ns()
        for body in deltas:
            first.receive(body)
        if deltas:
            self.deltas.append((time.process_time_ns() - began) / len(deltas))
        for body in rest:
            first.receive(body)
        first.tick()
        self._bring_ledgers()
        self._sent.clear()  # the others have answered it already
        return self.permits(self.limiters[0])

    def permits(self, limiter: GossipRateLimiter) -> float:
        """Take and settle some; nanoseconds of CPU of one, NaN if there was none to be had."""
        acquire, token = limiter.acquire, self.token
        taken = 0
        began = time.process_time_ns()
        try:
            for _ in range(_PER_STEP):
                permit = acquire(
                    _KEY, "benchmark", _COST, priority=Priority.NORMAL, patience=0.0, token=token
                )
                permit.settle(_COST)
                taken += 1
        except LimitReached:
            return math.nan
        return (time.process_time_ns() - began) / taken


def run_costs(plan: Plan, say: Say) -> Outcome:
    """Take permits in one of many replicas, all of which spend, and merge what the others say.

    The nets take turns of many steps each: what else goes on on the machine meets none of them all of the time.
    """
    nets = {count: _net(count) for count in sorted({1, min(8, plan.replicas), plan.replicas})}
    coming = {count: net.foretell(_TURNS * plan.steps) for count, net in nets.items()}
    permits: dict[int, list[float]] = {count: [] for count in nets}
    for turn in range(_TURNS):
        for count, net in nets.items():
            for messages in coming[count][turn * plan.steps : (turn + 1) * plan.steps]:
                permit = net.live_through(messages)
                if not math.isnan(permit):
                    permits[count].append(permit)
    gc.unfreeze()
    goals, figures = [], {}
    for count, net in nets.items():
        permit = median(permits[count]) / 1000
        figures[str(count)] = {"permit_us": permit}
        goals.append(at_most(f"CPU of a permit, taken and settled, {count} replicas, µs", permit, 15.0))
        say(f"  {count} replicas: a permit {permit:.1f} µs")
        if count > 1:
            delta = figures[str(count)]["delta_us"] = median(net.deltas) / 1000
            goals.append(at_most(f"CPU of merging a delta, {count} replicas, µs", delta, 50.0))
            say(f"  {count} replicas: a delta {delta:.1f} µs")
    return Outcome(name="costs", title=COSTS, goals=goals, figures=figures)


def _net(replicas: int) -> _Net:
    """So many that have been at work for a while."""
    net = _Net()
    net.join()
    for _ in range(int(_FIRST_MINUTE / _STEP)):
        net.step()
    while len(net.replicas) < replicas:
        for _ in range(min(_AT_ONCE, replicas - len(net.replicas))):
            net.join()
        net.step()
    for _ in range(int(_WARM_UP / _STEP)):
        net.step()
        for limiter in net.limiters:
            net.permits(limiter)
    gc.collect()
    net.deltas.clear()
    return net


def run_idle(plan: Plan, say: Say) -> Outcome:
    """Replicas on the real broker with a limit to share and nobody who asks: what they publish."""
    with contextlib.ExitStack() as stack:
        replicas = stack.enter_context(_gossiping(plan.idle))
        time.sleep(min(10.0, plan.idle_seconds))  # until the last one has its share
        members = [len(replica.status()["members"]) for replica in replicas]
        cpu, before = time.process_time(), sum(replica.counters["sent"] for replica in replicas)
        time.sleep(plan.idle_seconds)
        sent = sum(replica.counters["sent"] for replica in replicas) - before
        cpu = time.process_time() - cpu
    rate = sent / plan.idle_seconds
    say(f"  {rate:.1f} messages/s by {plan.idle} replicas")
    return Outcome(
        name="idle",
        title=IDLE,
        goals=[at_most(f"messages/s that {plan.idle} idle replicas publish in all", rate, 20.0)],
        figures={
            "per_second": rate,
            "members_seen": [min(members), max(members)],
            "cpu_percent_of_a_core_each": 100 * cpu / plan.idle_seconds / plan.idle,
        },
    )


@contextlib.contextmanager
def _gossiping(count: int) -> Iterator[list[Replica]]:
    """So many replicas in this process, each on a connection of its own; they share the one that publishes.

    They join one after the other: all of them answer a newcomer, and here one process reads all answers for all.
    """
    broker = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost//")
    app = Celery("idle", broker=broker, set_as_current=False)
    with contextlib.ExitStack() as stack:
        publisher = Publisher(app.connection_for_write)
        stack.callback(publisher.close)
        replicas: list[Replica] = []
        for number in range(count):
            replica = Replica(SystemClock(), name=f"idle {number}")
            limiter = GossipRateLimiter(SystemClock(), replica)
            limiter.configure(_KEY, RateLimits(requests_per_minute=_LIMIT), deployment="benchmark")
            replica.start()
            gossip = Gossip(replica, app.connection_for_write, publisher)
            stack.callback(gossip.close)
            gossip.start()
            if not gossip.wait_online(30.0):
                raise RuntimeError("a replica did not reach the broker")
            replicas.append(replica)
            _wait_for_calm()
        yield replicas


def _wait_for_calm() -> None:
    """Until this process has little to do; a minute at most."""
    until = time.monotonic() + 60.0
    busy = True
    while busy and time.monotonic() < until:
        cpu = time.process_time()
        time.sleep(_LOOK)
        busy = time.process_time() - cpu > 0.3 * _LOOK
