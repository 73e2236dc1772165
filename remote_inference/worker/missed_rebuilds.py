"""`MissedRebuilds`: which commands to rebuild a session this replica knows, and which of them it missed on the bus.

A command goes over the bus to every worker's main process, which advances the deployment's rebuild epoch in the page
that its processes share (`shared_counters`). A worker that was cut off at that moment misses it. So each replica says
which commands it has heard of, the latest few. A replica that finds one there that the bus has not brought rebuilds for
it, once.

A command is known by its token and not by a count: two that were given on two sides of a cut are two commands, and the
same one is heard from every side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ..clock import Clock
from ..cluster import Replica, StateListener
from ..cluster.crdt import LwwRegister, Path

__all__ = ["MissedRebuilds"]

KIND = "rebuild"

GRACE = 1.0
"""Seconds for the bus to bring a command that the gossip was quicker with: else there would be two rebuilds for it."""

TOLD = 8
"""Commands that are told of; who was away for more is told of as many rebuilds as one."""

REMEMBERED = 256

_LONGEST_TOKEN = 64


class _Commands:
    """The commands for one deployment."""

    __slots__ = ("heard", "missed", "rebuilds")

    def __init__(self) -> None:
        self.heard: dict[str, None] = {}  # in the order of their coming
        self.missed: dict[str, float] = {}  # and until when the bus may bring them
        self.rebuilds = 0


class MissedRebuilds(StateListener):
    """One a process; it listens to its replica.

    Args:
        replica: where it is kept.
        clock: for the grace.
        deployments: their names; others are ignored.
    """

    kinds = frozenset({KIND})

    def __init__(self, replica: Replica, clock: Clock, deployments: Iterable[str]) -> None:
        self._replica = replica
        self._clock = clock
        self._commands = {name: _Commands() for name in deployments}
        self._next_due = math.inf
        replica.attach(self)

    def rebuild_epoch(self, deployment: str) -> int:
        """How many rebuilds the gossip has asked for: another number than before asks for a rebuild. Cheap."""
        if self._clock.monotonic() >= self._next_due:
            self._count_missed()
        commands = self._commands.get(deployment)
        return 0 if commands is None else commands.rebuilds

    def on_bus(self, deployment: str, token: str) -> None:
        """The bus has brought a command, and the worker's rebuild epoch was advanced for it."""
        commands = self._commands.get(deployment)
        if commands is None or not 0 < len(token) <= _LONGEST_TOKEN:
            return
        with self._replica.lock:
            commands.missed.pop(token, None)
            if self._remember(commands, token):
                self._say(deployment, commands)

    def _count_missed(self) -> None:
        with self._replica.lock:
            now = self._clock.monotonic()
            for commands in self._commands.values():
                due = [token for token, until in commands.missed.items() if now >= until]
                commands.rebuilds += bool(due)  # one for all of them
                for token in due:
                    del commands.missed[token]
            self._next_due = min(
                (until for commands in self._commands.values() for until in commands.missed.values()),
                default=math.inf,
            )

    # -- a part of the replica; all under its lock

    def merged(self, paths: list[Path]) -> None:
        """Others have told which commands they know."""
        now = self._clock.monotonic()
        # who only listens yet has either not begun, or was away for long: the bus will bring it nothing
        until = now if now < self._replica.life.listening_until else now + GRACE
        for path in paths:
            commands = self._commands.get(path[1]) if len(path) == 3 else None
            if commands is None:
                continue
            register = self._replica.state.get(path, LwwRegister)
            news = [token for token in _tokens(register) if self._remember(commands, token)]
            for token in news:
                commands.missed[token] = until
                self._next_due = min(self._next_due, until)
            if news:
                self._say(path[1], commands)

    def before_send(self, now: float) -> None:
        """All is said when it is known."""

    def rejoined(self, before: str) -> None:
        """Say under the new id what is known."""
        for deployment, commands in self._commands.items():
            if commands.heard:
                self._say(deployment, commands)

    def _remember(self, commands: _Commands, token: str) -> bool:
        """Whether it is news."""
        if token in commands.heard:
            return False
        commands.heard[token] = None
        while len(commands.heard) > REMEMBERED:
            del commands.heard[next(iter(commands.heard))]
        return True

    def _say(self, deployment: str, commands: _Commands) -> None:
        replica = self._replica
        entry: LwwRegister = replica.own((KIND, deployment, replica.id), LwwRegister)
        entry.set(list(commands.heard)[-TOLD:], replica.id)

    def __repr__(self) -> str:
        asked = {name: commands.rebuilds for name, commands in self._commands.items() if commands.rebuilds}
        return f"MissedRebuilds(rebuilds={asked})"


def _tokens(register: LwwRegister | None) -> list[str]:
    value: Any = None if register is None else register.value
    if not isinstance(value, list):
        return []
    return [token for token in value[-TOLD:] if type(token) is str and 0 < len(token) <= _LONGEST_TOKEN]
