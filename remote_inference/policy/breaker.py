"""The circuit breaker of one endpoint: pybreaker's state machine, told of outcomes after the fact.

pybreaker's own ``call`` would hold its lock for the whole of a request, let every concurrent call through
while half-open, count cancellations as failures and take a 400 for a success. So a request asks
`CircuitBreaker.admit` before and tells the `Admission` what happened after; in between nothing is held but,
while half-open, a probe's slot.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime, timezone

import pybreaker

from ..clock import Clock
from ..config import BreakerPolicy
from ..errors import CircuitOpen, InvalidRequest
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

    __slots__ = ("_breaker", "_period", "_settled", "probe")

    def __init__(self, breaker: CircuitBreaker, period: int, probe: bool) -> None:
        self._breaker = breaker
        self._period = period
        self._settled = False
        self.probe = probe

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

    Args:
        policy: Thresholds and times.
        endpoint: For events and the repr.
        clock: Where time comes from.
        on_change: Told ``(old, new)``, outside the lock; states are ``closed``, ``open``, ``half_open``.
    """

    def __init__(
        self,
        policy: BreakerPolicy,
        *,
        endpoint: str,
        clock: Clock,
        on_change: Callable[[str, str], None] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._policy = policy
        self._clock = clock
        self._on_change = on_change
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
        self._open_until = 0.0  # monotonic
        self._next_duration = policy.open_duration
        self._forced = False

    def admit(self) -> Admission:
        """Leave to send one request.

        Raises:
            CircuitOpen: with ``retry_at``, seconds since the epoch; ``code`` is ``open``, ``forced`` or
            ``probing``.
        """
        with self._lock:
            state = self._storage.state
            if state == pybreaker.STATE_CLOSED:
                return Admission(self, self._period, False)
            now = self._clock.monotonic()
            refusal = self._refusal(now)
            if refusal:
                raise CircuitOpen(refusal, retry_at=self._retry_at(now))
            if state == pybreaker.STATE_OPEN:
                self._machine.half_open()
                self._period += 1
            self._probes += 1
            admission = Admission(self, self._period, True)
        self._tell(state, pybreaker.STATE_HALF_OPEN)
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
            self._open(duration, forced=True)
        self._tell(old, pybreaker.STATE_OPEN)

    def force_close(self) -> None:
        """Close it now, and forget what it has seen."""
        with self._lock:
            old = self._storage.state
            self._close()
        self._tell(old, pybreaker.STATE_CLOSED)

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half_open``; an open one whose time has passed is ``half_open``."""
        with self._lock:
            if self._storage.state == pybreaker.STATE_OPEN and self._clock.monotonic() >= self._open_until:
                return _NAMES[pybreaker.STATE_HALF_OPEN]
            return _NAMES[self._storage.state]

    @property
    def retry_at(self) -> float:
        """When to ask again, in seconds since the epoch; 0.0 where `admit` would let one in now."""
        with self._lock:
            now = self._clock.monotonic()
            return self._retry_at(now) if self._refusal(now) else 0.0

    def _refusal(self, now: float) -> str:
        if self._storage.state == pybreaker.STATE_CLOSED:
            return ""
        if self._storage.state == pybreaker.STATE_OPEN and now < self._open_until:
            return "forced" if self._forced else "open"
        return "probing" if self._probes >= self._policy.half_open_max_probes else ""

    def _retry_at(self, now: float) -> float:
        is_open = self._storage.state == pybreaker.STATE_OPEN and now < self._open_until
        left = self._open_until - now if is_open else min(_PROBE_POLL, self._policy.open_duration)
        return self._clock.time() + left + _ROUNDING

    def _settle(self, admission: Admission, outcome: Outcome) -> None:
        with self._lock:
            if admission._settled:
                return
            admission._settled = True
            if admission.probe:
                self._probes -= 1
            if outcome == "neutral" or admission._period != self._period:
                return
            old = self._storage.state
            if outcome == "success":
                self._machine.call(_succeed)
                if old != pybreaker.STATE_CLOSED:
                    self._close()
            else:
                try:
                    self._machine.call(_fail)
                except _Failed:
                    pass
                if self._storage.state == pybreaker.STATE_OPEN:
                    self._open(self._next_duration)
                    self._next_duration = min(2 * self._next_duration, self._policy.max_open_duration)
            new = self._storage.state
        self._tell(old, new)

    def _open(self, duration: float, *, forced: bool = False) -> None:
        if self._storage.state != pybreaker.STATE_OPEN:
            self._machine.open()
        self._machine.reset_timeout = duration
        self._open_until = self._clock.monotonic() + duration
        self._forced = forced
        self._period += 1

    def _close(self) -> None:
        if self._storage.state != pybreaker.STATE_CLOSED:
            self._machine.close()
        self._storage.reset_counter()
        self._next_duration = self._policy.open_duration
        self._forced = False
        self._period += 1

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
            left = self._open_until - self._clock.monotonic()
            more = f", {left:.1f} s left" if state == "open" and left > 0 else ""
            return (
                f"CircuitBreaker({self.endpoint!r}, {state}{more}, "
                f"{self._storage.counter} failures, {self._probes} probes running)"
            )


def _succeed() -> None:
    return None


def _fail() -> None:
    raise _Failed
