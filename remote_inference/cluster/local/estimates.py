"""What a request will really cost: `TokenEstimates` learns, for each limit key, how far the estimates are off.

Prompts are estimated by their bytes and answers by the most that they may be. Both are off by a factor that depends
on the model, the language and what is asked, and hardly on the single request: so the ratio of real to estimated is
learned from finished requests, as a ratio of sums (the tokens of many requests are what has to add up, not each of
them). Old requests fade. Answers are told apart by the size of their estimate, in steps of four: who allows 4,096
tokens uses a smaller part of them than who allows 16.

A new key begins with the assumption that twice as much is used: in the first second, when nothing has come back yet,
a limit is rather used by half than passed. The assumption counts as one request at first, as half a request when two
are known, and so on.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from typing import Any

from ..base import Cost, LimitKey

__all__ = ["TokenEstimates"]

_FIRST_RATIO = 2.0
_MEMORY = 0.99  # of what was known, a finished request later: some hundred requests count
_INPUT_BOUNDS = (1 / 8, 8.0)
_OUTPUT_BOUNDS = (1 / 64, 8.0)  # a bound for the answer's length is often far away
_GROUPS = 16
_LARGEST = 2.0**53

_Sums = list[float]  # [requests, estimated tokens, real tokens], faded


class _Key:
    """What is known of one key: the prompts' sums first, then those of the answers by group."""

    __slots__ = ("others", "own")

    def __init__(self) -> None:
        self.own: dict[int, _Sums] = {}
        self.others: dict[int, _Sums] = {}

    def ratio(self, group: int, bounds: tuple[float, float]) -> float:
        mine, theirs = self.own.get(group), self.others.get(group)
        count, estimated, real = mine or (0.0, 0.0, 0.0)
        if theirs is not None:
            count, estimated, real = count + theirs[0], estimated + theirs[1], real + theirs[2]
        if count < 1 or not estimated:
            return _FIRST_RATIO
        assumed = estimated / count**2  # one request's tokens at first, and less with each that is known
        ratio = (real + _FIRST_RATIO * assumed) / (estimated + assumed)
        return min(max(ratio, bounds[0]), bounds[1])


class TokenEstimates:
    """Corrects estimates by what earlier requests turned out to be. Safe to use from threads.

    Several processes share what they learned: each tells its own sums (`to_wire`) and takes in those of the others
    (`merged`), which replace what it had of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[LimitKey, _Key] = {}

    def cost(self, key: LimitKey, raw: Cost, *, most: int | None = None) -> Cost:
        """What to reserve for a request.

        Args:
            key: Where it goes.
            raw: The estimate as it was made, without anything learned.
            most: Tokens that the answer cannot pass (``max_tokens``).
        """
        with self._lock:
            known = self._keys.get(key) or _NOTHING
            prompt = known.ratio(0, _INPUT_BOUNDS)
            answer = known.ratio(_group(raw.output_tokens), _OUTPUT_BOUNDS)
        outputs = math.ceil(raw.output_tokens * answer)
        return Cost(
            math.ceil(raw.input_tokens * prompt),
            outputs if most is None else min(outputs, most),
            raw.requests,
        )

    def learn(self, key: LimitKey, raw: Cost, actual: Cost) -> None:
        """A request is finished, whole: what it was estimated at, and what it was."""
        with self._lock:
            own = self._keys.setdefault(key, _Key()).own
            _add(own, 0, raw.input_tokens, actual.input_tokens, _INPUT_BOUNDS)
            _add(own, _group(raw.output_tokens), raw.output_tokens, actual.output_tokens, _OUTPUT_BOUNDS)

    def keys(self) -> list[LimitKey]:
        """Of which something was learned here."""
        with self._lock:
            return [key for key, known in self._keys.items() if known.own]

    def to_wire(self, key: LimitKey) -> dict[str, list[float]]:
        """What was learned here of the key: JSON for `merged`."""
        with self._lock:
            known = self._keys.get(key)
            own = known.own if known is not None else {}
            return {str(group): [float(f"{value:.6g}") for value in sums] for group, sums in own.items()}

    def merged(self, key: LimitKey, others: Iterable[Any]) -> None:
        """Take in what the other processes told of the key, all of them. What is malformed is passed over."""
        total: dict[int, _Sums] = {}
        for told in others:
            for group, sums in _checked(told):
                seen = total.setdefault(group, [0.0, 0.0, 0.0])
                for index, value in enumerate(sums):
                    seen[index] += value
        with self._lock:
            self._keys.setdefault(key, _Key()).others = total

    def ratios(self, key: LimitKey) -> dict[str, float]:
        """Real by estimated, for a status page: of prompts, and of answers by the estimate they had."""
        with self._lock:
            known = self._keys.get(key) or _NOTHING
            groups = sorted({*known.own, *known.others})
            return {
                "input" if group == 0 else f"output<{4**group}": round(
                    known.ratio(group, _OUTPUT_BOUNDS if group else _INPUT_BOUNDS), 3
                )
                for group in groups
            }

    def __repr__(self) -> str:
        return f"TokenEstimates({len(self._keys)} keys)"


_NOTHING = _Key()


def _group(tokens: int) -> int:
    """1 for estimates below 4, 2 below 16, and so on."""
    return min((max(tokens, 1).bit_length() + 1) // 2, _GROUPS)


def _add(own: dict[int, _Sums], group: int, estimated: int, real: int, bounds: tuple[float, float]) -> None:
    if estimated <= 0 or real < 0:
        return
    sums = own.setdefault(group, [0.0, 0.0, 0.0])
    sums[0] = sums[0] * _MEMORY + 1.0
    sums[1] = sums[1] * _MEMORY + estimated
    # Bounded one by one too: a single absurd figure must not outvote a hundred.
    sums[2] = sums[2] * _MEMORY + min(max(real, estimated * bounds[0]), estimated * bounds[1])


def _checked(told: Any) -> Iterable[tuple[int, _Sums]]:
    for name, sums in told.items() if isinstance(told, dict) else ():
        if not (isinstance(name, str) and name.isascii() and name.isdecimal() and int(name[:3]) <= _GROUPS):
            continue
        if not isinstance(sums, list) or len(sums) < 3:
            continue
        values = sums[:3]
        if all(type(value) in (int, float) and 0 <= value <= _LARGEST for value in values):
            yield int(name[:3]), [float(value) for value in values]
