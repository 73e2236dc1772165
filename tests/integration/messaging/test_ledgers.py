"""`Ledgers` on RabbitMQ: a ledger is in one hand at a time, and is neither lost nor doubled, whoever dies with it."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from kombu import Connection
from kombu.utils.url import parse_url
from local_process import free_port, wait_until
from tcp_proxy import TCPProxy

from remote_inference.clock import SystemClock
from remote_inference.messaging import ledgers as module
from remote_inference.messaging.ledgers import HEARTBEAT, NOTHING_THERE, Ledgers
from remote_inference.messaging.names import ledger_queue

LIMIT = 30.0  # seconds
ROOT = Path(__file__).parents[3]

COUNTS = """
import sys, threading
from kombu import Connection
from remote_inference.messaging.ledgers import Ledgers

class Reader:
    ask, left, done = None, int(sys.argv[3]), threading.Event()
    def may_begin(self, digest, new):
        return False
    def read(self, digest, body):
        return b"%d" % (int(body) + 1)
    def confirmed(self, digest):
        self.left -= 1
        self.ask(digest) if self.left else self.done.set()
    def failed(self, digest):
        pass  # it was held for a second or more: it is asked for again
    def leave(self):
        return []
    def has_left(self, digest):
        return True

reader = Reader()
ledgers = Ledgers(reader, lambda: Connection(sys.argv[1]))
ledgers.start()
print("ready", flush=True)
sys.stdin.readline()
reader.ask(sys.argv[2])
assert reader.done.wait(60)
ledgers.close()
"""

HOLDS = """
import sys, threading
from kombu import Connection
from remote_inference.messaging.ledgers import Ledgers

class Reader:
    ask = None
    def read(self, digest, body):
        print(bytes(body).decode(), flush=True)
        threading.Event().wait()

reader = Reader()
Ledgers(reader, lambda: Connection(sys.argv[1])).start()
reader.ask(sys.argv[2])
threading.Event().wait()
"""


class Reader:
    """Notes what it is told, and writes what it was told to write; see `LedgerReader`."""

    ask: Callable[[str], None] | None = None

    def __init__(self) -> None:
        self.write: Callable[[bytes | None], bytes | None] = lambda body: None
        """What is to be written, of what was read."""
        self.begins: Callable[[bool], bool] = lambda new: False
        self.again = False
        """Whether it asks again after a failure, as those do who need it."""
        self.bodies: queue.Queue[bytes | None] = queue.Queue()
        """What was read, in order."""
        self.read_subjects: list[str] = []
        self.asked_to_begin: list[tuple[str, bool]] = []
        self.written: list[str] = []
        self.failures: list[str] = []
        self.leaving: list[str] = []
        self.left: set[str] = set()

    def may_begin(self, digest: str, new: bool) -> bool:
        self.asked_to_begin.append((digest, new))
        return self.begins(new)

    def read(self, digest: str, body: bytes | str | None) -> bytes | None:
        raw = body.encode() if isinstance(body, str) else None if body is None else bytes(body)
        self.read_subjects.append(digest)
        self.bodies.put(raw)
        return self.write(raw)

    def confirmed(self, digest: str) -> None:
        self.written.append(digest)
        self.left.add(digest)

    def failed(self, digest: str) -> None:
        self.failures.append(digest)
        if self.again:
            self.want(digest)

    def leave(self) -> Sequence[str]:
        return self.leaving

    def has_left(self, digest: str) -> bool:
        return digest in self.left

    # -- for the tests

    def want(self, digest: str) -> None:
        assert self.ask is not None
        self.ask(digest)

    def gets(self, digest: str) -> bytes | None:
        """Ask, and wait for what comes."""
        self.want(digest)
        return self.bodies.get(timeout=LIMIT)


class Holding(Reader):
    """Keeps what it reads in hand until it may go on, and then writes it changed."""

    def __init__(self, write: Callable[[bytes | None], bytes | None] = lambda body: b"mine") -> None:
        super().__init__()
        self.holds, self.go_on = threading.Event(), threading.Event()

        def hold(body: bytes | None) -> bytes | None:
            self.holds.set()
            assert self.go_on.wait(LIMIT * 2)
            return write(body)

        self.write = hold

    def takes(self, digest: str) -> None:
        self.want(digest)
        assert self.holds.wait(LIMIT)


class Opened:
    """A process's ledgers, and the connections that were made for them."""

    def __init__(self, reader: Reader, url: str, clock: SystemClock | None = None) -> None:
        self.reader = reader
        self.connections: list[Connection] = []

        def connect() -> Connection:
            self.connections.append(Connection(url, connect_timeout=2))
            return self.connections[-1]

        before = set(threading.enumerate())
        self.ledgers = Ledgers(reader, connect, clock=clock)
        self.ledgers.start()
        [self.thread] = [t for t in set(threading.enumerate()) - before if t.name == "inference-ledgers"]

    def break_connection(self) -> None:
        """As if the machine had gone: the socket is closed, and nothing said."""
        self.connections[-1].connection.transport.sock.shutdown(socket.SHUT_RDWR)


Open = Callable[..., Opened]


@pytest.fixture
def open_ledgers(broker_url: str) -> Iterator[Open]:
    """`open_ledgers(reader, url=, clock=)`; they are closed after the test."""
    opened: list[Opened] = []

    def make(reader: Reader, url: str = broker_url, clock: SystemClock | None = None) -> Opened:
        opened.append(Opened(reader, url, clock))
        return opened[-1]

    yield make
    for one in opened:
        if isinstance(one.reader, Holding):
            one.reader.go_on.set()
        one.reader.again, one.reader.leaving = False, []
        one.ledgers.close(0.5)


@pytest.fixture
def subject() -> str:
    return uuid.uuid4().hex[:16]


class Ledger:
    """The queue, as somebody else sees it."""

    def __init__(self, url: str, subject: str) -> None:
        self._connection, self.queue = Connection(url), ledger_queue(subject)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()

    def put(self, body: bytes) -> None:
        """Begin it, as a process did that is not here any more."""
        self.declare()
        channel = self._connection.default_channel
        channel.basic_publish(channel.prepare_message(body), exchange="", routing_key=self.queue)

    def declare(self) -> None:
        self._connection.default_channel.queue_declare(
            self.queue,
            durable=True,
            auto_delete=False,
            arguments=module.ARGUMENTS,
        )

    def delete(self) -> None:
        self._connection.default_channel.queue_delete(self.queue)

    @property
    def count(self) -> int:
        """Messages that are in nobody's hands."""
        count: int = self._connection.default_channel.queue_declare(self.queue, passive=True).message_count
        return count

    def contents(self) -> list[bytes]:
        """All that is there, which is taken out."""
        found = []
        while (message := self._connection.default_channel.basic_get(self.queue, no_ack=True)) is not None:
            found.append(message.body if isinstance(message.body, bytes) else message.body.encode())
        return found


@pytest.fixture
def ledger(broker_url: str, subject: str) -> Iterator[Ledger]:
    with Ledger(broker_url, subject) as ledger:
        yield ledger


@pytest.fixture
def proxy(broker_url: str, tmp_path: Path) -> Iterator[TCPProxy]:
    broker = parse_url(broker_url)
    proxy = TCPProxy(tmp_path, broker["hostname"], broker["port"])
    proxy.start()
    yield proxy
    proxy.thaw()
    proxy.drop()


@pytest.fixture
def proxy_url(broker_url: str, proxy: TCPProxy) -> str:
    """The same broker, through the proxy."""
    return broker_url.replace(f":{parse_url(broker_url)['port']}/", f":{proxy.port}/")


class TestReading:
    def test_what_is_written_the_next_reads_and_there_is_one_of_it(
        self, open_ledgers: Open, ledger: Ledger, subject: str
    ) -> None:
        ledger.put(b"first")
        one, other = Reader(), Reader()
        one.write = lambda body: b"second"
        open_ledgers(one)
        open_ledgers(other)
        assert one.gets(subject) == b"first"
        wait_until(lambda: one.written == [subject], "the confirmation")
        assert other.gets(subject) == b"second"
        wait_until(lambda: ledger.count == 1, "it to be put back")
        assert ledger.contents() == [b"second"]
        assert one.failures == other.failures == []

    def test_a_fault_in_reading_puts_it_back_and_is_not_repeated_at_once(
        self, open_ledgers: Open, ledger: Ledger, subject: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        ledger.put(b"as it is")
        broken, other = Reader(), Reader()
        broken.again = True
        broken.write = lambda body: b"x"[1]  # type: ignore[index,return-value]  # raises
        open_ledgers(broken)
        open_ledgers(other)
        began = time.monotonic()
        broken.want(subject)
        wait_until(lambda: len(broken.read_subjects) == 2, "it to be read again")
        assert time.monotonic() - began >= 0.9
        assert broken.failures[:1] == [subject]
        assert "could not be read" in caplog.text
        assert "cannot be reached" not in caplog.text
        assert other.gets(subject) == b"as it is"

    def test_what_is_not_changed_is_put_back(self, open_ledgers: Open, ledger: Ledger, subject: str) -> None:
        ledger.put(b"as it is")
        one, other = Reader(), Reader()
        open_ledgers(one)
        open_ledgers(other)
        for reader in (one, other, one, one, other):
            assert reader.gets(subject) == b"as it is"
        wait_until(lambda: ledger.count == 1, "it to be put back")
        assert one.written == one.failures == one.asked_to_begin == []

    @pytest.mark.parametrize("body", [bytes(range(256)), "ä€".encode(), b"x" * 300_000])
    def test_it_is_read_as_it_was_written_whatever_it_is(
        self, open_ledgers: Open, subject: str, body: bytes
    ) -> None:
        one, other = Reader(), Reader()
        one.begins, one.write = (lambda new: new), lambda found: body
        open_ledgers(one)
        open_ledgers(other)
        assert one.gets(subject) is None
        wait_until(lambda: one.written == [subject], "the confirmation")
        assert other.gets(subject) == body

    def test_a_wish_is_not_kept_waiting_by_a_thread_that_is_idle(
        self, open_ledgers: Open, ledger: Ledger, subject: str
    ) -> None:
        ledger.put(b"1")
        reader = Reader()
        open_ledgers(reader)
        reader.gets(subject)
        took = []
        for _ in range(10):
            begin = time.monotonic()
            reader.gets(subject)
            took.append(time.monotonic() - begin)
        assert sorted(took)[5] < 0.1

    def test_many_threads_may_ask_for_many_ledgers(self, open_ledgers: Open, broker_url: str) -> None:
        subjects = [uuid.uuid4().hex[:16] for _ in range(20)]
        for subject in subjects:
            with Ledger(broker_url, subject) as ledger:
                ledger.put(subject.encode())
        reader = Reader()
        open_ledgers(reader)
        start = threading.Barrier(8)

        def ask(number: int) -> None:
            start.wait()
            for index in range(len(subjects)):
                reader.want(subjects[(index * 7 + number) % len(subjects)])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        wait_until(lambda: set(reader.read_subjects) == set(subjects), "all to be read")
        for subject in subjects:  # none is in its hands any more, or waited for
            assert reader.gets(subject) is not None
        assert reader.failures == []

    def test_one_that_is_asked_for_by_several_comes_to_each_of_them_in_turn(
        self, open_ledgers: Open, ledger: Ledger, subject: str
    ) -> None:
        ledger.put(b"")
        first = Holding(lambda body: b"first")
        open_ledgers(first)
        others = [Reader() for _ in range(3)]
        for number, reader in enumerate(others):
            reader.write = lambda body, n=number: (body or b"") + b" %d" % n  # type: ignore[misc]
            open_ledgers(reader)
        first.takes(subject)
        for reader in others:
            reader.want(subject)
        first.go_on.set()
        wait_until(lambda: all(reader.written for reader in others), "each to have had it")
        wait_until(lambda: ledger.count == 1, "it to be put back")
        [body] = ledger.contents()
        assert body.startswith(b"first")
        assert sorted(body.split()[1:]) == [b"0", b"1", b"2"]


class TestMutualExclusion:
    def test_nothing_that_one_wrote_is_written_over_by_another(
        self, open_ledgers: Open, ledger: Ledger, subject: str
    ) -> None:
        ledger.put(b"0")
        rounds = 50

        class Counter(Reader):
            def confirmed(self, digest: str) -> None:
                super().confirmed(digest)
                if len(self.written) < rounds:
                    self.want(digest)

        counters = [Counter() for _ in range(4)]
        for counter in counters:
            counter.write = lambda body: b"%d" % (int(body or b"0") + 1)
            open_ledgers(counter)
        for counter in counters:
            counter.want(subject)
        wait_until(lambda: all(len(c.written) == rounds for c in counters), "all to have counted")
        wait_until(lambda: ledger.count == 1, "it to be put back")
        assert ledger.contents() == [b"%d" % (4 * rounds)]
        seen = sorted(int(body) for counter in counters for body in list(counter.bodies.queue))
        assert seen == list(range(4 * rounds)), "each was read by one"

    def test_nor_by_another_process(self, broker_url: str, ledger: Ledger, subject: str) -> None:
        ledger.put(b"0")
        command = [sys.executable, "-c", COUNTS, broker_url, subject, "50"]
        children = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            for _ in range(4)
        ]
        try:
            for child in children:
                assert child.stdout is not None
                assert child.stdout.readline() == "ready\n"
            for child in children:
                assert child.stdin is not None
                child.stdin.write("go\n")
                child.stdin.flush()
            assert [child.wait(60) for child in children] == [0] * 4
        finally:
            for child in children:
                child.kill()
                child.communicate()
        wait_until(lambda: ledger.count == 1, "it to be put back")
        assert ledger.contents() == [b"200"]


class TestBeginning:
    def test_who_finds_no_queue_is_told_so_and_may_begin_it(
        self, open_ledgers: Open, ledger: Ledger, subject: str
    ) -> None:
        reader = Reader()
        reader.begins, reader.write = (lambda new: new), lambda body: b"begun"
        open_ledgers(reader)
        assert reader.gets(subject) is None
        wait_until(lambda: reader.written == [subject], "the confirmation")
        assert reader.asked_to_begin == [(subject, True)]
        assert ledger.contents() == [b"begun"]

    def test_who_finds_an_empty_one_is_told_that_it_was_there_and_looks_until_it_may(
        self, open_ledgers: Open, ledger: Ledger, subject: str
    ) -> None:
        ledger.declare()
        reader = Reader()
        reader.begins = lambda new: len(reader.asked_to_begin) == 3
        reader.write = lambda body: b"begun"
        open_ledgers(reader)
        assert reader.gets(subject) is None
        wait_until(lambda: reader.written == [subject], "the confirmation")
        assert reader.asked_to_begin == [(subject, False)] * 3
        assert reader.failures == [subject] * 2

    def test_one_that_finds_it_in_another_s_hands_goes_on_looking(
        self, open_ledgers: Open, ledger: Ledger, subject: str
    ) -> None:
        ledger.put(b"old")
        holder, other = Holding(), Reader()
        open_ledgers(holder)
        open_ledgers(other)
        holder.takes(subject)
        other.want(subject)
        wait_until(lambda: len(other.failures) >= 2, "it to look more than once")
        assert {new for _, new in other.asked_to_begin} == {False}
        holder.go_on.set()
        assert other.bodies.get(timeout=LIMIT) == b"mine"

    def test_of_those_who_find_none_at_once_one_begins(self, open_ledgers: Open, broker_url: str) -> None:
        readers = [Reader() for _ in range(5)]
        for number, reader in enumerate(readers):
            reader.begins = lambda new: True
            reader.write = lambda body, n=number: b"by %d" % n if body is None else None  # type: ignore[misc]
            open_ledgers(reader)
        for _ in range(3):
            subject = uuid.uuid4().hex[:16]
            for reader in readers:
                reader.want(subject)
            wait_until(
                lambda s=subject: all(s in reader.read_subjects for reader in readers), "all to have read it"
            )  # type: ignore[misc]
            with Ledger(broker_url, subject) as ledger:
                wait_until(lambda: ledger.count >= 1, "it to be put back")
                assert len(ledger.contents()) == 1
            began = [reader for reader in readers if subject in reader.written]
            assert len(began) == 1

    def test_one_that_does_not_want_to_begin_it_after_all_leaves_it(
        self, open_ledgers: Open, ledger: Ledger, subject: str
    ) -> None:
        reader, other = Reader(), Reader()
        reader.begins = lambda new: True
        open_ledgers(reader)
        assert reader.gets(subject) is None
        other.begins, other.write = (lambda new: True), lambda body: b"begun"
        open_ledgers(other)
        assert other.gets(subject) is None
        wait_until(lambda: ledger.count == 1, "it to be begun")

    def test_where_the_queue_was_deleted_it_is_begun_anew(
        self, open_ledgers: Open, ledger: Ledger, subject: str
    ) -> None:
        """As the broker does with one that nobody has used for a day."""
        ledger.put(b"old")
        reader = Reader()
        reader.begins, reader.again = (lambda new: new), True
        reader.write = lambda body: b"begun" if body is None else None
        open_ledgers(reader)
        assert reader.gets(subject) == b"old"
        wait_until(lambda: ledger.count == 1, "it to be put back")
        ledger.delete()
        assert reader.gets(subject) is None
        wait_until(lambda: reader.written == [subject], "the confirmation")
        assert ledger.contents() == [b"begun"]

    def test_one_that_stood_still_with_it_in_hand_while_it_was_begun_anew_does_not_bring_a_second(
        self, open_ledgers: Open, ledger: Ledger, subject: str
    ) -> None:
        """Two ledgers would hand out the limit twice."""
        ledger.put(b"old")
        stopped, other = Holding(lambda body: b"old, changed"), Reader()
        open_ledgers(stopped)
        stopped.takes(subject)
        other.begins, other.write = (lambda new: True), lambda body: b"begun" if body is None else None
        open_ledgers(other)
        assert other.gets(subject) is None
        wait_until(lambda: other.written == [subject], "the confirmation")
        stopped.go_on.set()
        wait_until(lambda: bool(stopped.written or stopped.failures), "the one that stood still to go on")
        wait_until(lambda: ledger.count >= 1, "it to be put back")
        assert ledger.contents() == [b"begun"]
        assert stopped.written == [], "who takes it for written takes itself to hold what it does not"

    def test_nor_does_one_that_died_with_it_in_hand_for_the_older_one_can_be_thrown_away(
        self, open_ledgers: Open, ledger: Ledger, subject: str
    ) -> None:
        ledger.put(b"old")
        dying, other = Holding(), Reader()
        opened = open_ledgers(dying)
        dying.takes(subject)
        other.begins = lambda new: True
        other.write = lambda body: b"begun" if body is None else b"" if body == b"old" else None
        open_ledgers(other)
        assert other.gets(subject) is None
        wait_until(lambda: other.written == [subject], "the confirmation")
        opened.break_connection()
        wait_until(lambda: ledger.count == 2, "the broker to notice")
        assert [other.gets(subject), other.gets(subject)] == [b"old", b"begun"]
        assert other.written == [subject], "nothing was written"
        wait_until(lambda: ledger.count == 1, "it to be put back")
        assert ledger.contents() == [b"begun"]


class TestDeath:
    def test_what_a_killed_process_had_in_hand_the_next_gets_as_it_was(
        self, open_ledgers: Open, broker_url: str, ledger: Ledger, subject: str
    ) -> None:
        ledger.put(b"old")
        command = [sys.executable, "-c", HOLDS, broker_url, subject]
        holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "old\n"
            other = Reader()
            open_ledgers(other)
            other.want(subject)
            wait_until(lambda: bool(other.failures), "it to be missed")
            os.kill(holder.pid, signal.SIGKILL)
            assert other.bodies.get(timeout=LIMIT) == b"old"
        finally:
            holder.kill()
            holder.communicate()

    def test_what_one_whose_connection_is_lost_writes_then_is_not_there(
        self, open_ledgers: Open, ledger: Ledger, subject: str
    ) -> None:
        ledger.put(b"old")
        cut, other = Holding(), Reader()
        opened = open_ledgers(cut)
        open_ledgers(other)
        cut.takes(subject)
        opened.break_connection()
        assert other.gets(subject) == b"old"
        cut.go_on.set()
        wait_until(lambda: cut.failures == [subject], "it to be told")
        assert cut.written == []
        assert cut.gets(subject) == b"old", "it has connected anew"
        wait_until(lambda: cut.written == [subject], "it to write")
        assert other.gets(subject) == b"mine"

    def test_one_whose_reader_fails_puts_it_back_and_goes_on(
        self, open_ledgers: Open, ledger: Ledger, subject: str
    ) -> None:
        ledger.put(b"old")
        reader, other = Reader(), Reader()

        def fails(body: bytes | None) -> bytes | None:
            raise ZeroDivisionError

        reader.write = fails
        open_ledgers(reader)
        open_ledgers(other)
        assert reader.gets(subject) == b"old"
        wait_until(lambda: reader.failures == [subject], "it to be told")
        reader.write = lambda body: None
        assert other.gets(subject) == b"old"
        assert reader.gets(subject) == b"old"

    def test_the_broker_takes_it_away_from_one_that_stands_still(
        self, open_ledgers: Open, ledger: Ledger, subject: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            module, "HEARTBEAT", 1.0
        )  # the least that the broker knows; it is to be two periods late
        ledger.put(b"old")
        stopped, other = Holding(), Reader()
        open_ledgers(stopped)
        stopped.takes(subject)
        other.again = True
        open_ledgers(other)
        assert other.gets(subject) == b"old"
        stopped.go_on.set()
        wait_until(lambda: stopped.failures == [subject], "it to be told")
        assert stopped.written == []

    def test_one_that_only_waits_keeps_its_connection(
        self, open_ledgers: Open, ledger: Ledger, subject: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Heartbeats go out while nothing else does."""
        monkeypatch.setattr(module, "HEARTBEAT", 1.0)
        ledger.put(b"old")
        beats = threading.Semaphore(0)

        class Beating(SystemClock):
            def monotonic(self) -> float:
                beats.release()
                return super().monotonic()

        reader = Reader()
        opened = open_ledgers(reader, clock=Beating())
        assert reader.gets(subject) == b"old"
        begin = time.monotonic()
        while time.monotonic() < begin + 4.0:  # more than the broker bears; each turn is waited for
            assert beats.acquire(timeout=LIMIT)
        assert reader.gets(subject) == b"old"
        assert len(opened.connections) == 1


class TestOutages:
    def test_after_the_broker_has_closed_the_connection_all_goes_on_and_what_was_in_hand_is_told(
        self, open_ledgers: Open, fresh_broker_url: str, subject: str
    ) -> None:
        with Ledger(fresh_broker_url, subject) as ledger:
            ledger.put(b"old")
        holder, waits = Holding(), Reader()
        open_ledgers(holder, fresh_broker_url)
        open_ledgers(waits, fresh_broker_url)
        holder.takes(subject)
        waits.want(subject)
        vhost = unquote(urlsplit(fresh_broker_url).path[1:])
        control = os.environ.get("RABBITMQCTL", "rabbitmqctl").split()
        subprocess.run(
            [*control, "-q", "close_all_connections", "--vhost", vhost, "a test"],
            check=True,
            capture_output=True,
            timeout=60,
        )
        holder.go_on.set()
        wait_until(lambda: holder.failures == [subject], "it to be told")
        assert holder.written == []
        wait_until(lambda: subject in waits.failures, "the one that waits to be told")
        assert waits.gets(subject) == b"old"
        assert holder.gets(subject) == b"old"
        wait_until(lambda: holder.written == [subject], "it to write")

    def test_what_is_asked_for_while_the_broker_is_away_comes_when_it_is_back(
        self, open_ledgers: Open, proxy: TCPProxy, proxy_url: str, ledger: Ledger, subject: str
    ) -> None:
        ledger.put(b"old")
        reader = Reader()
        opened = open_ledgers(reader, proxy_url)
        assert reader.gets(subject) == b"old"
        proxy.drop()
        wait_until(lambda: len(opened.connections) > 1, "it to try anew")
        reader.want(subject)
        proxy.start()
        assert reader.bodies.get(timeout=LIMIT) == b"old"

    def test_it_tries_anew_about_once_a_second_while_the_broker_is_away(
        self, open_ledgers: Open, proxy: TCPProxy, proxy_url: str
    ) -> None:
        opened = open_ledgers(Reader(), proxy_url)
        proxy.drop()
        begin = time.monotonic()
        wait_until(lambda: len(opened.connections) >= 8, "it to try anew")
        assert time.monotonic() - begin > 1.5, "more and more seldom"

    def test_of_what_is_asked_for_just_when_the_connection_breaks_it_is_told_or_it_comes(
        self, open_ledgers: Open, proxy: TCPProxy, proxy_url: str, ledger: Ledger, subject: str
    ) -> None:
        """Whoever asked waits for the one or the other, and does not ask again."""
        ledger.put(b"old")
        reader = Reader()
        opened = open_ledgers(reader, proxy_url)
        assert reader.gets(subject) == b"old"
        wait_until(lambda: ledger.count == 1 and opened.ledgers._asleep, "it to be put back")
        other = uuid.uuid4().hex[:16]
        proxy.freeze()
        reader.want(other)
        wait_until(
            lambda: not opened.ledgers._wanted, "the thread to take it up"
        )  # it waits for the broker's answer
        proxy.drop()
        proxy.start()
        assert reader.gets(subject) == b"old"
        wait_until(
            lambda: other in reader.failures or other in reader.read_subjects, "it to be told", LIMIT / 3
        )

    def test_of_what_was_to_be_begun_when_the_connection_breaks_it_is_told_or_it_is_begun(
        self, open_ledgers: Open, proxy: TCPProxy, proxy_url: str, ledger: Ledger, subject: str
    ) -> None:
        reader = Reader()
        reader.write = lambda body: b"begun"

        def begins(new: bool) -> bool:
            if len(reader.asked_to_begin) == 1:
                proxy.drop()
                proxy.start()
            return True

        reader.begins = begins
        open_ledgers(reader, proxy_url)
        reader.want(subject)
        wait_until(lambda: bool(reader.failures or reader.written), "it to be told", LIMIT / 2)

    @pytest.mark.parametrize("asks", [False, True])
    def test_a_connection_on_which_nothing_moves_is_left(
        self,
        asks: bool,
        open_ledgers: Open,
        proxy: TCPProxy,
        proxy_url: str,
        ledger: Ledger,
        subject: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(module, "HEARTBEAT", 1.0)
        ledger.put(b"old")
        reader = Reader()
        opened = open_ledgers(reader, proxy_url)
        assert reader.gets(subject) == b"old"
        wait_until(lambda: ledger.count == 1 and opened.ledgers._asleep, "it to be put back")
        proxy.freeze()
        if asks:
            reader.want(uuid.uuid4().hex[:16])
        wait_until(lambda: len(opened.connections) > 1, "it to connect anew", LIMIT / 2)
        proxy.thaw()
        assert reader.gets(subject) == b"old"


class TestTheEnd:
    def test_who_closes_gives_everything_back_first(
        self, open_ledgers: Open, ledger: Ledger, subject: str
    ) -> None:
        ledger.put(b"mine")
        reader, other = Reader(), Reader()
        opened = open_ledgers(reader)
        open_ledgers(other)
        assert reader.gets(subject) == b"mine"
        reader.leaving, reader.write = [subject], lambda body: b"given back"
        opened.ledgers.close(LIMIT)
        assert reader.written == [subject]
        assert not opened.thread.is_alive()
        assert other.gets(subject) == b"given back"
        assert "stopping" in repr(opened.ledgers)

    def test_one_that_has_nothing_to_give_back_ends_at_once(self, open_ledgers: Open) -> None:
        opened = open_ledgers(Reader())
        begin = time.monotonic()
        opened.ledgers.close(LIMIT)
        assert time.monotonic() - begin < 3.0
        assert not opened.thread.is_alive()

    def test_a_second_time_it_does_nothing_nor_does_asking(self, open_ledgers: Open, subject: str) -> None:
        opened = open_ledgers(Reader())
        opened.ledgers.close()
        opened.ledgers.close()
        opened.reader.want(subject)

    def test_one_that_was_never_started_can_be_closed(self, broker_url: str) -> None:
        ledgers = Ledgers(Reader(), lambda: Connection(broker_url))
        ledgers.close()
        assert "Ledgers(" in repr(ledgers)

    def test_where_the_broker_was_never_there_it_ends_in_time(self, open_ledgers: Open, subject: str) -> None:
        opened = open_ledgers(Reader(), f"amqp://guest:guest@localhost:{free_port()}//")
        opened.reader.leaving = [subject]
        wait_until(lambda: len(opened.connections) > 1, "it to try anew")
        begin = time.monotonic()
        opened.ledgers.close(1.0)
        assert time.monotonic() - begin < 3.0
        opened.thread.join(LIMIT)
        assert not opened.thread.is_alive()

    @pytest.mark.parametrize("away", ["gone", "silent"])
    def test_where_the_broker_is_away_it_ends_in_time(
        self, away: str, open_ledgers: Open, proxy: TCPProxy, proxy_url: str, ledger: Ledger, subject: str
    ) -> None:
        ledger.put(b"mine")
        reader = Reader()
        opened = open_ledgers(reader, proxy_url)
        assert reader.gets(subject) == b"mine"
        reader.leaving = [subject]
        if away == "gone":
            proxy.drop()
        else:
            proxy.freeze()
        begin = time.monotonic()
        opened.ledgers.close(1.0)
        assert time.monotonic() - begin < 3.0
        if away == "gone":
            proxy.start()
        else:
            proxy.thaw()
        opened.thread.join(LIMIT)
        assert not opened.thread.is_alive()

    def test_a_forked_child_closes_nothing_of_its_parent_s(
        self, open_ledgers: Open, ledger: Ledger, subject: str
    ) -> None:
        ledger.put(b"mine")
        opened = open_ledgers(Reader())
        assert opened.reader.gets(subject) == b"mine"
        child = os.fork()
        if child == 0:
            try:
                opened.ledgers.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert opened.reader.gets(subject) == b"mine"
        assert len(opened.connections) == 1


class TestIdling:
    def test_a_thread_that_nobody_asks_sleeps(self, open_ledgers: Open, ledger: Ledger, subject: str) -> None:
        ledger.put(b"old")
        turns = threading.Semaphore(0)
        looks = []

        class Looked(SystemClock):
            def monotonic(self) -> float:
                now = super().monotonic()
                looks.append(now)
                turns.release()
                return now

        reader = Reader()
        opened = open_ledgers(reader, clock=Looked())
        assert reader.gets(subject) == b"old"
        wait_until(lambda: ledger.count == 1, "it to be put back")
        clock = time.pthread_getcpuclockid(opened.thread.ident or 0)
        before, begin, count = time.clock_gettime(clock), time.monotonic(), len(looks)
        until = begin + 2 * HEARTBEAT / 4  # it looks for heartbeats twice as often as it has to
        while (left := until - time.monotonic()) > 0:
            turns.acquire(timeout=left)
        assert len(looks) - count <= 12, "three turns at most, of some looks each"
        assert time.clock_gettime(clock) - before < 0.1

    def test_one_that_waits_for_what_another_has_in_hand_sleeps_too(
        self, open_ledgers: Open, ledger: Ledger, subject: str
    ) -> None:
        ledger.put(b"old")
        holder, waits = Holding(), Reader()
        open_ledgers(holder)
        opened = open_ledgers(waits)
        holder.takes(subject)
        waits.want(subject)
        wait_until(lambda: len(waits.failures) >= 1, "it to look")
        clock = time.pthread_getcpuclockid(opened.thread.ident or 0)
        before, begin = time.clock_gettime(clock), time.monotonic()
        wait_until(lambda: len(waits.failures) >= 3, "it to look again")
        assert time.monotonic() - begin > NOTHING_THERE
        assert time.clock_gettime(clock) - before < 0.3
        holder.go_on.set()
        assert waits.bodies.get(timeout=LIMIT) == b"mine"
