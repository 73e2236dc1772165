"""Streams of tokens through each side: CPU, throughput, memory, and the time to the first token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

from benchmarks.direct import Direct
from benchmarks.measure import median, percentile
from benchmarks.plan import Plan
from benchmarks.setting import Setting
from benchmarks.sides import ProcessSide, SideResult
from remote_inference.testing.process import ProviderProcess

__all__ = ["FirstToken", "Figures", "Say", "SideType", "fast", "figures", "paced", "running"]

Say = Callable[[str], None]
SideType = Callable[[Setting], ProcessSide]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One side in one comparison. CPU in milliseconds a request, medians over the rounds.

    The times to the first token are those of a closed loop, in which every slot is always busy: they are
    queueing more than anything else. `FirstToken` is the other measurement.
    """

    worker_cpu_ms: float
    caller_cpu_ms: float
    requests_per_second: float
    tokens_per_second: float
    first_token_p50_ms: float
    first_token_p95_ms: float
    first_token_p99_ms: float
    worker_rss_mib: float
    caller_rss_mib: float
    requests: int
    failed: int
    errors: list[str]

    def to_json(self) -> dict[str, object]:
        """A dict of JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class FirstToken:
    """Time to the first token at a steady rate of arrivals, in milliseconds.

    `added_*` are over the *median* of the direct calls at the same rate: a p99 is charged with all its tail.
    """

    per_second: float
    direct_p50_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    added_p50_ms: float
    added_p95_ms: float
    added_p99_ms: float
    requests: int
    failed: int
    behind_ms: float

    def to_json(self) -> dict[str, object]:
        """A dict of JSON values."""
        return asdict(self)


@contextmanager
def running(types: Sequence[SideType], setting: Setting) -> Iterator[list[ProcessSide]]:
    """The sides, started; all are stopped, whatever happens."""
    with ExitStack() as stack:
        sides = []
        for make in types:
            side = make(setting)
            stack.callback(side.stop)
            side.start()
            sides.append(side)
        yield sides


def figures(results: Sequence[SideResult], tokens: int) -> Figures:
    """The figures of one side's rounds."""
    counts = [len(result.timings) + len(result.errors) for result in results]
    first = [timing.to_first_token * 1000 for result in results for timing in result.timings]
    rate = median([len(result.timings) / result.wall for result in results])
    errors = [error for result in results for error in result.errors]
    return Figures(
        worker_cpu_ms=median([r.worker_cpu / n * 1000 for r, n in zip(results, counts, strict=True)]),
        caller_cpu_ms=median([r.caller_cpu / n * 1000 for r, n in zip(results, counts, strict=True)]),
        requests_per_second=rate,
        tokens_per_second=rate * tokens,
        first_token_p50_ms=percentile(first, 50),
        first_token_p95_ms=percentile(first, 95),
        first_token_p99_ms=percentile(first, 99),
        worker_rss_mib=max(r.worker_rss for r in results) / 2**20,
        caller_rss_mib=max(r.caller_rss for r in results) / 2**20,
        requests=sum(counts),
        failed=len(errors),
        errors=errors[:3],
    )


def _rounds(
    sides: Sequence[ProcessSide], plan: Plan, requests: int, say: Say, label: str
) -> dict[str, Figures]:
    """Every side in every round, the order turned round each time."""
    results: dict[str, list[SideResult]] = {side.name: [] for side in sides}
    for side in sides:  # not measured: connections, lazy imports, the pool's threads
        side.run(plan.slots, plan.slots)
    for number in range(plan.rounds):
        for side in sides if number % 2 == 0 else list(reversed(sides)):
            say(f"{label}: round {number + 1} of {plan.rounds}, {side.name}")
            results[side.name].append(side.run(requests, plan.slots))
    return {name: figures(rounds, plan.tokens) for name, rounds in results.items()}


def fast(
    types: Sequence[SideType], plan: Plan, setting: Setting, say: Say
) -> tuple[dict[str, Figures], dict[str, FirstToken]]:
    """Streams as fast as the server can; then the time to the first token at half of each side's maximum."""
    with ProviderProcess("--tokens", str(plan.tokens)) as provider:
        here = setting.but(url=provider.url, tokens=plan.tokens, rate=None, slots=plan.slots)
        with running([Direct, *types], here) as (direct, *sides):
            compared = _rounds(sides, plan, plan.fast_requests, say, "fast")
            first: dict[str, FirstToken] = {}
            for side in sides:
                per_second = compared[side.name].requests_per_second / 2
                say(f"time to the first token: {side.name} at {per_second:.0f} requests/s")
                first[side.name] = _first_token(side, direct, per_second, plan)
            return compared, first


def _first_token(side: ProcessSide, direct: ProcessSide, per_second: float, plan: Plan) -> FirstToken:
    requests = max(8, int(per_second * plan.first_token_seconds))
    # Half of the arrivals before the direct calls and half after, so that a noisy moment is in neither alone.
    half = max(4, requests // 2)
    threads = 2 * plan.slots
    before = side.run(half, threads, per_second)
    reference = direct.run(requests, threads, per_second)
    after = side.run(half, threads, per_second)
    base = percentile([t.to_first_token * 1000 for t in reference.timings], 50)
    times = [t.to_first_token * 1000 for result in (before, after) for t in result.timings]
    p50, p95, p99 = (percentile(times, percent) for percent in (50, 95, 99))
    return FirstToken(
        per_second=per_second,
        direct_p50_ms=base,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        added_p50_ms=p50 - base,
        added_p95_ms=p95 - base,
        added_p99_ms=p99 - base,
        requests=2 * half,
        failed=len(before.errors) + len(after.errors),
        behind_ms=max(before.behind, after.behind) * 1000,
    )


def paced(types: Sequence[SideType], plan: Plan, setting: Setting, say: Say) -> dict[str, Figures]:
    """Streams at the pace of a model."""
    with ProviderProcess("--tokens", str(plan.tokens), "--rate", str(plan.paced_rate)) as provider:
        here = setting.but(url=provider.url, tokens=plan.tokens, rate=plan.paced_rate, slots=plan.slots)
        with running(types, here) as sides:
            return _rounds(sides, plan, plan.paced_requests, say, "paced")
