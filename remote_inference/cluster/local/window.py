"""A sliding window over requests and tokens that never shows more room than there is, in bounded memory."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from ...config import RateLimits
from ...reasons import LimitReason
from ..base import Cost

__all__ = ["DIMENSIONS", "Ceilings", "SlidingWindow", "Slot"]

DIMENSIONS = ("requests", "tokens", "input_tokens", "output_tokens")
"""What is counted over a window; concurrency is not."""


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

    __slots__ = ("first", "input_tokens", "last", "live", "output_tokens", "requests", "running", "tokens")

    def __init__(self, now: float) -> None:
        self.first = self.last = now
        self.requests = self.tokens = self.input_tokens = self.output_tokens = 0
        self.live = True
        self.running = 0
        """Requests that may yet turn out to cost something else."""


class SlidingWindow:
    """Sums over the last ``span`` seconds; not thread-safe.

    Entries within ``grain`` seconds share a slot, which is kept until the youngest of them is old enough. So
    the window is at times up to a grain too long, never too short, and holds at most ``span / grain + 2``
    slots.

    A cost greater than a whole limit counts as the limit: such a request is sent when nothing else is in the
    window, and the provider decides. (To refuse it would be to trust an estimate more than the provider.)
    """

    __slots__ = ("grain", "input_tokens", "output_tokens", "requests", "slots", "span", "tokens")

    def __init__(self, span: float = 60.0, grain: float = 0.25) -> None:
        self.span = span
        self.grain = grain
        self.slots: deque[Slot] = deque()
        self.requests = self.tokens = self.input_tokens = self.output_tokens = 0

    def forget(self, now: float) -> None:
        """Drop what is older than the span."""
        slots = self.slots
        while slots and slots[0].last + self.span <= now:
            slot = slots.popleft()
            slot.live = False
            self.requests -= slot.requests
            self.tokens -= slot.tokens
            self.input_tokens -= slot.input_tokens
            self.output_tokens -= slot.output_tokens

    def reserve(self, now: float, cost: Cost) -> Slot:
        """Add the cost; returns the slot, for corrections. Whoever reserved it counts ``running`` down at its end."""
        slot = self.slots[-1] if self.slots else None
        if slot is None or now - slot.first >= self.grain:
            slot = Slot(now)
            self.slots.append(slot)
        slot.last = now
        slot.running += 1
        self.correct(slot, cost.requests, cost.input_tokens, cost.output_tokens)
        return slot

    def correct(self, slot: Slot, requests: int, input_tokens: int, output_tokens: int) -> None:
        """Add those differences to a slot; nothing if it has left the window."""
        if slot.live:
            tokens = input_tokens + output_tokens
            slot.requests += requests
            slot.tokens += tokens
            slot.input_tokens += input_tokens
            slot.output_tokens += output_tokens
            self.requests += requests
            self.tokens += tokens
            self.input_tokens += input_tokens
            self.output_tokens += output_tokens

    def hand_over(self, dimension: str, amount: int) -> list[tuple[float, int]]:
        """Count so much of a dimension no more: another one counts it until it leaves the window.

        Of each moment the same part is handed over, so that what stays comes free as evenly as before. What a request
        reserved that still runs stays here, for it will be corrected.

        Returns:
            When how much of it leaves the window; less than was asked for where there is no more.
        """
        settled = [slot for slot in self.slots if not slot.running and getattr(slot, dimension) > 0]
        whole = sum(getattr(slot, dimension) for slot in settled)
        handed, upto, told = [], 0, 0
        for slot in settled:
            held = getattr(slot, dimension)
            upto += held
            part = min(held, min(amount, whole) * upto // whole - told)
            if part > 0:
                told += part
                self._count(slot, dimension, -part)
                handed.append((slot.last + self.span, part))
        return handed

    def restore(self, dimension: str, amounts: list[tuple[float, int]]) -> None:
        """Count again what could not be handed over."""
        for leaves, amount in amounts:
            slot = Slot(leaves - self.span)
            self._count(slot, dimension, amount)
            self.slots.append(slot)
        self.slots = deque(sorted(self.slots, key=lambda slot: slot.last))

    def leaving(self, dimension: str) -> list[tuple[float, int]]:
        """When how much of a dimension leaves the window."""
        return [(slot.last + self.span, n) for slot in self.slots if (n := getattr(slot, dimension)) > 0]

    def _count(self, slot: Slot, dimension: str, amount: int) -> None:
        setattr(slot, dimension, getattr(slot, dimension) + amount)
        setattr(self, dimension, getattr(self, dimension) + amount)

    def expiring(self, dimension: str, before: float) -> int:
        """How much of a dimension leaves the window until then."""
        total = 0
        for slot in self.slots:
            if slot.last + self.span > before:
                break
            total += getattr(slot, dimension)
        return total

    def clear(self) -> None:
        """Forget all; what is corrected later was somebody else's."""
        for slot in self.slots:
            slot.live = False
        self.slots.clear()
        self.requests = self.tokens = self.input_tokens = self.output_tokens = 0

    def lacking(self, rights: Ceilings, limits: Ceilings, cost: Cost) -> LimitReason | None:
        """The first dimension in which the rights leave no room for the cost."""
        return _lacking(
            rights, limits, cost, self.requests, self.tokens, self.input_tokens, self.output_tokens
        )

    def opens_at(
        self, rights: Ceilings, limits: Ceilings, cost: Cost, now: float
    ) -> tuple[float, LimitReason | None]:
        """When the cost fits if nothing else comes, and what is lacking now; ``(now, None)`` where it fits.

        Infinity where it never does: the rights have to grow.
        """
        requests, tokens = self.requests, self.tokens
        inputs, outputs = self.input_tokens, self.output_tokens
        lacking = first = _lacking(rights, limits, cost, requests, tokens, inputs, outputs)
        at = now
        for slot in self.slots:
            if not lacking:
                break
            requests -= slot.requests
            tokens -= slot.tokens
            inputs -= slot.input_tokens
            outputs -= slot.output_tokens
            at = slot.last + self.span
            lacking = _lacking(rights, limits, cost, requests, tokens, inputs, outputs)
        return (math.inf if lacking else at), first


def _lacking(
    rights: Ceilings, limits: Ceilings, cost: Cost, requests: int, tokens: int, inputs: int, outputs: int
) -> LimitReason | None:
    if min(cost.requests, limits.requests) > rights.requests - requests:
        return LimitReason.REQUESTS
    asked_in, asked_out = cost.input_tokens, cost.output_tokens
    if min(asked_in + asked_out, limits.tokens) > rights.tokens - tokens:
        return LimitReason.TOKENS
    if min(asked_in, limits.input_tokens) > rights.input_tokens - inputs:
        return LimitReason.INPUT_TOKENS
    if min(asked_out, limits.output_tokens) > rights.output_tokens - outputs:
        return LimitReason.OUTPUT_TOKENS
    return None
