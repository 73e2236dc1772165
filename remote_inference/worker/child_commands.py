"""Commands from a worker's main process to its prefork children: a datagram socket a child, in a private directory.

The children's answers are files in the same directory.

The main process cannot wait for a broker's round trip when its connection is the thing that was lost, and must not
have threads of its own beside a fork. A datagram on this machine needs neither.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["ChildCommands"]

logger = logging.getLogger(__name__)


class ChildCommands:
    """Made in the main process before the pool; ``listen`` and ``report`` in each child, the rest in the main one."""

    def __init__(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="remote-inference-")  # readable by this user alone
        self._reports = os.path.join(self._directory, "reports")
        os.mkdir(self._reports)
        self._owner = os.getpid()

    def listen(self, on_command: Callable[[dict[str, Any]], None]) -> None:
        """Hear commands in this child, in a thread of its own."""
        path = self._path(os.getpid())
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        sock.bind(path)

        def run() -> None:
            while True:
                command = sock.recv(4096)
                try:
                    on_command(json.loads(command))
                except Exception:  # one bad command must not make the child deaf
                    logger.exception("child commands: a command could not be handled")

        threading.Thread(target=run, name="inference-commands", daemon=True).start()

    def send(self, pid: int, command: dict[str, Any]) -> bool:
        """Tell the child; whether it could be told."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(0.2)
                sock.sendto(json.dumps(command).encode(), self._path(pid))
            return True
        except OSError:
            return False

    def send_all(self, command: dict[str, Any]) -> int:
        """Tell all children; how many could be told."""
        try:
            names = [name for name in os.listdir(self._directory) if name.isdigit()]
        except FileNotFoundError:  # closed: the worker ends
            return 0
        told = 0
        for name in names:
            if self.send(int(name), command):
                told += 1
            else:
                try:
                    os.unlink(os.path.join(self._directory, name))  # of a child that is no more
                except OSError:
                    pass
        return told

    def report(self, number: int, report: dict[str, Any]) -> None:
        """In a child: say how it is, since the main process has asked by that command."""
        path = os.path.join(self._reports, str(os.getpid()))
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump({"number": number, "report": report}, file)
        os.replace(path + ".new", path)  # whoever reads has the one or the other, whole

    def reports(self, number: int) -> dict[str, dict[str, Any]]:
        """What the children have said to that command, or one that came after it, by process id."""
        found: dict[str, dict[str, Any]] = {}
        try:
            names = sorted((name for name in os.listdir(self._reports) if name.isdigit()), key=int)
        except FileNotFoundError:  # closed: the worker ends
            return found
        for name in names:
            path = os.path.join(self._reports, name)
            with open(path, encoding="utf-8") as file:
                said = json.load(file)
            if said["number"] >= number:
                found[name] = said["report"]
            else:
                os.unlink(path)  # of a child that is no more, or has not answered: it writes a new one
        return found

    def close(self) -> None:
        """Remove the directory (main process only)."""
        if os.getpid() == self._owner:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _path(self, pid: int) -> str:
        return os.path.join(self._directory, str(pid))
