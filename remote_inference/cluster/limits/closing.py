"""`due_of`: what of a stopped replica's rights comes free when. A pure function."""

from __future__ import annotations

from collections.abc import Iterable

from .ledger import TICKS

__all__ = ["due_of"]

SECOND = 1.5
"""Seconds by which what is told of a second may leave the window earlier: the second, and what is kept as one
moment."""


def due_of(
    held: int,
    *,
    noted: Iterable[tuple[int, int]],
    noted_at: float,
    told: Iterable[tuple[float, int]],
    span: float,
    last: float,
    now: float,
) -> list[tuple[float, int]]:
    """All that it held may be spent; of some of it is known when.

    A right is known to be spent only where it cannot have left the window meanwhile: else it may have been spent again.
    What it told counts from its last note on: before that, it may have told of rights that it has handed over since.

    Args:
        held: its rights.
        noted: what its entry in the ledger says: (tick in which they leave the window at the latest, how many).
        noted_at: when that was written; cluster time.
        told: what it has told the others: (cluster time at which they leave the window at the latest, how many).
        span: seconds of the window.
        last: when that leaves the window which it spent in the last moment before it stopped; cluster time.
        now: the cluster time.

    Returns:
        When how many come free. All else that it held comes free with the last.
    """
    known = [(tick / TICKS, amount) for tick, amount in noted if (tick - 1) / TICKS > now]
    known += [
        (time, amount) for time, amount in told if time - SECOND > now and time - SECOND >= noted_at + span
    ]
    due, left = [], held
    for time, amount in sorted(
        known, reverse=True
    ):  # if it spent more than it held, what it spent last counts
        part = min(amount, left)
        if part > 0:
            due.append((min(time, last), part))
            left -= part
    if left > 0 and last > now:
        due.append((last, left))
    return due
