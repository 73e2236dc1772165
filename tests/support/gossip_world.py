"""Processes that share limits, on virtual time: machines' clocks, a broker between them, and all that goes wrong there.

What `GossipNet` has not: messages take their time, get lost or come twice; processes are killed, stopped, cut off or
lose their connection; and what all of them really spent is written down.
"""

from __future__ import annotations

import heapq
import math
import random
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence

from remote_inference.cancel import CancelToken
from remote_inference.cluster import Cost, GossipRateLimiter, LimitKey, Permit, Replica
from remote_inference.cluster.limits.ledger import Ledger
from remote_inference.cluster.membership.schedule import PERIOD
from remote_inference.config import RateLimits
from remote_inference.errors import LimitReached
from remote_inference.testing.ledgers import VirtualLedgers
from remote_inference.types import Priority

KEY = LimitKey("openai", "env:KEY", "gpt-4o")
ONE = Cost(0, 0)
EPOCH = 1_700_000_000.0
QUEUE_TTL = 15.0
"""Seconds for which the broker keeps a message for a process that stands still, as `messaging.gossip` asks it to."""
NEVER = CancelToken()


class MachineClock:
    """A machine's: its wall clock is ``ahead``, and its monotonic one began whenever it was booted."""

    def __init__(self, world: World, ahead: float, booted: float) -> None:
        self._world = world
        self.ahead = ahead
        self._booted = booted

    def time(self) -> float:
        return EPOCH + self._world.now + self.ahead

    def monotonic(self) -> float:
        return self._world.now + self._booted

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing waits here")

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        raise AssertionError("nothing waits here")


class Process:
    """A process on a machine: its replica, its limiter, and what it spends."""

    def __init__(
        self, world: World, number: int, ahead: float, weight: float, period: float, host: str
    ) -> None:
        self.world = world
        self.number = number
        self.host = host
        booted = world.booted.setdefault(host, world.rng.uniform(10.0, 1e5))
        self.clock = MachineClock(world, ahead, booted)
        self.skews: list[float] = []
        self.replica = Replica(
            self.clock,
            name=f"process {number}",
            weight=weight,
            period=period,
            rng=random.Random(world.rng.random()),
            on_skew=self.skews.append,
            process=f"{host}:{number + 1}:1",
        )
        self.replica.on_process = self._watch
        self.limiter = GossipRateLimiter(self.clock, self.replica)
        self.desk = world.ledgers.desk(self.limiter.ledgers)
        self.alive, self.stopped, self._cut = True, False, False
        self.demand = 0.0
        """Requests a second that it would send."""
        self.cost: Callable[[], Cost] = lambda: ONE
        self.hold = 0.0
        """Seconds that a request takes."""
        self.in_flight = 0
        self.running: list[Permit] = []
        self._connected = False
        self._tick_at = self._woken_at = math.inf
        self._kept: list[tuple[float, bytes]] = []
        self.replica.send = self._send
        self.replica.start()
        world.after(0.01, self.connect)
        world.after(0.02, self._tick)  # until then it does not hear
        world.after(world.rng.uniform(0.02, 0.1), self._work)

    # -- what happens to it

    def configure(self, limits: RateLimits, max_concurrent: int | None = None) -> None:
        self.limiter.configure(KEY, limits, deployment="d", max_concurrent=max_concurrent)

    def kill(self) -> None:
        self.alive = self.desk.alive = False
        self.world.ledgers.drop(self.desk)
        self.world.ended.add(self.replica.process)
        for other in self.world.live:
            if other.host == self.host:
                self.world.after(0.005, lambda o=other: o.see_end(self.replica.process))  # type: ignore[misc]

    def _watch(self, process: str) -> None:
        """As `ProcessWatch` does: of its own host it sees who has ended."""
        if process.split(":")[0] == self.host and process in self.world.ended:
            self.world.after(0.005, lambda: self.see_end(process))

    def see_end(self, process: str) -> None:
        if self.alive and self.stopped:
            self.world.after(0.25, lambda: self.see_end(process))
        elif self.alive:
            self.replica.process_ended(process)

    @property
    def cut(self) -> bool:
        return self._cut

    @cut.setter
    def cut(self, cut: bool) -> None:
        self._cut = cut
        self.desk.reachable = self._connected and not cut

    def leave(self) -> None:
        """A graceful end."""
        if self.alive and not self.stopped:
            self.desk.leave()
            self.replica.leave()
            self.kill()

    def stop(self) -> None:
        """As SIGSTOP does."""
        self.stopped = self.desk.stopped = True

    def go_on(self) -> None:
        """As SIGCONT does: what the broker has kept comes all at once."""
        if self.stopped:
            self.stopped = self.desk.stopped = False
            kept, self._kept = self._kept, []
            for at, body in kept:
                if at + QUEUE_TTL > self.world.now:
                    self.hear(body)

    def connect(self) -> None:
        if self.stopped:
            self.world.after(0.5, self.connect)
        elif self.alive and not self._connected:
            self._connected = True
            self.desk.reachable = not self._cut
            self.replica.online()

    def disconnect(self) -> None:
        """The broker closes its connection."""
        if self.stopped:
            self.world.after(0.5, self.disconnect)
        elif self._connected:
            self._connected = self.desk.reachable = False
            self.replica.offline()

    # -- what it does

    def take(self, cost: Cost | None = None) -> Permit | None:
        """A permit if there is one now; what it costs is written down."""
        cost = cost or self.cost()
        try:
            permit = self.limiter.acquire(KEY, "d", cost, priority=Priority.NORMAL, patience=0.0, token=NEVER)
        except LimitReached as error:
            self.refused = error
            return None
        self.world.spent.append((self.world.now, cost))
        return permit

    def _send(self, body: bytes) -> None:
        if self._connected and self.alive:
            self.world.broadcast(self, body)

    def hear(self, body: bytes) -> None:
        if not self.alive or not self._connected:
            return
        if self.stopped:
            self._kept.append((self.world.now, body))
            return
        self.replica.receive(body)
        self._tick()

    def _tick(self) -> None:
        """After a message, too: what it brought may have to be done earlier than what was due."""
        if not self.alive:
            return
        self._tick_at = self.world.now + (0.05 if self.stopped else max(self.replica.tick(), 0.001))
        if self._tick_at < self._woken_at:
            self._woken_at = self._tick_at
            self.world.at(self._tick_at, self._wake)

    def _wake(self) -> None:
        if self.world.now < self._woken_at:
            return  # an earlier one came in between
        self._woken_at = math.inf
        if self.world.now >= self._tick_at:
            self._tick()
        else:
            self._woken_at = self._tick_at
            self.world.at(self._tick_at, self._wake)

    def _work(self) -> None:
        if not self.alive:
            return
        step = 0.1
        if not self.stopped:
            expected = self.demand * step
            for _ in range(int(expected) + (self.world.rng.random() < expected % 1)):
                permit = self.take()
                if permit is None:
                    break
                self._run(permit)
        self.world.after(step, self._work)

    def _run(self, permit: Permit) -> None:
        life = self.replica.id
        self.world.begin(self, life)

        def end() -> None:
            permit.settle()
            self.world.end(self, life)

        if self.hold:
            self.world.after(self.hold * self.world.rng.uniform(0.5, 1.5), end)
        else:
            end()

    # -- what is known of it

    def held(self, dimension: str = "requests") -> int:
        rights: dict[str, int] = self.limiter.snapshot()[str(KEY)]["rights"]
        return rights[dimension]


class World:
    """Time, processes and the broker.

    Args:
        seed: of all that is random.
        delay: seconds for which a message is on its way, at most.
        lost, twice: the part of the messages that reach nobody, and that reach somebody twice.
        cost: seconds that a process computes for each message it hears. All share one processor, where one is handled
            after the other, unless it is 0: then they have as many as they want.
    """

    def __init__(
        self, seed: int = 1, *, delay: float = 0.01, lost: float = 0.0, twice: float = 0.0, cost: float = 0.0
    ) -> None:
        self.now = 0.0
        self.rng = random.Random(seed)
        self.delay, self.lost, self.twice, self.cost = delay, lost, twice, cost
        self.stalled_until = 0.0
        """The processor does nothing before."""
        self._waiting: deque[tuple[float, Process, bytes]] = deque()
        self._computing = False
        self.processes: list[Process] = []
        self.booted: dict[str, float] = {}
        self.ended: set[str] = set()
        self.ledgers = VirtualLedgers(lambda: self.now, self.after, self.rng)
        self.spent: list[tuple[float, Cost]] = []
        """When and how much, by all that ever lived."""
        self.messages: list[tuple[float, Process, bytes]] = []
        self.most_in_flight = 0
        self._in_flight: dict[tuple[int, str], int] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def start(
        self,
        limits: RateLimits | None = None,
        *,
        ahead: float = 0.0,
        weight: float = 1.0,
        period: float = PERIOD,
        demand: float = 0.0,
        host: str = "",
    ) -> Process:
        """Another process, on a machine of its own if none is named."""
        number = len(self.processes)
        process = Process(self, number, ahead, weight, period, host or f"host{number}")
        process.demand = demand
        self.processes.append(process)
        if limits is not None:
            process.configure(limits)
        return process

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._due, (when, self._count, action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.at(self.now + seconds, action)

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._due and self._due[0][0] <= until:
            self.now, _, action = heapq.heappop(self._due)
            action()
        self.now = until

    def broadcast(self, sender: Process, body: bytes) -> None:
        self.messages.append((self.now, sender, body))
        if sender.cut or self.rng.random() < self.lost:
            return
        for receiver in self.processes:
            if receiver.alive and not receiver.cut:
                for _ in range(2 if self.rng.random() < self.twice else 1):
                    if self.cost:
                        self._waiting.append((self.now, receiver, body))
                        continue
                    delay = self.rng.uniform(0.0, self.delay)
                    self.after(delay, lambda r=receiver: None if r.cut else r.hear(body))  # type: ignore[misc]
        if self._waiting and not self._computing:
            self._computing = True
            self.after(self.cost, self._compute)

    def _compute(self) -> None:
        """One message is handled; those that are too old the broker has thrown away."""
        while self._waiting and self.now >= self.stalled_until:
            sent, receiver, body = self._waiting.popleft()
            if self.now <= sent + QUEUE_TTL and not receiver.cut:
                receiver.hear(body)
                break
        self._computing = bool(self._waiting)
        if self._computing:
            self.at(max(self.now + self.cost, self.stalled_until), self._compute)

    def said(self, seconds: float) -> list[bytes]:
        """The messages of the last seconds."""
        return [body for at, _, body in self.messages if at > self.now - seconds]

    def begin(self, process: Process, life: str) -> None:
        self._in_flight[process.number, life] = self._in_flight.get((process.number, life), 0) + 1
        running = sum(
            count
            for (number, life), count in self._in_flight.items()
            if self.processes[number].alive and self.processes[number].replica.id == life
        )
        self.most_in_flight = max(self.most_in_flight, running)

    def end(self, process: Process, life: str) -> None:
        self._in_flight[process.number, life] -= 1

    @property
    def live(self) -> list[Process]:
        return [process for process in self.processes if process.alive]

    def held(self, dimension: str = "requests") -> int:
        """The rights of all that live."""
        return sum(process.held(dimension) for process in self.live)

    def ledger(self, dimension: str = "requests") -> tuple[int, int, int]:
        """By the ledger as it is now: rights that are free, that the live hold, and that are lost to them as yet."""
        queue = self.ledgers.queues.get(KEY.digest)
        if queue is None or queue.body is None:
            return 0, 0, 0
        ledger = Ledger.decode(queue.body)
        ledger.come_free(max(p.replica.time.at(p.clock.monotonic()) for p in self.live))
        live = {process.replica.id for process in self.live}
        held = sum(entry.held.get(dimension, 0) for name, entry in ledger.entries.items() if name in live)
        lost = ledger.held(dimension) - held + ledger.due(dimension)
        return ledger.free(dimension), held, lost

    def usable(self, dimension: str = "requests") -> int:
        """What the live hold or may take."""
        free, held, _ = self.ledger(dimension)
        return free + held

    def most(self, amount: Callable[[Cost], int] = lambda cost: cost.requests, window: float = 60.0) -> int:
        """The most that was spent within any time as long as the window."""
        return most_within(window, [at for at, _ in self.spent], [amount(cost) for _, cost in self.spent])

    def used(self, begin: float, end: float) -> int:
        """Requests between two times."""
        return sum(begin <= at < end for at, _ in self.spent)


def most_within(window: float, times: Sequence[float], amounts: Sequence[int]) -> int:
    """The greatest sum over a time as long as the window; the times in order."""
    sums = [0]
    for amount in amounts:
        sums.append(sums[-1] + amount)
    return max(
        (sums[i + 1] - sums[bisect_right(times, at - window)] for i, at in enumerate(times)),
        default=0,
    )


def per_minute(requests: int | None = None, **more: float) -> RateLimits:
    """Limits with less typing."""
    return RateLimits(requests_per_minute=requests, **more)  # type: ignore[arg-type]
