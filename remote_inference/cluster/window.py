"""A sliding window over requests and tokens that never shows more room than there is, in bounded memory."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from ..config import RateLimits
from .base import Cost

__all__ = ["Ceilings", "SlidingWindow", "Slot"]


@dataclass(frozen=True)
class Ceilings:
    """`RateLimits` for one window, with infinity for what is not limited."""

    requests: float = math.inf
    tokens: float = math.inf
    input_tokens: float = math.inf
    output_tokens: float = math.inf
    concurrent: float = math.inf

    @classmethod
    def of(cls, limits: RateLimits) -> Ceilings:
        """The ceilings that these limits name."""
        named = (
            limits.requests_per_minute,
            limits.tokens_per_minute,
            limits.input_tokens_per_minute,
            limits.output_tokens_per_minute,
            limits.concurrent_requests,
        )
        return cls(*(math.inf if value is None else float(value) for value in named))

    def least(self, other: Ceilings) -> Ceilings:
        """The lower one of each."""
        return Ceilings(
            min(self.requests, other.requests),
            min(self.tokens, other.tokens),
            min(self.input_tokens, other.input_tokens),
            min(self.output_tokens, other.output_tokens),
            min(self.concurrent, other.concurrent),
        )


class Slot:
    """What was reserved within one grain of time. It leaves the window ``span`` seconds after its *last*
    entry."""

    __slots__ = ("first", "input_tokens", "last", "live", "output_tokens", "requests")

    def __init__(self, now: float) -> None:
        self.first = self.last = now
        self.requests = self.input_tokens = self.output_tokens = 0
        self.live = True


class SlidingWindow:
    """Sums over the last ``span`` seconds; not thread-safe.

    Entries within ``grain`` seconds share a slot, which is kept until the youngest of them is old enough. So
    the window is at times up to a grain too long, never too short, and holds at most ``span / grain + 2``
    slots.

    A cost greater than a whole limit fits when nothing of that kind is in the window: such a request is sent
    alone, and the provider decides. (To refuse it would be to trust an estimate more than the provider.)
    """

    __slots__ = ("grain", "input_tokens", "output_tokens", "requests", "slots", "span")

    def __init__(self, span: float = 60.0, grain: float = 0.25) -> None:
        self.span = span
        self.grain = grain
        self.slots: deque[Slot] = deque()
        self.requests = self.input_tokens = self.output_tokens = 0

    def forget(self, now: float) -> None:
        """Drop what is older than the span."""
        slots = self.slots
        while slots and slots[0].last + self.span <= now:
            slot = slots.popleft()
            slot.live = False
            self.requests -= slot.requests
            self.input_tokens -= slot.input_tokens
            self.output_tokens -= slot.output_tokens

    def fits(self, ceilings: Ceilings, cost: Cost) -> bool:
        """Whether the cost may be added to what the window holds."""
        return not _lacking(ceilings, cost, self.requests, self.input_tokens, self.output_tokens)

    def reserve(self, now: float, cost: Cost) -> Slot:
        """Add the cost; returns the slot, for corrections."""
        slot = self.slots[-1] if self.slots else None
        if slot is None or now - slot.first >= self.grain:
            slot = Slot(now)
            self.slots.append(slot)
        slot.last = now
        self.correct(slot, cost.requests, cost.input_tokens, cost.output_tokens)
        return slot

    def correct(self, slot: Slot, requests: int, input_tokens: int, output_tokens: int) -> None:
        """Add those differences to a slot; nothing if it has left the window."""
        if slot.live:
            slot.requests += requests
            slot.input_tokens += input_tokens
            slot.output_tokens += output_tokens
            self.requests += requests
            self.input_tokens += input_tokens
            self.output_tokens += output_tokens

    def opens_at(self, ceilings: Ceilings, cost: Cost, now: float) -> tuple[float, str]:
        """When the cost fits if nothing else comes, and what is lacking now; ``(now, "")`` where it fits."""
        requests, inputs, outputs = self.requests, self.input_tokens, self.output_tokens
        lacking = first = _lacking(ceilings, cost, requests, inputs, outputs)
        at = now
        for slot in self.slots:
            if not lacking:
                break
            requests -= slot.requests
            inputs -= slot.input_tokens
            outputs -= slot.output_tokens
            at = slot.last + self.span
            lacking = _lacking(ceilings, cost, requests, inputs, outputs)
        return at, first


def _lacking(ceilings: Ceilings, cost: Cost, requests: int, inputs: int, outputs: int) -> str:
    """The first limit that leaves no room for the cost, or ''. An empty window has room for any cost."""
    if requests and requests + cost.requests > ceilings.requests:
        return "requests"
    tokens = inputs + outputs
    if tokens and tokens + cost.input_tokens + cost.output_tokens > ceilings.tokens:
        return "tokens"
    if inputs and inputs + cost.input_tokens > ceilings.input_tokens:
        return "input_tokens"
    if outputs and outputs + cost.output_tokens > ceilings.output_tokens:
        return "output_tokens"
    return ""
