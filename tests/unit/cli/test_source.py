"""The input of a batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote_inference.cli import source as module
from remote_inference.cli.lines import BadLine
from remote_inference.cli.source import Source


def test_lines_are_numbered_and_empty_ones_left_out(tmp_path: Path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"one\n\n  \r\ntwo\r\nthree")
    source = Source(str(path))
    assert source.count() == 3
    assert [(number, raw.strip()) for number, raw in source if isinstance(raw, bytes)] == [
        (1, b"one"),
        (4, b"two"),
        (5, b"three"),
    ]
    source.close()


def test_a_line_without_end_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 10)
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"short\n" + b"x" * 35 + b"\nnext\n" + b"y" * 10)
    source = Source(str(path))
    found = [(number, type(raw)) for number, raw in source]
    assert found == [(1, bytes), (2, BadLine), (3, bytes), (4, BadLine)]
    source.close()
    assert Source(str(path)).count() == 4


def test_the_output_is_seen_to_be_the_input(tmp_path: Path):
    path, link = tmp_path / "in.jsonl", tmp_path / "link"
    path.touch()
    link.symlink_to(path)
    source = Source(str(path))
    assert source.is_same_file(link)
    assert not source.is_same_file(tmp_path / "other")
    source.close()
