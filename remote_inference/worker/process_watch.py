"""`ProcessWatch`: tells, with certainty, that another process of this host has ended.

Workers share a limit. What a killed worker held may be taken over at once only by a process that knows that the other
does no more; all others wait for its lease.

A number belongs to a process until its parent has reaped it (`wait(2)`), and may then be given to another, so a number
alone proves nothing. A number and a start time name one process of a boot (`boot_id`, `random(4)`). Such a process has
ended if one of these holds:

- `pidfd_open(2)` fails with ESRCH: no process has the number.
- The number belongs to a process with another start time: the first one has ended.
- The pidfd polls readable: the process has terminated, with all of its threads. It does not while the main thread alone
  has ended, or when another thread calls `execve(2)`. The parent need not have reaped the process: a zombie has closed
  its descriptors and runs no code.

Whatever else happens (no permission, no `/proc`, no pidfd) proves nothing, and such a process is not watched.

What "ended" does not cover:

- Bytes that the process gave to the kernel before its end may still go out on its connections.
- A child that it forked is a process of its own, and may hold its connections open.
- Virtual machines that were restored from one snapshot have the same boot id and the same namespaces, and a process of
  one does not exist in the others. They are told apart by the host name alone: give each its own before a worker
  starts in it.
- A process that is restored from an image of itself (CRIU) had ended, and runs again.
- An identity is believed. One that a peer has made up is reported as ended.
"""

from __future__ import annotations

import enum
import hashlib
import logging
import os
import re
import selectors
import threading
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["ProcessWatch", "process_identity"]

logger = logging.getLogger(__name__)

HOST_BYTES = 8
PID_MAX = 2**22
"""No process has a higher number: PID_MAX_LIMIT, `proc_sys_kernel(5)`."""

_IDENTITY = re.compile(r"([0-9a-f]{16}):([1-9][0-9]{0,6}):(0|[1-9][0-9]{0,19})")
_BOOT_ID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ONE_PID = re.compile(rb"^NSpid:[ \t]*([0-9]+)$", re.MULTILINE)


def process_identity() -> str:
    """What names this process, for others to watch it by.

    Returns:
        ``host:pid:start``, at most 45 characters. The host is a hash of the boot id, the namespaces and the host name,
        which cannot be read from it; processes that have it in common see each other under the same numbers. The start
        is in clock ticks since the boot. Empty where one of them cannot be known.
    """
    host = _host()
    stat = _read_stat(os.getpid()) if host else None
    return f"{host}:{os.getpid()}:{stat.start}" if stat else ""


class ProcessWatch:
    """Tells when processes of this host have ended, with certainty.

    One daemon thread starts with the first process and sleeps until one ends; each process costs a descriptor. A forked
    child must make its own: an inherited one watches nothing.

    Args:
        on_death: called with the identity, in the watch's thread. What it raises is logged.
    """

    def __init__(self, on_death: Callable[[str], None]) -> None:
        self._on_death = on_death
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._watched: dict[str, int] = {}  # pidfds, by identity
        self._ended: dict[str, None] = {}  # those that on_death has yet to be told of, in order
        self._added: list[tuple[str, int]] = []  # the selector belongs to the thread, so it registers,
        self._retired: list[int] = []  # unregisters and closes
        self._wake_fd = -1  # an eventfd, from the start of the thread to its end
        self._closed = False

    def watch(self, identity: str) -> bool:
        """Have ``on_death`` called as soon as that process has certainly ended, or at once if it has.

        To watch a process again changes nothing, but that ``on_death`` is called again if it has been called before.

        Returns:
            Whether it can be watched: it is of this host and these namespaces, and may be looked at.
        """
        process = _parse(identity)
        if process is None or self._pid != os.getpid() or process.host != _host():
            return False
        with self._lock:
            if self._closed or self._knows(identity):
                return not self._closed
        pidfd, state = _open(process)
        with self._lock:
            known = self._knows(identity)  # another thread was faster
            if state is _State.UNKNOWN or known or not self._ready():
                if pidfd is not None:
                    os.close(pidfd)
                return known and not self._closed
            if pidfd is None:
                self._ended[identity] = None
            else:
                self._watched[identity] = pidfd
                self._added.append((identity, pidfd))
            self._wake()
        return True

    def forget(self, identity: str) -> None:
        """Watch it no more. A call of ``on_death`` that is under way in the thread is not taken back."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._ended.pop(identity, None)
            if self._retire(identity):
                self._wake()

    def close(self) -> None:
        """End the thread and give the descriptors back. Does not wait: it may be called in ``on_death``.

        One call of ``on_death`` may be under way; no other comes. Does nothing in a forked child, or a second time.
        """
        if self._pid != os.getpid():
            return
        with self._lock:
            self._closed = True
            self._wake()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._watched)} watched"
        return f"ProcessWatch({state}, pid={self._pid})"

    # with the lock held

    def _knows(self, identity: str) -> bool:
        return identity in self._watched or identity in self._ended

    def _ready(self) -> bool:
        """Whether the thread runs, now if not before."""
        if self._closed:
            return False
        if self._wake_fd >= 0:
            return True
        selector = None
        try:
            # Looked up here, not at the import: gevent replaces it, and threads with it.
            selector = selectors.DefaultSelector()
            self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            threading.Thread(
                target=self._run, args=(selector,), name="inference-process-watch", daemon=True
            ).start()
        except (
            AttributeError,
            OSError,
            RuntimeError,
        ) as exc:  # no eventfd in this Python, no descriptor, no thread
            logger.warning("process watch: cannot start: %s", exc)
            self._close_wake_fd()
            if selector is not None:
                selector.close()
            return False
        return True

    def _wake(self) -> None:
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)

    def _close_wake_fd(self) -> None:
        if self._wake_fd >= 0:
            os.close(self._wake_fd)
            self._wake_fd = -1

    def _retire(self, identity: str) -> bool:
        """Have the thread close its descriptor; whether there was one."""
        pidfd = self._watched.pop(identity, None)
        if pidfd is not None:
            self._retired.append(pidfd)
        return pidfd is not None

    # in the thread

    def _run(self, selector: selectors.BaseSelector) -> None:
        try:
            with selector:
                selector.register(self._wake_fd, selectors.EVENT_READ)
                while self._update(selector):
                    self._tell()
                    for key, _ in selector.select():
                        if self._done():
                            break
                        if key.data is None:
                            self._drain()
                        else:
                            self._check(key.data, key.fd)
        except Exception:
            logger.exception("process watch: failed; the ends of processes are noticed no more")
        finally:
            if self._pid == os.getpid():
                self._release()

    def _done(self) -> bool:
        """It is closed, or this is a forked child, in which gevent's greenlets go on."""
        return self._closed or self._pid != os.getpid()

    def _update(self, selector: selectors.BaseSelector) -> bool:
        """Register and close what other threads have asked for; False: there is nothing more to do."""
        with self._lock:
            if self._done():
                return False
            added, self._added = self._added, []
        for identity, pidfd in added:
            try:
                selector.register(pidfd, selectors.EVENT_READ, identity)
            except OSError as exc:  # no memory, or too many (`epoll_ctl(2)`)
                logger.warning("process watch: cannot watch %s: %s", identity, exc)
                with self._lock:
                    if self._watched.get(identity) == pidfd:  # not forgotten since
                        self._retire(identity)
        with self._lock:  # after the others: one of them may have been forgotten since
            retired, self._retired = self._retired, []
        for pidfd in retired:
            if pidfd in selector.get_map():
                selector.unregister(pidfd)
            os.close(pidfd)
        return True

    def _tell(self) -> None:
        while True:
            with self._lock:
                if self._done() or not self._ended:
                    return
                identity = next(iter(self._ended))
                del self._ended[identity]
            try:
                self._on_death(identity)
            except Exception:  # one bad answer must not make the watch blind
                logger.exception("process watch: the end of %s could not be handled", identity)

    def _drain(self) -> None:
        try:
            os.eventfd_read(self._wake_fd)
        except BlockingIOError:
            pass

    def _check(self, identity: str, pidfd: int) -> None:
        """Its pidfd was said to be readable.

        `ev(3)`, on which gevent's selector stands, may say so where it is not. So a process that is seen to live is no
        longer watched: nothing is certain about it. That a process cannot be seen contradicts nothing.
        """
        process = _parse(identity)
        alive = process is not None and _look(process) is _State.ALIVE
        with self._lock:
            if self._watched.get(identity) != pidfd:  # forgotten
                return
            self._retire(identity)
            if not alive:
                self._ended[identity] = None
        if alive:
            logger.warning("process watch: %s lives, though it was said to have ended", identity)

    def _release(self) -> None:
        with self._lock:
            self._closed = True
            for pidfd in [*self._watched.values(), *self._retired]:
                os.close(pidfd)
            for each in (self._watched, self._ended, self._added, self._retired):
                each.clear()
            self._close_wake_fd()


class _Process(NamedTuple):
    host: str
    pid: int
    start: int


class _State(enum.Enum):
    ALIVE = enum.auto()
    ENDED = enum.auto()
    UNKNOWN = enum.auto()


class _Stat(NamedTuple):
    """Of `proc_pid_stat(5)`."""

    state: str
    threads: int
    start: int


def _parse(identity: object) -> _Process | None:
    """None: that is none. It came from another process, and may be anything."""
    match = _IDENTITY.fullmatch(identity) if isinstance(identity, str) else None
    if match is None or int(match[2]) > PID_MAX:
        return None
    return _Process(match[1], int(match[2]), int(match[3]))


def _parse_stat(line: bytes) -> _Stat | None:
    """The second field is a name that may have spaces and parentheses in it; there are none after it."""
    fields = line.rpartition(b")")[2].split()
    try:
        return _Stat(state=fields[0].decode(), threads=int(fields[17]), start=int(fields[19]))
    except (IndexError, ValueError):
        return None


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _read_stat(pid: int) -> _Stat | None:
    try:
        return _parse_stat(_read(f"/proc/{pid}/stat"))
    except OSError:
        return None


def _host() -> str:
    """What processes have in common whose numbers and start times mean the same; empty where it cannot be known.

    The boot, the pid namespace (a namespace's number is given to a new one only when all processes of the old one are
    gone), the time namespace, since start times are shown as of the reader's (`time_namespaces(7)`; it came with Linux
    5.6), and the host's name.

    `/proc` shows the numbers of the namespace in which it was mounted. NSpid lists this process's from that one to its
    own, so it is the right `/proc` exactly if there is but one, and it is this process's (`proc_pid_status(5)`).
    """
    try:
        pids = _ONE_PID.search(_read("/proc/self/status"))
        boot_id = _read("/proc/sys/kernel/random/boot_id").strip()
        pid_namespace = os.readlink("/proc/self/ns/pid")
        try:
            time_namespace = os.readlink("/proc/self/ns/time")
        except FileNotFoundError:
            time_namespace = ""
    except OSError:
        return ""
    if pids is None or int(pids[1]) != os.getpid() or not _BOOT_ID.fullmatch(boot_id):
        return ""
    facts = (os.fsdecode(boot_id), pid_namespace, time_namespace, os.uname().nodename)
    return hashlib.blake2b(os.fsencode("\0".join(facts)), digest_size=HOST_BYTES).hexdigest()


def _open(process: _Process) -> tuple[int | None, _State]:
    """A pidfd of it if it lives, and whether it does.

    The start time is read after the pidfd was opened. If it is the right one, the process has had its number since
    before that, so the pidfd is its own.
    """
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None, _State.ENDED
    except (AttributeError, OSError):  # not in this Python, not in this kernel, not allowed, too many files;
        return None, _State.UNKNOWN  # or the number is now that of a thread
    state = _look(process)
    if state is _State.ALIVE:
        return pidfd, state
    os.close(pidfd)
    return None, state


def _look(process: _Process) -> _State:
    """Whether it lives, as `/proc` has it."""
    stat = _read_stat(process.pid)
    # Hidden from this user (hidepid, `proc(5)`), or gone this moment. No threads: the main thread's remains are being
    # removed, since it was reaped, or since another thread of its process has called execve.
    if stat is None or stat.threads == 0:
        return _State.ENDED if _is_free(process.pid) else _State.UNKNOWN
    if stat.start != process.start:
        return _State.ENDED
    # A main thread that has ended is a zombie too, while others run; they are counted with it.
    return _State.ENDED if stat.state in ("Z", "X") and stat.threads == 1 else _State.ALIVE


def _is_free(pid: int) -> bool:
    try:
        os.close(os.pidfd_open(pid))
    except ProcessLookupError:
        return True
    except (AttributeError, OSError):
        pass
    return False
