"""`python -m benchmarks.cluster`: runs the cases, prints the table and writes benchmarks/out/cluster.json."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from typing import Any

from rich.console import Console

from benchmarks.cluster.cases import CASES
from benchmarks.cluster.outcome import Outcome
from benchmarks.cluster.plan import FULL, SMOKE, Plan
from benchmarks.cluster.stage import Say
from benchmarks.cluster.table import print_table, write_figures

__all__ = ["main"]


def main() -> int:
    """Run what was asked for; 1 if a case failed or, in a full run, missed a goal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=list(CASES), metavar="CASE", help="only this one; repeatable"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="everything in seconds: does it work? The figures mean nothing"
    )
    parser.add_argument("--list", action="store_true", help="the cases")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    if options.list:
        for name, case in CASES.items():
            console.print(f"{name:<14} {case.title}", highlight=False)
        return 0
    plan = SMOKE if options.smoke else FULL
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)  # so that what was started is ended too

    def say(what: str) -> None:
        console.print(what, style="dim", highlight=False)

    outcomes: list[Outcome] = []
    for name in options.only or CASES:
        began = time.monotonic()
        say(f"{name}: {CASES[name].title}")
        outcome = _run(name, plan, say)
        outcomes.append(outcome)
        say(f"  {outcome.verdict}, {time.monotonic() - began:.0f} s")
        path = write_figures(outcomes, smoke=options.smoke)  # after each: an hour is long
    print_table(outcomes, console)
    console.print(f"Figures: {path}", highlight=False)
    if options.smoke:
        return 1 if any(outcome.failed for outcome in outcomes) else 0
    return 0 if all(outcome.reached for outcome in outcomes) else 1


def _run(name: str, plan: Plan, say: Say) -> Outcome:
    """One case; what keeps it from its end does not keep the others from theirs."""
    case = CASES[name]
    try:
        return case.run(plan, say)
    except Exception as exc:
        traceback.print_exc()
        return Outcome(name=name, title=case.title, failed=f"{type(exc).__name__}: {exc}")


def _end(number: int, frame: Any) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    raise SystemExit(main())
