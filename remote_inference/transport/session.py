"""The session: a client and a credential, swapped together and whole.

Who begins a request takes a lease on the snapshot that is current then, and finishes on it. A rebuild reads
the credential's source, makes a new snapshot and swaps it in; the old one's connections close with its last
lease.
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..clock import Clock
from ..config import Deployment
from ..credentials import Credential, CredentialError, CredentialProvider, Secret
from ..errors import RebuildFailed
from ..events import Hooks, SessionRebuilt
from .base import Client

__all__ = [
    "DEBOUNCE",
    "EXPIRY_MARGIN",
    "ClientFactory",
    "RebuildResult",
    "RemoteSession",
    "SessionRebuildCause",
    "SessionSnapshot",
]

DEBOUNCE = 1.0
"""Seconds from one reading of the credential's source to the next: who asks in between waits, and shares the
next."""

EXPIRY_MARGIN = 60.0
"""Seconds before a credential's end at which it is fetched anew (at most a tenth of its life before)."""

ClientFactory = Callable[[Deployment], Client]


class SessionRebuildCause(str, enum.Enum):
    """Why a session is rebuilt."""

    UNAUTHORIZED = "unauthorized"
    EXPIRED = "expired"
    OPERATOR = "operator"
    SIGNAL = "signal"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionSnapshot:
    """What one request is sent with, from its beginning to its end.

    Attributes:
        client: the connections.
        credential: the key, None where the endpoint wants none.
        generation: counts up from 1 with every swap in a process.
        expires_at: seconds since the epoch, None if the credential is good until it is refused.
        deployment: as it was configured when the snapshot was made.
    """

    client: Client
    credential: Secret | None
    generation: int
    expires_at: float | None = None
    deployment: Deployment = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class RebuildResult:
    """``changed``: the credential now is not the one that the caller had seen."""

    generation: int
    changed: bool


class _Leased:
    """A snapshot with the number of requests on it."""

    __slots__ = ("leases", "made_at", "retired", "snapshot")

    def __init__(self, snapshot: SessionSnapshot, made_at: float) -> None:
        self.snapshot = snapshot
        self.made_at = made_at
        self.leases = 0
        self.retired = False


class _Process:
    """All that changes, for one process: after a fork the child begins with locks and connections of its
    own."""

    def __init__(self, generation: int) -> None:
        self.counting = threading.Lock()  # short: leases and the swap
        self.flight = threading.Lock()  # long: one reading of the source at a time
        self.current: _Leased | None = None
        self.held: dict[int, _Leased] = {}  # by id of the snapshot
        self.first_generation = generation
        self.closed = False
        self.after_401 = 0  # rebuilds under way that newcomers wait for
        self.started = 0  # readings of the source begun
        self.started_at = float("-inf")
        self.failure: RebuildFailed | None = None  # of the last reading


class RemoteSession:
    """One deployment's session. Nothing is read or opened before the first request.

    Args:
        deployment: whose session it is.
        credential_provider: the source of its key.
        client_factory: makes the client of a snapshot; `Clients` unless a test has another.
        clock: of expiry and debouncing.
        hooks: told of every swap but the first.
        debounce: seconds between two readings of the source.
    """

    def __init__(
        self,
        deployment: Deployment,
        credential_provider: CredentialProvider,
        client_factory: ClientFactory,
        *,
        clock: Clock,
        hooks: Hooks | None = None,
        debounce: float = DEBOUNCE,
    ) -> None:
        self._configured = (deployment, credential_provider)
        self._client_factory = client_factory
        self._clock = clock
        self._hooks = Hooks() if hooks is None else hooks
        self._debounce = debounce
        self._processes: dict[int, _Process] = {}

    def _process(self) -> _Process:
        pid = os.getpid()
        process = self._processes.get(pid)
        if process is None:
            others = list(self._processes.items())
            last = max((p.current.snapshot.generation for _, p in others if p.current), default=0)
            # One step, for threads that come here together.
            process = self._processes.setdefault(pid, _Process(last + 1))
            for other, _ in others:
                if other != pid:
                    # The parent's descriptors: held open here, its servers would not learn that it closed
                    # them.
                    self._processes.pop(other, None)
        return process

    # reading

    @property
    def snapshot(self) -> SessionSnapshot:
        """What a request would begin with now; takes no lock once there is one.

        Raises:
            RebuildFailed: there is none yet, and the credential's source failed.
        """
        current = self._process().current
        return (self._first() if current is None else current).snapshot

    @property
    def generation(self) -> int:
        """The current snapshot's generation; 0 before the first. Reads and opens nothing."""
        current = self._process().current
        return current.snapshot.generation if current else 0

    def acquire(self) -> SessionSnapshot:
        """Begin a request. Every snapshot that is acquired must be released.

        Waits where the current credential has expired, or has just been refused and is being fetched anew.

        Raises:
            RebuildFailed: there is no credential that could be used.
        """
        process = self._process()
        if process.after_401:
            with process.flight:
                pass
        current = process.current
        if current is None:
            self._first()
        elif self._due(current):
            self._renew(process, current)
        with process.counting:
            leased = process.current
            if leased is None:
                raise RebuildFailed(self._configured[0].name, "the session is closed")
            leased.leases += 1
            process.held[id(leased.snapshot)] = leased
            return leased.snapshot

    def release(self, snapshot: SessionSnapshot) -> None:
        """End a request. A snapshot that was acquired in the parent process is not counted here, and is let
        go."""
        process = self._process()
        with process.counting:
            leased = process.held.get(id(snapshot))
            if leased is None:
                return
            leased.leases -= 1
            if leased.leases == 0:
                del process.held[id(snapshot)]
            last = leased.retired and leased.leases == 0
        if last:
            snapshot.client.retire()

    @contextmanager
    def lease(self) -> Iterator[SessionSnapshot]:
        """`acquire` and `release` around a block."""
        snapshot = self.acquire()
        try:
            yield snapshot
        finally:
            self.release(snapshot)

    # rebuilding

    def rebuild(self, cause: SessionRebuildCause, *, seen_generation: int | None = None) -> RebuildResult:
        """Read the credential's source again and swap the session. When this returns, no request begins on
        the old one.

        Those who ask while the source is being read share the next reading; there is one in `DEBOUNCE`
        seconds at most. After a 401, a credential that has not changed leaves the session as it is.

        Args:
            cause: for the event, and as above.
            seen_generation: what the caller's request was sent with: if there is a newer one, there is
                nothing to do.

        Raises:
            RebuildFailed: the source failed. The old session stays.
        """
        process = self._process()
        before = process.current
        if (
            before is not None
            and seen_generation is not None
            and before.snapshot.generation > seen_generation
        ):
            return RebuildResult(generation=before.snapshot.generation, changed=True)
        joined = cause is SessionRebuildCause.UNAUTHORIZED
        if joined:
            with process.counting:
                process.after_401 += 1
        try:
            self._read_source(process, cause, seen_generation)
        finally:
            if joined:
                with process.counting:
                    process.after_401 -= 1
        after = process.current
        if after is None:
            raise RebuildFailed(self._configured[0].name, "the session is closed")
        changed = before is None or after.snapshot.credential != before.snapshot.credential
        return RebuildResult(generation=after.snapshot.generation, changed=changed)

    def close(self) -> None:
        """Begin no more requests; the connections close with the last of those under way."""
        process = self._process()
        with process.counting:
            process.closed = True
            leased, process.current = process.current, None
        if leased is not None:
            self._retire(process, leased)

    def _first(self) -> _Leased:
        process = self._process()
        with process.flight:
            if process.current is None:
                self._swap(process, None)
            current = process.current
        if current is None:
            raise RebuildFailed(self._configured[0].name, "the session is closed")
        return current

    def _due(self, leased: _Leased) -> bool:
        expires = leased.snapshot.expires_at
        if expires is None:
            return False
        margin = min(EXPIRY_MARGIN, max(0.0, expires - leased.made_at) / 10)
        return self._clock.time() >= expires - margin

    def _renew(self, process: _Process, leased: _Leased) -> None:
        expires = leased.snapshot.expires_at
        good = expires is not None and self._clock.time() < expires
        recent = self._clock.monotonic() - process.started_at < self._debounce
        if good and (recent or process.flight.locked()):
            return  # somebody is at it, or has just been; what we have will do meanwhile
        try:
            self.rebuild(SessionRebuildCause.EXPIRED, seen_generation=leased.snapshot.generation)
        except RebuildFailed:
            if not good:
                raise

    def _read_source(self, process: _Process, cause: SessionRebuildCause, seen: int | None) -> None:
        ticket = process.started
        with process.flight:
            current = process.current
            if seen is not None and current is not None and current.snapshot.generation > seen:
                return
            if process.started > ticket:
                # A reading that began after we asked has ended: it saw what we would see.
                if process.failure is not None:
                    raise RebuildFailed(*process.failure.args)
                return
            wait = process.started_at + self._debounce - self._clock.monotonic()
            if wait > 0:
                self._clock.sleep(wait)
            self._swap(process, cause)

    def _swap(self, process: _Process, cause: SessionRebuildCause | None) -> None:
        """Under `flight`. ``cause`` is None for the first snapshot."""
        deployment, provider = self._configured
        process.started += 1
        process.started_at = self._clock.monotonic()
        try:
            credential = provider.fetch()
            old = process.current
            same = old is not None and old.snapshot.credential == credential.secret
            if same and cause is SessionRebuildCause.UNAUTHORIZED:
                process.failure = None
                return
            leased = self._make(process, deployment, credential)
        except Exception as exc:
            # Whose message may be shown: ours. A stranger's may quote the key.
            reason = str(exc) if isinstance(exc, CredentialError) else type(exc).__name__
            process.failure = RebuildFailed(deployment.name, reason)
            raise process.failure from exc
        process.failure = None
        with process.counting:
            closed, process.current = process.closed, None if process.closed else leased
        if closed:
            leased.snapshot.client.retire()
            return
        if old is not None:
            self._retire(process, old)
        if cause is not None:
            self._hooks(
                SessionRebuilt(
                    deployment=deployment.name,
                    cause=cause.value,
                    generation=leased.snapshot.generation,
                    changed=not same,
                )
            )

    def _make(self, process: _Process, deployment: Deployment, credential: Credential) -> _Leased:
        old = process.current
        generation = old.snapshot.generation + 1 if old else process.first_generation
        client = self._client_factory(deployment)
        snapshot = SessionSnapshot(
            client=client,
            credential=credential.secret,
            generation=generation,
            expires_at=credential.expires_at,
            deployment=deployment,
        )
        return _Leased(snapshot, self._clock.time())

    @staticmethod
    def _retire(process: _Process, leased: _Leased) -> None:
        with process.counting:
            leased.retired = True
            idle = leased.leases == 0
        if idle:
            leased.snapshot.client.retire()

    def __repr__(self) -> str:
        process = self._processes.get(os.getpid())
        current = process.current if process else None
        state = f"generation {current.snapshot.generation}" if current else "not built"
        return f"<RemoteSession {self._configured[0].name}: {state}>"
