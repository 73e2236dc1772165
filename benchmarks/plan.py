"""How large the benchmarks are: the full run, and a tiny one that only shows that everything works."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "SMOKE", "Plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes.

    Attributes:
        rounds: Of each comparison, the sides taking turns at being first.
        tokens: Of a stream.
        slots: The workers' concurrency, and the callers' threads.
        fast_requests: A round.
        paced_requests: A round, at `paced_rate` tokens a second.
        first_token_seconds: How long requests arrive while the time to the first token is measured.
        crowd: Concurrent streams in one gevent worker.
        crowd_rate: Tokens a second of each.
        crowd_tokens: Of each; at that rate they must last well beyond `crowd_ramp`.
        crowd_ramp: Seconds in which they begin.
        submits: Requests a round.
        imports: Processes started for each import.
    """

    rounds: int = 3
    tokens: int = 100
    slots: int = 32
    fast_requests: int = 320
    paced_requests: int = 160
    paced_rate: float = 50.0
    first_token_seconds: float = 15.0
    crowd: int = 1000
    crowd_rate: float = 2.0
    crowd_tokens: int = 60
    crowd_ramp: float = 15.0
    submits: int = 2000
    imports: int = 31


FULL = Plan()
SMOKE = Plan(
    rounds=1,
    tokens=10,
    slots=4,
    fast_requests=16,
    paced_requests=8,
    first_token_seconds=0.5,
    crowd=20,
    crowd_rate=10.0,
    crowd_tokens=10,
    crowd_ramp=0.2,
    submits=50,
    imports=2,
)
