"""The demo's way, from a file of prompts to a real language model's answers, with nothing faked in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo.py"
PROMPTS = ROOT / "examples" / "prompts.jsonl"

CHOSEN = ("sky", "summary", "colours")
TOKENS = 12


def demo(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEMO), "prompts.jsonl", "-o", "results.jsonl"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@pytest.mark.real_model
def test_a_real_models_answers_come_through_and_a_second_run_asks_nothing(tmp_path: Path):
    lines = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    chosen = [line for line in lines if line.get("id", line.get("custom_id")) in CHOSEN]
    for line in chosen:
        line.get("body", line)["max_tokens"] = TOKENS
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in chosen))

    first = demo(tmp_path)
    assert first.returncode == 0, first.stderr
    assert "all done: 3 lines have their result in results.jsonl" in first.stdout
    assert "3/3 done, 100 %" in first.stderr
    found = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    by_id = {record.get("custom_id", record["id"]): record for record in found}
    assert by_id.keys() == set(CHOSEN)
    for name in ("sky", "colours"):
        assert len(by_id[name]["text"].split()) > 2
        assert 0 < by_id[name]["usage"]["completion_tokens"] <= TOKENS
        assert by_id[name]["usage"]["prompt_tokens"] > 5
    body = by_id["summary"]["response"]["body"]
    assert len(body["choices"][0]["message"]["content"].split()) > 2
    assert body["choices"][0]["finish_reason"] in ("stop", "length")

    before = (tmp_path / "results.jsonl").read_bytes()
    again = demo(tmp_path)
    assert again.returncode == 0, again.stderr
    assert "nothing was asked" in again.stdout
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_the_demos_prompts_are_many_and_of_mixed_priority_and_shape():
    lines = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    assert len(lines) >= 20
    assert {line["priority"] for line in lines} == {"background", "normal", "high", "critical"}
    assert {"custom_id" in line for line in lines} == {True, False}
