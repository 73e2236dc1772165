"""The published cases in small, so that a change that costs share or refusals is noticed: see `benchmarks/cluster`."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cluster.simulation import Case, Tokens, simulate

SMALL: dict[str, Any] = {"per_minute": 1_200, "seconds": 110.0}


def mostly(busy: Any) -> Any:
    return lambda replica, seconds: 1.5 * (0.9 if replica == busy(seconds) else 0.1 / 3)


@pytest.mark.parametrize(
    ("case", "share", "refused"),
    [
        (Case(name="even", **SMALL), 0.95, 0.0),
        (Case(name="one", demand=mostly(lambda seconds: 0), **SMALL), 0.95, 0.0),
        (Case(name="moving", demand=mostly(lambda seconds: int(seconds / 20) % 4), **SMALL), 0.90, 0.002),
        (Case(name="killed", kill=(1, 65.0), join=(4, 80.0), **SMALL), 0.85, 0.002),
        (Case(name="cut off", cut_off=(frozenset({2, 3}), 65.0, 85.0), **SMALL), 0.82, 0.0),
        (Case(name="skew", skew=2.0, **SMALL), 0.93, 0.0),
        (
            Case(
                name="tokens",
                per_minute=None,
                seconds=110.0,
                tokens=Tokens(per_minute=300_000, smallest=80, largest=4_000, error=2.0),
            ),
            0.88,
            0.005,
        ),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_case_keeps_its_share(case: Case, share: float, refused: float) -> None:
    figures = simulate(case)
    assert figures.refused_part(0.0, case.seconds) <= refused
    assert figures.share(62.0, case.seconds - 2.0) >= share


@pytest.mark.parametrize("killed", range(4))
@pytest.mark.parametrize(("kill", "join"), [(60.0, 80.0), (75.0, 95.0)])
def test_one_that_is_killed_costs_no_more_than_its_part_for_the_time_of_its_lease(
    kill: float, join: float, killed: int
) -> None:
    """Whichever it is: who began first has no more of what comes free than the others have."""
    case = Case(name="killed", seconds=180.0, kill=(killed, kill), join=(4, join), seed=killed)
    figures = simulate(case)
    assert not figures.refused
    assert figures.share(60.0, 180.0) >= 0.95


@pytest.mark.parametrize("seed", [1, 2])
def test_after_a_restart_of_everything_nothing_is_refused_and_little_lost(seed: int) -> None:
    """The minute before was not quite even, as it never is."""
    figures = simulate(Case(name="restart", restart=100.0, seconds=162.0, seed=seed))
    assert not figures.refused
    assert figures.share(100.0, 160.0) >= 0.9
