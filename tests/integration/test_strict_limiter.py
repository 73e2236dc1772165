"""The strict limiter on a real Redis: several processes, and what may befall them and it."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
import strict_holder
import trustme
from local_nodes import NotInstalled, redis_server
from local_process import free_port, wait_until
from pytest_celery import RedisTestBackend
from services import missing_service
from strict_holder import KEY, ONE, VirtualStore, take

from remote_inference.cancel import CancelToken
from remote_inference.cluster import Cost, LimitKey
from remote_inference.cluster.strict import StrictRateLimiter
from remote_inference.config import RateLimits, RedisSettings
from remote_inference.credentials import CredentialWarning
from remote_inference.errors import LimitReached
from remote_inference.policy.quota import Quota, QuotaReport
from remote_inference.testing.clock import VirtualClock
from remote_inference.testing.limit import ExactLimit
from remote_inference.transport.redis_limit import RedisLimitStore
from remote_inference.types import Priority

QUICK = {"window": 60.0, "lease": 1.5}
Start = Callable[..., StrictRateLimiter]


@pytest.fixture
def private_redis(tmp_path: Path) -> Iterator[RedisTestBackend]:
    """A Redis of the test's own, which forgets everything when it is stopped."""
    try:
        node = redis_server(tmp_path)
    except NotInstalled as exc:
        missing_service(str(exc))
    yield node
    process = node.container.process.process
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
    node.container.process.remove()


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(url, limits, prefix=…, …)` gives a limiter, which is closed after the test."""
    made: list[StrictRateLimiter] = []
    usual = f"test-{uuid4().hex}"

    def make(url: str, prefix: str = usual, *, limits: dict[str, Any], **how: Any) -> StrictRateLimiter:
        made.append(strict_holder.make(url, prefix, limits, **(QUICK | how)))
        return made[-1]

    yield make
    for limiter in made:
        limiter.close()


def refused(limiter: StrictRateLimiter, cost: Cost = ONE) -> LimitReached:
    with pytest.raises(LimitReached) as caught:
        take(limiter, cost=cost)
    return caught.value


def used(limiter: StrictRateLimiter) -> dict[str, int]:
    figures: dict[str, int] = limiter.snapshot()[str(KEY)].get("used", {})
    return figures


class Holders:
    """Processes of `strict_holder`."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[str]] = []

    def __call__(self, **given: Any) -> subprocess.Popen[str]:
        root = Path(__file__).parents[2]
        self.running.append(
            subprocess.Popen(
                [sys.executable, str(root / "tests/support/strict_holder.py"), json.dumps(given)],
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": str(root)},
            )
        )
        return self.running[-1]


@pytest.fixture
def holder() -> Iterator[Holders]:
    holders = Holders()
    yield holders
    for process in holders.running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def most_at_once(held: list[tuple[float, float]]) -> int:
    steps = sorted([(since, 1) for since, _ in held] + [(until, -1) for _, until in held])
    most = running = 0
    for _, step in steps:
        running += step
        most = max(most, running)
    return most


class TestSeveralProcesses:
    WINDOW, LIMIT, SECONDS = 4.0, 400, 10.0

    def test_a_provider_that_counts_exactly_refuses_nothing_and_the_limit_is_used(
        self, redis_url: str, holder: Holders
    ) -> None:
        given = {
            "do": "hammer",
            "url": redis_url,
            "prefix": "hammered",
            "limits": {"requests_per_minute": self.LIMIT, "concurrent_requests": 12},
            "how": {"window": self.WINDOW, "margin": 0.5},
            "seconds": self.SECONDS,
            "threads": 8,
            "hold": 0.02,
        }
        processes = [holder(**given) for _ in range(4)]
        held = [
            (since, until)
            for process in processes
            for since, until in json.loads(process.communicate(timeout=60.0)[0])
        ]
        now = [0.0]
        limit = ExactLimit(requests_per_minute=self.LIMIT, window=self.WINDOW, clock=lambda: now[0])
        for since, _ in sorted(held):
            now[0] = since
            limit.admit(("key", "model"), 0)

        assert limit.refused == 0
        assert most_at_once(held) <= 12
        first, last = min(held)[0], max(held)[0]
        assert len(held) >= 0.8 * self.LIMIT / (self.WINDOW + 0.5) * (last - first)

    def test_the_places_of_one_that_was_killed_come_back_and_its_tokens_stay_reserved(
        self, redis_url: str, holder: Holders, start: Start
    ) -> None:
        limits = {"concurrent_requests": 2, "tokens_per_minute": 100, "burst": 60.0}
        prefix, cost = uuid4().hex, Cost(30, 10)
        given = {"url": redis_url, "prefix": prefix, "limits": limits, "how": QUICK, "cost": [30, 10]}
        process = holder(do="hold", count=2, **given)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        limiter = start(redis_url, prefix, limits=limits)
        end = time.monotonic() + 2.5 * QUICK["lease"]
        while time.monotonic() < end:  # it renews its lease
            assert refused(limiter, Cost(1, 0)).code == "concurrency"
            time.sleep(0.2)

        process.send_signal(signal.SIGKILL)
        wait_until(lambda: used(limiter)["concurrent"] == 0, "the places to come back", 10.0)

        assert used(limiter)["tokens"] == 80
        assert refused(limiter, cost).code == "tokens"
        take(limiter, cost=Cost(20, 0)).settle()

    def test_a_pause_stops_all_of_them_at_once(self, redis_url: str, start: Start) -> None:
        limits = {"requests_per_minute": 100, "burst": 60.0}
        one, other = (start(redis_url, limits=limits) for _ in range(2))
        take(other).settle()
        until = time.time() + 30.0
        one.pause(KEY, until)

        error = refused(other)

        assert error.code == "paused"
        assert error.retry_at == pytest.approx(until, rel=0, abs=0.5)
        assert other.paused_until(KEY) == pytest.approx(until, rel=0, abs=0.5)
        other.resume(KEY)
        take(one).settle()
        assert one.paused_until(KEY) == 0.0

    def test_what_the_provider_says_is_left_holds_for_all(self, redis_url: str, start: Start) -> None:
        one, other = (start(redis_url, limits={"requests_per_minute": 100, "burst": 60.0}) for _ in range(2))
        take(one).settle()
        one.observe(KEY, QuotaReport((Quota("requests", limit=100, remaining=3),)))
        for limiter in (one, other, one):
            take(limiter).settle()
        assert refused(other).code == "requests"


class TestRedisAway:
    def test_nothing_is_let_through_while_it_is_stopped_and_they_go_on_when_it_is_back(
        self, private_redis: RedisTestBackend, start: Start
    ) -> None:
        url = private_redis.container.url
        limiter = start(url, limits={"requests_per_minute": 10, "burst": 60.0})
        held = [take(limiter) for _ in range(6)]
        private_redis.kill()

        errors = [refused(limiter) for _ in range(20)]

        assert {error.code for error in errors} == {"store_unavailable"}
        assert all(0.0 < error.retry_at - time.time() <= 5.1 for error in errors)
        assert limiter.snapshot()[str(KEY)]["unavailable"] is True
        for permit in held:  # nothing of it is lost, nor does it wait
            permit.settle()
        private_redis.restart()  # without its data and our script
        granted: list[str] = []
        end = time.monotonic() + 30.0
        while time.monotonic() < end and "requests" not in granted:
            try:
                take(limiter).settle()
                granted.append("permit")
            except LimitReached as exc:
                granted.append(exc.code)
                time.sleep(0.05)
        assert granted.count("permit") == 4, "six were spent before it forgot everything"
        assert used(limiter) == {
            "requests": 10,
            "tokens": 10,
            "input_tokens": 10,
            "output_tokens": 0,
            "concurrent": 0,
        }

    def test_who_waits_goes_on_by_itself(self, private_redis: RedisTestBackend, start: Start) -> None:
        limiter = start(private_redis.container.url, limits={"requests_per_minute": 100})
        take(limiter).settle()
        private_redis.kill()
        refused(limiter)
        permits: list[object] = []
        thread = threading.Thread(target=lambda: permits.append(take(limiter, patience=60.0)))
        thread.start()
        time.sleep(1.0)
        assert not permits

        private_redis.restart()
        thread.join(30.0)

        assert permits

    def test_one_that_hangs_is_noticed_and_what_it_does_later_is_taken_back(
        self, private_redis: RedisTestBackend, start: Start
    ) -> None:
        limits = {"requests_per_minute": 10, "concurrent_requests": 5, "burst": 60.0}
        limiter = start(private_redis.container.url, limits=limits, timeout=0.3)
        held = take(limiter, cost=Cost(100, 0))
        server = private_redis.container.process.process
        server.send_signal(signal.SIGSTOP)
        began = time.monotonic()

        assert refused(limiter).code == "store_unavailable"

        assert time.monotonic() - began < 3.0
        began = time.monotonic()
        held.settle(Cost(7, 0))
        assert time.monotonic() - began < 0.2, "the end of a request waits for nothing"
        server.send_signal(signal.SIGCONT)  # what it was asked is still in its socket, and is done now
        wait_until(
            lambda: used(limiter).get("requests") == 1 and used(limiter)["concurrent"] == 0,
            "it to be as it was",
        )
        assert used(limiter)["tokens"] == 7

    def test_it_says_so_once_and_shows_no_password(
        self, private_redis: RedisTestBackend, start: Start, caplog: pytest.LogCaptureFixture
    ) -> None:
        address = private_redis.container.url.partition("://")[2]
        with pytest.warns(CredentialWarning):
            limiter = start(f"redis://user:hunter2@{address}", limits={"requests_per_minute": 10})
        with caplog.at_level(logging.DEBUG):
            errors = [refused(limiter) for _ in range(3)]
            time.sleep(0.6)
            errors.append(refused(limiter))
        warnings = [r.getMessage() for r in caplog.records if r.name.startswith("remote_inference")]
        assert [error.code for error in errors] == ["store_unavailable"] * 4
        assert len(warnings) == 1
        shown = "".join(
            [caplog.text, repr(limiter), repr(limiter._store), *map(repr, errors), *map(str, errors)]
        )
        assert "hunter2" not in shown


class TestDataLost:
    LIMITS = {"requests_per_minute": 10, "burst": 60.0}

    def _rest(self, limiters: list[StrictRateLimiter]) -> int:
        """How many more there are, once they go on."""
        end, more, codes = time.monotonic() + 30.0, 0, {"store_unavailable"}
        while time.monotonic() < end and codes != {"requests"}:
            codes = set()
            for limiter in limiters:
                try:
                    take(limiter).settle()
                    more += 1
                    codes.add("permit")
                except LimitReached as exc:
                    codes.add(exc.code)
            time.sleep(0.05)
        return more

    def test_each_process_tells_anew_what_it_spent(self, redis_url: str, start: Start) -> None:
        limiters = [start(redis_url, limits=self.LIMITS) for _ in range(3)]
        for limiter in limiters:
            take(limiter).settle()
        held = take(limiters[0], cost=Cost(50, 0))
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()

        newcomer = start(redis_url, limits=self.LIMITS)
        assert self._rest([*limiters, newcomer]) == 6

        assert used(newcomer)["concurrent"] == 1
        held.settle(Cost(9, 0))
        wait_until(lambda: used(newcomer)["tokens"] == 9 + 3 + 6, "the correction to arrive")
        assert used(newcomer)["concurrent"] == 0

    def test_a_copy_that_is_behind_is_not_believed(self, redis_url: str, start: Start) -> None:
        one, other = (start(redis_url, limits=self.LIMITS) for _ in range(2))
        take(one).settle()
        with redis.Redis.from_url(redis_url) as client:
            names = client.keys("test-*")
            copy = {name: client.dump(name) for name in names}
            for limiter in (one, one, other, other):
                take(limiter).settle()
            # At once, as a failover is: the limiters go on telling of themselves meanwhile.
            with client.pipeline(transaction=True) as failover:
                failover.delete(*client.keys("test-*"))
                for name, value in copy.items():
                    failover.restore(name, 60_000, value, replace=True)
                failover.execute()
        assert self._rest([one, other]) == 5

    @pytest.mark.parametrize("part", ["slots", "leases"])
    def test_one_part_that_was_evicted_is_as_good_as_all(
        self, redis_url: str, start: Start, part: str
    ) -> None:
        limiter = start(redis_url, limits=self.LIMITS)
        held = take(limiter)
        take(limiter).settle()
        with redis.Redis.from_url(redis_url) as client:
            assert client.delete(*client.keys(f"test-*:{part}")) == 1
        assert self._rest([limiter]) == 8
        assert used(limiter)["concurrent"] == 1
        held.settle()

    def test_a_process_that_sent_nothing_lately_has_nothing_to_wait_for(
        self, redis_url: str, start: Start
    ) -> None:
        limiter = start(redis_url, limits=self.LIMITS, window=0.5)
        take(limiter).settle()
        wait_until(lambda: used(limiter) == dict.fromkeys(used(limiter), 0), "the window to be empty")
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()  # as if the keys had expired
        take(limiter).settle()

    def test_something_else_at_the_keys_place_is_left_alone_and_nothing_is_let_through(
        self, redis_url: str, start: Start
    ) -> None:
        limiter = start(redis_url, limits=self.LIMITS)
        take(limiter).settle()
        with redis.Redis.from_url(redis_url) as client:
            [state] = client.keys("test-*:state")
            client.delete(state)
            client.set(state, "somebody's")
            assert refused(limiter).code == "store_unavailable"
            assert client.get(state) == b"somebody's"
            client.delete(state)
        assert self._rest([limiter]) == 9


class TestKeys:
    def test_they_expire_by_themselves_lie_on_one_node_and_name_nothing(
        self, redis_url: str, start: Start
    ) -> None:
        limiter = start(redis_url, limits={"requests_per_minute": 1})
        permit = take(limiter)
        with pytest.raises(LimitReached):
            take(limiter, patience=0.05)
        with redis.Redis.from_url(redis_url) as client:
            names = [name.decode() for name in client.keys("*")]
            assert len(names) >= 3
            assert len({name[name.index("{") : name.index("}")] for name in names}) == 1
            assert not any("gpt" in name or "KEY" in name or "openai" in name for name in names)
            assert all(0 < client.pttl(name) <= 200_000 for name in names)
        permit.refund()

    def test_a_request_costs_a_round_trip_and_its_end_at_most_another(
        self, redis_url: str, start: Start
    ) -> None:
        limiter = start(redis_url, limits={"requests_per_minute": 10_000, "burst": 60.0})
        calls = []
        exchange = limiter._store.exchange

        def counted(key: LimitKey, message: Any) -> dict[str, Any]:
            calls.append(message)
            return exchange(key, message)

        limiter._store.exchange = counted  # type: ignore[method-assign]
        for _ in range(200):
            take(limiter).settle()
        wait_until(lambda: used(limiter)["concurrent"] == 0, "the last end to be told")
        assert sum("acquire" in call for call in calls) == 200
        assert sum("acquire" not in call for call in calls) <= 220


class TwoProcesses:
    """Two limiters that share a Redis, on a virtual clock."""

    def __init__(self, url: str, **limits: Any) -> None:
        self.clock = VirtualClock()
        prefix = uuid4().hex
        self.limiters = [
            StrictRateLimiter(self.clock, VirtualStore(url, prefix, self.clock), margin=0.0, lease=1e6)
            for _ in range(2)
        ]
        for limiter in self.limiters:
            limiter.configure(KEY, RateLimits(**limits), deployment="a")

    def take(self, process: int, priority: Priority, cost: Cost = ONE, patience: float = 1e3) -> float:
        limiter = self.limiters[process]
        limiter.acquire(KEY, "a", cost, priority=priority, patience=patience, token=CancelToken()).settle()
        return self.clock.time() - 1_700_000_000.0


class TestAcrossProcesses:
    def test_a_permit_goes_to_the_highest_priority_wherever_it_waits(self, redis_url: str) -> None:
        two = TwoProcesses(redis_url, requests_per_minute=60)
        two.take(0, Priority.NORMAL)
        order: list[str] = []

        def one(process: int, name: str, priority: Priority, begins: float) -> Callable[[], None]:
            def do() -> None:
                two.clock.sleep(begins)
                two.take(process, priority)
                order.append(name)

            return do

        two.clock.run(
            one(0, "background 1", Priority.BACKGROUND, 0.1),
            one(0, "background 2", Priority.BACKGROUND, 0.2),
            one(1, "normal", Priority.NORMAL, 0.3),
            one(1, "critical", Priority.CRITICAL, 0.5),
            one(0, "high", Priority.HIGH, 0.6),
        )
        assert order == ["critical", "high", "normal", "background 1", "background 2"]

    def test_a_big_request_is_not_starved_by_small_ones_of_another_process(self, redis_url: str) -> None:
        two = TwoProcesses(redis_url, tokens_per_minute=6_000)
        big: list[float] = []

        def small() -> None:
            while not big:
                two.take(0, Priority.NORMAL, Cost(20, 0))

        def large() -> None:
            two.clock.sleep(5.0)
            big.append(two.take(1, Priority.NORMAL, Cost(90, 0)))

        two.clock.run(small, small, large)
        assert 5.0 <= big[0] <= 7.0

    def test_they_share_what_there_is(self, redis_url: str) -> None:
        two = TwoProcesses(redis_url, requests_per_minute=120)
        counts = [0, 0]

        def one(process: int) -> Callable[[], None]:
            def do() -> None:
                while two.clock.time() < 1_700_000_030.0:
                    two.take(process, Priority.NORMAL)
                    counts[process] += 1

            return do

        two.clock.run(one(0), one(0), one(0), one(1))
        assert 55 <= sum(counts) <= 80
        assert min(counts) >= 0.4 * sum(counts)

    def test_who_stood_in_line_and_died_is_passed_over(self, redis_url: str) -> None:
        two = TwoProcesses(redis_url, requests_per_minute=60)
        two.take(0, Priority.NORMAL)

        account = two.limiters[1]._keys[KEY].account
        told = account.acquire("a", ONE, priority=3, patience=10.0, most=10)
        assert isinstance(told, dict)
        assert 0.0 < told["wait"] <= 1.0

        assert two.take(0, Priority.BACKGROUND) <= 2.0


class TestPace:
    def test_a_second_of_the_limit_may_go_at_once_and_then_it_is_paced(self, redis_url: str) -> None:
        two = TwoProcesses(redis_url, requests_per_minute=600)
        times: list[float] = []

        def one() -> None:
            times.append(two.take(0, Priority.NORMAL))

        two.clock.run(*[one] * 60)
        assert sum(at == 0.0 for at in times) == 10
        assert 4.0 <= max(times) <= 5.1

    @pytest.mark.parametrize("per_minute", [60, 600])
    def test_nearly_the_whole_limit_is_used_and_no_sixty_seconds_hold_more(
        self, redis_url: str, per_minute: int
    ) -> None:
        two = TwoProcesses(redis_url, requests_per_minute=per_minute)
        times: list[float] = []

        def one(process: int) -> Callable[[], None]:
            def do() -> None:
                while two.clock.time() < 1_700_000_180.0:
                    times.append(two.take(process, Priority.NORMAL))

            return do

        two.clock.run(one(0), one(1), one(1))
        times.sort()
        for index, at in enumerate(times[per_minute:]):
            assert at - times[index] >= 60.0
        assert sum(60.0 <= at < 180.0 for at in times) >= 0.97 * 2 * per_minute

    def test_what_a_gap_left_unused_is_made_up_for(self, redis_url: str) -> None:
        two = TwoProcesses(redis_url, requests_per_minute=600)
        times: list[float] = []

        def one() -> None:
            while two.clock.time() < 1_700_000_180.0:
                if 40.0 < two.clock.time() - 1_700_000_000.0 < 45.0:
                    two.clock.sleep(5.0)
                times.append(two.take(0, Priority.NORMAL))

        two.clock.run(one, one)
        assert sum(120.0 <= at < 180.0 for at in times) >= 0.97 * 600

    def test_tokens_whose_estimates_are_far_off_are_used_nearly_whole(self, redis_url: str) -> None:
        two = TwoProcesses(redis_url, tokens_per_minute=300_000)
        rng, spent = random.Random(7), list[tuple[float, int]]()

        def one(process: int) -> Callable[[], None]:
            def do() -> None:
                while two.clock.time() < 1_700_000_180.0:
                    real = rng.choice([100, 300, 1_000, 5_000])
                    estimated = Cost(0, int(real * rng.choice([0.5, 1.0, 2.0])))
                    permit = two.limiters[process].acquire(
                        KEY, "a", estimated, priority=Priority.NORMAL, patience=1e3, token=CancelToken()
                    )
                    at = two.clock.time() - 1_700_000_000.0
                    two.clock.sleep(rng.uniform(0.5, 3.0))
                    spent.append((at, real))
                    permit.settle(Cost(0, real))

            return do

        two.clock.run(*[one(number % 2) for number in range(24)])
        assert sum(tokens for at, tokens in spent if 60.0 <= at < 180.0) >= 0.93 * 600_000
        for begin, _ in spent:
            inside = sum(tokens for at, tokens in spent if begin <= at < begin + 60.0)
            assert inside <= 1.03 * 300_000, "an estimate that was too low is known only at the end"


def test_tls_with_an_authority_of_ones_own(tmp_path: Path, start: Start) -> None:
    program = shutil.which("redis-server")
    if program is None:
        missing_service("redis-server is not installed: run `make services` as root")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    port = free_port()
    command = (
        f"{program} --port 0 --tls-port {port} --tls-auth-clients no --bind 127.0.0.1 --requirepass hunter2"
    )
    files = ["--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem", "--tls-ca-cert-file", "ca.pem"]
    server = subprocess.Popen(
        [*command.split(), *files, "--save", ""], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    try:
        url = f"rediss://:hunter2@localhost:{port}/0?ssl_ca_certs={tmp_path / 'ca.pem'}"
        limits = {"requests_per_minute": 60}
        with pytest.warns(CredentialWarning):
            limiter = start(url, limits=limits, timeout=5.0)
        with pytest.warns(CredentialWarning):
            stranger = start(url.partition("?")[0], limits=limits, timeout=5.0)
        take(limiter, patience=60.0).settle()
        assert refused(stranger).code == "store_unavailable", "nobody has told it to trust that authority"
    finally:
        server.kill()
        server.wait()


class TestRedisClock:
    def test_one_that_is_set_back_stands_still_and_goes_on(self, redis_url: str) -> None:
        clock, now = VirtualClock(), [1_000_000.0]
        settings = RedisSettings(url=redis_url, prefix=uuid4().hex)  # type: ignore[arg-type]
        store = RedisLimitStore(settings, clock=clock, now=lambda: now[0])
        limiter = StrictRateLimiter(clock, store, margin=0.0, lease=1e6)
        limiter.configure(KEY, RateLimits(requests_per_minute=2, burst=60.0), deployment="a")
        take(limiter).settle()
        now[0] += 30.0
        take(limiter).settle()
        now[0] -= 3_600.0
        assert refused(limiter).retry_at - clock.time() == pytest.approx(30.0, abs=0.01)
        now[0] += 29.0
        refused(limiter)
        now[0] += 1.0
        take(limiter).settle()
        refused(limiter)
