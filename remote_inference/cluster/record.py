"""`Record`: what a replica says of its part of a ledger, and how: in a list, which newer versions lengthen."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["LARGEST", "Record", "is_news", "to_wire"]

LARGEST = 2**53
"""Of a count."""
_MOST = 1e15  # of an amount
_HUNGRY, _URGENT = 1, 2
_NUMBERS = frozenset({int, float})


def to_wire(
    *,
    plus: int,
    minus: int,
    given: int,
    taken: int,
    limit: float,
    rate: float,
    hungry: bool,
    urgent: bool,
    free: float,
    need: float,
    spare: float,
    pace: float,
    waiting: float,
    outside: float,
) -> list[Any]:
    """What `Record` reads.

    Args:
        plus, minus, given, taken: rights that it took from nobody, gave up, gave to others and took from them, ever.
        limit: what its configuration allows.
        rate: what it spends in a second; of concurrency, what is in flight.
        hungry, urgent: whether it wants more than it has; whether one waits that is urgent.
        free, need, spare: rights that it does not use; that it lacks; that it can do without.
        pace: what it spends in a second at most.
        waiting: seconds for which a request has waited.
        outside: what somebody else uses of the key, by the provider's word.
    """
    return [
        plus,
        minus,
        given,
        taken,
        None if limit == math.inf else int(limit),
        round(rate, 2),
        _URGENT if urgent else _HUNGRY if hungry else 0,
        int(free),
        math.ceil(need),
        int(spare),
        round(pace, 2),
        round(waiting, 1),
        int(outside),
    ]


def is_news(told: Any, now: Any, *, wanted: bool) -> bool:
    """Whether others have to hear that a record has become another.

    Not at once if nobody wants anything, and it is only by less than a half that there is more or less to spare: else
    a cluster in which rights come free would talk of it all the time.
    """
    if told == now:
        return False
    if wanted or type(told) is not list or len(told) != len(now):
        return True
    return any(
        not 0.5 * before <= after <= 2 * before if index in _FREE else after != before
        for index, (before, after) in enumerate(zip(told, now, strict=True))
    )


_FREE = frozenset({7, 9})
"""Where in a record ``free`` and ``spare`` are."""


class Record:
    """See `to_wire`. ``held`` are the rights it holds; ``touched``: whether it ever took some that were nobody's."""

    __slots__ = (
        "free",
        "given",
        "held",
        "hungry",
        "limit",
        "need",
        "outside",
        "pace",
        "rate",
        "spare",
        "taken",
        "touched",
        "urgent",
        "waiting",
    )

    def __init__(self, value: Any) -> None:
        """Raises ValueError: it is not what a record is."""
        try:
            plus, minus, given, taken, limit, rate, wish, free, need, spare, pace, waiting, outside = value[
                :13
            ]
        except (TypeError, ValueError):
            raise ValueError("not a record") from None
        for count in (plus, minus, given, taken):
            if type(count) is not int or not 0 <= count <= LARGEST:
                raise ValueError("not a count")
        most = 0 if limit is None else limit
        for amount in (most, rate, wish, free, need, spare, pace, waiting, outside):
            if type(amount) not in _NUMBERS or not 0 <= amount <= _MOST:
                raise ValueError("not an amount")
        self.held = plus - minus - given + taken
        if self.held < 0:
            raise ValueError("its rights do not add up")
        self.touched = plus > 0
        self.given, self.taken = given, taken
        self.limit = math.inf if limit is None else limit
        self.rate, self.hungry, self.urgent = rate, wish > 0, wish >= _URGENT
        self.free, self.need, self.spare = free, need, spare
        self.pace, self.waiting, self.outside = pace, waiting, outside
