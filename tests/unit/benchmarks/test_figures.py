"""The arithmetic of the benchmarks: percentiles, lateness, CPU of a process tree, goals."""

from __future__ import annotations

import math
import os
import time

import pytest

from benchmarks.caller import Watch
from benchmarks.measure import percentile, ratio, tree_cpu, tree_rss
from benchmarks.report import Goal, Report, goals
from benchmarks.setting import VARIABLE, Setting
from benchmarks.streams import Figures


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 50), (95, 95), (99, 99), (100, 100)])
def test_a_percentile_is_a_value_that_was_measured(percent: float, value: float) -> None:
    assert percentile([float(number) for number in range(100, 0, -1)], percent) == value


def test_nothing_measured_is_not_a_number() -> None:
    assert math.isnan(percentile([], 50))
    assert math.isnan(ratio(1, 0))


def test_lateness_is_the_worst_token_against_the_pace() -> None:
    # At 10 tokens a second: the second on time, the third 0.5 s late, two more in one piece and back on time.
    times = iter([5.0, 5.1, 5.7, 5.4])
    watch = Watch(rate=10.0, clock=lambda: next(times))
    for count in (1, 1, 1, 2):
        watch.token(count)
    assert watch.tokens == 5
    assert watch.lateness == pytest.approx(0.5)
    assert (watch.first_at, watch.last_at) == (5.0, 5.4)


def test_cpu_and_memory_of_this_process_are_seen() -> None:
    before = tree_cpu(os.getpid())
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert tree_cpu(os.getpid()) - before >= 0.05
    assert tree_rss(os.getpid()) > 1_000_000


def test_a_setting_reaches_another_process_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(url="http://127.0.0.1:1/v1", rate=2.0, pool="gevent")
    monkeypatch.setenv(VARIABLE, setting.environment()[VARIABLE])
    assert Setting.from_environment() == setting


def figures(worker: float, caller_cpu: float) -> Figures:
    return Figures(
        worker_cpu_ms=worker,
        caller_cpu_ms=caller_cpu,
        requests_per_second=1,
        tokens_per_second=1,
        first_token_p50_ms=1,
        first_token_p95_ms=1,
        first_token_p99_ms=1,
        worker_rss_mib=1,
        caller_rss_mib=1,
        requests=1,
        failed=0,
        errors=[],
    )


def test_goals_are_ratios_of_ours_to_the_baseline() -> None:
    report = Report(fast={"ours": figures(4, 4), "baseline": figures(40, 11)})
    reached = {goal.what: goal.reached for goal in goals(report)}
    assert reached == {
        "fast: worker CPU, ours / baseline": True,
        "fast: caller CPU, ours / baseline": False,
        "fast: failed requests": True,
    }


def test_what_could_not_be_measured_is_not_reached() -> None:
    assert not Goal(what="x", value=math.nan, bound=1).reached
    assert Goal(what="x", value=5, bound=5, at_least=True).reached
