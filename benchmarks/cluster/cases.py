"""All cases by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from benchmarks.cluster.costs import COSTS, IDLE, run_costs, run_idle
from benchmarks.cluster.deaths import ALL_KILLED, KILLED, run_all_killed, run_killed
from benchmarks.cluster.latencies import BESIDE, PAUSE, URGENT, run_beside, run_pause, run_urgent
from benchmarks.cluster.limits import LIMITED, run_limited
from benchmarks.cluster.outcome import Outcome
from benchmarks.cluster.plan import Plan
from benchmarks.cluster.simulated import SIMULATED, run_simulated
from benchmarks.cluster.stage import Say

__all__ = ["CASES", "Case"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One of the benchmark's cases."""

    title: str
    run: Callable[[Plan, Say], Outcome]


CASES: Mapping[str, Case] = {
    **{name: Case(title=case.title, run=partial(run_limited, name)) for name, case in LIMITED.items()},
    **{
        name: Case(title=f"simulated: {case.title}", run=partial(run_simulated, name))
        for name, case in SIMULATED.items()
    },
    **{name: Case(title=case.title, run=partial(run_killed, name)) for name, case in KILLED.items()},
    "all-killed": Case(title=ALL_KILLED, run=run_all_killed),
    "urgent": Case(title=URGENT, run=run_urgent),
    "beside": Case(title=BESIDE, run=run_beside),
    "pause": Case(title=PAUSE, run=run_pause),
    "costs": Case(title=COSTS, run=run_costs),
    "idle": Case(title=IDLE, run=run_idle),
}
