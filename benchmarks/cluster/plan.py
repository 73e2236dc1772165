"""How long the cluster's benchmarks take: the full run, and one of seconds that only shows that everything works."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "SMOKE", "Plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes.

    Attributes:
        minute: Seconds. What is called a minute in the table; the limits' own window is 60 s in any case.
        workers: That share a limit.
        slots: The concurrency of each.
        background: Requests that wait at a limit, while urgent ones come.
        urgent: Of these, how many.
        urgent_gap: Seconds between two of them, on average.
        blocked: Requests that wait for the blocked deployment beside a free one.
        pairs: Of measurements without and with these.
        pair_seconds: Of each measurement.
        pauses: How often the provider answers 429.
        pause: Seconds of its Retry-After.
        ramp: Seconds after that, until all is as before: the ramp, and what has piled up.
        steps: Of a quarter of a second, in which permits and deltas are measured in a turn.
        replicas: Largest number of replicas in a process, for the costs.
        idle: Replicas that have nothing to say, and for how long that is listened to.
        idle_seconds: See there.
        death_pairs, death_seconds: Runs with limits and without, while workers are killed.
        all_deaths, death_gap: How often all workers are killed at once, and seconds until they are again.
    """

    minute: float = 60.0
    workers: int = 4
    slots: int = 16
    background: int = 10_000
    urgent: int = 60
    urgent_gap: float = 1.2
    blocked: int = 5_000
    pairs: int = 6
    pair_seconds: float = 6.0
    pauses: int = 10
    pause: float = 3.0
    ramp: float = 6.0
    steps: int = 24
    replicas: int = 64
    idle: int = 50
    idle_seconds: float = 30.0
    death_pairs: int = 3
    death_seconds: float = 45.0
    all_deaths: int = 12
    death_gap: float = 20.0


FULL = Plan()
SMOKE = Plan(
    minute=1.5,
    workers=2,
    slots=4,
    background=50,
    urgent=2,
    urgent_gap=0.2,
    blocked=20,
    pairs=1,
    pair_seconds=0.5,
    pauses=1,
    pause=1.0,
    ramp=0.5,
    steps=4,
    replicas=4,
    idle=3,
    idle_seconds=1.0,
    death_pairs=1,
    death_seconds=5.0,
    all_deaths=1,
    death_gap=3.0,
)
