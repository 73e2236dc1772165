"""`Figures`: what a batch has done so far, in numbers that take no memory."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass, field

from ..types import Completion, Priority

__all__ = ["Figures", "Part", "Quantiles"]

RATE_WINDOW = 10.0
"""Seconds over which tokens a second are shown."""


class Quantiles:
    """Quantiles of any number of durations, right to 1 %, in a few hundred counters.

    Values are counted in bins whose borders grow by 2 %, as in DDSketch (Masson, Rim and Lee, VLDB 2019).
    """

    _LOG = math.log(1.02)
    _LEAST = 1e-6

    def __init__(self) -> None:
        self._bins: dict[int, int] = {}
        self.count = 0

    def add(self, seconds: float) -> None:
        """Count one."""
        index = math.ceil(math.log(max(seconds, self._LEAST)) / self._LOG)
        self._bins[index] = self._bins.get(index, 0) + 1
        self.count += 1

    def at(self, share: float) -> float | None:
        """The value that ``share`` of all are not above; None without any."""
        wanted = share * (self.count - 1)
        seen = 0
        for index in sorted(self._bins):
            seen += self._bins[index]
            if seen > wanted:
                return math.exp((index - 0.5) * self._LOG)
        return None


@dataclass
class Part:
    """The figures of one priority."""

    completed: int = 0
    failed: int = 0
    retried: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    priced: bool = False
    queued: Quantiles = field(default_factory=Quantiles)
    first_token: Quantiles = field(default_factory=Quantiles)
    total: Quantiles = field(default_factory=Quantiles)

    def add(self, completion: Completion) -> None:
        """Count an answer."""
        self.completed += 1
        self.retried += completion.attempts - 1
        self.prompt_tokens += completion.usage.prompt_tokens
        self.completion_tokens += completion.usage.completion_tokens
        if completion.cost_usd is not None:
            self.cost_usd += completion.cost_usd
            self.priced = True
        self.queued.add(completion.timings.queued)
        if completion.timings.first_token is not None:
            self.first_token.add(completion.timings.first_token)
        self.total.add(completion.timings.total)


class Figures:
    """Counted by the batch, read by the display, from different threads.

    Attributes:
        lines: of the input, None while they cannot be known (a pipe).
        already: lines whose result was there before.
        bad: lines that could not be sent.
        failed: lines that ended in an error.
        completed: lines that got their answer.
        outstanding: submitted, and not answered.
        parts: by priority.
    """

    def __init__(self, lines: int | None, started: float) -> None:
        self.lines = lines
        self.started = started
        self.already = 0
        self.bad = 0
        self.failed = 0
        self.completed = 0
        self.outstanding = 0
        self.retried = 0
        self.all = Part()
        self.parts: dict[Priority, Part] = {}
        self._streamed = 0
        self._marks: deque[tuple[float, int]] = deque([(started, 0)])
        self._lock = threading.Lock()

    @property
    def done(self) -> int:
        """Lines that are dealt with, in whatever way."""
        return self.already + self.bad + self.failed + self.completed

    def streamed(self, tokens: int) -> None:
        """So many more tokens have come, by rule of thumb; negative where they were void."""
        self._streamed += tokens

    def answered(self, completion: Completion, priority: Priority, guessed: int) -> None:
        """A line has its answer; ``guessed`` tokens of it were told to `streamed`."""
        with self._lock:
            self.completed += 1
            self.outstanding -= 1
            self.retried += completion.attempts - 1
            self._streamed += completion.usage.completion_tokens - guessed
            for part in (self.all, self.parts.setdefault(priority, Part())):
                part.add(completion)

    def ended(self, priority: Priority, attempts: int) -> None:
        """A line ended in an error."""
        with self._lock:
            self.failed += 1
            self.outstanding -= 1
            retried = max(0, attempts - 1)
            self.retried += retried
            for part in (self.all, self.parts.setdefault(priority, Part())):
                part.failed += 1
                part.retried += retried

    def tokens_per_second(self, now: float) -> float:
        """Of late."""
        marks = self._marks
        if now - marks[-1][0] >= 0.25:
            marks.append((now, self._streamed))
        while len(marks) > 2 and marks[1][0] <= now - RATE_WINDOW:
            marks.popleft()
        then, tokens = marks[0]
        return max(0.0, (self._streamed - tokens) / (now - then)) if now > then else 0.0

    def seconds_left(self, now: float) -> float | None:
        """When it would be through at the pace so far; None where that cannot be told."""
        ended = self.completed + self.failed
        if self.lines is None or not ended or now <= self.started:
            return None
        return max(0, self.lines - self.done) * (now - self.started) / ended
