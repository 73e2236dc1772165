"""What others have spent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cluster.limits.peer_spend import PeerSpend


def test_the_latest_word_on_a_second_counts_and_leaves_in_its_time() -> None:
    spend = PeerSpend()
    spend.hear("a", 5, (10, 100, 60, 40), 70.0, 0.0)
    spend.hear("a", 6, (1, 10, 6, 4), 71.0, 0.0)
    spend.hear("b", 5, (3, 30, 20, 10), 70.5, 0.0)
    spend.hear("a", 5, (4, 40, 30, 10), 99.0, 0.0)
    assert (spend.total("requests"), spend.total("tokens")) == (8, 80)
    assert (spend.total("input_tokens"), spend.total("output_tokens")) == (56, 24)
    assert [spend.of([name], "requests", 0.0) for name in "abc"] == [5, 3, 0]
    assert spend.of("ab", "requests", 0.0) == 8
    assert spend.of([], "requests", 0.0) == 0
    assert spend.of(["a"], "tokens", 70.0) == 10
    spend.forget(69.9)
    assert spend.total("requests") == 8
    spend.forget(71.0)
    assert (spend.total("requests"), spend.total("tokens"), spend.of(["a"], "requests", 0.0)) == (0, 0, 0)


def test_what_is_over_already_does_not_count() -> None:
    spend = PeerSpend()
    spend.hear("a", 5, (10, 10, 10, 0), 70.0, 70.0)
    assert spend.total("requests") == 0


def test_what_is_not_counted_over_a_window_is_not_spent() -> None:
    assert PeerSpend().total("concurrent") == 0


def test_when_what_one_spent_leaves_the_window_is_known() -> None:
    spend = PeerSpend()
    spend.hear("a", 5, (10, 100, 60, 40), 70.0, 0.0)
    spend.hear("a", 6, (0, 10, 6, 4), 71.0, 0.0)
    spend.hear("b", 5, (3, 30, 20, 10), 70.5, 0.0)
    assert spend.leaving("a", "tokens", 0.0) == [(70.0, 100), (71.0, 10)]
    assert spend.leaving("a", "requests", 0.0) == [(70.0, 10)], "nothing is not told"
    assert spend.leaving("a", "tokens", 70.0) == [(71.0, 10)]
    assert spend.leaving("nobody", "tokens", 0.0) == []


SAYINGS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.integers(0, 50), st.floats(0.0, 5.0)),
    max_size=30,
)


@given(SAYINGS)
def test_the_total_is_the_sum_of_all_and_nothing_is_counted_for_longer_than_a_second_too_much(
    sayings: list[tuple[str, int, int, float]],
) -> None:
    spend, now, said = PeerSpend(), 0.0, {}
    for name, second, amount, passed in sayings:
        now += passed
        spend.forget(now)
        spend.hear(name, second, (amount,) * 4, second + 10.0, now)
        if second + 10.0 > now:
            said[name, second] = amount
        inside = {key: amount for key, amount in said.items() if key[1] + 10.0 > now}
        exact = sum(inside.values())
        assert (
            sum(spend.of([name], "requests", now) for name in "abc")
            == spend.of("abc", "tokens", now)
            == exact
        )
        assert exact <= spend.total("requests") <= sum(n for (_, at), n in said.items() if at + 11.0 > now)
        for name in "abc":
            left = sum(amount for _, amount in spend.leaving(name, "requests", now))
            assert left == spend.of([name], "requests", now)
