"""Processes that are killed are noticed at once, and no living one is taken for dead."""

from __future__ import annotations

import errno
import json
import logging
import os
import queue
import selectors
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from local_process import wait_until
from services import missing_service

from remote_inference.worker.process_watch import ProcessWatch, process_identity

ROOT = Path(__file__).parents[3]
LIMIT = 20.0  # seconds that a step may take on a loaded machine
AT_ONCE = 0.2  # seconds in which a death has to be noticed
QUIET = 0.3  # seconds in which nothing is to come
THREAD = "inference-process-watch"

IDENTITY = "from remote_inference.worker.process_watch import process_identity\n"
WAIT = "import sys; sys.stdin.read()\n"

Start = Callable[..., "subprocess.Popen[str]"]


class Deaths:
    """What a watch has told, and when."""

    def __init__(self) -> None:
        self.told: queue.Queue[tuple[str, float, str]] = queue.Queue()
        self.watch = ProcessWatch(self._note)

    def _note(self, identity: str) -> None:
        self.told.put((identity, time.monotonic(), threading.current_thread().name))

    def next(self) -> tuple[str, float]:
        """The next identity and its time."""
        identity, when, thread = self.told.get(timeout=LIMIT)
        assert thread == THREAD
        return identity, when

    def none_comes(self) -> bool:
        try:
            self.told.get(timeout=QUIET)
        except queue.Empty:
            return True
        return False


@pytest.fixture
def deaths() -> Iterator[Deaths]:
    made = Deaths()
    yield made
    made.watch.close()
    wait_until(lambda: not watch_threads(), "the thread to end", LIMIT)


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(program, *arguments)` runs Python code in a process; `start()` a process that waits."""
    started: list[subprocess.Popen[str]] = []

    def run(
        program: str | None = None, *arguments: str, wrapper: tuple[str, ...] = ()
    ) -> subprocess.Popen[str]:
        command = ["sleep", "1000"] if program is None else [sys.executable, "-c", program, *arguments]
        started.append(
            subprocess.Popen(
                [*wrapper, *command],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        )  # fmt: skip
        return started[-1]

    yield run
    for child in started:
        child.kill()
        child.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def identity_of(pid: int) -> str:
    """As that process would give it, if it is of our namespaces."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return f"{process_identity().split(':')[0]}:{pid}:{stat.rpartition(')')[2].split()[19]}"


def watch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def descriptors() -> set[int]:
    """Open ones, without that of the directory that is being read."""
    return {int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# what dies


def test_a_death_is_noticed_at_once(deaths: Deaths, start: Start):
    child = start(IDENTITY + "print(process_identity(), flush=True)\n" + WAIT)
    identity = line_of(child)
    assert identity == identity_of(child.pid)
    assert deaths.watch.watch(identity)
    assert deaths.none_comes()

    killed = time.monotonic()
    child.send_signal(signal.SIGKILL)

    told, when = deaths.next()
    assert told == identity
    assert when - killed < AT_ONCE
    assert state_of(child.pid) == "Z"  # nobody has reaped it
    assert deaths.none_comes()


def test_an_end_of_its_own_is_a_death_too(deaths: Deaths, start: Start):
    child = start()
    assert deaths.watch.watch(identity_of(child.pid))
    child.terminate()
    child.wait()
    assert deaths.next()[0].split(":")[1] == str(child.pid)


def test_a_zombie_is_dead(deaths: Deaths, start: Start):
    child = start()
    identity = identity_of(child.pid)
    child.kill()
    wait_until(lambda: state_of(child.pid) == "Z", "the zombie", LIMIT)
    assert deaths.watch.watch(identity)
    assert deaths.next()[0] == identity


def test_who_is_reaped_already_is_dead_and_each_question_is_answered(deaths: Deaths, start: Start):
    child = start()
    identity = identity_of(child.pid)
    child.kill()
    child.wait()
    for _ in range(3):
        asked = time.monotonic()
        assert deaths.watch.watch(identity)
        told, when = deaths.next()
        assert told == identity
        assert when - asked < AT_ONCE
    assert deaths.none_comes()


@pytest.mark.parametrize("difference", [-1, 1, 10**6])
def test_a_number_that_another_process_has_now_proves_the_death(
    deaths: Deaths, start: Start, difference: int
):
    host, pid, started = identity_of(start().pid).split(":")
    older = f"{host}:{pid}:{int(started) + difference}"
    assert deaths.watch.watch(older)
    assert deaths.next()[0] == older


def test_a_child_that_its_parent_forked_dies(deaths: Deaths, start: Start):
    """As a prefork pool's: a fork without an exec, whose parent is not us and has not reaped it yet."""
    parent = start(
        IDENTITY
        + textwrap.dedent(
            """
            import os, signal, sys
            mine = process_identity()
            child = os.fork()
            if not child:
                print(mine, process_identity(), flush=True)
                signal.pause()
            sys.stdin.read()
            """
        )
    )
    mine, childs = line_of(parent).split()
    assert mine == identity_of(parent.pid) != childs
    assert deaths.watch.watch(mine)
    assert deaths.watch.watch(childs)
    os.kill(int(childs.split(":")[1]), signal.SIGKILL)
    assert deaths.next()[0] == childs
    assert deaths.none_comes()
    parent.kill()
    assert deaths.next()[0] == mine


# what lives


def test_this_process_lives(deaths: Deaths):
    assert deaths.watch.watch(process_identity())
    assert deaths.none_comes()


def test_a_stopped_process_lives(deaths: Deaths, start: Start):
    child = start()
    assert deaths.watch.watch(identity_of(child.pid))
    child.send_signal(signal.SIGSTOP)
    wait_until(lambda: state_of(child.pid) == "T", "it to stop", LIMIT)
    assert deaths.none_comes()
    child.kill()
    assert deaths.next()


def test_a_process_lives_on_when_its_main_thread_has_ended(deaths: Deaths, start: Start):
    child = start(
        textwrap.dedent(
            """
            import ctypes, os, threading
            thread = threading.Thread(target=lambda: os.read(0, 1) and os._exit(0))
            thread.start()
            ctypes.CDLL(None).pthread_exit(None)
            """
        )
    )
    before = identity_of(child.pid)
    assert deaths.watch.watch(before)
    wait_until(lambda: state_of(child.pid) == "Z", "the main thread to end", LIMIT)
    late = Deaths()
    assert late.watch.watch(before)  # the zombie is but its main thread
    assert deaths.none_comes()
    assert late.none_comes()

    assert child.stdin is not None
    child.stdin.write("x")
    child.stdin.flush()
    assert deaths.next()[0] == late.next()[0] == before
    late.watch.close()


def test_a_process_lives_on_when_one_of_its_threads_executes_another_program(deaths: Deaths, start: Start):
    """The thread takes over the number of the process, and all other threads end."""
    again = """
        import os, sys, threading, time
        left = int(sys.argv[1])
        print(left, flush=True)
        command = [sys.executable, "-S", "-c", sys.orig_argv[-2], str(left - 1)]
        if left:
            threading.Thread(target=os.execv, args=(sys.executable, command)).start()
        time.sleep(1000)
    """
    child = start(textwrap.dedent(again), "10")
    identity = identity_of(child.pid)
    assert deaths.watch.watch(identity)
    looks = 0
    last = threading.Event()
    reader = threading.Thread(target=lambda: [line_of(child) for _ in range(11)] and last.set())
    reader.start()
    while not last.is_set():  # at every moment of it
        other = Deaths()
        other.watch.watch(identity)
        looks += 1
        time.sleep(0.001)
        assert other.told.empty()
        other.watch.close()
    reader.join()
    assert looks > 10
    assert identity_of(child.pid) == identity
    assert deaths.none_comes()
    child.kill()
    assert deaths.next()[0] == identity


# what cannot be watched


def unshare(*options: str) -> tuple[str, ...]:
    command = ("unshare", *options)
    if shutil.which("unshare") is None:
        missing_service("unshare is not installed")
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        missing_service(f"{' '.join(command)} is not permitted")
    return command


@pytest.mark.parametrize(
    "options",
    [("--pid", "--fork", "--mount-proc"), ("--time", "--boottime", "1000", "--fork"), ("--uts",)],
    ids=["pid", "time", "uts"],
)
def test_a_process_in_another_namespace_is_of_another_host(
    deaths: Deaths, start: Start, options: tuple[str, ...]
):
    rename = "import socket; socket.sethostname('elsewhere')\n" if options == ("--uts",) else ""
    program = rename + IDENTITY + "print(process_identity(), flush=True)\n" + WAIT
    theirs = line_of(start(program, wrapper=unshare(*options)))
    assert theirs
    assert theirs.split(":")[0] != process_identity().split(":")[0]
    assert not deaths.watch.watch(theirs)


def test_a_process_that_sees_the_proc_of_another_namespace_has_no_identity(start: Start):
    child = start(
        IDENTITY + "import os; print(os.getpid(), repr(process_identity()), flush=True)",
        wrapper=unshare("--pid", "--fork"),
    )
    assert line_of(child) == "1 ''"


def test_a_process_that_is_hidden_is_not_watched_while_it_lives(start: Start):
    """With hidepid a pidfd of another user's process can be had, but its start time cannot be read."""
    living, dead = start(), start()
    identities = [identity_of(living.pid), identity_of(dead.pid)]
    dead.kill()
    dead.wait()
    program = IDENTITY + textwrap.dedent(
        """
        import os, queue, subprocess, sys
        from remote_inference.worker.process_watch import ProcessWatch
        subprocess.run(["mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"], check=True)
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        os.close(os.pidfd_open(int(sys.argv[1].split(":")[1])))
        told = queue.Queue()
        watch = ProcessWatch(told.put)
        print([watch.watch(identity) for identity in sys.argv[1:]], told.get(timeout=10) == sys.argv[2], flush=True)
        """
    )
    child = start(program, *identities, wrapper=unshare("--mount"))
    assert line_of(child) == "[False, True] True"


def test_a_thread_is_no_process(deaths: Deaths, start: Start):
    child = start(
        "import threading\n"
        "threading.Thread(target=lambda: print(threading.get_native_id(), flush=True) or input()).start()"
    )
    assert not deaths.watch.watch(identity_of(int(line_of(child))))
    assert deaths.none_comes()


# how it goes about it


def test_watching_again_costs_nothing_and_tells_nothing_twice(deaths: Deaths, start: Start):
    child = start()
    identity = identity_of(child.pid)
    assert deaths.watch.watch(identity)
    wait_until(lambda: len(watch_threads()) == 1, "the thread", LIMIT)
    wait_until(lambda: "eventpoll" in " ".join(links()), "the selector", LIMIT)
    before = descriptors()
    for _ in range(10):
        assert deaths.watch.watch(identity)
    assert descriptors() == before
    assert len(watch_threads()) == 1
    child.kill()
    assert deaths.next()[0] == identity
    assert deaths.none_comes()


def links() -> list[str]:
    found = []
    for number in descriptors():
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            pass
    return found


def test_many_threads_that_watch_one_process_watch_it_once(deaths: Deaths, start: Start):
    child = start()
    identity = identity_of(child.pid)
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        for _ in range(50):
            assert deaths.watch.watch(identity)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(watch_threads()) == 1
    wait_until(lambda: sum("pidfd" in link for link in links()) <= 1, "one descriptor", LIMIT)
    child.kill()
    assert deaths.next()[0] == identity
    assert deaths.none_comes()


def test_who_is_forgotten_is_not_told_of_and_costs_no_descriptor(deaths: Deaths, start: Start):
    first, second = start(), start()
    before = descriptors()
    for child in (first, second):
        assert deaths.watch.watch(identity_of(child.pid))
    deaths.watch.forget(identity_of(first.pid))
    deaths.watch.forget(identity_of(first.pid))
    wait_until(lambda: len(descriptors() - before) == 3, "eventfd, selector and one process", LIMIT)
    first.kill()
    assert deaths.none_comes()
    second.kill()
    assert deaths.next()[0].split(":")[1] == str(second.pid)
    wait_until(lambda: len(descriptors() - before) == 2, "the descriptor to be closed", LIMIT)


def test_who_is_forgotten_while_another_is_told_of_is_not_told_of(start: Start):
    told: queue.Queue[str] = queue.Queue()
    go_on = threading.Event()

    def answer(identity: str) -> None:
        told.put(identity)
        go_on.wait(LIMIT)

    children = [start() for _ in range(3)]
    first, second, third = (identity_of(child.pid) for child in children)
    for child in children:
        child.kill()
        child.wait()
    watch = ProcessWatch(answer)
    assert watch.watch(first)
    assert told.get(timeout=LIMIT) == first
    assert watch.watch(second)
    assert watch.watch(third)
    watch.forget(second)
    go_on.set()
    assert told.get(timeout=LIMIT) == third
    watch.close()
    wait_until(lambda: not watch_threads(), "the thread to end", LIMIT)
    assert told.empty()


def test_a_death_that_was_seen_before_it_was_forgotten_is_not_told(deaths: Deaths, start: Start):
    child = start()
    identity = identity_of(child.pid)
    assert deaths.watch.watch(identity)
    pidfd = deaths.watch._watched[identity]
    deaths.watch.forget(identity)
    child.kill()
    child.wait()
    deaths.watch._check(identity, pidfd)  # as the thread does that has left select before
    assert deaths.none_comes()


def test_a_descriptor_that_the_selector_does_not_take_is_given_back(
    deaths: Deaths, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Its kernel has no memory for it, or the user waits for too much: epoll_ctl(2). The others are not to suffer."""

    class Full(selectors.DefaultSelector):
        def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
            if data == refused:
                raise OSError(errno.ENOSPC, "full")
            return super().register(fileobj, events, data)

    monkeypatch.setattr(selectors, "DefaultSelector", Full)
    children = [start(), start()]
    refused, taken = (identity_of(child.pid) for child in children)
    before = descriptors()
    with caplog.at_level(logging.WARNING):
        assert deaths.watch.watch(refused)
        assert deaths.watch.watch(taken)
        wait_until(lambda: "cannot watch" in caplog.text, "the refusal", LIMIT)
    for child in children:
        child.kill()
    assert deaths.next()[0] == taken
    assert deaths.none_comes()
    assert len(descriptors() - before) == 2
    assert deaths.watch.watch(refused)  # ended by now: that needs no selector
    assert deaths.next()[0] == refused
    wait_until(lambda: len(descriptors() - before) == 2, "the descriptors to be closed", LIMIT)


def test_who_was_forgotten_can_be_watched_again(deaths: Deaths, start: Start):
    child = start()
    identity = identity_of(child.pid)
    for _ in range(100):
        assert deaths.watch.watch(identity)
        deaths.watch.forget(identity)
    assert deaths.watch.watch(identity)
    child.kill()
    assert deaths.next()[0] == identity
    assert deaths.none_comes()


def test_many_processes_die_at_the_same_time(deaths: Deaths, start: Start):
    before = descriptors()
    children = [subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL) for _ in range(300)]
    try:
        identities = {identity_of(child.pid) for child in children}
        for identity in identities:
            assert deaths.watch.watch(identity)
        opened = descriptors() - before
        assert len(opened) <= 302
        assert not any(os.get_inheritable(number) for number in opened)
        assert deaths.none_comes()
    finally:
        for child in children:
            child.kill()
    assert {deaths.next()[0] for _ in identities} == identities
    for child in children:
        child.wait()
    wait_until(lambda: len(descriptors() - before) == 2, "the descriptors to be closed", LIMIT)
    assert deaths.none_comes()


def test_close_ends_the_thread_and_gives_back_the_descriptors(start: Start):
    before = descriptors()
    deaths = Deaths()
    child = start()
    child_pipes = {child.stdin.fileno(), child.stdout.fileno()} if child.stdin and child.stdout else set()
    identity = identity_of(child.pid)
    assert deaths.watch.watch(identity)
    wait_until(lambda: len(watch_threads()) == 1, "the thread", LIMIT)
    deaths.watch.close()
    wait_until(lambda: not watch_threads(), "the thread to end", LIMIT)
    assert descriptors() - child_pipes == before
    child.kill()
    assert not deaths.watch.watch(identity)
    assert deaths.none_comes()


def test_an_answer_that_fails_does_not_make_it_blind(start: Start, caplog: pytest.LogCaptureFixture):
    told: queue.Queue[str] = queue.Queue()

    def fail_first(identity: str) -> None:
        told.put(identity)
        if told.qsize() == 1:
            raise ValueError("no")

    watch = ProcessWatch(fail_first)
    children = [start(), start()]
    with caplog.at_level(logging.ERROR):
        for number, child in enumerate(children, 1):
            assert watch.watch(identity_of(child.pid))
            child.kill()
            wait_until(lambda number=number: told.qsize() == number, "the death", LIMIT)
    watch.close()
    assert "could not be handled" in caplog.text


def test_the_answer_may_use_the_watch(start: Start):
    """From its own thread, which must wait neither for itself nor for a lock that it holds."""
    told: queue.Queue[str] = queue.Queue()
    children = [start(), start()]
    first, second = (identity_of(child.pid) for child in children)

    def answer(identity: str) -> None:
        told.put(identity)
        watch.forget(identity)
        if identity == first:
            watch.watch(second)
        else:
            watch.close()

    watch = ProcessWatch(answer)
    for child in children:
        child.kill()
    assert watch.watch(first)
    assert [told.get(timeout=LIMIT) for _ in range(2)] == [first, second]
    wait_until(lambda: not watch_threads(), "the thread to end", LIMIT)


def test_who_is_said_to_be_dead_and_is_seen_to_live_is_not_reported(
    deaths: Deaths, caplog: pytest.LogCaptureFixture
):
    """An event loop may wake for nothing."""
    identity = process_identity()
    assert deaths.watch.watch(identity)
    with caplog.at_level(logging.WARNING):
        deaths.watch._check(identity, deaths.watch._watched[identity])
    assert "lives" in caplog.text
    assert deaths.none_comes()
    assert repr(deaths.watch) == f"ProcessWatch(0 watched, pid={os.getpid()})"


FORK = """
    import json, os, queue, subprocess, sys, threading, time
    from remote_inference.worker.process_watch import ProcessWatch, process_identity
    victim = subprocess.Popen(
        [sys.executable, "-c", "from remote_inference.worker.process_watch import process_identity as i;"
         "print(i(), flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    identity = victim.stdout.readline().strip()
    told = []
    seen = threading.Event()
    def note(identity):
        told.append(os.getpid())
        seen.set()
    watch = ProcessWatch(note)
    assert watch.watch(identity)
    time.sleep(0.1)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        inherited = watch.watch(identity)
        watch.forget(identity)
        watch.close()
        mine = queue.Queue()
        own = ProcessWatch(mine.put)
        own_watches = own.watch(identity)
        os.write(write, b"x")
        own_told = mine.get(timeout=20) == identity
        time.sleep(0.3)
        os.write(write, json.dumps([inherited, own_watches, own_told, told]).encode())
        os._exit(0)
    os.read(read, 1)
    victim.kill()
    assert seen.wait(20)
    answer = json.loads(os.read(read, 1000))
    os.waitpid(child, 0)
    print(json.dumps({"child": answer, "parent": told == [os.getpid()]}), flush=True)
"""


@pytest.mark.parametrize("patched", [False, True], ids=["threads", "gevent"])
def test_a_forked_child_needs_a_watch_of_its_own_and_does_the_parents_no_harm(start: Start, patched: bool):
    """Gevent's greenlets go on in the child, with the parent's descriptors."""
    program = textwrap.dedent(FORK)
    if patched:
        pytest.importorskip("gevent")
        program = "from gevent import monkey; monkey.patch_all()\n" + program
    assert json.loads(line_of(start(program)) or "null") == {
        "child": [False, True, True, []],
        "parent": True,
    }


def test_what_is_yet_to_be_told_is_not_told_in_a_forked_child_of_gevent(start: Start):
    """The fork comes in an answer, while another one waits."""
    pytest.importorskip("gevent")
    program = textwrap.dedent(
        """
        from gevent import monkey; monkey.patch_all()
        import gevent, os, sys
        from remote_inference.worker.process_watch import ProcessWatch
        told, begun = [], []
        def note(identity):
            told.append(identity)
            gevent.sleep(0.2)
        watch = ProcessWatch(note)
        assert all([watch.watch(identity) for identity in sys.argv[1:]])
        while not told:
            gevent.sleep(0)
        child = os.fork()
        gevent.sleep(1)
        if not child:
            os._exit(len(told))
        print(len(told), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        """
    )
    children = [start(), start()]
    identities = [identity_of(child.pid) for child in children]
    for child in children:
        child.kill()
        child.wait()
    assert line_of(start(program, *identities)) == "2 1"


def test_a_watch_that_could_not_start_can_start_later(
    deaths: Deaths, start: Start, monkeypatch: pytest.MonkeyPatch
):
    def fail() -> selectors.BaseSelector:
        raise OSError(errno.EMFILE, "too many files")

    identity = identity_of(start().pid)
    with monkeypatch.context() as patch:
        patch.setattr(selectors, "DefaultSelector", fail)
        assert not deaths.watch.watch(identity)
    assert deaths.watch.watch(identity)


@pytest.mark.parametrize("late", [False, True], ids=["patched first", "imported first"])
def test_a_death_is_noticed_in_gevent_while_other_greenlets_go_on(start: Start, late: bool):
    pytest.importorskip("gevent")
    patch = "from gevent import monkey; monkey.patch_all()\n"
    imports = "from remote_inference.worker.process_watch import ProcessWatch, process_identity\n"
    program = textwrap.dedent(
        """
        import os, signal, subprocess, sys, time, gevent
        victim = int(sys.argv[1].split(":")[1])
        told, turns = [], []
        def note(identity):
            gevent.sleep(0)  # it may wait
            told.append((identity, time.monotonic()))
        def others():
            while True:
                turns.append(time.monotonic())
                gevent.sleep(0.01)
        def open_descriptors():
            return sum(os.path.exists(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))
        watch = ProcessWatch(note)
        gevent.spawn(others)
        gevent.sleep(0.1)
        before = open_descriptors()
        assert watch.watch(sys.argv[1])
        assert watch.watch(process_identity())
        gevent.sleep(0.3)
        assert not told
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        gevent.sleep(1)
        [(identity, when)] = told
        gaps = max(after - before for before, after in zip(turns, turns[1:]))
        again = watch.watch(identity)
        gevent.sleep(0.1)
        watch.close()
        gevent.sleep(0.1)
        print(identity == sys.argv[1], when - killed < 1, len(turns) > 50, gaps < 0.5, again, len(told))
        print(before, open_descriptors(), flush=True)
        """
    )
    identity = identity_of(start().pid)
    child = start((imports + patch if late else patch + imports) + program, identity)
    assert line_of(child) == "True True True True True 2"
    before, after = line_of(child).split()
    assert before == after


def test_a_program_that_is_executed_inherits_nothing(deaths: Deaths, start: Start):
    assert deaths.watch.watch(identity_of(start().pid))
    wait_until(lambda: "eventpoll" in " ".join(links()), "the selector", LIMIT)
    listed = subprocess.run(
        ["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True, check=True
    ).stdout
    assert "eventfd" not in listed
    assert "pidfd" not in listed
    assert "eventpoll" not in listed
