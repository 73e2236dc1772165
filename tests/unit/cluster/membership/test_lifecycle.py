"""`Lifecycle`: when a replica may act, and when it stops before the others take it for dead."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cluster.membership import LEASE, Lifecycle, Stage
from remote_inference.cluster.membership.lifecycle import CONNECTED, GUARD, LISTEN

NOW = 1_000.0


def joined(at: float = NOW) -> Lifecycle:
    """One that has heard itself at that time."""
    life = Lifecycle()
    life.wait()
    assert life.echoed(at, at)
    return life


class TestAlone:
    def test_a_replica_begins_alone_and_may_act_on_everything(self) -> None:
        life = Lifecycle()
        assert life.stage(NOW) is Stage.ALONE
        assert life.alone
        assert life.may_act(NOW)
        assert life.acts_at(NOW) == NOW
        assert life.reached.is_set()
        assert life.answered.is_set()

    def test_one_that_waited_in_vain_may_act_alone_for_ever(self) -> None:
        life = Lifecycle()
        life.wait()
        life.go_alone()
        assert life.stage(NOW) is Stage.ALONE
        assert life.may_act(1e12)
        assert life.reached.is_set()
        assert life.answered.is_set()
        assert not life.waiting

    def test_it_waits_again_when_the_broker_has_come(self) -> None:
        life = Lifecycle()
        life.go_alone()
        life.wait()
        assert life.stage(NOW) is Stage.WAITING
        assert not life.alone
        assert not life.may_act(NOW)

    def test_an_echo_makes_nobody_a_member_who_is_alone(self) -> None:
        """It came too late: a connection was made, and nobody was told of it yet."""
        life = Lifecycle()
        assert not life.echoed(NOW, NOW)
        assert life.stage(NOW + LEASE) is Stage.ALONE
        assert life.may_act(NOW + LEASE)


class TestJoining:
    def test_nothing_is_acted_upon_before_it_has_heard_itself(self) -> None:
        life = Lifecycle()
        life.wait()
        assert life.stage(NOW) is Stage.WAITING
        assert life.waiting
        assert life.listening_until == math.inf
        assert not life.may_act(NOW)
        assert not life.may_act(1e12)
        assert not life.connected(NOW)
        assert not life.reached.is_set()
        assert not life.answered.is_set()

    def test_an_answer_is_not_enough_for_one_that_has_not_heard_itself(self) -> None:
        life = Lifecycle()
        life.wait()
        life.answered.set()
        assert not life.may_act(NOW)

    def test_it_listens_for_a_second_after_it_has_heard_itself(self) -> None:
        life = Lifecycle()
        life.wait()
        assert life.echoed(NOW - 0.1, NOW)
        assert life.stage(NOW) is Stage.LISTENING
        assert life.reached.is_set()
        assert not life.answered.is_set()
        assert not life.may_act(NOW)
        assert life.acts_at(NOW) == NOW + LISTEN
        assert life.stage(NOW + LISTEN) is Stage.ACTIVE
        assert life.may_act(NOW + LISTEN)

    def test_one_that_was_answered_may_act_at_once(self) -> None:
        life = joined()
        life.answered.set()
        assert life.stage(NOW) is Stage.LISTENING
        assert life.may_act(NOW)
        assert life.acts_at(NOW) == NOW

    def test_it_begins_to_listen_once(self) -> None:
        life = joined()
        assert not life.echoed(NOW + 0.5, NOW + 0.5)
        assert life.listening_until == NOW + LISTEN

    def test_one_that_joins_anew_knows_nothing_of_the_answer_it_had(self) -> None:
        life = joined()
        life.answered.set()
        life.wait()
        assert not life.answered.is_set()
        assert not life.reached.is_set()
        assert life.stage(NOW + LISTEN) is Stage.WAITING
        assert life.echo == -math.inf, "what the one that it was has heard does not count"


class TestLease:
    def test_it_is_counted_from_the_sending_and_ends_before_the_others_give_it_up(self) -> None:
        life = Lifecycle()
        life.wait()
        sent, came = NOW, NOW + 3.0
        life.echoed(sent, came)
        assert life.lease_until == sent + LEASE - GUARD
        assert life.may_act(sent + LEASE - GUARD - 0.001)
        assert not life.may_act(sent + LEASE - GUARD)
        assert life.stage(sent + LEASE - GUARD) is Stage.EXPIRED

    def test_each_echo_renews_it(self) -> None:
        life = joined()
        for number in range(10):
            at = NOW + 4.0 * number
            life.echoed(at, at + 0.01)
            assert life.lease_until == at + LEASE - GUARD
            assert life.may_act(at + LISTEN)

    def test_one_that_was_answered_stops_with_its_lease_too(self) -> None:
        life = joined()
        life.answered.set()
        assert not life.may_act(NOW + LEASE)

    def test_one_whose_lease_is_over_acts_no_earlier_than_after_it_has_listened_anew(self) -> None:
        life = joined()
        assert life.acts_at(NOW + LEASE) == NOW + LEASE + LISTEN

    def test_an_echo_that_comes_when_the_others_have_given_it_up_does_not_bring_it_back(self) -> None:
        """Its message was held up on the way to the broker: the others did not hear it in time either."""
        life = joined()
        given_up = NOW + LEASE
        life.echoed(given_up - 2.0, given_up + 1.0)
        assert life.stage(given_up + 1.0) is Stage.EXPIRED
        assert not life.may_act(given_up + 1.0)

    def test_who_has_said_good_bye_may_not_act(self) -> None:
        life = joined()
        life.end()
        assert not life.may_act(NOW + LISTEN)
        assert life.stage(NOW + LISTEN) is Stage.EXPIRED

    def test_who_has_said_good_bye_does_not_come_back_by_the_echo_of_what_it_said_before(self) -> None:
        life = joined()
        life.end()
        life.echoed(NOW + LISTEN, NOW + LISTEN + 0.1)
        assert not life.may_act(NOW + 2 * LISTEN)


class TestHearing:
    def test_it_is_connected_while_it_hears_itself(self) -> None:
        life = joined()
        assert life.connected(NOW + CONNECTED - 0.001)
        assert not life.connected(NOW + CONNECTED)

    def test_it_has_heard_the_others_without_a_break_since_it_first_heard_itself(self) -> None:
        life = joined()
        life.echoed(NOW + 4.0, NOW + 4.0)
        assert life.hears_since == NOW

    def test_after_a_break_it_has_heard_them_only_since(self) -> None:
        life = joined()
        life.echoed(NOW + 9.0, NOW + 9.5)
        assert life.hears_since == NOW + 9.5


ACTS = st.lists(
    st.tuples(
        st.floats(0.0, 8.0),
        st.sampled_from(["wait", "go_alone", "echo", "echo", "echo", "answer", "end", "nothing"]),
        st.floats(0.0, 3.0),
    ),
    max_size=30,
)


@given(ACTS)
def test_whatever_happens_it_acts_only_as_one_of_those_who_may(acts: list[tuple[float, str, float]]) -> None:
    life, now, echo = Lifecycle(), NOW, -math.inf
    alone, ended = True, False
    for passed, act, late in acts:
        now += passed
        if act == "wait":
            life.wait()
            alone, ended, echo = False, False, -math.inf
        elif act == "go_alone":
            life.go_alone()
            alone, ended = True, False
        elif act == "echo" and not ended:
            life.echoed(now - late, now)
            echo = now - late
        elif act == "answer":
            life.answered.set()
        elif act == "end":
            life.end()
            ended = True
        stage = life.stage(now)
        assert life.alone is alone is (stage is Stage.ALONE)
        assert life.waiting is (life.listening_until == math.inf)
        assert life.may_act(now) is (life.acts_at(now) == now)
        assert life.acts_at(now) <= now + LISTEN
        if life.may_act(now):
            assert not ended
            assert alone or now < echo + LEASE - GUARD
            assert stage in (Stage.ALONE, Stage.ACTIVE) or life.answered.is_set()
        if stage in (Stage.WAITING, Stage.EXPIRED):
            assert not life.may_act(now)
        if stage is Stage.ACTIVE:
            assert life.may_act(now)
        assert "Lifecycle(" in repr(life)
