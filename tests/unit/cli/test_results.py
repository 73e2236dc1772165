"""The output of a batch: what is kept of an earlier run, and what is mended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cli.lines import key_of
from remote_inference.cli.results import Ledger, Results

GOOD = {"id": "a", "text": "Blue.", "finish_reason": "stop", "usage": {}}
GOOD_OPENAI = {"id": "batch_req_1", "custom_id": "b", "response": {"status_code": 200}, "error": None}
FAILED = {"id": "c", "error": {"code": "server_error", "message": "x", "line": 3}}


def text_of(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def opened(path: Path, **options: Any) -> tuple[Results, Ledger]:
    ledger = Ledger()
    return Results(path, ledger, **options), ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_a_new_output_is_appended_to_line_by_line(path: Path):
    results, _ = opened(path)
    results.append(GOOD)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [GOOD]
    results.append({"id": "z", "text": "lone surrogate \ud800 and ü"})
    results.close()
    assert path.read_bytes().count(b"\n") == 2


def test_what_has_its_result_is_known_and_kept(path: Path):
    path.write_text(text_of(GOOD, GOOD_OPENAI))
    results, ledger = opened(path)
    results.close()
    assert results.kept == 2
    assert ledger.meet(key_of("a"), 1) == (True, None)
    assert ledger.meet(key_of("b"), 2) == (True, None)
    assert ledger.meet(key_of("c"), 3) == (False, None)
    assert path.read_text() == text_of(GOOD, GOOD_OPENAI)


def test_a_torn_last_line_is_cut_off(path: Path):
    path.write_text(text_of(GOOD) + '{"id":"d","text":"half an an')
    results, ledger = opened(path)
    results.append(GOOD_OPENAI)
    results.close()
    assert path.read_text() == text_of(GOOD) + text_of(GOOD_OPENAI).replace(", ", ",").replace(": ", ":")
    assert ledger.meet(key_of("d"), 1) == (False, None)


def test_a_last_line_that_only_lacks_its_end_is_kept(path: Path):
    path.write_text(text_of(GOOD)[:-1])
    results, ledger = opened(path)
    results.append(FAILED)
    results.close()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "c"]
    assert ledger.meet(key_of("a"), 1) == (True, None)


def test_errors_are_dropped_wherever_they_are_because_their_lines_are_asked_again(path: Path):
    path.write_text(text_of(FAILED, GOOD, FAILED, GOOD_OPENAI, FAILED) + '{"id"')
    path.chmod(0o640)
    results, ledger = opened(path)
    results.close()
    assert path.read_text() == text_of(GOOD, GOOD_OPENAI)
    assert path.stat().st_mode & 0o777 == 0o640
    assert ledger.meet(key_of("c"), 1) == (False, None)
    assert [file.name for file in path.parent.iterdir()] == ["out.jsonl"]


def test_an_output_that_is_no_output_is_refused_and_left_as_it_is(path: Path):
    text = '{"id": "a", "prompt": "an input"}\n'
    path.write_text(text)
    with pytest.raises(click.ClickException, match="line 1 is no result"):
        opened(path)
    assert path.read_text() == text


def test_no_resume_begins_anew(path: Path):
    path.write_text("anything at all\n")
    results, ledger = opened(path, resume=False)
    results.close()
    assert path.read_text() == ""
    assert ledger.meet(key_of("a"), 1) == (False, None)


def test_a_second_batch_into_the_same_output_is_refused(path: Path):
    first, _ = opened(path)
    with pytest.raises(click.ClickException, match="another batch"):
        opened(path)
    first.close()
    opened(path)[0].close()


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=4))
def test_a_file_cut_anywhere_keeps_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, cut: int, count: int
):
    path = tmp_path_factory.mktemp("cut") / "out.jsonl"
    records = [{"id": f"ü{i}", "text": "x" * i} for i in range(count)]
    whole = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    cut %= len(whole) + 1
    path.write_bytes(whole[:cut])
    results, ledger = opened(path)
    results.close()
    text = path.read_bytes()
    assert text == b"" or text.endswith(b"\n")
    left = [json.loads(line) for line in text.splitlines()]
    assert left == records[: len(left)]
    assert len(left) >= whole[:cut].count(b"\n")
    for index, record in enumerate(records):
        assert ledger.meet(key_of(record["id"]), 1) == (index < len(left), None)


def test_the_ledger_tells_the_line_that_had_an_id_before():
    ledger = Ledger()
    assert ledger.add_done("d")
    assert not ledger.add_done("d")
    assert ledger.meet("a", 3) == (False, None)
    assert ledger.meet("a", 9) == (False, 3)
    assert ledger.meet("d", 4) == (True, None)
    assert ledger.meet("d", 5) == (False, 4)
