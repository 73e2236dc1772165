"""Values that replicas change apart and merge to the same: counters, a register, a set.

They are the state-based types of Shapiro, Preguiça, Baquero, Zawirski: "Conflict-free Replicated Data Types" (2011):
a merge takes the least upper bound, so it is commutative, associative and idempotent, and messages may come in any
order, twice, or late. What is sent between full states are deltas, small states of the same type that are merged the
same way, as in Almeida, Shoker, Baquero: "Delta State Replicated Data Types" (2018). A delta that is lost is made
good by the next full state.

What comes from outside is checked by `Crdt.absorb` (see the module `bounds`), so that no message can make a later
operation fail. What is put in here is checked as well, for the others would refuse it.

Not thread-safe. Nothing here reads a clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from .bounds import LARGEST, canonical, check_members, check_name, check_value

__all__ = ["Crdt", "ExpiringSet", "GCounter", "LwwRegister", "PNCounter"]


class Crdt(ABC):
    """What `CrdtMap` asks of a type. Each is made empty, and says nothing as long as it is."""

    __slots__ = ()

    code: ClassVar[str]
    """Names the type on the wire, in one letter."""

    @abstractmethod
    def full(self) -> Any:
        """The whole value as JSON, or None while it is empty."""

    @abstractmethod
    def delta(self) -> Any:
        """What was changed here (not merged) since the last call, as JSON; None for nothing."""

    @abstractmethod
    def absorb(self, value: object) -> bool:
        """Merge what another replica's `full` or `delta` gave, all of it or nothing. Whether that changed anything.

        Raises:
            ValueError: it is malformed, or passes a bound.
        """


class GCounter(Crdt):
    """A counter that only grows: each replica counts for itself, and the value is the sum.

    On the wire: ``{replica: count}``.
    """

    __slots__ = ("_fresh", "counts")

    code = "g"

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._fresh: set[str] = set()

    @property
    def value(self) -> int:
        """The sum over all replicas."""
        return sum(self.counts.values())

    def add(self, replica: str, n: int) -> None:
        """Count for that replica.

        Raises:
            ValueError: ``n`` is negative or too large, or the replica's name is no name.
        """
        if n < 0:
            raise ValueError(f"a counter that only grows cannot take {n}")
        if _grow(self.counts, replica, n):
            self._fresh.add(replica)

    def drop(self, replica: str) -> None:
        """Forget that replica's count. It comes back if one who has it sends it again."""
        self.counts.pop(replica, None)
        self._fresh.discard(replica)

    def merge(self, other: GCounter) -> bool:
        """Take the greater count of each replica. Whether anything changed."""
        return self.absorb(other.counts)

    def full(self) -> dict[str, int] | None:
        return dict(self.counts) or None

    def delta(self) -> dict[str, int] | None:
        if not self._fresh:
            return None
        counts = {replica: self.counts[replica] for replica in sorted(self._fresh)}
        self._fresh.clear()
        return counts

    def absorb(self, value: object) -> bool:
        if type(value) is not dict:
            raise ValueError("not an object")
        grown = _greater(self.counts, value)
        if not grown:
            return False
        self.counts.update(grown)
        return True

    def __repr__(self) -> str:
        return f"GCounter({self.counts!r})"


class PNCounter(Crdt):
    """A counter that goes up and down: two that only grow, and the value is their difference.

    Where the whole has one writer, each count may as well be of another thing (`of`).

    On the wire: ``{replica: [up, down]}``. The pair is the replica's whole count, not the difference since the last
    message, so it may come twice.
    """

    __slots__ = ("_fresh", "down", "up")

    code = "p"

    def __init__(self) -> None:
        self.up: dict[str, int] = {}
        self.down: dict[str, int] = {}
        self._fresh: set[str] = set()

    @property
    def value(self) -> int:
        """What went up less what went down, over all replicas."""
        return sum(self.up.values()) - sum(self.down.values())

    def of(self, replica: str) -> int:
        """What went up less what went down of that replica's."""
        return self.up.get(replica, 0) - self.down.get(replica, 0)

    def all_of(self, names: Iterable[str]) -> list[int]:
        """`of` each of them, or 0 where it is less."""
        up, down = self.up, self.down
        if not down:
            return [up.get(name, 0) for name in names]
        return [max(0, up.get(name, 0) - down.get(name, 0)) for name in names]

    def add(self, replica: str, n: int) -> None:
        """Count for that replica, down if ``n`` is negative.

        Raises:
            ValueError: ``n`` is too large, or the replica's name is no name.
        """
        if _grow(self.up if n >= 0 else self.down, replica, abs(n)):
            self._fresh.add(replica)

    def merge(self, other: PNCounter) -> bool:
        """Take the greater counts of each replica. Whether anything changed."""
        return self.absorb(other._pairs(other.up.keys() | other.down.keys()))

    def full(self) -> dict[str, list[int]] | None:
        return self._pairs(self.up.keys() | self.down.keys()) or None

    def delta(self) -> dict[str, list[int]] | None:
        if not self._fresh:
            return None
        pairs = self._pairs(self._fresh)
        self._fresh.clear()
        return pairs

    def absorb(self, value: object) -> bool:
        if type(value) is not dict:
            raise ValueError("not an object")
        ups, downs = self.up, self.down
        up: dict[str, int] = {}
        down: dict[str, int] = {}
        for replica, pair in value.items():
            if type(pair) is not list or len(pair) < 2:
                raise ValueError("not a pair of counts")
            rise, fall = pair[0], pair[1]
            if (
                type(rise) is not int
                or type(fall) is not int
                or not (0 <= rise <= LARGEST and 0 <= fall <= LARGEST)
            ):
                raise ValueError("not a count")
            if replica not in ups and replica not in downs:
                check_name(replica)
            if rise > ups.get(replica, 0):
                up[replica] = rise
            if fall > downs.get(replica, 0):
                down[replica] = fall
        if up:  # checked whole before any of it counts
            check_members(ups, up)
        if down:
            check_members(downs, down)
        ups.update(up)
        downs.update(down)
        return bool(up or down)

    def _pairs(self, replicas: Iterable[str]) -> dict[str, list[int]]:
        return {replica: [self.up.get(replica, 0), self.down.get(replica, 0)] for replica in sorted(replicas)}

    def __repr__(self) -> str:
        return f"PNCounter(up={self.up!r}, down={self.down!r})"


class LwwRegister(Crdt):
    """One JSON value; of two, the one with the later stamp wins. None before the first.

    A stamp is a Lamport clock, ``(counter, replica)``: one more than the greatest seen, so it follows what its writer
    knew, whatever the wall clocks say. Two writers who did not know of each other are ordered by their ids. Equal
    stamps with different values come only from a broken writer; then the value whose JSON text is greater wins.

    A value is never changed in place, but set anew. On the wire: ``[counter, replica, value]``.
    """

    __slots__ = ("_fresh", "stamp", "value")

    code = "l"

    def __init__(self) -> None:
        self.value: Any = None
        self.stamp = (0, "")
        self._fresh = False

    def set(self, value: Any, replica: str) -> None:
        """Write a value (JSON: no tuples) that follows the one seen here.

        A counter that a broken peer drove to `LARGEST` stays there, and then the tie decides which value remains.

        Raises:
            ValueError: the value is not JSON, too deep or too long, or the replica's name is no name.
        """
        check_name(replica)
        if self._take((min(self.stamp[0] + 1, LARGEST), replica), value):
            self._fresh = True

    def merge(self, other: LwwRegister) -> bool:
        """Take the value with the later stamp. Whether anything changed."""
        return bool(other.stamp[0]) and self._take(other.stamp, other.value)

    def full(self) -> list[Any] | None:
        return [*self.stamp, self.value] if self.stamp[0] else None

    def delta(self) -> list[Any] | None:
        if not self._fresh:
            return None
        self._fresh = False
        return self.full()

    def absorb(self, value: object) -> bool:
        if type(value) is not list or len(value) < 3:
            raise ValueError("not a stamped value")
        counter, replica = value[0], value[1]
        if type(counter) is not int or not 1 <= counter <= LARGEST:
            raise ValueError("not a stamp")
        known, writer = self.stamp
        if replica != writer:
            check_name(replica)
        if counter <= known:
            return self._take((counter, replica), value[2])
        check_value(value[2])
        self.stamp, self.value = (counter, replica), value[2]
        return True

    def _take(self, stamp: tuple[int, str], value: Any) -> bool:
        check_value(value)
        if stamp < self.stamp:
            return False
        # repr tells 1 from True, as JSON does and == does not.
        if stamp == self.stamp and (
            repr(value) == repr(self.value) or canonical(value) <= canonical(self.value)
        ):
            return False
        self.stamp = stamp
        self.value = value
        return True

    def __repr__(self) -> str:
        return f"LwwRegister({self.value!r}, stamp={self.stamp!r})"


class ExpiringSet(Crdt):
    """A set that only grows, whose elements are in it until a time. Of several ends the latest holds.

    The times of one set are on one clock, whichever that is. Who forgets an element may hear of it again from one who
    has not: it is as old as before. On the wire: ``{element: until}``.
    """

    __slots__ = ("_fresh", "until")

    code = "s"

    def __init__(self) -> None:
        self.until: dict[str, float] = {}
        self._fresh: set[str] = set()

    def add(self, element: str, until: float) -> None:
        """Put it in until then, or longer if it is in already.

        Raises:
            ValueError: ``until`` is not a number within bounds, or the element is no name.
        """
        later = self._later({element: until})
        self.until.update(later)
        self._fresh.update(later)

    def live(self, now: float) -> set[str]:
        """The elements whose end has not come."""
        return {element for element, until in self.until.items() if until > now}

    def forget(self, now: float) -> None:
        """Drop those whose end has come."""
        for element in [element for element, until in self.until.items() if until <= now]:
            del self.until[element]
            self._fresh.discard(element)

    def merge(self, other: ExpiringSet) -> bool:
        """Take the later end of each element. Whether anything changed."""
        return self.absorb(other.until)

    def full(self) -> dict[str, float] | None:
        return dict(self.until) or None

    def delta(self) -> dict[str, float] | None:
        if not self._fresh:
            return None
        ends = {element: self.until[element] for element in sorted(self._fresh)}
        self._fresh.clear()
        return ends

    def absorb(self, value: object) -> bool:
        if type(value) is not dict:
            raise ValueError("not an object")
        later = self._later(value)
        check_members(self.until, later)
        self.until.update(later)
        return bool(later)

    def _later(self, ends: dict[str, float]) -> dict[str, float]:
        until = self.until
        later: dict[str, float] = {}
        for element, end in ends.items():
            # Not a number (nan) is not within any bounds.
            if (type(end) is not float and type(end) is not int) or not -LARGEST <= end <= LARGEST:
                raise ValueError("not a time")
            if element not in until:
                check_name(element)
            elif end <= until[element]:
                continue
            # As a float, and never as -0.0, which equals 0.0 but is written differently.
            later[element] = end + 0.0
        return later

    def __repr__(self) -> str:
        return f"ExpiringSet({self.until!r})"


def _greater(known: dict[str, int], coming: dict[str, Any]) -> dict[str, int]:
    """Those counts that are greater than the known ones."""
    greater: dict[str, int] = {}
    new = False
    for replica, n in coming.items():
        if type(n) is not int or not 0 <= n <= LARGEST:
            raise ValueError("not a count")
        have = known.get(replica)
        if have is None:
            check_name(replica)
            if n:
                greater[replica] = n
                new = True
        elif n > have:
            greater[replica] = n
    if new:
        check_members(known, greater)
    return greater


def _grow(counts: dict[str, int], replica: str, n: int) -> bool:
    """Add to a replica's count, up to `LARGEST`. Whether that changed it."""
    check_name(replica)
    if type(n) is not int or n > LARGEST:
        raise ValueError(f"cannot count {n!r}")
    before = counts.get(replica, 0)
    after = min(before + n, LARGEST)
    if after == before:
        return False
    counts[replica] = after
    return True
