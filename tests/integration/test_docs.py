"""The examples of the documentation work as they are printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import docs_pages
import pytest

PROGRAMS = [
    page
    for page in docs_pages.PAGES
    if any(block.language == "python" and block.runs and not block.file for block in docs_pages.blocks(page))
]


@pytest.mark.parametrize("page", PROGRAMS, ids=lambda page: page.relative_to(docs_pages.ROOT).as_posix())
def test_the_python_examples_of_a_page_run_in_their_order(page: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(docs_pages.ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUTF8": "1",
    }
    environment.pop("CELERY_BROKER_URL", None)

    done = subprocess.run(
        [sys.executable, docs_pages.__file__, str(page)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr[-3000:]


def test_there_are_examples_to_run() -> None:
    assert len(PROGRAMS) >= 10
