"""`ClusterTime`: what comes free comes free late rather than early, whatever the clocks of the machines show."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from remote_inference.cluster.membership import ClusterTime, Stamp
from remote_inference.cluster.membership.cluster_time import WALL_MARGIN

EPOCH = 1_700_000_000.0


def begun(wall: float = EPOCH, now: float = 50.0, host: str = "") -> ClusterTime:
    time = ClusterTime(host)
    time.begin(wall, now)
    return time


class TestBeginning:
    def test_it_is_not_known_before_it_was_read_or_begun(self) -> None:
        time = ClusterTime()
        assert not time.known
        time.begin(EPOCH, 50.0)
        assert time.known
        assert time.at(50.0) == EPOCH
        assert time.at(60.0) == EPOCH + 10.0

    def test_what_is_known_is_not_begun_anew(self) -> None:
        time = begun()
        time.begin(EPOCH + 1_000.0, 50.0)
        assert time.at(50.0) == EPOCH

    def test_it_goes_on_by_the_monotonic_clock_whatever_the_wall_clock_does(self) -> None:
        time = begun()
        stamp = time.stamp(EPOCH - 86_400.0, 60.0)
        assert stamp == Stamp(EPOCH + 10.0, "", 60.0, EPOCH - 86_400.0)

    def test_who_forgets_it_takes_over_what_the_others_say(self) -> None:
        time = begun()
        time.forget()
        assert not time.known
        time.heard(EPOCH - 1_000.0, 60.0)
        assert time.at(60.0) == EPOCH - 1_000.0


class TestHearing:
    def test_a_later_time_is_taken_over(self) -> None:
        time = begun()
        time.heard(EPOCH + 30.0, 55.0)
        assert time.at(55.0) == EPOCH + 30.0

    def test_an_earlier_one_is_not(self) -> None:
        time = begun()
        time.heard(EPOCH + 1.0, 55.0)
        assert time.at(55.0) == EPOCH + 5.0

    def test_the_first_that_is_heard_is_taken_over_however_early(self) -> None:
        time = ClusterTime()
        time.heard(-5.0, 1e6)
        assert time.known
        assert time.at(1e6) == -5.0


class TestReading:
    def test_of_the_same_host_it_is_known_exactly_how_long_ago_it_was(self) -> None:
        writer, reader = begun(host="boot:1"), ClusterTime("boot:1")
        stamp = writer.stamp(EPOCH, 50.0)
        reader.read(stamp, EPOCH + 3_600.0, 3_650.0)
        assert reader.at(3_650.0) == writer.at(3_650.0)

    def test_that_holds_while_the_wall_clock_is_set_forward(self) -> None:
        writer, reader = begun(host="boot:1"), ClusterTime("boot:1")
        reader.read(writer.stamp(EPOCH, 50.0), EPOCH + 1e6, 60.0)
        assert reader.at(60.0) == writer.at(60.0)

    @pytest.mark.parametrize("wall", [EPOCH, EPOCH + 100.0, EPOCH + 1e6, EPOCH - 1e6])
    @pytest.mark.parametrize("host", ["boot:2", ""])
    def test_of_another_host_nobody_knows_how_long_ago_it_was_whatever_the_wall_clocks_show(
        self, host: str, wall: float
    ) -> None:
        writer, reader = begun(host="boot:1"), ClusterTime(host)
        reader.read(writer.stamp(EPOCH, 50.0), wall, 150.0)
        assert reader.at(150.0) == EPOCH
        assert reader.at(160.0) == EPOCH + 10.0, "from then on it goes on"

    def test_where_no_host_is_known_none_is_the_same(self) -> None:
        writer, reader = begun(), ClusterTime()
        reader.read(writer.stamp(EPOCH, 50.0), EPOCH + 100.0, 150.0)
        assert reader.at(150.0) == EPOCH

    def test_what_was_written_earlier_than_what_is_known_changes_nothing(self) -> None:
        writer, reader = begun(), begun(EPOCH + 500.0)
        reader.read(writer.stamp(EPOCH, 50.0), EPOCH + 10.0, 50.0)
        assert reader.at(50.0) == EPOCH + 500.0

    @pytest.mark.parametrize("monotonic", [49.9, 50.0 + 20.0 + WALL_MARGIN + 0.1, 1e9])
    def test_a_copied_machine_that_claims_to_be_the_same_is_another_host(self, monotonic: float) -> None:
        """Its monotonic clock shows earlier than when it was written, or more than can have passed."""
        writer, reader = begun(host="boot:1"), ClusterTime("boot:1")
        reader.read(writer.stamp(EPOCH, 50.0), EPOCH + 20.0, monotonic)
        assert reader.at(monotonic) == EPOCH


TIMES = st.floats(0.0, 1e5)


@given(
    hosts=st.lists(st.tuples(st.floats(0.0, 1e6), st.floats(-1e6, 1e6)), min_size=2, max_size=4),
    replicas=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=6),
    acts=st.lists(
        st.tuples(
            st.floats(0.0, 100.0), st.integers(0, 5), st.integers(0, 5), st.booleans(), st.floats(0.0, 2.0)
        ),
        max_size=30,
    ),
)
def test_no_estimate_is_ahead_of_the_first(
    hosts: list[tuple[float, float]],
    replicas: list[tuple[int, bool]],
    acts: list[tuple[float, int, int, bool, float]],
) -> None:
    """Each reads ledgers and hears messages of others, later by whatever these took; the first began it."""
    places = [
        (hosts[number % len(hosts)], f"host{number % len(hosts)}" if named else "")
        for number, named in replicas
    ]
    times = [ClusterTime(host) for _, host in places]

    def clocks(index: int, true: float) -> tuple[float, float]:
        booted, ahead = places[index][0]
        return EPOCH + true + ahead, true + booted

    times[0].begin(*clocks(0, 0.0))
    true = 0.0

    def first(at: float) -> float:
        return times[0].at(clocks(0, at)[1])

    for passed, one, other, reads, late in acts:
        true += passed
        one, other = one % len(times), other % len(times)
        if times[one].known:
            wall, now = clocks(one, true)
            stamp, arrives = times[one].stamp(wall, now), true + late
            if reads:
                times[other].read(stamp, *clocks(other, arrives))
            else:
                times[other].heard(stamp.time, clocks(other, arrives)[1])
            true = arrives
        for index, time in enumerate(times):
            if time.known:
                assert time.at(clocks(index, true)[1]) <= first(true) + 1e-3
    assert times[0].at(clocks(0, true)[1]) == pytest.approx(EPOCH + places[0][0][1] + true, abs=1e-3), (
        "it only goes on"
    )


@given(TIMES, st.floats(0.0, 5.0), st.floats(0.0, 5.0))
def test_one_that_has_heard_it_is_behind_by_no_more_than_the_quickest_message_took(
    at: float, quick: float, slow: float
) -> None:
    assume(quick <= slow)
    writer, reader = begun(EPOCH, 0.0), ClusterTime()
    reader.heard(writer.at(at), at + slow)
    reader.heard(writer.at(at + 10.0), at + 10.0 + quick)
    reader.heard(writer.at(at + 20.0), at + 20.0 + slow)
    behind = writer.at(at + 30.0) - reader.at(at + 30.0)
    assert behind == pytest.approx(quick, abs=1e-6)


class TestStamp:
    @given(
        st.floats(-1e11, 1e11),
        st.text(max_size=64),
        st.floats(-1e11, 1e11),
        st.floats(-1e11, 1e11),
        st.lists(st.integers(), max_size=2),
    )
    def test_what_is_written_is_read_also_by_an_older_version(
        self, time: float, host: str, monotonic: float, wall: float, more: list[int]
    ) -> None:
        stamp = Stamp(time, host, monotonic, wall)
        again = Stamp.from_wire([*stamp.to_wire(), *more])
        assert again.host == host
        for found, said in ((again.time, time), (again.monotonic, monotonic), (again.wall, wall)):
            assert found == pytest.approx(said, abs=1e-3)

    @pytest.mark.parametrize(
        "value",
        [
            None,
            7,
            "abcd",
            {},
            {"time": 1.0},
            [],
            [1.0, "", 1.0],
            [1.0, None, 1.0, 1.0],
            [1.0, "x" * 65, 1.0, 1.0],
            ["1", "", 1.0, 1.0],
            [True, "", 1.0, 1.0],
            [1.0, "", None, 1.0],
            [1.0, "", 1.0, math.nan],
            [1.0, "", 1.0, math.inf],
            [-1e12, "", 1.0, 1.0],
            [10**400, "", 1.0, 1.0],
        ],
    )
    def test_what_is_malformed_is_none(self, value: Any) -> None:
        with pytest.raises(ValueError, match="not a"):
            Stamp.from_wire(value)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=10,
        )
    )
    def test_whatever_comes_is_a_stamp_or_is_refused(self, value: Any) -> None:
        try:
            stamp = Stamp.from_wire(value)
        except ValueError:
            return
        ClusterTime().read(stamp, EPOCH, 5.0)
