"""`Congestion`: who hears late speaks seldom, and as ever once all is well again."""

from __future__ import annotations

import pytest
from gossip_world import World, per_minute

from remote_inference.cluster.membership import LEASE
from remote_inference.cluster.membership.congestion import LATE, MOST, Congestion


@pytest.mark.parametrize(
    ("late", "factor"),
    [(0.0, 1.0), (-3.0, 1.0), (LATE, 1.0), (3 * LATE, 3.0), (LEASE - 0.1, MOST)],
)
def test_the_factor_is_how_late_it_is(late: float, factor: float) -> None:
    for tell in (Congestion.heard, Congestion.echoed):
        congestion = Congestion()
        tell(congestion, late)
        assert congestion.factor == factor
        tell(congestion, 0.0)
        assert congestion.factor == 1.0


@pytest.mark.parametrize("late", [LEASE, 60.0, float("inf")])
def test_who_was_suspended_is_not_late(late: float) -> None:
    """Its clock stood still; the broker keeps nothing for so long."""
    congestion = Congestion()
    congestion.heard(4 * LATE)
    congestion.heard(late)
    assert congestion.factor == 1.0
    congestion.echoed(late)
    assert congestion.factor == MOST, "by its own clock nothing was suspended"


def test_the_worse_of_both_counts() -> None:
    congestion = Congestion()
    congestion.echoed(4 * LATE)
    congestion.heard(2 * LATE)
    assert congestion.factor == 4.0
    assert "4.0" in repr(congestion)


def test_deltas_are_seldom_while_messages_are_late_and_as_ever_after_it() -> None:
    def deltas(world: World) -> int:
        return sum(b'"k":"d"' in body for body in world.said(20.0))

    world = World(cost=0.001)
    for _ in range(6):
        world.start(per_minute(60_000), demand=20.0)
    world.run(90.0)  # of the first minute nobody knows what was spent, and little can be
    usual = deltas(world)
    assert usual > 6 * 20
    world.cost = 0.04  # all that they say usually is three times what the processor can do
    world.run(60.0)
    assert deltas(world) < usual / 3
    assert not any(process.replica.counters["rejoined"] for process in world.processes)
    world.cost = 0.001
    world.run(40.0)
    assert deltas(world) == pytest.approx(usual, rel=0.2)
