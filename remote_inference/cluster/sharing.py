"""Who gets how much: pure functions over what the replicas have told of themselves."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["deal", "water_fill"]


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


def deal(spares: Sequence[int], giver: int, needs: Sequence[int]) -> list[int]:
    """What the giver of that number gives to each that needs some, where all givers reckon the same.

    What changes hands is numbered: of the givers those that can spare most have the first numbers, each taker has as
    many as are its part of what it needs. So all of them together make few gifts, not each one to everybody.
    """
    spare, wanted = sum(spares), sum(needs)
    moved = min(spare, wanted)
    mine = (-spares[giver], giver)
    begin = sum(amount for index, amount in enumerate(spares) if (-amount, index) < mine)
    end = min(begin + spares[giver], moved)
    gifts, first, upto = [], 0, 0
    for need in needs:
        upto += need
        last = -(-moved * upto // wanted) if wanted else 0
        gifts.append(max(0, min(end, last) - max(begin, first)))
        first = last
    return gifts
