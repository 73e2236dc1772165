"""The limiter's own code on a virtual clock: replicas, a broker between them, and a provider that counts exactly.

What a real run cannot have is here: 64 replicas, clocks that differ, half of them cut off. Nothing is waited for: three
minutes of 4 replicas take seconds. 64 of them with 10,000 requests a second take some four minutes, for a single core
does the work of 64 processes.
"""

from __future__ import annotations

import gc
import heapq
import math
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from remote_inference.cancel import CancelToken
from remote_inference.cluster import Cost, GossipRateLimiter, LimitKey, Replica
from remote_inference.config import RateLimits
from remote_inference.errors import LimitReached
from remote_inference.testing.ledgers import VirtualLedgers
from remote_inference.testing.limit import ExactLimit
from remote_inference.types import Priority

__all__ = ["Case", "Figures", "Tokens", "simulate"]

KEY = LimitKey("openai", "env:KEY", "gpt-4o")
PROVIDER_KEY = ("key", "gpt-4o")
PATIENCE = 0.25  # as the engine's: a permit due within it is waited for
NEVER = CancelToken()


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Requests that cost tokens: sizes from ``smallest`` to ``largest`` (log-uniform), half of it output that streams
    for ``seconds``; estimates are wrong by ``error``."""

    per_minute: int
    smallest: int
    largest: int
    error: float = 1.0
    seconds: float = 3.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """What to simulate.

    Attributes:
        replicas: how many.
        per_minute: requests a minute, the limit of the key.
        demand: of each replica at a time, as a part of the limit: ``demand(replica, seconds)``.
        seconds: how long.
        cut_off: replicas that no gossip reaches, and from when to when.
        skew: seconds by which the wall clocks differ at most.
        kill, join: replica and time.
        restart: when all are killed and started again.
        lives: seconds that each lives on average, before it is killed and replaced at once; None: for ever.
        kill_all_every: seconds between two kills of all, who are started again at once.
        rolling: seconds between two graceful restarts, one worker after the other, from the first minute on.
        certain: whether deaths can be seen by the others, as on one host.
        tokens: what requests cost, where tokens are limited.
    """

    name: str
    replicas: int = 4
    per_minute: int | None = 6_000
    demand: Callable[[int, float], float] = lambda replica, seconds: 1.5 / 4
    seconds: float = 180.0
    cut_off: tuple[frozenset[int], float, float] = (frozenset(), 0.0, 0.0)
    skew: float = 0.0
    kill: tuple[int, float] | None = None
    join: tuple[int, float] | None = None
    restart: float | None = None
    lives: float | None = None
    kill_all_every: float | None = None
    rolling: float | None = None
    certain: bool = True
    tokens: Tokens | None = None
    service: float = 0.5
    seed: int = 1


@dataclass
class Figures:
    """What came of it; times are seconds since the start."""

    case: Case
    admitted: list[float] = field(default_factory=list)
    spent: list[tuple[float, int]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    messages: int = 0

    def share(self, begin: float, end: float) -> float:
        """The part of the limit that was used between two times."""
        minutes = (end - begin) / 60.0
        if self.case.tokens is not None:
            used = sum(amount for at, amount in self.spent if begin <= at < end)
            return used / (self.case.tokens.per_minute * minutes)
        return sum(begin <= at < end for at in self.admitted) / ((self.case.per_minute or 1) * minutes)

    def refused_part(self, begin: float, end: float) -> float:
        """The part of the requests between two times that the provider refused."""
        refused = sum(begin <= at < end for at in self.refused)
        asked = refused + sum(begin <= at < end for at in self.admitted)
        return refused / asked if asked else 0.0


class _World:
    """Time, and what is to happen in it."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._due, (when, self._count, action))

    def run(self, until: float) -> None:
        due = self._due
        while due and due[0][0] <= until:
            self.now, _, action = heapq.heappop(due)
            action()
        self.now = until


class _Clock:
    """A machine's clocks: wrong by so much, and begun at some time of its own."""

    def __init__(self, world: _World, skew: float, booted: float) -> None:
        self._world = world
        self._skew = skew
        self._booted = booted

    def time(self) -> float:
        return 1_700_000_000.0 + self._world.now + self._skew

    def monotonic(self) -> float:
        return self._world.now + self._booted

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing waits in a simulation")

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        raise AssertionError("nothing waits in a simulation")


class _Worker:
    """A process: its replica, its limiter, its queue, and what it sends."""

    def __init__(self, simulation: _Simulation, number: int) -> None:
        self.number = number
        self.simulation = simulation
        world, rng, case = simulation.world, simulation.rng, simulation.case
        booted = rng.uniform(10.0, 1e5)
        if case.certain:  # on one host
            booted = 1_000.0
        self.clock = _Clock(world, rng.uniform(-1, 1) * case.skew / 2, booted)
        simulation.started += 1
        self.process = f"{simulation.started if not case.certain else 'host'}:{simulation.started}:1"
        self.replica = Replica(
            self.clock, name=f"worker{number}", rng=random.Random(rng.random()), process=self.process
        )
        self.replica.on_process = self._watch
        self.limiter = GossipRateLimiter(self.clock, self.replica)
        self.desk = simulation.ledgers.desk(self.limiter.ledgers)
        self.alive = True
        self._tick_at = self._woken_at = math.inf
        self.backlog: deque[tuple[int, int]] = deque()
        self.gate = -1.0
        self.ratio = 1.0
        limits = RateLimits(
            requests_per_minute=case.per_minute,
            tokens_per_minute=case.tokens.per_minute if case.tokens else None,
        )
        self.limiter.configure(KEY, limits, deployment="d")
        self.replica.send = self._send
        self.replica.start()
        world.at(world.now + 0.01, self._online)

    def _watch(self, process: str) -> None:
        if process in self.simulation.ended:
            self.simulation.world.at(self.simulation.world.now + 0.005, lambda: self.see_end(process))

    def see_end(self, process: str) -> None:
        if self.alive and self.simulation.case.certain:
            self.replica.process_ended(process)

    def _online(self) -> None:
        if not self.alive:
            return
        self.simulation.queues.append(self)
        self.replica.online()
        self._tick()
        self._arrive()

    def _send(self, message: bytes) -> None:
        self.simulation.broadcast(self, message)

    def hear(self, message: bytes) -> None:
        if self.alive:
            self.replica.receive(message)
            self._plan(self.replica.tick())
            if self.backlog and self.gate <= self.simulation.world.now + PATIENCE:
                self.pump()

    def _tick(self) -> None:
        if self.alive:
            self._plan(self.replica.tick())
            self.pump()

    def _plan(self, wait: float) -> None:
        """The next tick; unless one comes before it, which will see to it."""
        world = self.simulation.world
        self._tick_at = world.now + max(wait, 0.001)
        if self._tick_at < self._woken_at:
            self._woken_at = self._tick_at
            world.at(self._tick_at, self._wake)

    def _wake(self) -> None:
        world = self.simulation.world
        if world.now < self._woken_at:
            return  # an earlier one came in between
        self._woken_at = math.inf
        if world.now >= self._tick_at:
            self._tick()
        else:
            self._plan(self._tick_at - world.now)

    def _arrive(self) -> None:
        """Requests come as they please, at the demanded rate; a queue that is long enough takes no more."""
        if not self.alive:
            return
        case, world, rng = self.simulation.case, self.simulation.world, self.simulation.rng
        rate = case.demand(self.number, world.now) * self.simulation.rate
        step = 0.05
        if len(self.backlog) < max(200, rate):
            expected = rate * step
            count = int(expected) + (rng.random() < expected % 1)
            for _ in range(count):
                self.backlog.append(self.simulation.request())
        world.at(world.now + step, self._arrive)
        self.pump()

    def pump(self) -> None:
        """Send what may be sent, and come again when more may be."""
        world = self.simulation.world
        if self.gate > world.now:
            return
        while self.backlog and self.alive:
            inputs, outputs = self.backlog[0]
            estimate = Cost(inputs, outputs)
            tokens = self.simulation.case.tokens
            if tokens is not None:
                raw = Cost(round(inputs * tokens.error), round(outputs * tokens.error))
                estimate = self.simulation.estimate(self, raw)
            try:
                permit = self.limiter.acquire(
                    KEY, "d", estimate, priority=Priority.NORMAL, patience=0.0, token=NEVER
                )
            except LimitReached as error:
                self.gate = world.now + max(0.002, error.retry_at - self.clock.time())
                world.at(self.gate, self.pump)
                return
            self.backlog.popleft()
            world.at(
                world.now + self.simulation.rng.uniform(0.002, 0.02),
                lambda p=permit, i=inputs, o=outputs: self.simulation.arrive(self, p, i, o),  # type: ignore[misc]
            )


class _Simulation:
    def __init__(self, case: Case) -> None:
        self.case = case
        self.world = _World()
        self.rng = random.Random(case.seed)
        self.figures = Figures(case)
        self.provider = ExactLimit(
            requests_per_minute=case.per_minute,
            tokens_per_minute=case.tokens.per_minute if case.tokens else None,
            clock=lambda: self.world.now,
        )
        self.queues: list[_Worker] = []
        self.started = 0
        self.ended: set[str] = set()
        self.ledgers = VirtualLedgers(
            lambda: self.world.now,
            lambda seconds, action: self.world.at(self.world.now + seconds, action),
            self.rng,
        )
        self.workers: dict[int, _Worker] = {}
        self.rate = (case.per_minute or 0) / 60.0
        if case.tokens is not None:
            sizes = [sum(self.request()) for _ in range(4000)]
            self.rate = case.tokens.per_minute / 60.0 / (sum(sizes) / len(sizes))

    def request(self) -> tuple[int, int]:
        tokens = self.case.tokens
        if tokens is None:
            return 1, 1
        size = tokens.smallest * (tokens.largest / tokens.smallest) ** self.rng.random()
        return round(size / 2), round(size / 2)

    def estimate(self, worker: _Worker, raw: Cost) -> Cost:
        return Cost(round(raw.input_tokens * worker.ratio), round(raw.output_tokens * worker.ratio))

    def broadcast(self, sender: _Worker, message: bytes) -> None:
        self.figures.messages += 1
        cut, begin, end = self.case.cut_off
        parted = begin <= self.world.now < end
        if parted and sender.number in cut:
            return
        for receiver in self.queues:
            if receiver.alive and not (parted and receiver.number in cut):
                delay = self.rng.uniform(0.001, 0.01)
                self.world.at(self.world.now + delay, lambda r=receiver: r.hear(message))  # type: ignore[misc]

    def arrive(self, worker: _Worker, permit: object, inputs: int, outputs: int) -> None:
        now = self.world.now
        if not self.provider.admit(PROVIDER_KEY, inputs):
            self.figures.refused.append(now)
            permit.settle(Cost(0, 0))  # type: ignore[attr-defined]
            worker.limiter.pause(KEY, worker.clock.time() + max(0.1, self.provider.retry_after(PROVIDER_KEY)))
            worker.backlog.appendleft((inputs, outputs))
            return
        self.figures.admitted.append(now)
        tokens = self.case.tokens
        if tokens is None:
            self.world.at(now + self.case.service, lambda: self._end(worker, permit, None))
            return
        self.figures.spent.append((now, inputs))
        steps = 10
        for step in range(steps):
            part = outputs * (step + 1) // steps - outputs * step // steps
            self.world.at(now + tokens.seconds * (step + 1) / steps, lambda p=part: self._stream(p))  # type: ignore[misc]
        self.world.at(now + tokens.seconds, lambda: self._end(worker, permit, Cost(inputs, outputs)))

    def _stream(self, amount: int) -> None:
        self.provider.spend(PROVIDER_KEY, amount)
        self.figures.spent.append((self.world.now, amount))

    def _end(self, worker: _Worker, permit: object, actual: Cost | None) -> None:
        if worker.alive:
            if actual is not None and self.case.tokens is not None:
                seen = 1.0 / self.case.tokens.error
                worker.ratio += 0.3 * (seen - worker.ratio)
            permit.settle(actual)  # type: ignore[attr-defined]
            worker.pump()

    def start(self, number: int) -> None:
        self.workers[number] = _Worker(self, number)

    def kill(self, number: int) -> None:
        worker = self.workers.pop(number)
        worker.alive = worker.desk.alive = False
        if worker in self.queues:
            self.queues.remove(worker)
        self.ledgers.drop(worker.desk)
        self.ended.add(worker.process)
        for other in self.queues:
            self.world.at(self.world.now + 0.005, lambda o=other: o.see_end(worker.process))  # type: ignore[misc]

    def leave(self, number: int) -> None:
        worker = self.workers[number]
        worker.desk.leave()
        worker.replica.leave()
        self.kill(number)

    def _mortal(self, number: int) -> None:
        """Start one, and replace it when it dies."""
        self.start(number)
        assert self.case.lives is not None
        life = self.rng.expovariate(1.0 / self.case.lives)

        def die() -> None:
            self.kill(number)
            self._mortal(number)

        self.world.at(self.world.now + life, die)

    def _roll(self, number: int) -> None:
        assert self.case.rolling is not None
        self.leave(number)
        self.world.at(self.world.now + 1.0, lambda: self.start(number))
        self.world.at(
            self.world.now + self.case.rolling, lambda: self._roll((number + 1) % self.case.replicas)
        )

    def run(self) -> Figures:
        case, world = self.case, self.world
        for number in range(case.replicas):
            begin = self._mortal if case.lives is not None else self.start
            world.at(self.rng.uniform(0.0, 2.0), lambda n=number, b=begin: b(n))  # type: ignore[misc]
        cut, cut_at, back_at = case.cut_off
        for moment, reachable in ((cut_at, False), (back_at, True)) if cut else ():
            world.at(moment, lambda r=reachable: self._reach(cut, r))  # type: ignore[misc]
        if case.kill_all_every is not None:
            world.at(case.kill_all_every, self._kill_all)
        if case.rolling is not None:
            world.at(60.0, lambda: self._roll(0))
        if case.kill is not None:
            who, when = case.kill
            world.at(when, lambda: self.kill(who))
        if case.join is not None:
            newcomer, moment = case.join
            world.at(moment, lambda: self.start(newcomer))
        if case.restart is not None:
            world.at(case.restart, self._restart)
        world.run(case.seconds)
        return self.figures

    def _reach(self, numbers: frozenset[int], reachable: bool) -> None:
        for number in numbers:
            self.workers[number].desk.reachable = reachable

    def _kill_all(self) -> None:
        assert self.case.kill_all_every is not None
        self._restart()
        self.world.at(self.world.now + self.case.kill_all_every, self._kill_all)

    def _restart(self) -> None:
        for number in list(self.workers):
            self.kill(number)
            self.world.at(self.world.now + self.rng.uniform(0.5, 2.0), lambda n=number: self.start(n))  # type: ignore[misc]


def simulate(case: Case) -> Figures:
    """Run a case. What has lived for a while is not walked through for garbage: it is millions of requests."""
    before = gc.get_threshold()
    gc.set_threshold(10_000, 50, 100_000)
    try:
        return _Simulation(case).run()
    finally:
        gc.set_threshold(*before)


def _mostly_one(replicas: int) -> Callable[[int, float], float]:
    return lambda replica, seconds: 1.5 * (0.9 if replica == 0 else 0.1 / (replicas - 1))


def _moving(replicas: int) -> Callable[[int, float], float]:
    return lambda replica, seconds: (
        1.5 * (0.9 if replica == int(seconds / 20) % replicas else 0.1 / (replicas - 1))
    )


CASES: Sequence[Case] = (
    Case(name="even"),
    Case(name="one", demand=_mostly_one(4)),
    Case(name="moving", demand=_moving(4)),
    Case(name="killed", kill=(1, 60.0), join=(4, 80.0)),
    Case(
        name="tokens over",
        per_minute=None,
        tokens=Tokens(per_minute=300_000, smallest=80, largest=4_000, error=2.0),
    ),
    Case(
        name="tokens under",
        per_minute=None,
        tokens=Tokens(per_minute=300_000, smallest=80, largest=4_000, error=0.5),
    ),
    Case(name="cut off", cut_off=(frozenset({2, 3}), 90.0, 120.0)),
    Case(name="skew", skew=2.0, certain=False),
    Case(name="restart", restart=100.0, seconds=200.0),
    Case(name="killed unseen", kill=(1, 60.0), join=(4, 80.0), certain=False),
    Case(name="rolling", rolling=5.0),
    Case(name="mortal", replicas=64, lives=10.0, demand=lambda replica, seconds: 1.5 / 64),
    Case(
        name="mortal unseen", replicas=64, lives=10.0, demand=lambda replica, seconds: 1.5 / 64, certain=False
    ),
    Case(
        name="all killed",
        kill_all_every=20.0,
        demand=lambda replica, seconds: 0.1 / 4,
        seconds=300.0,
    ),
    Case(name="64", replicas=64, per_minute=600_000, demand=lambda replica, seconds: 1.5 / 64),
)

if __name__ == "__main__":
    import sys
    import time

    for case in CASES:
        if len(sys.argv) > 1 and case.name not in sys.argv[1:]:
            continue
        begin = time.process_time()
        figures = simulate(case)
        parts = [(0, 60), (60, 120), (120, 180)]
        print(
            f"{case.name:14}",
            *(
                f"{a:3}-{b:3}: {figures.share(a, b):6.1%} refused {figures.refused_part(a, b):7.3%}"
                for a, b in parts
            ),
            f"2+3: {figures.share(60, 180):6.1%} {figures.refused_part(60, 180):7.3%}  {figures.messages} msgs,"
            f" {time.process_time() - begin:.1f} s",
            [round(t, 1) for t in figures.refused[:5]],
        )
