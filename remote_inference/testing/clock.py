"""A clock that tests own: nothing waits, time moves when it is told to or when somebody would wait."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["VirtualClock"]

_EPOCH = 10_000.0  # what monotonic() begins with: it must not be taken for seconds since the epoch, nor for 0
_REAL_PAUSE = 0.001


class VirtualClock:
    """A `Clock` whose time is a number.

    From one thread, `sleep` and `wait` move the time on at once, to their end or to the moment at which a
    callback sets the event. From several threads there are two ways:

    - `run` runs functions side by side in lock-step: one of them at a time, and time moves only when all
      wait. What happens is the same every time. They must wait by the clock alone.
    - ``VirtualClock(moves_itself=False)``: waits block for real until another thread calls `advance`.

    Args:
        start: What `time` begins with, in seconds since the epoch.
        moves_itself: Whether waiting moves the time.
    """

    def __init__(self, start: float = 1_700_000_000.0, *, moves_itself: bool = True) -> None:
        self._lock = threading.RLock()
        self._start = start
        self._now = _EPOCH
        self._moves_itself = moves_itself
        self._callbacks: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._waiting = 0
        self._steps: dict[int, _Step] = {}

    def time(self) -> float:
        """Seconds since the epoch."""
        return self._start + (self._now - _EPOCH)

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Wait, which moves the time."""
        self.wait(threading.Event(), max(seconds, 0.0))

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        """Wait for the event, which moves the time on until it is set or the timeout is over.

        Raises:
            RuntimeError: it would wait for ever: no timeout, and no callback that could set the event.
        """
        if event.is_set():
            return True
        deadline = None if timeout is None else self._now + max(timeout, 0.0)
        step = self._steps.get(threading.get_ident())
        if step is not None:
            step.hand_over(event, deadline)
        elif self._moves_itself:
            while not event.is_set() and (deadline is None or self._now < deadline):
                if not self._forward(deadline):
                    raise RuntimeError("this wait would never end: nothing is due on the virtual clock")
        else:
            self._block(event, deadline)
        return event.is_set()

    @property
    def waiting(self) -> int:
        """How many threads block in `wait` or `sleep` of a clock that does not move itself."""
        return self._waiting

    def _block(self, event: threading.Event, deadline: float | None) -> None:
        with self._lock:
            self._waiting += 1
        try:
            while not event.is_set() and (deadline is None or self._now < deadline):
                event.wait(_REAL_PAUSE)
        finally:
            with self._lock:
                self._waiting -= 1

    def advance(self, seconds: float) -> None:
        """Move the time on; callbacks that fall due on the way run at their times."""
        target = self._now + seconds
        while self._now < target:
            self._forward(target)

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        """Call back when `time` reaches ``when``, in the thread that moves the time."""
        with self._lock:
            self._count += 1
            heapq.heappush(self._callbacks, (when - self._start + _EPOCH, self._count, callback))

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        """Call back in so many seconds."""
        with self._lock:
            self._count += 1
            heapq.heappush(self._callbacks, (self._now + delay, self._count, callback))

    def run(self, *functions: Callable[[], Any], limit: float = 60.0) -> list[Any]:
        """Run the functions side by side, each in a thread, in lock-step; returns what they return.

        The first begins, and runs until it waits on this clock; then the next one. A thread whose event is
        set goes on before time moves; time moves to the next thing that is due. The first exception of any is
        raised when all have ended.

        Args:
            functions: They must not block on anything but this clock (a lock that is held across a wait shows
                here).
            limit: Real seconds for one step.

        Raises:
            RuntimeError: all wait for ever, or one took longer than the limit.
        """
        steps = [_Step(self, function, limit) for function in functions]
        waiting: list[_Step] = list(steps)  # in the order in which they began to wait
        while waiting:
            step = next((s for s in waiting if s.ready(self._now)), None)
            if step is None:
                dues = [s.deadline for s in waiting if s.deadline is not None]
                if not self._forward(min(dues, default=None)):
                    raise RuntimeError("all threads wait, and nothing is due on the virtual clock")
                continue
            waiting.remove(step)
            step.go_on()
            if not step.ended:
                waiting.append(step)
        for step in steps:
            if step.error is not None:
                raise step.error
        return [step.result for step in steps]

    def _forward(self, target: float | None) -> bool:
        """Move to the next callback or to the target, whichever is first; False if there is neither."""
        with self._lock:
            if self._callbacks and (target is None or self._callbacks[0][0] <= target):
                when, _, callback = heapq.heappop(self._callbacks)
                self._now = max(self._now, when)
            elif target is None:
                return False
            else:
                self._now = max(self._now, target)
                return True
        callback()
        return True

    def __repr__(self) -> str:
        return f"VirtualClock({self._now - _EPOCH:g} s since its start, {len(self._callbacks)} callbacks due)"


class _Step:
    """One of the threads of `VirtualClock.run`."""

    def __init__(self, clock: VirtualClock, function: Callable[[], Any], limit: float) -> None:
        self._clock = clock
        self._function = function
        self._limit = limit
        self._turn = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self.event: threading.Event | None = None
        self.deadline: float | None = None
        self.ended = False
        self.result: Any = None
        self.error: BaseException | None = None

    def ready(self, now: float) -> bool:
        """Whether it can go on at this time."""
        if self.event is None or self.event.is_set():
            return True
        return self.deadline is not None and self.deadline <= now

    def go_on(self) -> None:
        """Let it run until it waits or ends."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="virtual-clock", daemon=True)
            self._thread.start()
        else:
            self._turn.release()
        if not self._back.acquire(timeout=self._limit):
            raise RuntimeError(
                f"a thread blocked for {self._limit:g} s on something else than the virtual clock"
            )
        if self.ended:
            self._thread.join()

    def hand_over(self, event: threading.Event, deadline: float | None) -> None:
        """Called in its thread: it waits."""
        self.event, self.deadline = event, deadline
        self._back.release()
        self._turn.acquire()
        self.event = self.deadline = None

    def _main(self) -> None:
        ident = threading.get_ident()
        self._clock._steps[ident] = self
        try:
            self.result = self._function()
        except BaseException as exc:  # handed to the caller of run
            self.error = exc
        finally:
            del self._clock._steps[ident]
            self.ended = True
            self._back.release()
