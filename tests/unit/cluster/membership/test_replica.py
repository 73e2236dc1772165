"""`Replica`: who is alive, who leads, what time it is elsewhere, and what a message may do."""

from __future__ import annotations

import json
import logging
import math
import random
from itertools import pairwise
from typing import Any

import pytest
from gossip_world import Process, World, per_minute

from remote_inference.cluster.crdt import LwwRegister
from remote_inference.cluster.membership import LEASE, Replica, StateListener
from remote_inference.cluster.membership.lifecycle import GUARD, LISTEN
from remote_inference.cluster.membership.message import VERSION, decode, encode
from remote_inference.cluster.membership.peers import ANSWERED, MEMORY
from remote_inference.cluster.membership.replica import COMPLAIN, REJOIN_LONGEST
from remote_inference.cluster.membership.schedule import ANSWER_GAP, KEEPALIVE, LONGEST_ASK, URGENT_GAP
from remote_inference.testing.clock import VirtualClock


class Notes(StateListener):
    """Keeps one register a replica, and what it was told."""

    kinds = frozenset({"note"})

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.forgot: list[str] = []
        self.before: list[str] = []
        self.changes = 0
        self.note: Any = None
        replica.attach(self)

    def before_send(self, now: float) -> None:
        path = ("note", self.replica.id)
        known = self.replica.state.get(path, LwwRegister)
        if self.note is not None and (known is None or known.value != self.note):
            self.replica.own(path, LwwRegister).set(self.note, self.replica.id)

    def members_changed(self, now: float) -> None:
        self.changes += 1

    def forgotten(self, replica: str) -> None:
        self.forgot.append(replica)

    def rejoined(self, before: str) -> None:
        self.before.append(before)

    def of(self, other: Notes) -> Any:
        entry = self.replica.state.get(("note", other.replica.id), LwwRegister)
        return None if entry is None else entry.value


def cluster(world: World, count: int) -> list[Process]:
    found = [world.start() for _ in range(count)]
    world.run(5.0)
    return found


def until_it_speaks(world: World, process: Process) -> None:
    said = len(world.messages)
    while not any(who is process for _, who, _ in world.messages[said:]):
        world.run(0.01)
    world.run(0.01)  # and is heard


def may_act(process: Process) -> bool:
    return process.replica.may_act(process.clock.monotonic())


def members(process: Process) -> list[str]:
    return process.replica.members(process.clock.monotonic())


def kinds(messages: list[bytes]) -> list[str]:
    return [decode(body)[0]["k"] for body in messages]


class TestJoining:
    def test_everyone_knows_everyone(self) -> None:
        world = World()
        found = cluster(world, 5)
        assert len({process.replica.id for process in found}) == 5
        assert all(members(process) == sorted(p.replica.id for p in found) for process in found)

    def test_nothing_is_handed_out_before_it_has_heard_itself_and_listened(self) -> None:
        world = World()
        process = world.start(per_minute(600, burst=60.0))
        world.run(0.9)
        assert process.take() is None
        world.run(2.0)
        assert process.take() is not None

    def test_without_its_echo_it_waits_and_says_hello_again_less_and_less_often(self) -> None:
        """Where many cannot keep up, what each of them says again and again is why."""
        world = World()
        process = world.start(per_minute(600, burst=60.0))
        process.cut = True
        began = world.now
        world.run(40.0)
        assert process.take() is None
        said = [at - began for at, _, body in world.messages if kinds([body]) == ["h"]]
        waits = [b - a for a, b in pairwise(said)]
        assert waits == pytest.approx([1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0], abs=0.1)
        assert LISTEN * LONGEST_ASK == 8.0
        process.cut = False
        world.run(10.0)
        assert process.take() is not None

    def test_the_first_question_after_its_greeting_waits_for_the_answers(self) -> None:
        world = World()
        cluster(world, 2)
        process = world.start()
        greeted = world.now
        world.run(0.6)
        head = {"k": "d", "i": "stranger", "m": 1.0, "w": 1.0, "s": 0, "t": 1.0}
        process.hear(encode(head, []))
        world.run(2.0)
        asked = [
            at - greeted
            for at, who, body in world.messages
            if who is process and kinds([body]) == ["h"] and at > greeted + 0.1
        ]
        assert LISTEN <= asked[0] <= LISTEN + 0.4

    def test_a_question_that_was_answered_meanwhile_is_not_asked(self) -> None:
        """All would answer it in full, once more."""
        world = World()
        cluster(world, 3)
        process = world.start()
        world.run(0.05)
        greeted = world.now
        head = {"k": "d", "i": "stranger", "m": 1.0, "w": 1.0, "s": 0, "t": 1.0}
        process.hear(encode(head, []))
        world.run(0.8)
        assert process.replica._next.question < math.inf, "it is about to ask"
        process.hear(encode(head | {"k": "f"}, []))
        world.run(4.0)
        assert not [
            at
            for at, who, body in world.messages
            if who is process and kinds([body]) == ["h"] and at > greeted
        ]

    def test_who_hears_itself_first_by_something_else_greets_once_more(self) -> None:
        """Its greeting was lost, and nobody has answered it."""
        world = World()
        found = cluster(world, 3)
        process = world.start()
        process.cut = True
        world.run(7.5)  # it has greeted just now; again in 8 s
        process.cut = False
        while process.replica.life.waiting:
            world.run(0.01)
        heard = world.now
        world.run(0.9)  # it listens for a second
        greeted = [at for at, who, body in world.messages if who is process and kinds([body]) == ["h"]]
        assert heard - 0.02 <= greeted[-1] <= heard + 0.1
        assert members(process) == members(found[0])
        assert len(members(process)) == 4

    def test_who_waits_before_it_joins_anew_says_nothing_until_then(self) -> None:
        world = World()
        (one,) = cluster(world, 1)
        for _ in range(8):
            one.cut = True
            world.run(LEASE + 1.0)
            one.cut = False
            world.run(8.0)
        said = [(decode(body)[0]["i"], kinds([body])[0]) for _, who, body in world.messages if who is one]
        first = dict(reversed(said))
        assert len(first) >= 5
        assert set(first.values()) == {"h"}

    def test_without_a_broker_it_works_alone(self) -> None:
        clock = VirtualClock()
        replica = Replica(clock, rng=random.Random(1))
        replica.start()
        assert not replica.alone
        clock.advance(5.1)
        replica.tick()
        assert replica.alone
        assert replica.may_act(clock.monotonic())

    def test_and_joins_the_others_when_the_broker_is_there(self) -> None:
        world = World()
        first = world.start()
        world.run(3.0)
        late = world.start()
        late._connected = True  # so that it is not connected by itself
        world.run(8.0)
        assert late.replica.alone
        late._connected = False
        late.connect()
        world.run(3.0)
        assert not late.replica.alone
        assert members(late) == members(first) == sorted([first.replica.id, late.replica.id])

    def test_one_of_them_is_outranked_by_nobody_and_a_newcomer_has_no_say(self) -> None:
        world = World()
        found = cluster(world, 4)
        ids = [process.replica.id for process in found]
        first = [p.replica.id for p in found if not any(p.replica.outranked_by(name) for name in ids)]
        assert len(first) == 1
        newcomer = world.start()
        world.run(0.5)
        assert not newcomer.replica.may_reclaim(newcomer.clock.monotonic())
        world.run(8.0)
        assert newcomer.replica.may_reclaim(newcomer.clock.monotonic())
        assert [
            p.replica.is_first(p.replica.members(p.clock.monotonic()), p.clock.monotonic())
            for p in world.live
        ].count(True) == 1
        assert all(newcomer.replica.outranked_by(name) for name in ids)  # whatever its own id is

    def test_a_newcomer_hears_of_the_dead(self) -> None:
        world = World()
        found = cluster(world, 3)
        notes = [Notes(process.replica) for process in found]
        notes[0].note = "mine"
        world.run(5.0)
        found[0].kill()
        world.run(LEASE + KEEPALIVE + 1)
        newcomer = world.start()
        heard = Notes(newcomer.replica)
        world.run(4.0)
        assert heard.of(notes[0]) == "mine"
        assert may_act(newcomer)
        offset = newcomer.replica.offset_of(found[0].replica.id)
        assert offset == pytest.approx(newcomer.clock.monotonic() - found[0].clock.monotonic(), abs=0.05)

    def test_who_was_away_when_somebody_died_asks_for_its_last_words(self) -> None:
        world = World()
        found = cluster(world, 3)
        notes = [Notes(process.replica) for process in found]
        notes[0].note = "early"
        world.run(5.0)
        found[2].stop()
        notes[0].note = "late"
        world.run(3.0)
        found[0].kill()
        world.run(30.0)
        found[2].go_on()
        world.run(5.0)
        assert notes[2].of(notes[0]) == "late"
        assert may_act(found[2])

    def test_a_newcomer_that_was_answered_may_act_before_it_has_listened(self) -> None:
        """Who was here before has told it what stops the others."""
        world = World()
        cluster(world, 3)
        newcomer = world.start()
        world.run(0.6)
        assert newcomer.clock.monotonic() < newcomer.replica.life.listening_until
        assert may_act(newcomer)

    def test_one_that_is_answered_by_another_newcomer_alone_is_not(self) -> None:
        world = World()
        found = [world.start() for _ in range(3)]
        world.run(0.6)
        assert not any(may_act(process) for process in found)

    def test_a_member_heard_only_in_part_is_asked(self) -> None:
        world = World()
        one, other = cluster(world, 2)
        head = {"k": "d", "i": "stranger", "m": 1.0, "w": 1.0, "s": 0, "t": 1.0}
        one.hear(encode(head, []))
        world.run(2.0)
        asked = [decode(body)[0] for body in world.said(2.0) if decode(body)[0]["k"] == "h"]
        assert asked
        assert asked[0]["q"] == ["stranger"]
        begin = world.now
        for process in (one, other):  # the other was told of it by this one
            process.hear(encode(head | {"k": "f"}, []))
        world.run(ANSWERED)
        assert not [at for at, _, body in world.messages if at > begin and kinds([body]) == ["h"]]

    def test_but_not_for_ever_for_perhaps_nobody_knows(self) -> None:
        """A crowd of processes that come and go must not keep the others asking."""
        world = World()
        (one,) = cluster(world, 1)
        head = {"k": "d", "m": 1.0, "w": one.clock.time(), "s": 0, "t": 1.0}
        one.hear(encode(head | {"i": "stranger"}, []))
        world.run(ANSWERED + 0.5)
        begin = world.now
        one.hear(encode(head | {"k": "f", "i": "witness", "d": {"stranger": 20.0}}, []))
        world.run(2 * ANSWERED)
        asked = [
            decode(body)[0]["q"] for at, _, body in world.messages if at > begin and kinds([body]) == ["h"]
        ]
        assert asked == [], "it has asked for that one before"

    def test_newcomers_one_after_the_other_are_answered_together(self) -> None:
        world = World()
        one, _ = cluster(world, 2)
        before = len([body for _, who, body in world.messages if who is one and kinds([body]) == ["f"]])
        for _ in range(20):
            world.start()
            world.run(0.2)
        told = [body for _, who, body in world.messages if who is one and kinds([body]) == ["f"]]
        assert 1 <= len(told) - before <= 4.0 / ANSWER_GAP + 1

    def test_who_loses_its_lease_again_and_again_takes_its_time(self) -> None:
        """Where many cannot keep up with what they hear, their joining anew is the reason."""
        world = World()
        (one,) = cluster(world, 1)
        for _ in range(8):
            one.cut = True
            world.run(LEASE + 1.0)
            one.cut = False
            world.run(8.0)
        assert one.replica.status()["rejoined"] >= 4
        waits = [one.replica._back_off(one.clock.monotonic()) for _ in range(50)]
        assert max(waits) > 5.0
        assert max(waits) <= REJOIN_LONGEST


class TestLease:
    def test_a_dead_one_is_noticed_after_its_lease(self) -> None:
        world = World()
        one, other, third = cluster(world, 3)
        other.kill()
        world.run(LEASE - KEEPALIVE - 0.5)
        assert other.replica.id in members(one)
        world.run(KEEPALIVE + 1.5)
        assert members(one) == members(third) == sorted([one.replica.id, third.replica.id])

    def test_not_by_one_who_does_not_hear_itself(self) -> None:
        world = World()
        one, other = cluster(world, 2)
        one.cut = True
        world.run(60.0)
        assert other.replica.id in members(one)
        assert one.replica.id not in members(other)

    def test_nor_by_one_who_ceased_to_hear_before_the_lease_was_over(self) -> None:
        world = World()
        one, other = cluster(world, 2)
        until_it_speaks(world, other)
        other.cut = True
        world.run(9.5)
        one.cut, other.cut = True, False
        world.run(5.6)
        assert not one.replica._peers.states[other.replica.id].gone
        one.cut = False
        world.run(5.0)
        assert members(one) == members(other) == sorted([one.replica.id, other.replica.id])

    def test_who_was_not_heard_for_too_long_comes_back_as_somebody_else(self) -> None:
        world = World()
        one, other = cluster(world, 2)
        notes = Notes(one.replica)
        notes.note = "mine"
        until_it_speaks(world, one)
        before = one.replica.id
        one.cut = True
        world.run(LEASE - GUARD - 0.1)
        assert one.replica.id == before
        world.run(0.5)
        assert one.replica.id != before
        assert notes.before == [before]
        one.cut = False
        world.run(5.0)
        assert members(other) == sorted([one.replica.id, other.replica.id])
        assert one.replica.status()["rejoined"] == 1

    def test_it_stops_before_the_others_give_it_up(self) -> None:
        world = World()
        one, _ = cluster(world, 2)
        assert one.replica.life.lease_until <= one.clock.monotonic() + LEASE - 1.0

    def test_a_process_that_stood_still_for_a_minute_owns_nothing(self) -> None:
        world = World()
        limits = per_minute(600, burst=60.0)
        found = [world.start(limits) for _ in range(3)]
        world.run(10.0)
        before = found[0].replica.id
        found[0].stop()
        world.run(60.0)
        found[0].stopped = False
        assert found[0].take() is None, "its clock has jumped: the lease is over at once"
        found[0].go_on()
        world.run(0.3)
        assert found[0].replica.id != before
        assert found[0].held() == 0
        world.run(30.0)  # until a minute after the end of its lease nobody can know what it has spent
        assert world.usable() == 600

    def test_a_connection_that_comes_back_in_time_costs_nothing(self) -> None:
        world = World()
        found = cluster(world, 3)
        ids = [process.replica.id for process in found]
        for _ in range(5):
            found[1].disconnect()
            world.run(8.0)
            found[1].connect()
            world.run(6.0)
            assert all(members(process) == sorted(ids) for process in found)
        for process in found:  # a restart of the broker
            process.disconnect()
        world.run(10.0)
        for process in found:
            process.connect()
        world.run(20.0)
        assert [process.replica.id for process in found] == ids
        assert all(members(process) == sorted(ids) for process in found)

    def test_after_a_longer_outage_all_are_there_again_under_new_names(self) -> None:
        world = World()
        found = [world.start(per_minute(600, burst=60.0)) for _ in range(3)]
        world.run(10.0)
        for process in found:
            process.disconnect()
        world.run(40.0)
        for process in found:
            process.connect()
        world.run(LEASE + KEEPALIVE)
        assert all(members(process) == sorted(p.replica.id for p in found) for process in found)
        world.run(65.0)
        assert world.usable() == 600

    def test_who_says_good_bye_is_gone_at_once(self) -> None:
        world = World()
        one, other = cluster(world, 2)
        other.leave()
        world.run(0.1)
        assert members(one) == [one.replica.id]

    def test_the_dead_are_forgotten_in_the_end(self) -> None:
        world = World()
        one, other = cluster(world, 2)
        notes, theirs = Notes(one.replica), Notes(other.replica)
        theirs.note = "x"
        world.run(5.0)
        other.kill()
        world.run(MEMORY - 10.0)
        assert notes.of(theirs) == "x"
        world.run(20.0)
        assert notes.of(theirs) is None
        assert notes.forgot == [other.replica.id]
        assert not one.replica.knows(other.replica.id)


class TestTime:
    def test_times_of_others_are_translated_however_their_clocks_began(self) -> None:
        world = World(delay=0.02)
        one, other = cluster(world, 2)
        world.run(30.0)
        offset = one.replica.offset_of(other.replica.id)
        assert offset is not None
        true = one.clock.monotonic() - other.clock.monotonic()
        assert true <= offset <= true + 0.02, "what errs, errs late"
        assert one.replica.offset_of(one.replica.id) == 0.0
        assert one.replica.offset_of("nobody") is None

    def test_clocks_two_seconds_apart_are_measured_and_do_no_harm(self) -> None:
        world = World()
        found = [world.start(per_minute(600, burst=60.0), ahead=ahead) for ahead in (0.0, 0.0, 2.0)]
        world.run(20.0)
        assert found[2].replica.status()["skew"] == pytest.approx(2.0, abs=0.1)
        assert found[0].replica.status()["skew"] == pytest.approx(0.0, abs=0.1)
        assert not any(process.replica.skew.wrong for process in found)
        assert world.usable() == 600

    @pytest.mark.parametrize("ahead", [60.0, -60.0, 86_400.0])
    def test_a_wildly_wrong_clock_is_told_once_and_does_no_harm(
        self, ahead: float, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING, "remote_inference.cluster")
        world = World()
        found = [world.start(per_minute(600, burst=60.0)) for _ in range(4)]
        found[2].demand = 5.0
        world.run(30.0)
        wrong = found[2]
        wrong.clock.ahead = ahead
        world.run(70.0)  # it is believed when it was said often enough
        for process in found:
            process.demand = 20.0
        world.run(100.0)
        assert [process.replica.skew.wrong for process in found] == [False, False, True, False]
        assert [len(process.skews) for process in found] == [0, 0, 1, 0]
        assert wrong.skews[0] / ahead > 0.04, "it is told as soon as it is known to be far too much"
        assert sum("clock is" in record.message for record in caplog.records) == 1
        assert wrong.held() == pytest.approx(150, abs=15), "it has its part as the others have"
        found[0].kill()
        world.run(100.0)
        assert wrong.held() == pytest.approx(200, abs=20), "and of what a dead one held"
        wrong.clock.ahead = 0.0
        for process in found:
            process.demand = 0.0
        world.run(65.0)  # what was handed over while it was spent comes free
        assert not wrong.replica.skew.wrong
        assert wrong.skews[1:] == [0.0]
        assert world.usable() == 600
        assert world.most() <= 600

    def test_a_clock_is_not_wrong_because_messages_are_late(self) -> None:
        world = World()
        one, other = cluster(world, 2)
        world.run(10.0)
        one.stop()
        world.run(14.0)
        while world.now < 60.0:  # it hears all of it, and what comes then, fourteen seconds late
            world.delay = 14.0
            one.go_on()
            world.run(1.0)
            known = one.replica._peers.states.get(other.replica.id)
            assert known is None or abs(known.skew) < 0.1

    def test_of_two_one_goes_on(self) -> None:
        world = World()
        found = [world.start(ahead=ahead) for ahead in (0.0, 60.0)]
        world.run(10.0)
        assert [process.replica.skew.wrong for process in found] == [False, True]


class TestSending:
    def test_what_is_urgent_goes_at_once_but_not_oftener_than_every_20_ms(self) -> None:
        world = World()
        one, other = cluster(world, 2)
        notes, theirs = Notes(one.replica), Notes(other.replica)
        world.run(0.5)
        begin = world.now
        for number in range(100):
            notes.note = number
            one.replica.urgent()
            one.replica.tick()
            world.run(0.001)
        world.run(0.1)
        sent = [at for at, process, body in world.messages if process is one and at >= begin]
        assert sent[0] - begin < 0.025
        assert 4 <= len(sent) <= 0.1 / URGENT_GAP + 2
        assert all(b - a >= URGENT_GAP - 1e-6 for a, b in pairwise(sent))
        assert theirs.of(notes) == 99

    def test_an_idle_cluster_of_fifty_is_quiet(self) -> None:
        world = World()
        limits = per_minute(60_000, burst=60.0)
        for _ in range(50):
            world.start(limits)
        world.run(24.0)
        assert len(world.said(12.0)) / 12.0 < 20.0

    def test_a_change_is_told_within_a_period(self) -> None:
        world = World()
        one, other = cluster(world, 2)
        notes, theirs = Notes(one.replica), Notes(other.replica)
        notes.note = {"a": [1, 2]}
        world.run(0.6)
        assert theirs.of(notes) == {"a": [1, 2]}

    @pytest.mark.parametrize("period", [0.1, 0.5, 2.0])
    def test_the_period_is_what_was_asked_for(self, period: float) -> None:
        world = World()
        one = world.start(period=period)
        world.start()
        notes = Notes(one.replica)
        world.run(8.0)
        begin = world.now
        for number in range(160):  # eight seconds in which something changes all the time
            notes.note = number
            world.run(0.05)
        sent = [body for at, process, body in world.messages if process is one and at >= begin]
        assert 8.0 / period - 4 <= kinds(sent).count("d") <= 8.0 / period + 2  # a full record is one, too


class TestEnds:
    def test_of_its_own_host_it_sees_at_once_who_has_ended_and_tells_all_others(self) -> None:
        world = World()
        first, second = (world.start(host="here") for _ in range(2))
        elsewhere = world.start()
        world.run(5.0)
        second.kill()
        world.run(1.0)
        gone = second.replica.id
        for process in (first, elsewhere):
            assert gone not in members(process)
            assert process.replica.ended(gone) is not None
            assert process.replica.dead(process.clock.monotonic()) == [gone]

    def test_one_that_nobody_sees_end_is_only_silent(self) -> None:
        world = World()
        one, other = cluster(world, 2)
        other.kill()
        world.run(LEASE + KEEPALIVE)
        assert other.replica.id not in members(one)
        assert one.replica.ended(other.replica.id) is None
        assert one.replica.silent_since(other.replica.id) <= one.clock.monotonic() - LEASE

    def test_who_says_good_bye_has_ended(self) -> None:
        world = World()
        one, other = cluster(world, 2)
        other.leave()
        world.run(0.1)
        assert one.replica.ended(other.replica.id) == pytest.approx(one.clock.monotonic(), abs=0.2)

    def test_an_end_is_told_also_to_one_that_comes_later(self) -> None:
        world = World()
        _, second = (world.start(host="here") for _ in range(2))
        elsewhere = world.start()
        world.run(5.0)
        elsewhere.cut = True
        second.kill()
        world.run(3.0)
        elsewhere.cut = False
        world.run(KEEPALIVE + 1.0)
        assert elsewhere.replica.ended(second.replica.id) is not None

    def test_nobody_is_ended_by_what_is_said_of_itself(self) -> None:
        world = World()
        one, other = cluster(world, 2)
        head = {"k": "d", "i": "liar", "m": 1.0, "w": one.clock.time(), "s": 0, "t": 1.0}
        one.hear(encode(head | {"x": [one.replica.id]}, []))
        world.run(1.0)
        assert one.replica.id in members(one)
        assert one.replica.id in members(other)
        assert may_act(one)

    def test_that_one_has_ended_who_was_never_heard_is_remembered_for_it_may_stand_in_a_ledger(self) -> None:
        world = World()
        (one,) = cluster(world, 1)
        head = {"k": "d", "i": "witness", "m": 1.0, "w": one.clock.time(), "s": 0, "t": 1.0}
        one.hear(encode(head | {"x": ["ghost"]}, []))
        one.replica.sighted("ghost", "host9:7:7", one.clock.monotonic())
        assert one.replica.ended("ghost") == one.clock.monotonic()
        assert not one.replica.live("ghost", one.clock.monotonic())

    def test_one_that_stands_in_a_ledger_and_was_never_heard_lives_for_a_lease(self) -> None:
        world = World()
        (one,) = cluster(world, 1)
        one.replica.sighted("ghost", "host9:7:7", one.clock.monotonic())
        assert one.replica.live("ghost", one.clock.monotonic())
        assert one.replica.process_of("ghost") == "host9:7:7"
        world.run(LEASE - 0.5)
        assert one.replica.live("ghost", one.clock.monotonic())
        world.run(1.5)
        assert not one.replica.live("ghost", one.clock.monotonic())
        assert one.replica.ended("ghost") is None

    def test_unless_its_process_is_known_to_have_ended(self) -> None:
        world = World()
        (one,) = cluster(world, 1)
        seen: list[str] = []
        one.replica.on_process = seen.append
        one.replica.sighted("ghost", "host0:7:7", one.clock.monotonic())
        assert seen == ["host0:7:7"]
        one.replica.process_ended("host0:7:7")
        assert one.replica.ended("ghost") == one.clock.monotonic()
        assert not one.replica.live("ghost", one.clock.monotonic())

    def test_who_is_told_that_it_was_given_up_joins_anew(self) -> None:
        world = World()
        one, other = cluster(world, 2)
        notes = Notes(one.replica)
        before = one.replica.id
        one.replica.given_up()
        assert one.replica.id != before
        assert notes.before == [before]
        assert not may_act(one)
        world.run(5.0)
        assert may_act(one)
        assert one.replica.id in members(other)

    def test_one_that_has_left_may_not_act(self) -> None:
        world = World()
        one, _ = cluster(world, 2)
        one.replica.leave()
        assert not may_act(one)
        world.run(0.5)  # its good-bye comes back to it
        assert not may_act(one)


class TestVersions:
    HEAD = {"k": "f", "i": "stranger", "m": 5.0, "w": 1_700_000_000.0, "s": 0, "t": 1.0}

    def test_beside_older_processes_it_sends_nothing_until_they_were_silent_for_a_lease(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING, "remote_inference.cluster")
        world = World()
        (one,) = cluster(world, 1)
        assert may_act(one)
        older = encode(self.HEAD | {"v": VERSION - 1}, [])
        for _ in range(5):
            one.hear(older)
            world.run(4.0)
        one.hear(older)
        last = one.clock.monotonic()
        assert not may_act(one)
        assert one.replica.acts_at(last) == last + LEASE
        assert one.replica.refused_version == VERSION - 1
        assert one.replica.status()["refuses_beside_format"] == VERSION - 1
        assert "stranger" not in members(one)
        assert [record.levelname for record in caplog.records] == ["ERROR"], "once a minute"
        world.run(LEASE - 0.1)
        assert not may_act(one)
        world.run(0.2)
        assert may_act(one)
        assert one.replica.refused_version == 0
        assert "refuses_beside_format" not in one.replica.status()
        assert one.replica.older_format_until == last + LEASE
        world.run(COMPLAIN)
        one.hear(older)
        assert len(caplog.records) == 2

    def test_beside_newer_ones_it_goes_on_for_these_wait(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING, "remote_inference.cluster")
        world = World()
        (one,) = cluster(world, 1)
        for _ in range(3):
            one.hear(encode(self.HEAD | {"v": VERSION + 1}, []))
            world.run(1.0)
            assert may_act(one)
        assert one.replica.refused_version == 0
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert one.replica.status()["foreign"] == 3
        assert one.replica.status()["malformed"] == 0


class TestMessages:
    def head(self, **more: Any) -> dict[str, Any]:
        return {"k": "f", "i": "stranger", "m": 5.0, "w": 1_700_000_000.0, "s": 0, "t": 1.0} | more

    def test_what_a_newer_version_adds_is_ignored(self) -> None:
        world = World()
        one, other = cluster(world, 2)
        notes, theirs = Notes(one.replica), Notes(other.replica)
        theirs.note = "old"
        world.run(5.0)
        me = other.replica.id
        entries = [
            ["z", ["note", me], {"a new type": 1}],
            ["l", ["a new kind", me], [1, me, 1]],
            ["l", ["note", me], [99, me, "new", "more"], "and more"],
        ]
        one.hear(encode(self.head(i=me, k="d", s=0, new={"x": 1}), entries))
        assert notes.of(theirs) == "new"
        assert ("a new kind", me) not in one.replica.state.entries
        assert one.replica.status()["malformed"] == 0

    def test_nobody_speaks_for_another_who_lives(self) -> None:
        world = World()
        one, other, _ = cluster(world, 3)
        mine, theirs = Notes(one.replica), Notes(other.replica)
        mine.note, theirs.note = "mine", "theirs"
        world.run(5.0)
        for victim, note in ((other, theirs), (one, mine)):
            entry = ["l", ["note", victim.replica.id], [2**53, "zzz", "false"]]
            told = {victim.replica.id: [0.0, 0.0, 0]}
            one.hear(encode(self.head(), [entry]))
            one.hear(encode(self.head(k="a", o=told), [entry]))
            assert mine.of(note) == note.note
        assert one.replica.status()["foreign"] == 4

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"\xff\xfe\x00",
            "no bytes",
            b"{}",
            json.dumps({"task": "x", "id": "y"}).encode(),
            b'{"v":1}' * 1000,
            encode({}, []),
            encode({"k": "f", "i": "x" * 65, "m": 1, "w": 1, "s": 0, "t": 1}, []),
            encode({"k": "f", "i": "x", "m": True, "w": 1, "s": 0, "t": 1}, []),
            encode({"k": "f", "i": "x", "m": 1, "w": 1, "s": 0, "t": 0}, []),
            encode({"k": ["f"], "i": "x", "m": 1, "w": 1, "s": 0, "t": 1}, []),
        ],
    )
    def test_what_is_none_of_ours_is_counted_and_told_once_a_minute(
        self, body: bytes | str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING, "remote_inference.cluster")
        clock = VirtualClock()
        replica = Replica(clock)
        for _ in range(125):
            replica.receive(body)
            clock.advance(1.0)
        assert replica.status()["malformed"] == 125
        assert len(caplog.records) == 3
        assert replica.status()["members"] == {}
