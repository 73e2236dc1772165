"""The invariant as a state machine: whatever processes, the broker and the network do, no minute holds more than the
limit; and once it is quiet, all of the limit can be used again in time."""

from __future__ import annotations

import math

from gossip_world import KEY, Process, World, per_minute
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, rule

LIMIT = 120
SECONDS = st.sampled_from([0.05, 0.5, 2.0, 7.0, 20.0])
LASTS = st.sampled_from([0.3, 3.0, 16.0, 40.0])


class LimitMachine(RuleBasedStateMachine):
    """Joins, deaths, cuts, stops, clock steps, lost and late messages, bursts, a broker that loses its data."""

    processes = Bundle("processes")

    @initialize(
        seed=st.integers(0, 2**32),
        delay=st.sampled_from([0.01, 0.3]),
        lost=st.sampled_from([0.0, 0.1]),
        twice=st.sampled_from([0.0, 0.2]),
        burst=st.sampled_from([1.0, 10.0]),
    )
    def begin(self, seed: int, delay: float, lost: float, twice: float, burst: float) -> None:
        self.world = World(seed, delay=delay, lost=lost, twice=twice)
        self.limits = per_minute(LIMIT, burst=burst)

    @rule(
        target=processes,
        host=st.sampled_from(["", "one", "two"]),
        ahead=st.floats(-2.0, 2.0),
        demand=st.sampled_from([0.0, 0.5, 8.0]),
    )
    def join(self, host: str, ahead: float, demand: float) -> Process:
        process = self.world.start(self.limits, ahead=ahead, host=host, demand=demand)
        process.hold = 2.0
        return process

    @rule(process=processes)
    def die(self, process: Process) -> None:
        if process.alive:
            process.kill()

    @rule(process=processes)
    def leave(self, process: Process) -> None:
        process.leave()

    @rule(target=processes, demand=st.sampled_from([0.5, 8.0]), count=st.integers(1, 3))
    def all_die_and_start_again(self, demand: float, count: int) -> object:
        for process in self.world.live:
            process.kill()
        return multiple(*(self.join("one", 0.0, demand) for _ in range(count)))

    @rule(process=processes, lasts=LASTS)
    def stand_still(self, process: Process, lasts: float) -> None:
        if process.alive:
            process.stop()
            self.world.after(lasts, process.go_on)

    @rule(process=processes, lasts=LASTS)
    def lose_the_connection(self, process: Process, lasts: float) -> None:
        process.disconnect()
        self.world.after(lasts, process.connect)

    @rule(process=processes, other=processes, lasts=LASTS)
    def cut(self, process: Process, other: Process, lasts: float) -> None:
        for one in (process, other):
            one.cut = True
            self.world.after(lasts, lambda p=one: setattr(p, "cut", False))  # type: ignore[misc]

    @rule(process=processes, seconds=st.sampled_from([-40.0, -2.0, 2.0, 40.0]))
    def step_the_wall_clock(self, process: Process, seconds: float) -> None:
        process.clock.ahead += seconds

    @rule(process=processes, demand=st.sampled_from([0.0, 60.0]))
    def burst(self, process: Process, demand: float) -> None:
        process.demand = demand

    @rule()
    def the_broker_loses_the_ledgers(self) -> None:
        self.world.ledgers.lose()

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        self.world.run(seconds)
        assert self.world.most() <= LIMIT

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.run(3.0)
        world.lost, world.delay = 0.0, 0.01
        if not world.live:
            self.join("", 0.0, 0.0)
        for process in world.live:
            process.clock.ahead = 0.0
            process.cut = False
            process.go_on()
            process.connect()
            process.demand = 0.0
        quiet = world.now
        world.run(20.0)
        free, held, lost = world.ledger()
        spent = world.used(quiet - 60.0, math.inf)
        # what may have been spent: what a dead one held unheard, and where all was lost, what nobody can know of
        assert free + held + lost == LIMIT
        assert lost <= LIMIT
        assert spent <= LIMIT
        world.run(62.0)
        assert world.usable() == LIMIT
        assert world.most() <= LIMIT


LimitMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, derandomize=True
)
TestLimitMachine = LimitMachine.TestCase


def test_the_key_is_the_one_that_the_world_looks_at() -> None:
    world = World(1)
    world.start(per_minute(LIMIT))
    world.run(3.0)
    assert KEY.digest in world.ledgers.queues
    assert world.usable() + world.ledger()[2] == LIMIT
