"""The benchmark runs: every part, both sides, tiny. What it measures there means nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.reading import measure

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(300)
def test_a_tiny_benchmark_runs_to_its_table(broker_url, redis_url, monkeypatch):
    monkeypatch.setenv("RABBITMQ_URL", broker_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--smoke"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Goals" in done.stdout
    figures = json.loads((ROOT / "benchmarks" / "out" / "latest.json").read_text())
    assert {"fast", "paced", "crowd", "submitting_per_second", "imports", "goals"} <= figures.keys()


@pytest.mark.timeout(120)
def test_a_tiny_cluster_benchmark_runs_to_its_table(broker_url, monkeypatch):
    monkeypatch.setenv("RABBITMQ_URL", broker_url)
    cases = ("even", "pause", "sim-even", "idle")
    command = [sys.executable, "-m", "benchmarks.cluster", "--smoke"]
    for case in cases:
        command += ["--only", case]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "One limit for all workers" in done.stdout
    assert "Costs and latencies" in done.stdout
    figures = json.loads((ROOT / "benchmarks" / "out" / "cluster.json").read_text())
    assert list(figures["cases"]) == list(cases)
    even = figures["cases"]["even"]
    assert even["first"]["admitted"] + even["steady"]["admitted"] > 0


def test_reading_a_stream_costs_at_most_a_tenth_of_the_official_clients_cpu():
    """CPU of this process, in pairs one after the other; the middle one of them counts."""
    ratios = sorted(measure("official", 10) / measure("ours", 50) for _ in range(5))
    assert ratios[2] >= 10
