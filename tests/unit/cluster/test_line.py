"""Who waits for a permit of a key, and who is next."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cluster import Cost
from remote_inference.cluster.line import Line, Standing, Waiter
from remote_inference.types import Priority

N, H, C = Priority.NORMAL, Priority.HIGH, Priority.CRITICAL


class Deployment(Standing[str]):
    """With a bound of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.closed = False

    @property
    def full(self) -> bool:
        return self.closed


class Purse:
    """Room for so many tokens; what each permit took is written down."""

    def __init__(self, left: int, *names: str) -> None:
        self.left = left
        self.full = False
        self.all = {name: Deployment(name) for name in names or ("a", "b")}
        self.taken: list[str] = []
        self.due_at = math.inf

    def standings(self) -> Iterator[Standing[str]]:
        return iter(self.all.values())

    def take(self, standing: Standing[str], cost: Cost, now: float, urgent: bool) -> str | None:
        if cost.tokens > self.left:
            return None
        self.left -= cost.tokens
        self.taken.append(standing.name)
        return f"{standing.name}: {cost.tokens}"

    def due(self, standing: Standing[str], cost: Cost, now: float, urgent: bool) -> tuple[float, str]:
        return self.due_at, "tokens"


def join(line: Line[str], purse: Purse, name: str, tokens: int, priority: Priority = N) -> Waiter[str]:
    return line.join(purse.all[name], Cost(tokens, 0), priority)


def test_by_priority_then_by_age_over_all_deployments() -> None:
    purse = Purse(0)
    line = Line(purse)
    waiters = [
        join(line, purse, "a", 1),
        join(line, purse, "b", 1, C),
        join(line, purse, "a", 1, H),
        join(line, purse, "b", 1, H),
        join(line, purse, "a", 1, C),
    ]
    order = []
    for _ in waiters:
        purse.left = 1
        line.hand_out(0.0)
        [got] = [number for number, waiter in enumerate(waiters) if waiter.permit and number not in order]
        assert waiters[got].event.is_set()
        order.append(got)
    assert order == [1, 4, 2, 3, 0]
    assert line.waiting == 0
    assert line.leader is None


def test_what_the_leader_cannot_have_nobody_behind_it_gets() -> None:
    purse = Purse(5)
    line = Line(purse)
    big, small = join(line, purse, "a", 10), join(line, purse, "b", 1)
    line.hand_out(0.0)
    assert line.leader is big
    assert (big.permit, small.permit) == (None, None)
    purse.left = 11
    line.hand_out(1.0)
    assert (big.permit, small.permit) == ("a: 10", "b: 1")


def test_a_deployment_that_is_full_holds_up_nobody_else() -> None:
    purse = Purse(5)
    line = Line(purse)
    first, other = join(line, purse, "a", 1, C), join(line, purse, "b", 1)
    purse.all["a"].closed = True
    line.hand_out(0.0)
    assert (first.permit, other.permit) == (None, "b: 1")
    assert line.leader is None  # only the end of a running request changes anything
    purse.all["a"].closed = False
    line.hand_out(0.0)
    assert first.permit


def test_nothing_is_handed_out_while_the_key_is_full() -> None:
    purse = Purse(5)
    purse.full = True
    line = Line(purse)
    waiter = join(line, purse, "a", 1)
    line.hand_out(0.0)
    assert waiter.permit is None
    assert line.leader is None


def test_the_leader_is_woken_when_its_time_comes_earlier() -> None:
    purse = Purse(0)
    line = Line(purse)
    waiter = join(line, purse, "a", 1)
    purse.due_at = 10.0
    line.hand_out(0.0)
    assert (line.leader, waiter.wake_at) == (waiter, 10.0)
    waiter.event.clear()
    purse.due_at = 12.0
    line.hand_out(0.0)
    assert not waiter.event.is_set(), "it will look by itself"
    purse.due_at = 4.0
    line.hand_out(0.0)
    assert waiter.event.is_set()
    assert waiter.wake_at == 4.0


def test_who_leaves_makes_way() -> None:
    purse = Purse(1)
    line = Line(purse)
    big, small = join(line, purse, "a", 10), join(line, purse, "a", 1)
    line.hand_out(0.0)
    line.leave(big, 0.0)
    assert small.permit == "a: 1"
    assert line.waiting == 0


def test_all_can_be_woken() -> None:
    purse = Purse(0)
    line = Line(purse)
    waiters = [join(line, purse, name, 1) for name in "aabb"]
    line.hand_out(0.0)
    for waiter in waiters:
        waiter.event.clear()
    line.wake_all()
    assert all(waiter.event.is_set() for waiter in waiters)


@pytest.mark.parametrize(("priority", "urgent"), [(N, False), (H, True), (C, True)])
def test_who_is_urgent(priority: Priority, urgent: bool) -> None:
    purse = Purse(0)
    assert join(Line(purse), purse, "a", 1, priority).urgent is urgent


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.sampled_from("ab"), st.integers(1, 5), st.sampled_from(list(Priority))),
        st.tuples(st.just("leave"), st.integers(0, 30)),
        st.tuples(st.just("earn"), st.integers(1, 8)),
    ),
    max_size=40,
)


@given(ACTS)
def test_nobody_is_passed_over_and_nobody_is_lost(acts: list[tuple[object, ...]]) -> None:
    purse = Purse(0)
    line = Line(purse)
    waiting: list[Waiter[str]] = []
    for act in acts:
        if act[0] == "join":
            waiting.append(join(line, purse, *act[1:]))  # type: ignore[arg-type]
            line.hand_out(0.0)
        elif act[0] == "earn":
            purse.left += int(act[1])  # type: ignore[call-overload]
            line.hand_out(0.0)
        elif waiting:
            waiter = waiting.pop(int(act[1]) % len(waiting))  # type: ignore[call-overload]
            line.leave(waiter, 0.0)
        waiting = [waiter for waiter in waiting if waiter.permit is None]
        assert line.waiting == len(waiting)
        assert sorted(w.place for w in waiting) == sorted(
            entry[:2] for standing in purse.standings() for entry in standing.line
        )
        first = min(waiting, key=lambda waiter: waiter.place, default=None)
        assert line.leader is first
        assert first is None or first.cost.tokens > purse.left
