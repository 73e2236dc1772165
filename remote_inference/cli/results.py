"""`Results`: the output of a batch, from which it can be resumed, and the ids that it has.

Ids are kept in a private temporary SQLite database, which goes to the disk when it grows: a file of a million lines
needs no memory for them, and no id is taken for another.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import click

from .lines import key_of

__all__ = ["Ledger", "Results"]

COMMIT_EVERY = 10_000
"""Ids between two commits: a transaction's journal is not to grow with the file."""


class Ledger:
    """Ids of lines: those that have their result, and those that the input has shown so far. For one thread."""

    def __init__(self) -> None:
        # "" is a temporary database of this connection's own; made in one thread, used in another, never in both
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-8000"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute("CREATE TABLE ids (key TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID")
        self._database.execute("BEGIN")
        self._changes = 0

    def add_done(self, key: str) -> bool:
        """The output has this line's result. Whether that is news."""
        cursor = self._database.execute("INSERT OR IGNORE INTO ids VALUES (?, NULL)", (key,))
        self._changed()
        return cursor.rowcount == 1

    def meet(self, key: str, line: int) -> tuple[bool, int | None]:
        """The input has this id in that line: whether its result is there, and the line that had it before."""
        row = self._database.execute("SELECT line FROM ids WHERE key = ?", (key,)).fetchone()
        if row is None:
            self._database.execute("INSERT INTO ids VALUES (?, ?)", (key, line))
            self._changed()
            return False, None
        if row[0] is not None:
            return False, int(row[0])
        self._database.execute("UPDATE ids SET line = ? WHERE key = ?", (line, key))
        self._changed()
        return True, None

    def close(self) -> None:
        """Forget them."""
        self._database.close()

    def _changed(self) -> None:
        self._changes += 1
        if self._changes % COMMIT_EVERY == 0:
            self._database.execute("COMMIT")
            self._database.execute("BEGIN")


class Results:
    """The output file: opened for this process alone, mended, and appended to.

    What it has of an earlier run is kept, but for error records (their lines are asked again) and a last line
    that was cut off.

    Args:
        path: the file; made if it is not there.
        ledger: told the ids that have their result.
        resume: False: what the file has is thrown away.

    Raises:
        click.ClickException: it is another process's output, or no output of a batch.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, ledger: Ledger, *, resume: bool = True) -> None:
        self.path = path
        self.kept = 0
        self.dropped = 0
        self._file = self._open(path)
        try:
            if not resume:
                self._file.truncate(0)
            self._take_stock(ledger)
        except BaseException:
            self._file.close()
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line. It is with the operating system when this returns."""
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"
        self._file.write(line.encode("utf-8", "backslashreplace"))
        self._file.flush()

    def close(self) -> None:
        """Have it on the disk."""
        if not self._file.closed:
            self._file.flush()
            try:
                os.fsync(self._file.fileno())
            except OSError:  # a pipe or a device has no disk
                pass
            self._file.close()

    @staticmethod
    def _open(path: Path) -> BinaryIO:
        # not "a+b": a torn end is to be written over
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        file = os.fdopen(descriptor, "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            file.close()
            raise click.ClickException(f"{path}: another batch is writing to it") from exc
        except OSError:  # a file system without locks
            pass
        return file

    def _take_stock(self, ledger: Ledger) -> None:
        """Read what is there; if it has lines that are not to stay, go on with a copy without them."""
        good_end = 0
        number = 0
        for number, raw in enumerate(self._file, 1):
            verdict = self._judge(raw, number, ledger)
            if verdict is None:  # the torn last line
                self.dropped += 1
                break
            if verdict and not self.dropped:
                good_end += len(raw)
            elif not verdict:
                self.dropped += 1
        if number and self.dropped:
            self._copy_the_good(good_end)
        self._file.seek(0, os.SEEK_END)
        if self._file.tell():
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":  # whole, but for the line's end
                self._file.write(b"\n")

    def _judge(self, raw: bytes, number: int, ledger: Ledger | None) -> bool | None:
        """Whether a line stays; None for one that was cut off."""
        try:
            record = json.loads(raw)
        except ValueError:
            record = None
            if not raw.endswith(b"\n"):
                return None
            if not raw.strip(b"\0\r\n\t "):  # blocks that a crash left empty
                return False
        if not isinstance(record, dict) or not ("id" in record and ("error" in record or "text" in record)):
            raise click.ClickException(
                f"{self.path}: line {number} is no result of a batch: "
                "name another output, or write over it with --no-resume"
            )
        if record.get("error") is not None:
            return False
        line_id = record["custom_id"] if "custom_id" in record else record["id"]
        if ledger is not None and ledger.add_done(key_of(line_id)):
            self.kept += 1
        return True

    def _copy_the_good(self, good_end: int) -> None:
        """Leave out what is not to stay: at the end by cutting it off, else by a copy that takes the file's place."""
        self._file.seek(good_end)
        rest_is_good = False
        for number, raw in enumerate(self._file, 1):
            if self._judge(raw, number, None):
                rest_is_good = True
                break
        if not rest_is_good:
            self._file.truncate(good_end)
            return
        copy_path = self.path.with_name(self.path.name + ".tmp")
        copy = self._open(copy_path)
        try:
            copy.truncate(0)
            os.fchmod(copy.fileno(), os.fstat(self._file.fileno()).st_mode & 0o7777)
            self._file.seek(0)
            for number, raw in enumerate(self._file, 1):
                if self._judge(raw, number, None):
                    copy.write(raw)
            copy.flush()
            os.fsync(copy.fileno())
            os.replace(copy_path, self.path)
        except BaseException:
            copy.close()
            raise
        self._file.close()
        self._file = copy
