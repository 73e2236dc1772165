"""Who waits for a permit of a key, and who is next."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cluster import Cost
from remote_inference.cluster.local.wait_queue import QueuedDeployment, Waiter, WaitQueue
from remote_inference.types import Priority

N, H, C = Priority.NORMAL, Priority.HIGH, Priority.CRITICAL


class Deployment(QueuedDeployment[str]):
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

    def deployments(self) -> Iterator[QueuedDeployment[str]]:
        return iter(self.all.values())

    def take(self, deployment: QueuedDeployment[str], cost: Cost, now: float, urgent: bool) -> str | None:
        if cost.tokens > self.left:
            return None
        self.left -= cost.tokens
        self.taken.append(deployment.name)
        return f"{deployment.name}: {cost.tokens}"

    def due(
        self, deployment: QueuedDeployment[str], cost: Cost, now: float, urgent: bool
    ) -> tuple[float, str]:
        return self.due_at, "tokens"


def join(queue: WaitQueue[str], purse: Purse, name: str, tokens: int, priority: Priority = N) -> Waiter[str]:
    return queue.join(purse.all[name], Cost(tokens, 0), priority)


def test_by_priority_then_by_age_over_all_deployments() -> None:
    purse = Purse(0)
    queue = WaitQueue(purse)
    waiters = [
        join(queue, purse, "a", 1),
        join(queue, purse, "b", 1, C),
        join(queue, purse, "a", 1, H),
        join(queue, purse, "b", 1, H),
        join(queue, purse, "a", 1, C),
    ]
    order = []
    for _ in waiters:
        purse.left = 1
        queue.hand_out(0.0)
        [got] = [number for number, waiter in enumerate(waiters) if waiter.permit and number not in order]
        assert waiters[got].event.is_set()
        order.append(got)
    assert order == [1, 4, 2, 3, 0]
    assert queue.waiting == 0
    assert queue.leader is None


def test_what_the_leader_cannot_have_nobody_behind_it_gets() -> None:
    purse = Purse(5)
    queue = WaitQueue(purse)
    big, small = join(queue, purse, "a", 10), join(queue, purse, "b", 1)
    queue.hand_out(0.0)
    assert queue.leader is big
    assert (big.permit, small.permit) == (None, None)
    purse.left = 11
    queue.hand_out(1.0)
    assert (big.permit, small.permit) == ("a: 10", "b: 1")


def test_a_deployment_that_is_full_holds_up_nobody_else() -> None:
    purse = Purse(5)
    queue = WaitQueue(purse)
    first, other = join(queue, purse, "a", 1, C), join(queue, purse, "b", 1)
    purse.all["a"].closed = True
    queue.hand_out(0.0)
    assert (first.permit, other.permit) == (None, "b: 1")
    assert queue.leader is None  # only the end of a running request changes anything
    purse.all["a"].closed = False
    queue.hand_out(0.0)
    assert first.permit


def test_nothing_is_handed_out_while_the_key_is_full() -> None:
    purse = Purse(5)
    purse.full = True
    queue = WaitQueue(purse)
    waiter = join(queue, purse, "a", 1)
    queue.hand_out(0.0)
    assert waiter.permit is None
    assert queue.leader is None


def test_the_leader_is_woken_when_its_time_comes_earlier() -> None:
    purse = Purse(0)
    queue = WaitQueue(purse)
    waiter = join(queue, purse, "a", 1)
    purse.due_at = 10.0
    queue.hand_out(0.0)
    assert (queue.leader, waiter.wake_at) == (waiter, 10.0)
    waiter.event.clear()
    purse.due_at = 12.0
    queue.hand_out(0.0)
    assert not waiter.event.is_set(), "it will look by itself"
    purse.due_at = 4.0
    queue.hand_out(0.0)
    assert waiter.event.is_set()
    assert waiter.wake_at == 4.0


def test_who_leaves_makes_way() -> None:
    purse = Purse(1)
    queue = WaitQueue(purse)
    big, small = join(queue, purse, "a", 10), join(queue, purse, "a", 1)
    queue.hand_out(0.0)
    queue.leave(big, 0.0)
    assert small.permit == "a: 1"
    assert queue.waiting == 0


def test_all_can_be_woken() -> None:
    purse = Purse(0)
    queue = WaitQueue(purse)
    waiters = [join(queue, purse, name, 1) for name in "aabb"]
    queue.hand_out(0.0)
    for waiter in waiters:
        waiter.event.clear()
    queue.wake_all()
    assert all(waiter.event.is_set() for waiter in waiters)


@pytest.mark.parametrize(("priority", "urgent"), [(N, False), (H, True), (C, True)])
def test_who_is_urgent(priority: Priority, urgent: bool) -> None:
    purse = Purse(0)
    assert join(WaitQueue(purse), purse, "a", 1, priority).urgent is urgent


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
    queue = WaitQueue(purse)
    waiting: list[Waiter[str]] = []
    for act in acts:
        if act[0] == "join":
            waiting.append(join(queue, purse, *act[1:]))  # type: ignore[arg-type]
            queue.hand_out(0.0)
        elif act[0] == "earn":
            purse.left += int(act[1])  # type: ignore[call-overload]
            queue.hand_out(0.0)
        elif waiting:
            waiter = waiting.pop(int(act[1]) % len(waiting))  # type: ignore[call-overload]
            queue.leave(waiter, 0.0)
        waiting = [waiter for waiter in waiting if waiter.permit is None]
        assert queue.waiting == len(waiting)
        assert sorted(w.place for w in waiting) == sorted(
            entry[:2] for deployment in purse.deployments() for entry in deployment.queue
        )
        first = min(waiting, key=lambda waiter: waiter.place, default=None)
        assert queue.leader is first
        assert first is None or first.cost.tokens > purse.left
