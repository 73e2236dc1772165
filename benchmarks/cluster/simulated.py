"""The simulated cases: what `benchmarks.cluster.simulation` finds, held against the goals."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from benchmarks.cluster.outcome import COLD_START, Outcome, Window, at_least, at_most
from benchmarks.cluster.plan import Plan
from benchmarks.cluster.simulation import CASES, Figures, simulate
from benchmarks.cluster.stage import Say

__all__ = ["SIMULATED", "Simulated", "run_simulated"]

_ONE_IN_A_THOUSAND = 0.001
_CATCH_UP = 5.0  # seconds after a part that was cut off is back


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """A case: which of the simulation's, and what is to come of it.

    Attributes:
        title: In the table.
        case: Its name there.
        share: Of the limit, to be used in minutes 2 and 3; None: not asked for.
        refused: The largest share of requests refused in minutes 2 and 3.
        during: Of the limit, to be used while some are cut off.
    """

    title: str
    case: str
    share: float | None
    refused: float
    during: float | None = None


SIMULATED: Mapping[str, Simulated] = {
    "sim-even": Simulated(title="4 workers, even", case="even", share=0.97, refused=0),
    "sim-skewed": Simulated(title="90 % on one worker", case="one", share=0.97, refused=0),
    "sim-moving": Simulated(
        title="the busy one moves every 20 s", case="moving", share=0.95, refused=_ONE_IN_A_THOUSAND
    ),
    "sim-churn": Simulated(title="one killed, one joined", case="killed", share=0.975, refused=0),
    "sim-tokens-over": Simulated(
        title="300,000 tokens/min, sizes 1:50, all estimates twice the real cost",
        case="tokens over",
        share=0.93,
        refused=0.005,
    ),
    "sim-tokens-under": Simulated(
        title="the same, all estimates half the real cost", case="tokens under", share=0.93, refused=0.005
    ),
    "sim-cut": Simulated(
        title="half cut off for 30 s: meanwhile; from 5 s after",
        case="cut off",
        share=0.95,
        refused=0,
        during=0.85,
    ),
    "sim-skew": Simulated(title="clocks up to 2 s apart", case="skew", share=0.93, refused=0),
    "sim-restart": Simulated(
        title="all restarted: the minute after", case="restart", share=None, refused=_ONE_IN_A_THOUSAND
    ),
    "sim-unseen": Simulated(
        title="one killed, one joined, nobody can see the death", case="killed unseen", share=0.95, refused=0
    ),
    "sim-rolling": Simulated(title="one restarted every 5 s", case="rolling", share=0.97, refused=0),
    "sim-mortal": Simulated(
        title="64 replicas that live 10 s on average", case="mortal", share=0.85, refused=0
    ),
    "sim-mortal-unseen": Simulated(
        title="the same, nobody can see the deaths", case="mortal unseen", share=None, refused=0
    ),
    "sim-64": Simulated(title="64 replicas, 600,000/min", case="64", share=0.97, refused=_ONE_IN_A_THOUSAND),
}


def run_simulated(name: str, plan: Plan, say: Say) -> Outcome:
    """Run one of `SIMULATED`."""
    wanted = SIMULATED[name]
    case = next(case for case in CASES if case.name == wanted.case)
    if plan.minute < 60:  # to see that it works
        case = replace(case, seconds=3 * plan.minute, replicas=min(case.replicas, plan.replicas))
    began, cpu = time.monotonic(), time.process_time()
    figures = simulate(case)
    say(f"  {case.seconds:.0f} simulated seconds in {time.monotonic() - began:.0f}")
    since, until = 60.0, 180.0
    if case.restart is not None:
        since, until = case.restart, case.restart + 60.0
    first, steady = _window(figures, 0, 60), _window(figures, since, until)
    goals = [at_most(COLD_START, first.refused_share, _ONE_IN_A_THOUSAND)]
    if wanted.during is not None:
        _, cut, back = case.cut_off
        goals.append(at_least("share of the limit, cut off", figures.share(cut, back), wanted.during))
        goals.append(
            at_least("share of the limit, after", figures.share(back + _CATCH_UP, until), wanted.share or 0)
        )
    elif wanted.share is not None:
        goals.append(at_least("share of the limit, minutes 2 and 3", steady.share, wanted.share))
    goals.append(at_most("refused in minutes 2 and 3", steady.refused_share, wanted.refused))
    return Outcome(
        name=name,
        title=f"simulated: {wanted.title}",
        first=first,
        steady=steady,
        goals=goals,
        figures={"messages": figures.messages, "cpu": time.process_time() - cpu},
    )


def _window(figures: Figures, since: float, until: float) -> Window:
    return Window(
        share=figures.share(since, until),
        admitted=sum(since <= at < until for at in figures.admitted),
        refused=sum(since <= at < until for at in figures.refused),
    )
