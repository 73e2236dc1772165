"""What the tests of the command line share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAM = "import sys; from remote_inference.cli import main; sys.exit(main())"
"""The command line, whether its script is installed or not."""


def records(path: Path) -> list[dict[str, Any]]:
    """The output's lines; a torn one fails."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def eventually(what: Callable[[], Any], timeout: float = 30.0) -> Any:
    """Wait for something to be true."""
    end = time.monotonic() + timeout
    while not (value := what()):
        assert time.monotonic() < end, "it did not become true in time"
        time.sleep(0.02)
    return value
