"""Which behaviour answers which request: rules that match, a queue used one a request, and a default."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from remote_inference.testing.behaviours import Behaviour
from remote_inference.testing.connection import ReceivedRequest

__all__ = ["Match", "Script", "Scripted"]

Scripted: TypeAlias = Behaviour | Callable[[ReceivedRequest], Behaviour]
Match: TypeAlias = str | Callable[[ReceivedRequest], bool]


class Script:
    """The newest rule that matches, else the next in the queue, else the default. Its owner locks."""

    def __init__(self, default: Scripted) -> None:
        self.default = default
        self._queue: deque[Scripted] = deque()
        self._rules: list[_Rule] = []

    def queue(self, *behaviours: Scripted) -> None:
        """Use these for the next requests that no rule takes, one each."""
        self._queue.extend(behaviours)

    def on(self, match: Match, behaviour: Scripted, times: int | None) -> None:
        """Use this one for a model, or for what a predicate picks, so many times (None: always)."""
        self._rules.append(_Rule(match, behaviour, times))

    def clear(self) -> None:
        """Back to the default."""
        self._queue.clear()
        self._rules.clear()

    def next(self, request: ReceivedRequest) -> Behaviour:
        """The behaviour for this request, which uses it up."""
        for rule in reversed(self._rules):
            if rule.takes(request):
                return _decided(rule.behaviour, request)
        return _decided(self._queue.popleft() if self._queue else self.default, request)


class _Rule:
    """One `on`."""

    def __init__(self, match: Match, behaviour: Scripted, times: int | None) -> None:
        self._match = match
        self._left = times
        self.behaviour = behaviour

    def takes(self, request: ReceivedRequest) -> bool:
        """Whether the rule is for this request; if so, one of its times is used up."""
        if self._left == 0:
            return False
        fits = request.model == self._match if isinstance(self._match, str) else self._match(request)
        if fits and self._left is not None:
            self._left -= 1
        return bool(fits)


def _decided(scripted: Scripted, request: ReceivedRequest) -> Behaviour:
    return scripted(request) if callable(scripted) else scripted
