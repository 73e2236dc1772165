"""What must hold whatever the broker, the processes and their messages do: no minute holds more than the limit."""

from __future__ import annotations

import json
import logging
import random
from typing import Any

import pytest
from gossip_world import EPOCH, KEY, ONE, Process, World, most_within, per_minute
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from remote_inference.cluster import Cost, LimitKey
from remote_inference.cluster.crdt.bounds import LARGEST
from remote_inference.cluster.membership import message
from remote_inference.cluster.membership.message import decode, encode
from remote_inference.config import RateLimits
from remote_inference.policy.quota import Quota, QuotaReport

LIMIT = 120
PHASES = (
    Phase.generate,
)  # a smaller example of minutes of trouble takes longer to find than to read this one
SKEWS = st.floats(-2.0, 2.0)
FAULTS: Any = st.sampled_from(["kill", "start", "stop", "cut", "disconnect", "leave", "demand"])


class Trouble:
    """A cluster in which things happen by a plan; afterwards everything heals."""

    def __init__(self, limits: RateLimits, seed: int, *, delay: float, lost: float, twice: float) -> None:
        self.world = World(seed, delay=delay, lost=lost, twice=twice)
        self.limits = limits
        self.rng = self.world.rng
        self.tokens = limits.tokens_per_minute is not None
        for _ in range(self.rng.randint(2, 5)):
            self.world.after(self.rng.uniform(0.0, 3.0), self.start)
        self.world.run(3.1)

    def start(self) -> None:
        process = self.world.start(self.limits, ahead=self.rng.uniform(-2.0, 2.0))
        process.demand = self.rng.choice([0.0, 0.5, 2.0, 8.0])
        process.hold = 2.0
        if self.tokens:
            process.cost = lambda: Cost(self.rng.randint(1, 40), self.rng.randint(1, 40))

    def happen(self, fault: str, after: float, lasts: float) -> None:
        world = self.world
        world.run(after)
        live = world.live
        if fault == "start" or not live:
            self.start()
            return
        victim = self.rng.choice(live)
        if fault == "kill":
            victim.kill()
        elif fault == "leave":
            victim.leave()
        elif fault == "stop":
            victim.stop()
            world.after(lasts, victim.go_on)
        elif fault == "disconnect":
            victim.disconnect()
            world.after(lasts, victim.connect)
        elif fault == "cut":
            for process in [p for p in live if self.rng.random() < 0.5]:
                process.cut = True
                world.after(lasts, lambda p=process: setattr(p, "cut", False))  # type: ignore[misc]
        else:
            victim.demand = self.rng.choice([0.0, 8.0])

    def heal(self) -> None:
        world = self.world
        world.run(1.0)
        world.lost, world.delay = 0.0, 0.01
        for process in world.live:
            process.cut = False
            process.go_on()
            process.connect()
            process.demand = 0.0


PLANS = st.lists(st.tuples(FAULTS, st.floats(0.5, 25.0), st.floats(0.5, 70.0)), min_size=1, max_size=8)
NETS = {
    "delay": st.sampled_from([0.01, 0.3]),
    "lost": st.sampled_from([0.0, 0.1]),
    "twice": st.sampled_from([0.0, 0.2]),
}


@settings(max_examples=20, deadline=None, derandomize=True, phases=PHASES)
@given(seed=st.integers(0, 2**32), plan=PLANS, burst=st.sampled_from([1.0, 10.0]), **NETS)
def test_no_minute_holds_more_requests_than_the_limit(
    seed: int, plan: list[tuple[str, float, float]], burst: float, delay: float, lost: float, twice: float
) -> None:
    trouble = Trouble(per_minute(LIMIT, burst=burst), seed, delay=delay, lost=lost, twice=twice)
    for fault, after, lasts in plan:
        if trouble.world.live:  # a restart of everything is another matter
            trouble.happen(fault if len(trouble.world.live) > 1 else "start", after, lasts)
    trouble.heal()
    trouble.world.run(80.0)  # a lease, a window, and what it takes to notice
    assert trouble.world.usable() == LIMIT
    assert trouble.world.most() <= LIMIT


@settings(max_examples=8, deadline=None, derandomize=True, phases=PHASES)
@given(seed=st.integers(0, 2**32), plan=PLANS, **NETS)
def test_nor_more_tokens_nor_requests_at_once(
    seed: int, plan: list[tuple[str, float, float]], delay: float, lost: float, twice: float
) -> None:
    limits = RateLimits(tokens_per_minute=3_000, concurrent_requests=7)
    trouble = Trouble(limits, seed, delay=delay, lost=lost, twice=twice)
    for fault, after, lasts in plan:
        trouble.happen(fault if len(trouble.world.live) > 1 else "start", after, lasts)
    trouble.heal()
    trouble.world.run(100.0)
    assert trouble.world.most(lambda cost: cost.tokens) <= 3_000
    assert trouble.world.most_in_flight <= 7


@pytest.mark.parametrize("seed", range(3))
def test_a_restart_of_everything_keeps_the_limit_too(seed: int) -> None:
    """The ledger remembers the last minute."""
    world = World(seed)
    limits = per_minute(600)
    for _ in range(4):
        world.start(limits, demand=4.0)
    world.run(100.0)
    for process in world.live:
        process.kill()
    for _ in range(4):
        world.after(world.rng.uniform(0.1, 2.0), lambda: world.start(limits, demand=4.0))
    world.run(100.0)
    assert world.most() <= 600
    assert world.used(140.0, 200.0) > 500


EARLY = st.lists(st.tuples(FAULTS, st.floats(0.05, 6.0), st.floats(0.5, 30.0)), min_size=1, max_size=8)


@settings(max_examples=20, deadline=None, derandomize=True, phases=PHASES)
@given(seed=st.integers(0, 2**32), plan=EARLY, **NETS)
def test_in_the_first_minute_no_more_is_sent_than_comes_free_whatever_happens(
    seed: int, plan: list[tuple[str, float, float]], delay: float, lost: float, twice: float
) -> None:
    """What was spent before is unknown, and is shared out as such: nothing of it may get lost."""
    trouble = Trouble(per_minute(LIMIT), seed, delay=delay, lost=lost, twice=twice)
    for fault, after, lasts in plan:
        trouble.happen(fault if len(trouble.world.live) > 1 else "start", after, lasts)
    trouble.world.run(max(0.0, 60.0 - trouble.world.now))
    for count, (at, _) in enumerate(trouble.world.spent, 1):
        assert count <= LIMIT * at / 60.0


def test_a_newcomer_has_its_part_soon() -> None:
    world = World(5)
    found = [world.start(per_minute(600), demand=8.0) for _ in range(4)]
    world.run(40.0)
    late = world.start(per_minute(600), demand=8.0)
    world.run(1.0)
    assert late.held() > 0
    world.run(30.0)
    assert late.held() >= 0.4 * 600 / 5
    world.run(120.0)
    assert [process.held() for process in (*found, late)] == pytest.approx([120] * 5, abs=25)
    assert world.most() <= 600
    assert world.used(world.now - 60.0, world.now) >= 0.95 * 600


def test_what_nobody_needs_nobody_holds() -> None:
    """So a death locks up little more than what the dead one used; and whoever needs some has it at once."""
    world = World(6)
    found = [world.start(per_minute(6_000), demand=1.0) for _ in range(4)]
    world.run(100.0)
    free, held, lost = world.ledger()
    assert (free + held, lost) == (6_000, 0)
    assert held <= 4 * (60 + 60)
    found[0].demand = 80.0
    world.run(0.5)
    before = len(world.spent)
    world.run(10.0)
    assert len(world.spent) - before >= 0.9 * 10 * 80


def test_of_places_nobody_holds_more_than_its_slots() -> None:
    world = World(6)
    found = [world.start(weight=4.0) for _ in range(3)]
    for process in found:
        process.configure(RateLimits(concurrent_requests=200))
        process.demand, process.hold = 20.0, 1.0
    world.run(3.0)
    for _ in range(40):
        world.run(0.25)
        assert all(process.held("concurrent") <= 4 for process in found)
    assert world.most_in_flight >= 11
    found[0].kill()
    world.run(1.0)
    assert world.usable("concurrent") >= 200 - 4


@pytest.mark.parametrize("hosts", [["one"] * 8, [""] * 8], ids=["deaths are certain", "deaths are not"])
def test_where_nobody_lives_longer_than_a_lease_nothing_stands_still(hosts: list[str]) -> None:
    """Two workers, one of them killed every 8 seconds and started again at once."""
    world = World(9)
    limits = per_minute(6_000)
    workers = [world.start(limits, demand=4.0, host=hosts[0]) for _ in range(2)]
    world.run(8.0)
    for turn in range(30):
        workers[turn % 2].kill()
        workers[turn % 2] = world.start(limits, demand=4.0, host=hosts[turn % 8])
        before = len(world.spent)
        world.run(8.0)
        assert len(world.spent) - before >= 0.6 * 8 * 8, f"turn {turn}"
    assert world.used(8.0, world.now) >= 0.9 * 30 * 8 * 8
    assert world.most() <= 6_000


@pytest.mark.parametrize("seed", range(3))
def test_all_are_killed_at_once_again_and_again(seed: int) -> None:
    """Nobody is left who knows what was spent, but the ledger does."""
    world = World(seed)
    limits = per_minute(6_000)
    for _ in range(15):
        for process in world.live:
            process.kill()
        for number in range(4):
            world.start(limits, demand=2.5, host=f"host{number}")
        world.run(3.0)
        before = len(world.spent)
        world.run(17.0)
        assert len(world.spent) - before >= 0.75 * 17 * 10
    assert world.most() <= 6_000


def test_a_death_that_is_certain_needs_no_lease() -> None:
    world = World(2)
    found = [world.start(per_minute(600), demand=8.0, host="one") for _ in range(4)]
    world.run(100.0)
    found[1].kill()
    world.run(1.0)
    _, _, lost = world.ledger()
    assert lost >= 100, "what it has spent is still in the window"
    before = len(world.spent)
    world.run(60.0)
    assert len(world.spent) - before >= 0.9 * 600


def test_an_older_process_of_the_same_name_that_still_drains_is_no_dead_one() -> None:
    world = World(4)
    old = world.start(per_minute(600), demand=4.0, host="one")
    world.run(30.0)
    new = world.start(per_minute(600), demand=4.0, host="one")
    new.replica.name = old.replica.name
    world.run(30.0)
    assert old.replica.id in new.replica.members(new.clock.monotonic())
    assert old.held() > 0
    assert world.most() <= 600


def test_fifty_that_start_and_have_nothing_to_send_do_not_talk_of_what_comes_free() -> None:
    world = World(1)
    for _ in range(50):
        world.start(per_minute(600_000))
    world.run(12.0)
    before = len(world.messages)
    world.run(40.0)
    assert (len(world.messages) - before) / 40.0 < 20.0
    assert world.usable() == 600_000 - world.ledger()[2]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_crowd_that_could_not_keep_up_for_a_while_becomes_calm_by_itself(seed: int) -> None:
    """All lose their leases and join anew. What they say of that must not keep them from keeping up: it did, and went
    on so for ever."""
    world = World(seed, cost=0.004)  # a quarter of the processor is enough for sixteen that are idle
    for _ in range(16):
        world.start(per_minute(600_000))
        world.run(1.0)
    world.run(20.0)
    world.stalled_until = world.now + 20.0
    world.run(20.0)
    assert not any(p.replica.may_act(p.clock.monotonic()) for p in world.processes), "their leases are over"
    world.run(40.0)
    assert len(world.said(10.0)) / 10.0 < 20.0
    world.run(70.0)  # until it is of no use any more what those of before have said
    assert len(world.said(10.0)) / 10.0 < 6.0
    assert {len(p.replica.members(p.clock.monotonic())) for p in world.processes} == {16}
    assert not any(p.replica.skew.wrong for p in world.processes)
    assert world.usable() == 600_000


@pytest.mark.parametrize("seed", range(5))
def test_of_many_that_start_at_once_one_begins_the_ledger(seed: int) -> None:
    world = World(seed)
    for _ in range(24):
        world.start(per_minute(60_000), demand=50.0)
    for _ in range(60):
        world.run(0.1)
        assert world.held() <= 60_000
    assert sum(process.limiter.ledgers.counters["begun"] for process in world.processes) == 1
    assert world.used(0.0, 6.0) >= 3_000


def test_a_limit_that_is_found_out_later_is_not_taken_to_be_spent_by_others() -> None:
    """A minute of what was sent is known by then: assumed to be spent once more, it would stop all for half of one."""
    world = World(3)
    process = world.start(RateLimits(learn=True), demand=10.0)
    world.run(80.0)
    process.limiter.observe(KEY, QuotaReport(refused=True))
    world.run(1.0)
    limit = process.limiter.snapshot()[str(KEY)]["limits"]["requests"]
    before = len(world.spent)
    world.run(20.0)
    assert 500 <= limit <= 600
    assert len(world.spent) - before >= 0.8 * limit / 3
    assert most_within(60.0, [at for at, _ in world.spent if at > 81.0], [1] * len(world.spent)) <= limit


@pytest.mark.parametrize("killed", range(4))
def test_what_one_takes_as_spent_is_not_free_because_it_is_killed(killed: int) -> None:
    world = World(killed)
    found = [world.start(per_minute(600), demand=8.0) for _ in range(4)]
    world.run(4.0)
    found[killed].kill()
    world.run(60.0)
    for count, (at, _) in enumerate(world.spent, 1):
        assert count <= 600 * at / 60.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("ends", "soonest", "latest"), [("leave", 0.5, 1.0), ("leave", 1, 9), ("kill", 2.5, 9)]
)
def test_who_comes_between_two_ends_hears_the_last_words_of_both(
    seed: int, ends: str, soonest: float, latest: float
) -> None:
    """One is killed, another starts, and before the lease of the first is over all the others end."""
    rng = random.Random(seed)
    world = World(seed, delay=rng.choice([0.01, 0.3]))
    found = [world.start(per_minute(LIMIT), demand=8.0) for _ in range(2 + seed % 2)]
    world.run(90.0)
    found[0].kill()
    world.run(rng.uniform(0.1, 5.0))
    world.start(per_minute(LIMIT), demand=8.0)
    world.run(rng.uniform(soonest, latest))
    for process in found[1:]:
        getattr(process, ends)()
    world.run(100.0)
    assert world.most() <= LIMIT
    assert world.used(world.now - 30.0, world.now) > 0.4 * LIMIT


def test_what_the_provider_counts_from_before_a_restart_is_not_somebody_elses() -> None:
    """Its headers say that little is left, as was assumed; each replica takes only its part of that as spent."""
    world = World(1)
    limits = per_minute(600)
    for _ in range(4):
        world.start(limits, demand=5.0, host="one")
    world.run(100.0)
    for process in world.live:
        process.kill()
    world.run(1.0)
    again = [world.start(limits, demand=5.0, host="one") for _ in range(4)]
    world.run(4.0)
    before = len(world.spent)
    for _ in range(120):
        world.run(0.25)
        left = 600 - world.used(world.now - 60.0, world.now)
        for process in again:
            process.limiter.observe(KEY, QuotaReport((Quota("requests", limit=600, remaining=max(0, left)),)))
    assert len(world.spent) - before >= 0.9 * 300
    assert world.most() <= 600


@settings(max_examples=8, deadline=None, derandomize=True, phases=PHASES)
@given(seed=st.integers(0, 2**32), skews=st.lists(SKEWS, min_size=2, max_size=5), by=st.integers(0, 4))
def test_a_pause_is_everywhere_at_once_and_its_end_too(seed: int, skews: list[float], by: int) -> None:
    world = World(seed, delay=0.02)
    found = [world.start(per_minute(6_000, burst=60.0), ahead=ahead) for ahead in skews]
    world.run(20.0)
    one = found[by % len(found)]
    one.limiter.pause(KEY, one.clock.time() + 10.0)
    world.run(0.05)
    for process in found:
        left = process.limiter.paused_until(KEY) - process.clock.time()
        assert left == pytest.approx(9.95, abs=0.1)
        assert process.take() is None
        assert process.refused.code == "paused"
    late = world.start(per_minute(6_000, burst=60.0))
    world.run(2.5)
    assert late.take() is None
    assert late.refused.code == "paused"
    world.run(4.0)
    found[0].limiter.resume(KEY)
    world.run(0.05)
    assert not any(process.limiter.paused_until(KEY) for process in world.processes)


class Fuzz:
    """Messages of all kinds that nobody of us has sent, or nobody sends like that."""

    def __init__(self, rng: random.Random, real: list[bytes]) -> None:
        self.rng = rng
        self.real = real
        self.decoded = [(head, entries) for head, entries, _ in map(decode, real[-400:])]

    def one(self) -> bytes:
        return self.rng.choice([self.noise, self.mutated, self.replayed, self.another_app, self.hostile])()

    def noise(self) -> bytes:
        return self.rng.randbytes(self.rng.randint(0, 200))

    def mutated(self) -> bytes:
        body = bytearray(self.rng.choice(self.real))
        for _ in range(self.rng.randint(1, 4)):
            body[self.rng.randrange(len(body))] = self.rng.randrange(256)
        return bytes(body)

    def replayed(self) -> bytes:
        return self.rng.choice(self.real)

    def another_app(self) -> bytes:
        return json.dumps({"method": "ping", "arguments": {}, "destination": None}).encode()

    def hostile(self) -> bytes:
        """With a right digest: a real message with other figures, from somebody who pretends to be a member."""
        head, entries = self.rng.choice(self.decoded)
        head = {**head, "i": self.rng.choice(["evil", "0000000000", "zzzz"])}
        if self.rng.random() < 0.3:
            head[self.rng.choice(list(head))] = self.value()
        return encode(head, [self.entry(entry, head["i"]) for entry in entries])

    def entry(self, entry: list[Any], name: Any) -> Any:
        if self.rng.random() < 0.1:
            return self.value()
        code, path, value = entry
        path = [*path[:-1], name if self.rng.random() < 0.8 else path[-1]]
        if self.rng.random() < 0.1:
            path = path[: self.rng.randint(0, len(path))]
        return [code, path, self.changed(value)]

    def changed(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.changed(part) for key, part in value.items()}
        if isinstance(value, list):
            return [self.changed(part) for part in value]
        return self.value() if self.rng.random() < 0.3 else value

    def value(self) -> Any:
        small = self.rng.randint(-2, 2000)
        return self.rng.choice(
            [small, small, small, LARGEST, -LARGEST, 1e15, 0.5, None, True, "x", [], {}, [[1]], {"a": 1}]
        )


def spendable(process: Process) -> dict[str, float]:
    state = process.limiter._shared.keys[KEY]
    return {name: share.plan.usable for name, share in state.shares.items()}


def test_a_hundred_thousand_fuzzed_messages_raise_nothing_and_stop_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "remote_inference.cluster")
    limits = RateLimits(requests_per_minute=600, tokens_per_minute=60_000, concurrent_requests=20)
    most = {"requests": 600, "tokens": 60_000, "concurrent": 20}
    world = World(7)
    found = [world.start(limits, demand=demand, weight=8.0) for demand in (2.0, 3.0, 0.5)]
    for process in found:
        process.hold, process.cost = 1.0, lambda: Cost(20, 20)
    world.run(20.0)
    fuzz = Fuzz(random.Random(1), [body for _, _, body in world.messages])
    for step in range(1_000):
        target = found[step % 3]
        for _ in range(100):
            target.replica.receive(fuzz.one())
            assert all(usable <= most[name] for name, usable in spendable(target).items())
        world.run(0.05)
    assert all(len(p.replica.state.entries) < 20_000 for p in found)
    warnings = [record for record in caplog.records if "ignored" in record.message]
    assert 1 <= len(warnings) <= 2 * len(found)
    assert all(process.replica.status()["malformed"] > 10_000 for process in found)
    assert world.most() <= 600
    # those who pretended to be members are not heard any more: after a lease and a window all is as it was
    world.run(120.0)
    before = len(world.spent)
    world.run(30.0)
    assert len(world.spent) - before > 100
    assert world.most() <= 600


def test_malformed_and_foreign_messages_change_nothing_at_all() -> None:
    world = World(3)
    one, other = (world.start(per_minute(600, burst=60.0)) for _ in range(2))
    world.run(20.0)
    fuzz = Fuzz(random.Random(2), [body for _, _, body in world.messages])
    before = one.replica.state.full(), one.limiter.snapshot(), one.replica.members(one.clock.monotonic())
    for _ in range(20_000):
        kind = fuzz.rng.choice([fuzz.noise, fuzz.mutated, fuzz.replayed, fuzz.another_app])
        one.replica.receive(kind())
    after = one.replica.state.full(), one.limiter.snapshot(), one.replica.members(one.clock.monotonic())
    assert after == before
    assert other.replica.id in after[2]


def test_what_is_spent_on_keys_that_a_process_does_not_know_does_not_pile_up_there() -> None:
    world = World(3)
    stranger, spender = world.start(), world.start(per_minute(600), demand=5.0)
    world.run(90.0)

    def spending(process: Process) -> int:
        return sum(path[0] == "spend" for path in process.replica.state.entries)

    before = spending(stranger), spending(spender)
    world.run(120.0)
    after = spending(stranger), spending(spender)
    assert all(40 <= count <= 80 for count in (*before, *after)), (before, after)
    wrong = [
        ["p", ["spend", "nobody", second, spender.replica.id], {"requests": [1, 0]}]
        for second in ("x", "9" * 20)
    ]
    head = {
        "k": "d",
        "i": spender.replica.id,
        "m": spender.clock.monotonic(),
        "w": world.now,
        "s": 0,
        "t": 1.0,
    }
    stranger.replica.receive(encode(head, wrong))
    assert ("spend", "nobody", "x", spender.replica.id) in stranger.replica.state.entries
    world.run(15.0)
    assert not any(path[1] == "nobody" for path in stranger.replica.state.entries)


@pytest.mark.parametrize("seed", range(4))
def test_who_wants_the_same_gets_the_same(seed: int) -> None:
    world = World(seed)
    found = [world.start() for _ in range(4)]
    for process in found:
        process.configure(per_minute(3_000))
        process.demand = 20.0
    world.run(60.0)
    before = [process.limiter._shared.keys[KEY].spent[0] for process in found]
    world.run(60.0)
    spent = [
        process.limiter._shared.keys[KEY].spent[0] - earlier
        for process, earlier in zip(found, before, strict=True)
    ]
    assert sum(spent) > 0.95 * 3_000
    assert min(spent) > 0.7 * max(spent)


@pytest.mark.parametrize("seed", range(3))
def test_one_that_serves_another_key_keeps_nobody_waiting(seed: int) -> None:
    """It has been here for longer, but cannot begin a ledger of which it knows nothing, nor close an entry there."""
    world = World(seed)
    elder = world.start()
    elder.limiter.configure(LimitKey("openai", "env:KEY", "other"), per_minute(600), deployment="x")
    world.run(5.0)
    one, other = (world.start(per_minute(600), demand=4.0) for _ in range(2))
    world.run(30.0)
    assert world.used(0.0, world.now) >= 0.8 * 28 * 8
    one.kill()
    other.demand = 0.0
    world.run(80.0)
    assert world.usable() == 600


@pytest.mark.parametrize("how", ["its word is lost", "it is cut off", "nobody sees it"])
@pytest.mark.parametrize("seed", range(1, 4))
def test_what_it_has_handed_over_hides_nothing_that_a_dead_one_spent_unheard(how: str, seed: int) -> None:
    """It had used all of the limit, a newcomer has its part now, and it went on unheard for a while."""
    world = World(seed)
    limits = per_minute(600, burst=10.0)
    old = world.start(limits, host="one")
    world.run(70.0)
    old.demand = 200.0
    world.run(58.0)
    world.start(limits, host="two" if how == "nobody sees it" else "one", demand=200.0)
    world.run(1.5 + seed * 0.7)
    if how == "its word is lost":
        old.replica.send = lambda body: None
    else:
        old.cut = True
    world.run(12.0)
    old.kill()
    world.run(100.0)
    assert world.most() <= 600


@pytest.mark.parametrize("burst", [1.0, 10.0, 60.0])
def test_what_older_processes_have_spent_is_not_free_when_they_have_ended(
    burst: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(1)
    new = world.start(per_minute(120, burst=burst), demand=20.0)

    def old() -> None:
        monkeypatch.setattr(message, "VERSION", 1)
        head = {"k": "f", "i": "old", "m": world.now, "w": EPOCH, "s": 0, "t": 1.0, "r": 0}
        body = encode(head, [])
        monkeypatch.undo()
        if world.now > 40.0:
            world.spent.extend([(world.now, ONE)] * 2)
        new.hear(body)
        if world.now < 99.0:
            world.after(1.0, old)

    world.after(0.05, old)
    world.run(98.0)
    assert world.used(0.0, 98.0) == len([at for at, _ in world.spent if at > 40.0])
    world.run(150.0)
    assert world.most() <= 120
    assert world.used(115.0, 240.0) >= 120


@pytest.mark.parametrize("burst", [1.0, 60.0])
def test_what_was_spent_alone_counts_when_the_others_are_there(burst: float) -> None:
    world = World(1)
    limits = per_minute(120, burst=burst)
    before = world.start(limits, host="one")
    world.run(70.0)
    before.leave()
    world.run(70.0)
    alone = world.start(limits, host="one")
    alone._connected, alone.desk.reachable = True, False  # the broker does not come
    world.run(60.0)
    assert alone.replica.alone
    alone.demand = 200.0
    world.run(4.0)
    alone._connected = False
    alone.connect()
    world.run(60.0)
    assert world.most() <= 120
