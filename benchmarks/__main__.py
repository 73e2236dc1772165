"""`python -m benchmarks`: runs the suite, prints the tables and writes benchmarks/out/latest.json."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import replace

from rich.console import Console

from benchmarks.baseline import Baseline
from benchmarks.crowd import crowd
from benchmarks.imports import imports
from benchmarks.plan import FULL, SMOKE
from benchmarks.report import Report, goals, print_report, write_report
from benchmarks.setting import Setting
from benchmarks.streams import SideType, fast, paced
from benchmarks.submitting import submitting

_SCENARIOS = ("fast", "paced", "crowd", "submit", "imports")


def _sides(wanted: list[str] | None) -> list[SideType]:
    """The sides asked for; `benchmarks.ours` is imported only here."""
    sides: list[SideType] = []
    for name in wanted or ["ours", "baseline"]:
        sides.append(importlib.import_module("benchmarks.ours").Ours if name == "ours" else Baseline)
    return sides


def main() -> int:
    """Run what was asked for; 1 if a request failed or, in a full run, a goal was missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Compare with a plain Celery task."
    )
    parser.add_argument(
        "--smoke", action="store_true", help="everything tiny: does it work? The figures mean nothing"
    )
    parser.add_argument(
        "--side", action="append", choices=("ours", "baseline"), help="only this one; repeatable"
    )
    parser.add_argument("--only", action="append", choices=_SCENARIOS, help="only this part; repeatable")
    parser.add_argument("--rounds", type=int, help="rounds of each comparison")
    parser.add_argument(
        "--pool", default="threads", choices=("threads", "prefork", "gevent"), help="of the workers"
    )
    parser.add_argument("--slots", type=int, help="the workers' concurrency")
    options = parser.parse_args()
    plan = SMOKE if options.smoke else FULL
    changes = {name: value for name in ("rounds", "slots") if (value := getattr(options, name)) is not None}
    plan = replace(plan, **changes)
    only = options.only or _SCENARIOS
    sides = _sides(options.side)
    setting = Setting(pool=options.pool)
    console = Console()
    report = Report()

    def say(what: str) -> None:
        console.print(what, style="dim", highlight=False)

    if "fast" in only:
        report.fast, report.first_token = fast(sides, plan, setting, say)
    if "paced" in only:
        report.paced = paced(sides, plan, setting, say)
    if "crowd" in only:
        report.crowd = crowd(sides, plan, setting, say)
    if "submit" in only:
        report.submitting = submitting(sides, plan, setting, say)
    if "imports" in only:
        report.imports = imports(plan, say)
    print_report(report, console)
    console.print(f"Figures: {write_report(report, smoke=options.smoke)}", highlight=False)
    # A baseline that fails makes a comparison worthless; in the crowd it may, that part is about us.
    parts = (report.fast, report.paced, report.crowd) if options.smoke else (report.fast, report.paced)
    failed = sum(figures.failed for part in parts for figures in part.values())
    missed = [] if options.smoke else [goal for goal in goals(report) if not goal.reached]
    return 1 if failed or missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
