"""Who gets how much: pure functions over what the replicas have told of themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["split", "water_fill"]


def water_fill(total: float, wants: Sequence[tuple[float, float]]) -> list[float]:
    """Share ``total`` among (wanted, weight): who wants less than its weight's part gets all it wants.

    Max-min fairness (Bertsekas and Gallager, *Data Networks*, 6.5.2), weighted. Infinity wants all there is.
    """
    shares = [0.0] * len(wants)
    left, weights = total, sum(weight for _, weight in wants)
    for index in sorted(range(len(wants)), key=lambda i: wants[i][0] / wants[i][1]):
        wanted, weight = wants[index]
        shares[index] = min(wanted, left * weight / weights) if weights > 0 else 0.0
        left -= shares[index]
        weights -= weight
        if left <= 0.0:
            break
    return shares


def split(amount: int, needs: Sequence[float]) -> list[int]:
    """Split a whole amount in proportion to the needs, none getting more than it needs (rounded up)."""
    total = sum(needs)
    if total <= 0 or amount <= 0:
        return [0] * len(needs)
    part = min(1.0, amount / total)
    given = [math.floor(need * part) for need in needs]
    left = min(amount, math.ceil(total)) - sum(given)
    for index in sorted(range(len(needs)), key=lambda i: given[i] - needs[i] * part):
        if left <= 0:
            break
        if given[index] < needs[index]:
            given[index] += 1
            left -= 1
    return given
