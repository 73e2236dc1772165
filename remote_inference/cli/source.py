"""`Source`: the input of a batch, one line after another, however long the file is."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from .lines import BadLine

__all__ = ["MAX_LINE_BYTES", "Source"]

MAX_LINE_BYTES = 64 * 1024 * 1024
"""Longer than requests may be, as a rule; so a file without line ends is never read whole."""


class Source:
    """The input file, or standard input (``-``).

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, path: str) -> None:
        # a descriptor of our own: a thread that waits in sys.stdin would be in the way when the process ends
        descriptor = os.dup(sys.stdin.fileno()) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.name = "(standard input)" if path == "-" else path
        self.is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._file = os.fdopen(descriptor, "rb")

    def is_same_file(self, other: Path) -> bool:
        """Whether that path is this file."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(other))
        except FileNotFoundError:
            return False

    def count(self) -> int | None:
        """How many lines ask for something; None where that cannot be known beforehand."""
        if not self.is_file:
            return None
        try:
            return sum(1 for raw in self._raw_lines() if raw is None or raw.strip())
        finally:
            self._file.seek(0)

    def __iter__(self) -> Iterator[tuple[int, bytes | BadLine]]:
        """Line numbers and lines; empty lines are left out."""
        for number, raw in enumerate(self._raw_lines(), 1):
            if raw is None:
                yield number, BadLine(f"is longer than {MAX_LINE_BYTES} bytes")
            elif raw.strip():
                yield number, raw

    def _raw_lines(self) -> Iterator[bytes | None]:
        while raw := self._file.readline(MAX_LINE_BYTES):
            if len(raw) < MAX_LINE_BYTES or raw.endswith(b"\n"):
                yield raw
                continue
            while (rest := self._file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield None

    def close(self) -> None:
        """Close the file."""
        self._file.close()
