"""`Rights`: a replica never takes itself to hold more than the ledger has in its name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cluster.limits.rights import Rights


def holding(amount: int) -> Rights:
    rights = Rights()
    rights.adopt(amount)
    return rights


def test_nothing_is_held_at_first() -> None:
    assert Rights().held == 0


def test_what_is_taken_counts_when_the_broker_has_it() -> None:
    rights = holding(10)
    rights.begin(take=5)
    assert rights.held == 10
    rights.confirmed()
    assert rights.held == 15
    rights.confirmed()
    assert rights.held == 15, "and once"


def test_what_is_given_counts_no_more_from_the_change_on() -> None:
    rights = holding(10)
    rights.begin(give=4)
    assert rights.held == 6
    rights.confirmed()
    assert rights.held == 6


def test_where_nobody_knows_whether_the_broker_has_it_the_lesser_of_both_counts() -> None:
    rights = holding(10)
    rights.begin(take=5, give=4)
    rights.uncertain()
    assert rights.held == 6
    rights.confirmed()
    assert rights.held == 6, "a confirmation that comes too late is of another change"


def test_the_ledger_knows() -> None:
    rights = holding(10)
    rights.begin(take=5)
    rights.uncertain()
    rights.adopt(15)
    assert rights.held == 15
    rights.begin(take=3)
    rights.adopt(18)
    rights.confirmed()
    assert rights.held == 18, "what was taken is not counted twice"


def test_who_is_given_up_holds_nothing_whatever_is_confirmed_later() -> None:
    rights = holding(10)
    rights.begin(take=5)
    rights.give_up()
    rights.confirmed()
    assert rights.held == 0
    assert repr(rights) == "Rights(0)"


STEPS = st.lists(
    st.tuples(
        st.integers(0, 20), st.integers(0, 20), st.sampled_from(["confirmed", "uncertain"]), st.booleans()
    ),
    max_size=20,
)


@given(STEPS)
def test_never_more_is_counted_than_the_ledger_says_whatever_is_lost(
    steps: list[tuple[int, int, str, bool]],
) -> None:
    """A ledger at the broker, changed by each step, but for those whose writing was lost."""
    rights, recorded = Rights(), 0
    for take, give, outcome, lost in steps:
        rights.adopt(recorded)
        assert rights.held == recorded
        give = min(give, recorded)
        rights.begin(take=take, give=give)
        for possible in (recorded, recorded + take - give):
            assert rights.held <= possible
        if outcome == "confirmed":
            recorded += take - give
            rights.confirmed()
            assert rights.held == recorded
        else:
            recorded += 0 if lost else take - give
            rights.uncertain()
            assert rights.held <= recorded
