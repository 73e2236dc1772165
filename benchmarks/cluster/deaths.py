"""The cases about workers that die: what a limit costs then that is far from used up, and how long nothing is sent."""

from __future__ import annotations

import itertools
import signal
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.cluster.outcome import Outcome, at_least, at_most
from benchmarks.cluster.plan import Plan
from benchmarks.cluster.stage import Say, Stage, names, stage

__all__ = ["ALL_KILLED", "KILLED", "Killed", "run_all_killed", "run_killed"]

_SLOTS = 4
_EVERY = 8.0  # seconds between two deaths
_STREAM = ("--tokens=20", "--rate=20", "--directed")  # a request takes a second
_LONGEST_WAIT = 3.0
_SLOWEST = 0.9


@dataclass(frozen=True, kw_only=True)
class Killed:
    """Two workers of four slots, of which one is killed every eight seconds and started again at once.

    Attributes:
        title: In the table.
        limits: What is configured, against a run without limits.
        pool: Celery's name of the kind of workers.
    """

    title: str
    limits: Mapping[str, Any]
    pool: str = "threads"


_REQUESTS = {"rate_limits": {"requests_per_minute": 6_000}}
KILLED: Mapping[str, Killed] = {
    "killed-requests": Killed(title="6,000 requests/min configured", limits=_REQUESTS),
    "killed-places": Killed(title="max_concurrent = 200", limits={"max_concurrent": 200}),
    "killed-prefork": Killed(title="6,000 requests/min, prefork", limits=_REQUESTS, pool="prefork"),
}
ALL_KILLED = "all 4 killed every 20 s, limit 6,000, demand 600/min"


def run_killed(name: str, plan: Plan, say: Say) -> Outcome:
    """Run one of `KILLED`: alternating pairs of runs with the limits and without."""
    case, ratios = KILLED[name], []
    for pair in range(plan.death_pairs):
        with_limits = _answered(case, case.limits, plan, say)
        without = _answered(case, {}, plan, say)
        ratios.append(with_limits / without if without else 0.0)
        say(f"  pair {pair + 1}: {with_limits:.2f} and {without:.2f} requests/s")
    found = statistics.median(ratios)
    return Outcome(
        name=name,
        title=f"2 workers, one killed every 8 s: {case.title}",
        goals=[at_least("requests answered, by those without limits", found, _SLOWEST)],
        figures={"ratios": [round(ratio, 3) for ratio in ratios]},
    )


def _answered(case: Killed, limits: Mapping[str, Any], plan: Plan, say: Say) -> float:
    """Requests answered a second, while workers are killed."""
    one = names(plan)[0]
    with stage(plan, say, {one: limits}, provider=_STREAM, slots=_SLOTS, pool=case.pool) as on:
        on.start([one], [one])
        on.load.rates({one: 3.0 * _SLOTS})
        on.begin()
        before, end = _ended(on), on.began + plan.death_seconds
        next_death = on.began + 4.0
        while (now := time.monotonic()) < end:
            if now >= next_death:
                next_death += _EVERY
                victim = on.workers.running[0]  # the one that has lived for longest
                on.workers.end([victim], signal.SIGKILL)
                on.workers.start(one)
            time.sleep(min(0.2, max(0.0, end - now)))
            on.load.check()
        answered = _ended(on) - before
        on.load.rates({})
        return answered / plan.death_seconds


def _ended(on: Stage) -> int:
    """Requests that were answered to their end."""
    stats = on.provider.stats
    return int(stats["count"] - stats["in_flight"] - stats["closed_early"])


def run_all_killed(plan: Plan, say: Say) -> Outcome:
    """All workers at once, again and again; what is looked for is the longest time without a request after the first of
    them is ready."""
    limits = {"rate_limits": {"requests_per_minute": 6_000}}
    configured = dict.fromkeys(names(plan), limits)
    waits: list[float] = []
    with stage(plan, say, configured, provider=["--directed", "--tokens=2"]) as on:
        found = on.deployments
        on.start(*([name] for name in found))
        on.load.rates(dict.fromkeys(found, 10.0 / len(found)))
        on.begin()
        for _ in range(plan.all_deaths):
            on.workers.end(on.workers.running, signal.SIGKILL)
            on.start(*([name] for name in found))
            ready = time.monotonic()
            _let_pass(on, plan.death_gap)
            arrivals = [at for at in on.provider.arrivals()["at"] if at >= ready]
            times = [ready, *arrivals, time.monotonic()]
            waits.append(max(later - earlier for earlier, later in itertools.pairwise(times)))
            say(f"  all killed: the longest time without a request was {waits[-1]:.2f} s")
        on.load.rates({})
        refused = sum(status == 429 for status in on.provider.arrivals()["status"])
    return Outcome(
        name="all-killed",
        title=ALL_KILLED,
        goals=[
            at_most("seconds without a request, after a worker is ready", max(waits), _LONGEST_WAIT),
            at_most("refused", refused, 0),
        ],
        figures={"waits": [round(wait, 2) for wait in waits]},
    )


def _let_pass(on: Stage, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.2)
        on.load.check()
