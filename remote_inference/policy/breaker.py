"""The circuit breaker of one endpoint: pybreaker's state machine, told of outcomes after the fact.

pybreaker's own ``call`` would hold its lock for the whole of a request, let every concurrent call through
while half-open, count cancellations as failures and take a 400 for a success. So a request asks
`CircuitBreaker.admit` before and tells the `Admission` what happened after; in between nothing is held but,
while half-open, a probe's slot.

Breakers of one endpoint in several processes are kept alike by whoever carries a `CircuitState` from one to another:
each tells of its transitions, and adopts those of others that are later than its own. What is counted, failures in a
row, stays each one's own. `ProbeSlots` are what they share of the probes.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pybreaker

from ..clock import Clock
from ..config import BreakerPolicy
from ..errors import CircuitOpen, InvalidRequest
from .circuit import CircuitState, ProbeSlot, ProbeSlots
from .classify import Outcome

__all__ = ["Admission", "CircuitBreaker"]

logger = logging.getLogger(__name__)

_PROBE_POLL = 1.0  # seconds after which it is worth asking again whether a probe has ended
_ROUNDING = 1e-6  # so that who asks at `retry_at` is not a rounding error early
_NAMES = {
    pybreaker.STATE_CLOSED: "closed",
    pybreaker.STATE_OPEN: "open",
    pybreaker.STATE_HALF_OPEN: "half_open",
}


class _Failed(Exception):
    """How pybreaker is told of a failure."""


class _Storage(pybreaker.CircuitBreakerStorage):
    """pybreaker's state on our clock, with a failure counter that forgets what is older than the window."""

    def __init__(self, policy: BreakerPolicy, clock: Clock) -> None:
        super().__init__("clocked")
        self._clock = clock
        self._window = policy.failure_window
        self._failures: deque[float] = deque(maxlen=policy.failure_threshold)
        self._successes = 0
        self._state: str = pybreaker.STATE_CLOSED
        self._opened_at: datetime | None = None

    @property
    def state(self) -> str:
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        self._state = state

    def increment_counter(self) -> None:
        self._failures.append(self._clock.monotonic())

    def reset_counter(self) -> None:
        self._failures.clear()

    def increment_success_counter(self) -> None:
        self._successes += 1

    def reset_success_counter(self) -> None:
        self._successes = 0

    @property
    def counter(self) -> int:
        since = self._clock.monotonic() - self._window
        while self._failures and self._failures[0] <= since:
            self._failures.popleft()
        return len(self._failures)

    @property
    def success_counter(self) -> int:
        return self._successes

    @property
    def opened_at(self) -> datetime | None:
        return self._opened_at

    @opened_at.setter
    def opened_at(self, _: datetime) -> None:
        # pybreaker has read the machine's clock for this.
        self._opened_at = datetime.fromtimestamp(self._clock.time(), timezone.utc)


class Admission:
    """Leave to send one request. Tell it the outcome, once; what is told after that changes nothing.

    A probe's slot is held until then, so every way out has to tell.
    """

    __slots__ = ("_breaker", "_period", "_settled", "_slot", "probe")

    def __init__(
        self, breaker: CircuitBreaker, period: int, probe: bool, slot: ProbeSlot | None = None
    ) -> None:
        self._breaker = breaker
        self._period = period
        self._settled = False
        self._slot = slot
        self.probe = probe

    @property
    def holds(self) -> bool:
        """Whether the circuit is still as it was: who has not sent yet asks for leave again, if not."""
        return self._period == self._breaker._period

    def success(self) -> None:
        """The upstream answered as it should."""
        self._breaker._settle(self, "success")

    def failure(self) -> None:
        """The upstream failed."""
        self._breaker._settle(self, "failure")

    def neutral(self) -> None:
        """Nothing was learned about the upstream: cancelled, refused by us, a 4xx."""
        self._breaker._settle(self, "neutral")

    def __repr__(self) -> str:
        kind = "probe" if self.probe else "call"
        return f"Admission({kind}, {'settled' if self._settled else 'running'})"


class CircuitBreaker:
    """Closed, open, half-open; see the module's docstring for why not pybreaker alone.

    - ``failure_threshold`` failures in a row, none older than ``failure_window``, open it. A success in
      between begins the row anew; neutral outcomes change nothing.
    - It stays open for ``open_duration``, twice as long after each round of probes that failed, up to
      ``max_open_duration``; once closed, it begins with the shortest again.
    - Then at most ``half_open_max_probes`` requests at a time are let through, those of an earlier round that
      still run included. The first success closes it, the first failure opens it.
    - Only an outcome of the period in which the request was admitted counts: after any change of state the
      outcomes of calls admitted before it are old news, which neither close an open circuit nor prolong it,
      nor count against one that has closed since. They only free their probe's slot.
    - A state that was adopted is one of those changes.

    Args:
        policy: Thresholds and times.
        endpoint: For events and the repr.
        clock: Where time comes from.
        on_change: Told ``(old, new)``, outside the lock; states are ``closed``, ``open``, ``half_open``.
        on_transition: Told of each transition made here, outside the lock: two that follow each other closely may
            come the other way round. A forced one is told also where nothing changes here.
        slots: Shared with the breakers of other processes; None: the probes are counted here alone.
        name: Gives this process's name among them.
    """

    def __init__(
        self,
        policy: BreakerPolicy,
        *,
        endpoint: str,
        clock: Clock,
        on_change: Callable[[str, str], None] | None = None,
        on_transition: Callable[[CircuitState], None] | None = None,
        slots: ProbeSlots | None = None,
        name: Callable[[], str] = str,
    ) -> None:
        self.endpoint = endpoint
        self._policy = policy
        self._clock = clock
        self._on_change = on_change
        self._on_transition = on_transition
        self._slots = slots
        self._name = name
        self._lock = threading.Lock()
        self._storage = _Storage(policy, clock)
        self._machine = pybreaker.CircuitBreaker(
            fail_max=policy.failure_threshold,
            reset_timeout=policy.open_duration,
            state_storage=self._storage,
            name=endpoint,
            throw_new_error_on_trip=False,
        )
        self._period = 0
        self._probes = 0
        self._refused_at = -math.inf  # when there was no slot to be had
        self._shared = CircuitState()

    def admit(self) -> Admission:
        """Leave to send one request.

        Raises:
            CircuitOpen: with ``retry_at``, seconds since the epoch; ``code`` is ``open``, ``forced`` or
            ``probing``.
        """
        with self._lock:
            if self._storage.state == pybreaker.STATE_CLOSED:
                return Admission(self, self._period, False)
            now = self._clock.monotonic()
            refusal = self._refusal(now)
            if refusal:
                raise CircuitOpen(refusal, retry_at=self._retry_at(now))
            self._probes += 1  # it is ours while the slot is asked for, without the lock
        slot: ProbeSlot | None = None
        admission: Admission | None = None
        try:
            if self._slots is not None:
                slot = self._slots.take()
            admission = self._admit_with(slot)
            return admission
        finally:
            if admission is None or not admission.probe:
                with self._lock:
                    self._probes -= 1
                if slot is not None:
                    slot.release(False)

    def _admit_with(self, slot: ProbeSlot | None) -> Admission:
        """The slot was asked for, and the circuit may have changed meanwhile."""
        with self._lock:
            old = self._storage.state
            if old == pybreaker.STATE_CLOSED:
                return Admission(self, self._period, False)
            now = self._clock.monotonic()
            without_slot = self._slots is not None and slot is None
            if without_slot:
                self._refused_at = now
            if without_slot or self._is_shut(now):
                raise CircuitOpen(self._refusal(now), retry_at=self._retry_at(now))
            if old == pybreaker.STATE_OPEN:
                self._machine.half_open()
                self._period += 1
            admission = Admission(self, self._period, True, slot)
        self._tell(old, pybreaker.STATE_HALF_OPEN)
        return admission

    def force_open(self, duration: float) -> None:
        """Open it for so many seconds, whatever it has seen; a new call replaces an earlier one. Then it
        probes.

        Raises:
            InvalidRequest: the duration is not a positive number of seconds.
        """
        if not (duration > 0 and math.isfinite(duration)):
            raise InvalidRequest("duration", "must be a positive number of seconds")
        with self._lock:
            old = self._storage.state
            made = self._open(duration, self._next_duration, forced=True)
        self._hand_on(made)
        self._tell(old, pybreaker.STATE_OPEN)

    def force_close(self) -> None:
        """Close it now, and forget what it has seen."""
        with self._lock:
            old = self._storage.state
            made = self._close()
        self._hand_on(made)
        self._tell(old, pybreaker.STATE_CLOSED)

    def adopt(self, state: CircuitState) -> bool:
        """Take over a transition that was made elsewhere, unless what is known here is as late. Whether it was."""
        with self._lock:
            if state.order <= self._shared.order:
                return False
            old = self._storage.state
            self._become(state)
            new = self._storage.state
        self._tell(old, new)
        return True

    @property
    def shared(self) -> CircuitState:
        """The last transition, whoever made it."""
        return self._shared

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half_open``; an open one whose time has passed is ``half_open``."""
        with self._lock:
            if self._storage.state == pybreaker.STATE_OPEN and not self._is_shut(self._clock.monotonic()):
                return _NAMES[pybreaker.STATE_HALF_OPEN]
            return _NAMES[self._storage.state]

    @property
    def retry_at(self) -> float:
        """When to ask again, in seconds since the epoch; 0.0 where `admit` would let one in now, if it gets a slot."""
        with self._lock:
            now = self._clock.monotonic()
            return self._retry_at(now) if self._refusal(now) else 0.0

    # -- under the lock

    @property
    def _next_duration(self) -> float:
        return self._shared.next_duration or self._policy.open_duration

    @property
    def _poll(self) -> float:
        return min(_PROBE_POLL, self._policy.open_duration)

    def _is_shut(self, now: float) -> bool:
        return self._storage.state == pybreaker.STATE_OPEN and now < self._shared.until

    def _refusal(self, now: float) -> str:
        if self._storage.state == pybreaker.STATE_CLOSED:
            return ""
        if self._is_shut(now):
            return "forced" if self._shared.forced else "open"
        busy = self._probes >= self._policy.half_open_max_probes or now < self._refused_at + self._poll
        return "probing" if busy else ""

    def _retry_at(self, now: float) -> float:
        left = self._shared.until - now if self._is_shut(now) else self._poll
        return self._clock.time() + left + _ROUNDING

    def _open(self, duration: float, next_duration: float, *, forced: bool = False) -> CircuitState:
        until = self._clock.monotonic() + duration
        return self._become(
            self._following(
                open=True, until=until, duration=duration, next_duration=next_duration, forced=forced
            )
        )

    def _close(self) -> CircuitState:
        return self._become(self._following(open=False))

    def _following(self, **fields: Any) -> CircuitState:
        return CircuitState(epoch=self._shared.epoch + 1, by=self._name(), **fields)

    def _become(self, state: CircuitState) -> CircuitState:
        if state.open:
            if self._storage.state != pybreaker.STATE_OPEN:
                self._machine.open()
            self._machine.reset_timeout = state.duration
        else:
            if self._storage.state != pybreaker.STATE_CLOSED:
                self._machine.close()
            self._storage.reset_counter()
        self._shared = state
        self._refused_at = -math.inf
        self._period += 1
        return state

    # -- outside of it

    def _settle(self, admission: Admission, outcome: Outcome) -> None:
        made: CircuitState | None = None
        with self._lock:
            if admission._settled:
                return
            admission._settled = True
            if admission.probe:
                self._probes -= 1
            old = self._storage.state
            if outcome != "neutral" and admission._period == self._period:
                made = self._count(old, outcome)
            new = self._storage.state
        try:
            if made is not None:
                self._hand_on(made)
                self._tell(old, new)
        finally:
            if admission._slot is not None:
                admission._slot.release(made is not None)

    def _count(self, old: str, outcome: Outcome) -> CircuitState | None:
        """Under the lock: tell pybreaker; the transition that came of it."""
        if outcome == "success":
            self._machine.call(_succeed)
            return self._close() if old != pybreaker.STATE_CLOSED else None
        try:
            self._machine.call(_fail)
        except _Failed:
            pass
        if self._storage.state != pybreaker.STATE_OPEN:
            return None
        duration = self._next_duration
        return self._open(duration, min(2 * duration, self._policy.max_open_duration))

    def _hand_on(self, state: CircuitState) -> None:
        if self._on_transition is not None:
            try:
                self._on_transition(state)
            except Exception:  # whoever carries it to the others: that must not cost a request here
                logger.exception("the breaker's on_transition failed for %s", self.endpoint)

    def _tell(self, old: str, new: str) -> None:
        if old == new or self._on_change is None:
            return
        try:
            self._on_change(_NAMES[old], _NAMES[new])
        except Exception:  # a stranger's code: it must not cost a request, nor a probe its slot
            logger.exception("the breaker's on_change failed for %s", self.endpoint)

    def __repr__(self) -> str:
        with self._lock:
            state = _NAMES[self._storage.state]
            left = self._shared.until - self._clock.monotonic()
            more = f", {left:.1f} s left" if state == "open" and left > 0 else ""
            return (
                f"CircuitBreaker({self.endpoint!r}, {state}{more}, "
                f"{self._storage.counter} failures, {self._probes} probes running)"
            )


def _succeed() -> None:
    return None


def _fail() -> None:
    raise _Failed
