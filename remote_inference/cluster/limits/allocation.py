"""`water_fill`: who gets how much, where all want more than there is. A pure function."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["water_fill"]


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
