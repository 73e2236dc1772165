"""`due_of`: what of a stopped replica's rights comes free when. A pure function."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .ledger import TICKS

__all__ = ["due_of"]


def due_of(
    held: int,
    noted: Iterable[tuple[int, int]],
    told: Sequence[tuple[float, int]],
    last: float,
    now: float,
) -> list[tuple[float, int]]:
    """All that it held may be spent; of some of it is known when.

    Args:
        held: its rights.
        noted: what its entry in the ledger says: (tick in which they leave the window, how many).
        told: what it has told the others: (cluster time, how many).
        last: when that leaves the window which it spent in the last moment before it stopped; cluster time.
        now: the cluster time.

    Returns:
        When how many come free; what is not among them is free now. The more is known of what it spent, the sooner all
        of it is free: what it held beyond that it may have spent unheard.
    """
    by_note = [(min(tick / TICKS, last), amount) for tick, amount in noted if tick / TICKS > now]
    by_word = [(min(time, last), amount) for time, amount in told if time > now]
    known = max(by_word, by_note, key=lambda parts: sum(amount for _, amount in parts))
    due, left = [], held
    for time, amount in sorted(
        known, reverse=True
    ):  # if it spent more than it held, what it spent last counts
        part = min(amount, left)
        if part > 0:
            due.append((time, part))
            left -= part
    if left > 0 and last > now:
        due.append((last, left))
    return due
