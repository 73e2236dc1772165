"""The cases about time: what a blocked deployment or a full queue costs others, and how soon a pause is everywhere."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.cluster.load import Prompt
from benchmarks.cluster.outcome import Outcome, at_least, at_most
from benchmarks.cluster.plan import Plan
from benchmarks.cluster.stage import Say, Stage, names, stage
from benchmarks.measure import median, percentile
from remote_inference import Inference, Priority

__all__ = ["BESIDE", "PAUSE", "URGENT", "run_beside", "run_pause", "run_urgent"]

URGENT = "CRITICAL with 10,000 BACKGROUND waiting, 600/min over 4 workers"
BESIDE = "deployment B beside A with 5,000 waiting, on the same 4-slot workers"
PAUSE = "429 on one worker: the others' latest send"

_SLOTS = 4
_SETTLE = 0.5  # minutes at a limit, before anything is measured there
_BELOW = 60.0  # requests a second: so far below the limit that what a pause has held up is soon gone
_PATIENCE = 20.0  # seconds, for what must come some time
_SHUT = 3600.0  # seconds: longer than the case


def run_urgent(plan: Plan, say: Say) -> Outcome:
    """Urgent requests at random times, while all workers are at the limit: submitted until it is at the provider."""
    own = {name: {"rate_limits": {"requests_per_minute": 600}} for name in names(plan)}
    rng = random.Random(5)
    with stage(
        plan, say, own, provider=["--directed", "--requests-per-minute=600", "--tokens=2"], slots=_SLOTS
    ) as on:
        on.start(*([name] for name in on.deployments))
        for name in on.deployments:
            on.load.send(name, priority=Priority.BACKGROUND, count=plan.background // plan.workers)
        on.begin()
        on.until(_SETTLE)
        sent: dict[str, float] = {}
        for number in range(plan.urgent):
            time.sleep(rng.expovariate(1 / plan.urgent_gap))
            mark = f"urgent{number}"
            prompt = Prompt(f"mark={mark} ")
            sent[mark] = time.monotonic()
            name = rng.choice(on.deployments)
            on.inference.submit(name, prompt.text, priority=Priority.CRITICAL, on_disconnect="finish")
        arrived = _arrivals_of(on, len(sent))
        waits = [arrived[mark] - at for mark, at in sent.items() if mark in arrived]
        left = sum(on.load.waiting(name) for name in on.deployments)
        stats = on.provider.stats
        busy = on.busy()
        complaints = on.complaints()
    lost = len(sent) - len(waits)
    return Outcome(
        name="urgent",
        title=URGENT,
        goals=[
            at_most("a CRITICAL request's start beside a full queue, p95, s", percentile(waits, 95), 0.5),
            at_most("CRITICAL requests that did not start", lost, 0),
        ],
        figures={
            "waits": [round(wait, 4) for wait in waits],
            "median": median(waits),
            "background_left": left,
            "admitted": stats["admitted"],
            "refused": stats["refused"],
            "cpu": busy,
            **complaints,
        },
    )


def _arrivals_of(on: Stage, count: int) -> dict[str, float]:
    """When which mark came, once so many have."""
    until = time.monotonic() + _PATIENCE
    while True:
        columns = on.provider.arrivals()
        came: dict[str, float] = {}
        for at, mark, status in zip(columns["at"], columns["mark"], columns["status"], strict=True):
            if mark and status == 200:
                came.setdefault(mark, at)
        if len(came) >= count or time.monotonic() > until:
            return came
        time.sleep(0.2)


def run_beside(plan: Plan, say: Say) -> Outcome:
    """B's throughput and latency alone and beside A, in alternating pairs; A at its limit, then its circuit open."""
    blocked, free = (
        f"{name}-{what}" for name, what in zip(names(plan)[:2], ("blocked", "free"), strict=True)
    )
    own: dict[str, dict[str, Any]] = {
        blocked: {"apart": True, "rate_limits": {"requests_per_minute": 6}},
        free: {},
    }
    found: dict[str, list[dict[str, float]]] = {"limit": [], "circuit": []}
    with stage(plan, say, own, provider=["--tokens=2", "--first-byte-delay=0.1"], slots=_SLOTS) as on:
        on.start((blocked, free), (blocked, free))
        inference = on.inference
        slots = 2 * _SLOTS
        _closed_loop(inference, free, slots, plan.pair_seconds / 3)  # connections are made
        for how, pairs in found.items():
            if how == "circuit":
                inference.force_open(blocked, _SHUT)
            for number in range(plan.pairs):
                alone = _closed_loop(inference, free, slots, plan.pair_seconds)
                on.load.send(blocked, count=plan.blocked, priority=Priority.NORMAL)
                time.sleep(min(1.0, plan.pair_seconds / 3))  # until all slots have met the gate
                beside = _closed_loop(inference, free, slots, plan.pair_seconds)
                waiting = on.load.waiting(blocked)
                on.load.purge(blocked)
                pairs.append(
                    {
                        "alone_per_second": alone[0],
                        "beside_per_second": beside[0],
                        "alone_p95": alone[1],
                        "beside_p95": beside[1],
                        "still_waiting": waiting,
                    }
                )
                say(
                    f"  {how} {number + 1}: {alone[0]:.1f}/s alone, {beside[0]:.1f}/s beside {waiting:,} waiting"
                )
        busy = on.busy()
        complaints = on.complaints()
    goals = []
    for how, pairs in found.items():
        rate = median([pair["beside_per_second"] / pair["alone_per_second"] for pair in pairs])
        latency = median([pair["beside_p95"] / pair["alone_p95"] for pair in pairs])
        goals.append(at_least(f"B beside A blocked by its {how}: throughput / alone", rate, 0.95))
        goals.append(at_most(f"B beside A blocked by its {how}: p95 latency / alone", latency, 1.2))
    return Outcome(
        name="beside", title=BESIDE, goals=goals, figures={"pairs": found, "cpu": busy, **complaints}
    )


def _closed_loop(inference: Inference, deployment: str, callers: int, seconds: float) -> tuple[float, float]:
    """As many callers as there are slots, each asking again when it is answered: requests a second, p95 of a call."""
    times: list[float] = []
    end = time.monotonic() + seconds
    failed: list[BaseException] = []

    def call() -> None:
        try:
            while (began := time.monotonic()) < end:
                inference.submit(deployment, "Go on.").result(_PATIENCE)
                times.append(time.monotonic() - began)
        except Exception as exc:
            failed.append(exc)

    _together(call, callers)
    if failed:
        raise RuntimeError(f"{deployment}: {len(failed)} callers failed") from failed[0]
    return len(times) / seconds, percentile(times, 95)


def _together(work: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _refusal(on: Stage, count: int) -> tuple[float, str]:
    """When the so-manieth 429 was, and who got it.

    Raises:
        RuntimeError: There was none.
    """
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        columns = on.provider.arrivals()
        found = [
            (at, source)
            for at, source, status in zip(columns["at"], columns["source"], columns["status"], strict=True)
            if status == 429
        ]
        if len(found) >= count:
            return found[count - 1]
        time.sleep(0.1)
    raise RuntimeError(f"the provider was not asked for {_PATIENCE:g} s")


def run_pause(plan: Plan, say: Say) -> Outcome:
    """One request is answered 429 with a `Retry-After`: how long after it do others still come, in the pause?"""
    own = {name: {"rate_limits": {"requests_per_minute": 6_000}} for name in names(plan)}
    latest_others: list[float] = []
    latest: list[float] = []
    early = 0
    with stage(plan, say, own, provider=["--tokens=2", "--first-byte-delay=0.02"]) as on:
        on.start(*([name] for name in on.deployments))
        on.begin()
        on.load.rates(dict.fromkeys(on.deployments, _BELOW / len(on.deployments)))
        on.until(_SETTLE / 3)
        for number in range(plan.pauses):
            on.provider.refuse_next(plan.pause)
            began, source = _refusal(on, number + 1)
            time.sleep(plan.pause + plan.ramp)
            columns = on.provider.arrivals()
            within = [
                (at - began, who)
                for at, who in zip(columns["at"], columns["source"], strict=True)
                if 0 < at - began < plan.pause
            ]
            latest.append(max((after for after, _ in within), default=0.0))
            latest_others.append(max((after for after, who in within if who != source), default=0.0))
            early += sum(after > 0.2 for after, _ in within)
            say(f"  {number + 1}: others sent until {latest_others[-1] * 1000:.0f} ms after the 429")
        busy = on.busy()
        complaints = on.complaints()
    return Outcome(
        name="pause",
        title=PAUSE,
        goals=[
            at_most("the latest send of another worker after a 429, s", max(latest_others), 0.2),
            at_most("requests in a pause, later than 0.2 s after its 429", early, 0),
        ],
        figures={"latest_others": latest_others, "latest": latest, "cpu": busy, **complaints},
    )
