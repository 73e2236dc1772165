"""The cases about a shared limit: demand beyond it for three minutes, spread in several ways, and faults meanwhile."""

from __future__ import annotations

import math
import os
import random
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cluster.load import Prompt
from benchmarks.cluster.outcome import COLD_START, Outcome, at_least, at_most
from benchmarks.cluster.plan import Plan
from benchmarks.cluster.stage import Say, Seen, Stage, names, stage

__all__ = ["LIMITED", "Limited", "run_limited"]

_DEMAND = 1.5  # times the limit
_BUSY = 0.9  # of the demand, on one worker
_SMALLEST, _LARGEST = 40, 2000  # tokens of a request: 1:50
_MEAN = (_LARGEST - _SMALLEST) / math.log(_LARGEST / _SMALLEST)  # of a size whose logarithm is uniform
_INPUT = 2 / 3  # of a request's tokens
_OVERHEAD = 8  # tokens that the library counts for a message, besides its text

Course = Callable[[Stage, float], None]


@dataclass(frozen=True, kw_only=True)
class Limited:
    """A case: what is asked for, and what is to come of it.

    Attributes:
        title: In the table.
        share: Of the limit, to be used in minutes 2 and 3; None: not asked for.
        refused: The largest share of requests refused in minutes 2 and 3 (0: not one).
        requests: A minute; the limit, where it is one of requests.
        tokens: A minute, likewise.
        prompts: Makes the prompts.
        course: What happens, from the beginning to the end of minute 3; given the demand a second.
        strict: Counted in Redis.
        children: Of a prefork worker; there are half as many workers then. None: the workers have threads.
    """

    title: str
    share: float | None
    refused: float
    requests: int | None = 6_000
    tokens: int | None = None
    prompts: Callable[[], Callable[[], Prompt]] = lambda: Prompt
    course: Course
    strict: bool = False
    children: int | None = None


def _spread(stage: Stage, demand: float, busy: int | None) -> None:
    """The demand a second on all deployments alike, or nearly all of it on one."""
    count = len(stage.deployments)
    if busy is None:
        stage.load.rates(dict.fromkeys(stage.deployments, demand / count))
        return
    rest = demand * (1 - _BUSY) / max(1, count - 1)
    stage.load.rates(
        {name: demand * _BUSY if number == busy else rest for number, name in enumerate(stage.deployments)}
    )


def _even(stage: Stage, demand: float) -> None:
    _spread(stage, demand, None)
    stage.until(3)


def _skewed(stage: Stage, demand: float) -> None:
    _spread(stage, demand, 0)
    stage.until(3)


def _moving(stage: Stage, demand: float) -> None:
    """Another one is busy every third of a minute."""
    for third in range(9):
        _spread(stage, demand, third % len(stage.deployments))
        stage.until((third + 1) / 3)


def _churn(stage: Stage, demand: float) -> None:
    """One is killed when minute 2 begins; a third of a minute later another one takes its queue over."""
    _spread(stage, demand, None)
    stage.until(1)
    killed = next(worker for worker in stage.workers.running if worker.deployments == (stage.deployments[0],))
    stage.workers.end([killed], signal.SIGKILL)
    stage.until(1 + 1 / 3)
    stage.workers.start(stage.deployments[0])
    stage.until(3)


def _deaths(stage: Stage, demand: float) -> None:
    """From minute 2 on one is killed six times a minute, each in its turn, and started again three seconds later."""
    _spread(stage, demand, None)
    stage.until(1)
    for turn in range(12):
        name = stage.deployments[turn % len(stage.deployments)]
        killed = [worker for worker in stage.workers.running if worker.deployments == (name,)]
        stage.workers.end(killed, signal.SIGKILL)
        stage.until(1 + turn / 6 + 1 / 20)
        stage.workers.start(name)
        stage.until(1 + (turn + 1) / 6)


def _rolling(stage: Stage, demand: float) -> None:
    """In minute 2 all are restarted warm, one after the other."""
    _spread(stage, demand, None)
    stage.until(1)
    for turn, name in enumerate(stage.deployments):
        stage.workers.end([worker for worker in stage.workers.running if worker.deployments == (name,)])
        stage.workers.start(name)
        stage.until(1 + (turn + 1) / 12)
    stage.until(3)


def _restart(stage: Stage, demand: float) -> None:
    """All end in the middle of minute 2, half of them killed, and are started again at once."""
    _spread(stage, demand, None)
    stage.until(1.5)
    running = stage.workers.running
    half = len(running) // 2
    for worker in running[:half]:
        worker.signal(signal.SIGKILL)
    stage.workers.end(running[half:])
    stage.start(*([name] for name in stage.deployments))
    stage.until(3)


def _sizes(
    input_factor: Callable[[random.Random], float], output_factor: Callable[[random.Random], float]
) -> Any:
    """Makes prompts that tell the provider what they cost, and are estimated at that times a factor."""

    def make() -> Callable[[], Prompt]:
        rng = random.Random(11)

        def prompt() -> Prompt:
            size = _SMALLEST * (_LARGEST / _SMALLEST) ** rng.random()
            cost, answer = round(size * _INPUT), round(size * (1 - _INPUT))
            estimate = round(cost * input_factor(rng))
            text = f"input={cost} output={answer} "
            return Prompt(text.ljust(4 * (estimate - _OVERHEAD), "x"), math.ceil(answer * output_factor(rng)))

        return prompt

    return make


def _either_way(rng: random.Random) -> float:
    return math.pow(2.0, rng.uniform(-1, 1))


def _over(rng: random.Random) -> float:
    """Of an answer: it is never longer than its bound."""
    return math.pow(2.0, rng.uniform(0, 1))


_ONE_IN_A_THOUSAND = 0.001

LIMITED: Mapping[str, Limited] = {
    "even": Limited(title="4 workers, 6,000/min, demand 1.5x, even", share=0.97, refused=0, course=_even),
    "skewed": Limited(title="90 % of the demand on one worker", share=0.97, refused=0, course=_skewed),
    "moving": Limited(
        title="the busy worker moves every 20 s", share=0.95, refused=_ONE_IN_A_THOUSAND, course=_moving
    ),
    "churn": Limited(
        title="one worker killed, one joined", share=0.975, refused=_ONE_IN_A_THOUSAND, course=_churn
    ),
    "tokens": Limited(
        title="300,000 tokens/min, sizes 1:50, estimates off by up to 2, either way",
        share=0.93,
        refused=0.005,
        requests=None,
        tokens=300_000,
        prompts=_sizes(_either_way, _over),
        course=_even,
    ),
    "tokens-under": Limited(
        title="the same, all prompts cost twice their estimate",
        share=0.93,
        refused=0.005,
        requests=None,
        tokens=300_000,
        prompts=_sizes(lambda _: 0.5, lambda _: 1.0),
        course=_even,
    ),
    "prefork": Limited(
        title="2 prefork workers of 4 children, 3,000/min, even",
        share=0.97,
        refused=0,
        requests=3_000,
        course=_even,
        children=4,
    ),
    "strict": Limited(title="strict, 4 workers", share=0.97, refused=0, course=_even, strict=True),
    "deaths": Limited(title="one killed every 10 s and back after 3", share=0.88, refused=0, course=_deaths),
    "rolling": Limited(title="all restarted warm, one every 5 s", share=0.97, refused=0, course=_rolling),
    "restart": Limited(
        title="all restarted in minute 2: the minute after",
        share=None,
        refused=_ONE_IN_A_THOUSAND,
        course=_restart,
    ),
}


def run_limited(name: str, plan: Plan, say: Say) -> Outcome:
    """Run one of `LIMITED`."""
    case = LIMITED[name]
    limits = {"requests_per_minute": case.requests, "tokens_per_minute": case.tokens}
    limits = {what: most for what, most in limits.items() if most is not None}
    provider = [f"--{what.replace('_', '-')}={most}" for what, most in limits.items()]
    provider += ["--directed", "--tokens=2", "--first-byte-delay=0.05"]
    if case.tokens is not None:
        provider += ["--rate=200", "--burst=10"]
    configured = {name: {"rate_limits": {**limits, "strict": case.strict}} for name in names(plan)}
    redis = {
        "url": os.environ.get("REDIS_URL", "redis://localhost:6379/0"),
        "prefix": f"cluster-{os.getpid()}",
    }
    settings = {"redis": redis} if case.strict else {}
    pool = {"slots": case.children, "pool": "prefork"} if case.children else {}
    with stage(
        plan, say, configured, provider=provider, prompts=case.prompts(), settings=settings, **pool
    ) as on:
        each = 2 if case.children else 1  # deployments of a worker
        found = on.deployments
        on.start(*(found[first : first + each] for first in range(0, len(found), each)))
        on.begin()
        case.course(on, _DEMAND * (case.requests or (case.tokens or 0) / _MEAN) / 60)
        on.load.rates({})
        busy = on.busy()
        return _judge(name, case, on, busy)


def _judge(name: str, case: Limited, on: Stage, busy: Mapping[str, float]) -> Outcome:
    """Hold what the provider saw against the goals."""
    seen = Seen(
        on.provider.arrivals(),
        tokens=case.tokens is not None,
        per_minute=case.tokens or case.requests or 0,
    )
    minute = on.plan.minute
    spans: Sequence[tuple[str, float, float]] = [(f"minute {n + 1}", n, n + 1) for n in range(3)]
    steady = seen.window(on.began + minute, on.began + 3 * minute)
    first = seen.window(on.began, on.began + minute)
    if case.share is None:  # from the restart on
        steady = seen.window(on.began + 1.5 * minute, on.began + 2.5 * minute)
    goals = [at_most(COLD_START, first.refused_share, _ONE_IN_A_THOUSAND)]
    if case.share is not None:
        goals.append(at_least("share of the limit, minutes 2 and 3", steady.share, case.share))
    goals.append(at_most("refused in minutes 2 and 3", steady.refused_share, case.refused))
    return Outcome(
        name=name,
        title=case.title,
        first=first,
        steady=steady,
        goals=goals,
        figures={
            "share_by_minute": {
                what: round(seen.window(on.began + since * minute, on.began + until * minute).share, 4)
                for what, since, until in spans
            },
            "refused_at": seen.refused(on.began)[:20],
            "cpu": busy,
            "left_out": on.load.left_out,
            **on.complaints(),
        },
    )
