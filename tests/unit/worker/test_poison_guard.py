"""What counts as a death under a request, when it must be alone, and what its end leaves in the broker."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from remote_inference.cancel import CancelToken
from remote_inference.errors import Cancelled, LimitReached, WorkerLost
from remote_inference.messaging.delivery_marks import Deaths
from remote_inference.reasons import GateKind, GateReason, LimitReason
from remote_inference.worker.outcomes import RequestCancelled, Requeue
from remote_inference.worker.poison_guard import (
    ALONE_PATIENCE,
    DEATHS_ALONE,
    MAX_DEATHS,
    SECOND_LOOK,
    SHARED_PATIENCE,
    is_poison,
    must_be_alone,
)

from .poison_world import Process, embedded_broker, marks_in

ID = "request"


@pytest.fixture
def broker():
    with embedded_broker() as connection:
        yield connection


@pytest.fixture
def process(broker) -> Process:
    return Process(broker)


def call(process: Process, ending: BaseException | None = None, **options: Any) -> None:
    """A delivery whose call begins, beside others or alone, and that ends so.

    Raises:
        Exception: what keeps the call from beginning, or the end.
    """
    with process.delivery(ID, **options) as guard:
        assert guard.enter(None)
        assert guard.begin() or (guard.enter(None) and guard.begin())
        if ending is not None:
            raise ending


def die(broker, times: int) -> None:
    """Calls of the request begin, and their workers die."""
    for _ in range(times):
        Process(broker).begin(ID)


class TestDecisions:
    def test_it_must_be_alone_after_two_deaths_and_is_poison_after_two_more(self):
        counted = [Deaths(0, 0), Deaths(1, 0), Deaths(2, 0), Deaths(3, 1), Deaths(4, 2)]
        assert [must_be_alone(deaths) for deaths in counted] == [False, False, True, True, True]
        assert [is_poison(deaths) for deaths in counted] == [False, False, False, False, True]

    def test_deaths_beside_others_do_not_condemn_however_many_they_are(self):
        assert not is_poison(Deaths(100, DEATHS_ALONE - 1))


class TestMarks:
    def test_a_request_that_is_delivered_once_costs_the_broker_nothing(self, broker, process):
        with process.delivery(ID, redelivered=False) as guard:
            assert guard.enter(None)
            assert guard.begin()
            assert marks_in(broker, ID) is None
        assert process.publisher.calls == 0

    def test_one_whose_call_has_not_begun_leaves_no_mark(self, broker, process):
        with process.delivery(ID) as guard:
            assert guard.enter(None)
            assert marks_in(broker, ID) is None

    def test_the_mark_is_there_when_the_call_begins_and_gone_when_the_request_has_ended(
        self, broker, process
    ):
        with process.delivery(ID) as guard:
            assert guard.enter(None)
            assert guard.begin()
            assert marks_in(broker, ID) == 1
        assert marks_in(broker, ID) is None

    def test_it_is_there_while_an_answer_is_told(self, broker, process):
        with process.delivery(ID) as guard:
            guard.enter(None)
            guard.begin()
            # the engine has returned: what follows may be what kills
            assert marks_in(broker, ID) == 1

    def test_between_two_attempts_there_is_none(self, broker, process):
        with process.delivery(ID) as guard:
            guard.enter(None)
            guard.begin()
            guard.leave()
            assert marks_in(broker, ID) is None
            assert guard.enter(None)
            assert guard.begin()
            assert marks_in(broker, ID) == 1

    @pytest.mark.parametrize(
        "ending",
        [
            Requeue(GateReason(GateKind.LIMIT), 1.0),
            RequestCancelled("connection_lost", quiet=True),
            SystemExit(),
        ],
        ids=lambda ending: type(ending).__name__,
    )
    def test_one_that_comes_again_takes_its_own_mark_away_and_its_deaths_stay_counted(
        self, broker, process, ending
    ):
        die(broker, 1)
        with pytest.raises(type(ending)):
            call(process, ending)
        assert marks_in(broker, ID) == 1

    @pytest.mark.parametrize(
        "ending",
        [RequestCancelled("caller"), ValueError(), Cancelled("caller")],
        ids=lambda ending: type(ending).__name__,
    )
    def test_one_that_has_ended_leaves_nothing_behind(self, broker, process, ending):
        die(broker, 1)
        with pytest.raises(type(ending)):
            call(process, ending)
        assert marks_in(broker, ID) is None

    def test_one_that_ends_before_its_call_forgets_its_deaths_too(self, broker, process):
        die(broker, 1)
        with process.delivery(ID):
            pass
        assert marks_in(broker, ID) is None

    def test_one_that_is_put_back_before_its_call_asks_the_broker_nothing(self, broker, process):
        die(broker, 1)
        with suppress(Requeue), process.delivery(ID) as guard:
            guard.enter(None)
            raise Requeue(GateReason(GateKind.LIMIT), 1.0)
        assert process.publisher.calls == 0
        assert marks_in(broker, ID) == 1

    def test_a_broker_that_does_not_take_the_mark_keeps_the_call_from_beginning(self, broker, process):
        process.publisher.cut_off = True
        with pytest.raises(LimitReached) as refused:
            call(process)
        assert refused.value.code == LimitReason.MARKS_UNAVAILABLE
        assert refused.value.retry_at > process.clock.time()
        process.publisher.reconnect()
        assert marks_in(broker, ID) is None

    def test_a_process_that_lost_the_broker_takes_its_mark_away_when_it_is_back(self, broker, process):
        with suppress(RequestCancelled), process.delivery(ID) as guard:
            guard.enter(None)
            guard.begin()
            process.publisher.cut_off = True
            raise RequestCancelled("connection_lost", quiet=True)
        assert marks_in(broker, ID) == 1
        process.publisher.reconnect()
        assert marks_in(broker, ID) is None

    def test_a_run_that_ends_late_does_not_take_another_ones_mark(self, broker, process):
        late = Process(broker).begin(ID)
        process.begin(ID)
        late.leave()
        assert marks_in(broker, ID) == 1


class TestAlone:
    def test_after_two_deaths_it_gives_back_what_was_reserved_and_waits_to_be_alone(self, broker, process):
        die(broker, 2)
        with process.delivery("other", redelivered=False) as other, process.delivery(ID) as guard:
            assert other.enter(None)
            assert guard.enter(None)
            assert not guard.begin()
            assert marks_in(broker, ID) == 2
            process.clock.call_later(20.0, other.leave)
            began = process.clock.monotonic()
            assert guard.enter(None)
            assert process.clock.monotonic() == began + 20.0
            assert guard.begin()
            assert marks_in(broker, ID) == 3

    def test_meanwhile_others_wait_a_moment_and_go_elsewhere(self, broker, process):
        die(broker, 2)
        process.begin(ID)
        began = process.clock.monotonic()
        with process.delivery("other", redelivered=False) as other:
            assert not other.enter(None)
            assert process.clock.monotonic() == began + SHARED_PATIENCE

    def test_it_waits_for_long_but_not_for_ever(self, broker, process):
        die(broker, 2)
        with process.delivery("other", redelivered=False) as other, process.delivery(ID) as guard:
            assert other.enter(None)
            guard.enter(None)
            guard.begin()
            began = process.clock.monotonic()
            assert not guard.enter(None)
            assert process.clock.monotonic() == began + ALONE_PATIENCE

    def test_it_does_not_wait_beyond_its_deadline(self, broker, process):
        die(broker, 2)
        process.begin(ID)
        with process.delivery("other", redelivered=False) as other:
            began = process.clock.monotonic()
            assert not other.enter(0.5)
            assert process.clock.monotonic() == began + 0.5

    def test_an_error_gives_the_process_to_the_others(self, broker, process):
        die(broker, 2)
        with pytest.raises(Requeue):
            call(process, Requeue(GateReason(GateKind.LIMIT), 1.0))
        with process.delivery("other", redelivered=False) as other:
            assert other.enter(None)

    @pytest.mark.parametrize("reason", ["caller", "connection_lost"])
    def test_a_cancel_ends_the_wait(self, broker, process, reason):
        die(broker, 2)
        process.begin(ID)
        token = CancelToken()
        process.clock.call_later(0.25, lambda: token.cancel(reason))
        began = process.clock.monotonic()
        with process.delivery("other", redelivered=False, token=token) as other:
            assert not other.enter(None)
        assert process.clock.monotonic() == began + 0.25

    def test_who_waits_when_the_process_is_to_end_is_let_go(self, broker, process):
        die(broker, 2)
        process.begin(ID)
        token = CancelToken()
        with process.delivery("other", redelivered=False, token=token) as other:
            process.clock.call_later(0.25, lambda: token.resting and token.cancel(LimitReason.SHUTDOWN))
            assert not other.enter(None)
        assert token.reason == LimitReason.SHUTDOWN
        process.draining = True
        token = CancelToken()
        began = process.clock.monotonic()
        with process.delivery("another", redelivered=False, token=token) as another:
            assert not another.enter(None)
        assert (token.reason, process.clock.monotonic()) == (LimitReason.SHUTDOWN, began)
        assert not token.resting

    def test_in_a_process_with_one_slot_nobody_waits(self, broker, process):
        die(broker, 2)
        began = process.clock.monotonic()
        process.begin(ID)
        assert process.clock.monotonic() == began


class TestPoison:
    def test_it_is_set_aside_after_four_deaths(self, broker, process):
        die(broker, MAX_DEATHS)
        with pytest.raises(WorkerLost) as lost:
            call(process)
        assert lost.value.deaths == MAX_DEATHS
        assert marks_in(broker, ID) is None

    def test_a_second_look_finds_the_mark_of_a_process_that_lives_gone(self, broker, process):
        die(broker, MAX_DEATHS - 1)
        cut_off = Process(broker)
        alive = cut_off.begin(ID)
        cut_off.publisher.cut_off = True
        alive.leave()  # cannot take its mark away yet
        process.clock.call_later(SECOND_LOOK - 1, cut_off.publisher.reconnect)
        process.begin(ID)
        assert marks_in(broker, ID) == MAX_DEATHS

    def test_a_cancel_ends_the_wait_for_the_second_look(self, broker, process):
        die(broker, MAX_DEATHS)
        token = CancelToken()
        process.clock.call_later(1.0, lambda: token.cancel("caller"))
        began = process.clock.monotonic()
        with pytest.raises(Cancelled):
            call(process, token=token)
        assert process.clock.monotonic() == began + 1.0
