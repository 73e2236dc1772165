"""What names a process, and what is concluded from what the kernel shows of it.

Real processes die in `tests/integration/worker/test_process_watch.py`.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.worker import process_watch
from remote_inference.worker.process_watch import ProcessWatch, process_identity

HOST = "0123456789abcdef"
BOOT_ID = "6f1c2a90-3b5e-4d17-9c08-2e7a41d5b3f6"
FACTS = {
    "/proc/self/status": f"Name:\tpython\nPid:\t{os.getpid()}\nNSpid:\t{os.getpid()}\nThreads:\t1\n",
    "/proc/sys/kernel/random/boot_id": BOOT_ID + "\n",
    "/proc/self/ns/pid": "pid:[4026531836]",
    "/proc/self/ns/time": "time:[4026531834]",
    f"/proc/{os.getpid()}/stat": f"{os.getpid()} (python) S 1 " + " ".join(str(n) for n in range(5, 53)),
    "nodename": "box-7",
}
SetFacts = Callable[..., None]

MALFORMED = [
    "",
    ":",
    "::",
    "host",
    HOST,
    f"{HOST}:1",
    f"{HOST}:1:2:3",
    f"{HOST}:0:2",
    f"{HOST}:-1:2",
    f"{HOST}:+1:2",
    f"{HOST}:01:2",
    f"{HOST}:1:02",
    f"{HOST}: 1:2",
    f"{HOST}:1:2\n",
    f"{HOST}:1:2.0",
    f"{HOST}:1:١",
    f"{HOST}:4194305:2",
    f"{HOST}:99999999999999999999:2",
    f"{HOST}:1:" + "9" * 21,
    f"{HOST.upper()}:1:2",
    f"{HOST[1:]}:1:2",
    f"{HOST}0:1:2",
]


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch) -> SetFacts:
    """`facts({path: text})` has the host show itself like that, otherwise as in `FACTS`; None: it is not there."""

    def set_facts(changes: dict[str, str | None] | None = None) -> None:
        shown: dict[str, str | None] = {**FACTS, **(changes or {})}

        def read(path: str) -> str:
            text = shown[path]
            if text is None:
                raise FileNotFoundError(errno.ENOENT, "not there", path)
            return text

        monkeypatch.setattr(process_watch, "_read", lambda path: read(path).encode())
        monkeypatch.setattr(os, "readlink", read)
        host = os.uname_result(("Linux", str(shown["nodename"]), "6.1", "#1", "x86_64"))
        monkeypatch.setattr(os, "uname", lambda: host)

    return set_facts


class TestIdentity:
    def test_it_names_host_number_and_start(self, facts: SetFacts):
        facts()
        host, pid, start = process_identity().split(":")
        assert len(host) == 16
        assert int(host, 16) >= 0
        assert (pid, start) == (str(os.getpid()), "22")

    def test_it_is_the_same_each_time_it_is_asked_for(self):
        assert process_identity() == process_identity() != ""

    def test_nothing_of_the_host_is_in_it(self, facts: SetFacts):
        facts()
        identity = process_identity()
        for secret in (*BOOT_ID.split("-"), "box-7", "4026531836", "4026531834"):
            assert secret not in identity

    @pytest.mark.parametrize(
        ("fact", "other"),
        [
            ("/proc/sys/kernel/random/boot_id", "00000000-3b5e-4d17-9c08-2e7a41d5b3f6"),
            ("/proc/self/ns/pid", "pid:[4026532177]"),
            ("/proc/self/ns/time", "time:[4026532177]"),
            ("/proc/self/ns/time", None),  # Linux before 5.6
            ("nodename", "box-8"),
        ],
    )
    def test_another_boot_namespace_or_name_is_another_host(
        self, facts: SetFacts, fact: str, other: str | None
    ):
        facts()
        here = process_identity()
        facts({fact: other})
        there = process_identity()
        assert there
        assert here.split(":")[0] != there.split(":")[0]
        assert here.split(":")[1:] == there.split(":")[1:]

    @pytest.mark.parametrize(
        ("fact", "text"),
        [
            ("/proc/self/status", None),
            ("/proc/self/status", "Name:\tpython\n"),  # NSpid came with Linux 4.1
            ("/proc/self/status", f"NSpid:\t6780\t{os.getpid()}\n"),  # /proc is an outer namespace's
            (
                "/proc/self/status",
                f"NSpid:\t{os.getpid()}\t{os.getpid()}\n",
            ),  # and the numbers agree by chance
            ("/proc/self/status", "NSpid:\t\n"),
            ("/proc/self/status", f"NSpid:\t{os.getpid() + 1}\n"),
            ("/proc/sys/kernel/random/boot_id", None),
            ("/proc/sys/kernel/random/boot_id", "\n"),
            ("/proc/sys/kernel/random/boot_id", "unknown\n"),
            ("/proc/self/ns/pid", None),
            (f"/proc/{os.getpid()}/stat", None),
            (f"/proc/{os.getpid()}/stat", "gone"),
        ],
        ids=map(str, range(12)),  # the process ids are others in each process that collects the tests
    )
    def test_there_is_none_where_a_fact_is_not_known(self, facts: SetFacts, fact: str, text: str | None):
        facts({fact: text})
        assert process_identity() == ""

    def test_a_host_name_that_is_not_text_is_no_trouble(self, facts: SetFacts):
        facts({"nodename": "box-\udcff"})
        assert process_identity()

    @given(
        host=st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
        pid=st.integers(1, 2**22),
        start=st.integers(0, 10**20 - 1),
    )
    def test_what_is_made_is_understood(self, host: str, pid: int, start: int):
        identity = f"{host}:{pid}:{start}"
        assert process_watch._parse(identity) == (host, pid, start)
        assert len(identity) <= 45

    @given(
        st.one_of(
            st.text(),
            st.text(alphabet="0123456789abcdef:", max_size=60),
            st.lists(st.text(alphabet="0123456789abcdef", max_size=20), max_size=5).map(":".join),
        )
    )
    def test_of_what_comes_only_what_could_have_been_made_is_understood(self, text: str):
        process = process_watch._parse(text)
        assert process is None or f"{process.host}:{process.pid}:{process.start}" == text

    @pytest.mark.parametrize("text", MALFORMED)
    def test_what_is_malformed_is_none(self, text: str):
        assert process_watch._parse(text) is None


class TestStat:
    @given(
        # A name is any bytes but NUL; what else it has in it is not escaped: fs/proc/array.c.
        name=st.binary(max_size=15).filter(lambda name: b"\0" not in name)
        | st.sampled_from([b") Z (", b"a b", b"))))", b"(", b"x) R 1 2 3 4 5"]),
        threads=st.integers(0, 10**6),
        start=st.integers(0, 10**18),
    )
    def test_it_is_read_whatever_the_process_is_called(self, name: bytes, threads: int, start: int):
        line = b"77 (%b) S 1 2 3 4 5 6 7 8 9 0 1 2 3 4 20 0 %d 0 %d 99 8 7\n" % (name, threads, start)
        assert process_watch._parse_stat(line) == ("S", threads, start)

    @given(st.binary(max_size=300))
    def test_what_is_none_is_none(self, line: bytes):
        process_watch._parse_stat(line)

    @pytest.mark.parametrize("line", [b"", b"\n", b"1 (x) S 1 2", b"1 (x) S " + b"x " * 50])
    def test_too_little_is_none(self, line: bytes):
        assert process_watch._parse_stat(line) is None


def conclude(
    monkeypatch: pytest.MonkeyPatch, shown: tuple[str, int, int] | None, opening: OSError | None
) -> str:
    """What is concluded of process 77, which started at 1000, from its `/proc` entry and what `pidfd_open` says."""

    def pidfd_open(pid: int) -> int:
        assert pid == 77
        if opening is not None:
            raise opening
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    monkeypatch.setattr(
        process_watch, "_read_stat", lambda pid: None if shown is None else process_watch._Stat(*shown)
    )
    pidfd, state = process_watch._open(process_watch._Process(HOST, 77, 1000))
    assert (pidfd is not None) == (state is process_watch._State.ALIVE)
    if pidfd is not None:
        os.close(pidfd)
    looked = process_watch._look(process_watch._Process(HOST, 77, 1000))
    assert opening is not None or looked is state
    return state.name.lower()


class TestWhatIsConcluded:
    @pytest.mark.parametrize(
        ("shown", "state"),
        [
            (("S", 1, 1000), "alive"),
            (("R", 12, 1000), "alive"),
            (("T", 1, 1000), "alive"),
            (("Z", 1, 1000), "ended"),
            (("X", 1, 1000), "ended"),
            (("Z", 2, 1000), "alive"),  # the main thread has ended, another runs
            (("X", 2, 1000), "alive"),
            (("Z", 0, 1000), "unknown"),  # seen while another thread of it calls execve
            (("X", 0, 1000), "unknown"),
            (("S", 1, 1001), "ended"),
            (("S", 1, 999), "ended"),
            (("S", 0, 1001), "unknown"),
            (None, "unknown"),  # hidepid
        ],
    )
    def test_where_a_process_has_the_number(
        self, monkeypatch: pytest.MonkeyPatch, shown: tuple[str, int, int] | None, state: str
    ):
        assert conclude(monkeypatch, shown, None) == state

    @pytest.mark.parametrize("shown", [None, ("S", 1, 1000), ("Z", 0, 1000)])
    def test_where_no_process_has_it(
        self, monkeypatch: pytest.MonkeyPatch, shown: tuple[str, int, int] | None
    ):
        assert conclude(monkeypatch, shown, ProcessLookupError(errno.ESRCH, "none")) == "ended"

    def test_where_it_goes_at_the_moment_of_the_question(self, monkeypatch: pytest.MonkeyPatch):
        """Between the pidfd and its `/proc` entry."""
        answers = iter(
            [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), ProcessLookupError(errno.ESRCH, "none")]
        )

        def pidfd_open(pid: int) -> int:
            answer = next(answers)
            if isinstance(answer, OSError):
                raise answer
            return answer

        monkeypatch.setattr(os, "pidfd_open", pidfd_open)
        monkeypatch.setattr(process_watch, "_read_stat", lambda pid: None)
        process = process_watch._Process(HOST, 77, 1000)
        assert process_watch._open(process) == (None, process_watch._State.ENDED)

    @pytest.mark.parametrize("code", ["EPERM", "EACCES", "ENOSYS", "EINVAL", "ENOENT", "EMFILE", "ENOMEM"])
    @pytest.mark.parametrize("shown", [None, ("Z", 1, 1000), ("S", 1, 1001)])
    def test_where_no_pidfd_is_to_be_had(
        self, monkeypatch: pytest.MonkeyPatch, code: str, shown: tuple[str, int, int] | None
    ):
        assert conclude(monkeypatch, shown, OSError(getattr(errno, code), "no")) == "unknown"


class TestWatch:
    @pytest.fixture(autouse=True)
    def _no_thread_starts(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail("a thread was started"))

    @pytest.mark.parametrize("text", MALFORMED)
    def test_a_malformed_identity_is_not_watched(self, text: str):
        watch = ProcessWatch(pytest.fail)
        assert not watch.watch(text)
        watch.forget(text)

    @pytest.mark.parametrize("thing", [None, 7, b"", ["a"], {}, 1.5])
    def test_nor_is_what_is_no_text(self, thing: Any):
        assert not ProcessWatch(pytest.fail).watch(thing)

    def test_a_process_of_another_host_is_not_watched(self):
        mine = process_identity()
        other = f"{int(mine[:16], 16) ^ 1:016x}{mine[16:]}"
        assert not ProcessWatch(pytest.fail).watch(other)

    def test_nothing_is_watched_where_this_host_is_not_known(self, facts: SetFacts):
        facts({"/proc/sys/kernel/random/boot_id": None})
        assert not ProcessWatch(pytest.fail).watch(f"{HOST}:1:0")

    def test_nothing_is_watched_where_python_has_no_pidfd(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delattr(os, "pidfd_open")
        assert not ProcessWatch(pytest.fail).watch(process_identity())

    def test_a_process_that_may_not_be_looked_at_is_not_watched(self, monkeypatch: pytest.MonkeyPatch):
        def refuse(pid: int) -> int:
            raise PermissionError(errno.EPERM, "seccomp")

        monkeypatch.setattr(os, "pidfd_open", refuse)
        assert not ProcessWatch(pytest.fail).watch(process_identity())

    def test_a_closed_watch_watches_nothing(self):
        watch = ProcessWatch(pytest.fail)
        watch.close()
        watch.close()
        assert not watch.watch(process_identity())
        watch.forget(process_identity())
        assert repr(watch) == f"ProcessWatch(closed, pid={os.getpid()})"

    def test_a_watch_that_was_inherited_does_nothing(self, monkeypatch: pytest.MonkeyPatch):
        watch = ProcessWatch(pytest.fail)
        identity = process_identity()
        parent = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: parent + 1)
        assert not watch.watch(identity)
        watch.forget(identity)
        watch.close()
        assert repr(watch) == f"ProcessWatch(0 watched, pid={parent})"


def test_a_watch_without_a_thread_watches_nothing_and_keeps_no_descriptor(monkeypatch: pytest.MonkeyPatch):
    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    watch = ProcessWatch(pytest.fail)
    monkeypatch.setattr(threading.Thread, "start", fail)
    before = sorted(os.listdir("/proc/self/fd"))
    assert not watch.watch(process_identity())
    assert sorted(os.listdir("/proc/self/fd")) == before
