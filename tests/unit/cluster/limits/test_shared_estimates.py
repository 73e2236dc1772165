"""What one process learns of a model's real token counts, the others know."""

from __future__ import annotations

import pytest
from gossip_world import World

from remote_inference.cluster import Cost, LimitKey, TokenEstimates
from remote_inference.cluster.crdt import LwwRegister
from remote_inference.cluster.limits.shared_estimates import INTERVAL, SharedEstimates

KEY = LimitKey("openai", "env:KEY", "gpt-4o")
OTHER = LimitKey("openai", "env:KEY", "o3")
GUESS = Cost(100, 400)


class Learner:
    """A process that learns, and tells."""

    def __init__(self, world: World, *keys: LimitKey) -> None:
        self.process = world.start()
        self.estimates = TokenEstimates()
        self.shared = SharedEstimates(self.process.replica, self.estimates)
        for key in keys:
            self.shared.watch(key)

    def learn(self, times: int, key: LimitKey = KEY) -> None:
        for _ in range(times):
            self.estimates.learn(key, GUESS, Cost(130, 100))

    def guess(self, key: LimitKey = KEY) -> Cost:
        return self.estimates.cost(key, GUESS)


def test_what_one_learns_all_go_by() -> None:
    world = World()
    one, two = Learner(world, KEY), Learner(world, KEY)
    world.run(3.0)
    assert two.guess() == Cost(200, 800)  # nothing is known: twice as much
    one.learn(100)
    world.run(INTERVAL + 1.0)
    assert two.guess().input_tokens == pytest.approx(130, rel=0.02)
    assert two.guess().output_tokens == pytest.approx(100, rel=0.05)


def test_a_newcomer_hears_what_was_learned_before_also_of_keys_it_watches_later() -> None:
    world = World()
    one = Learner(world, KEY, OTHER)
    world.run(3.0)
    one.learn(100)
    one.learn(100, OTHER)
    world.run(INTERVAL + 1.0)
    late = Learner(world, KEY)
    world.run(5.0)
    assert late.guess().input_tokens == pytest.approx(130, rel=0.02)
    assert late.guess(OTHER) == Cost(200, 800)
    late.shared.watch(OTHER)
    assert late.guess(OTHER).input_tokens == pytest.approx(130, rel=0.02)


def test_it_is_told_every_two_seconds_at_most() -> None:
    world = World()
    one, two = Learner(world, KEY), Learner(world, KEY)
    world.run(3.0)
    path = ("ratio", KEY.digest, one.process.replica.id)
    stamps = set()
    for _ in range(100):
        one.learn(1)
        world.run(0.1)
        register = two.process.replica.state.get(path, LwwRegister)
        if register is not None:
            stamps.add(register.stamp[0])
    assert 3 <= len(stamps) <= 10.0 / INTERVAL + 1


def test_the_word_of_one_who_joins_anew_counts_on() -> None:
    world = World()
    one, two = Learner(world, KEY), Learner(world, KEY)
    world.run(3.0)
    one.learn(100)
    world.run(3.0)
    before = one.process.replica.id
    one.process.disconnect()
    world.run(20.0)
    one.process.connect()
    world.run(5.0)
    assert one.process.replica.id != before
    assert ("ratio", KEY.digest, one.process.replica.id) in two.process.replica.state.entries
    assert two.guess().input_tokens == pytest.approx(130, rel=0.02)
