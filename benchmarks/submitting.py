"""Submitting where nobody answers: a loop of `apply_async` with confirms, and our `submit_many`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.measure import median
from benchmarks.plan import Plan
from benchmarks.setting import Setting
from benchmarks.streams import Say, SideType

__all__ = ["submitting"]


def submitting(types: Sequence[SideType], plan: Plan, setting: Setting, say: Say) -> dict[str, float]:
    """Requests a second for each side: the median over the rounds, the sides taking turns."""
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        sides = []
        for make in types:
            side = make(setting.but(url="http://127.0.0.1:9/v1"))
            stack.callback(side.stop)
            side.start(worker=False)
            side.submit(10)
            sides.append(side)
        for number in range(plan.rounds):
            for side in sides if number % 2 == 0 else list(reversed(sides)):
                say(f"submitting: round {number + 1} of {plan.rounds}, {side.name}")
                rates.setdefault(side.name, []).append(plan.submits / side.submit(plan.submits))
    return {name: median(values) for name, values in rates.items()}
