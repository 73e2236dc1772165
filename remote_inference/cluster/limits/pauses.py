"""`Pauses`: a limiter's other part in the replicated state: until when a key rests, on all replicas.

Path: ("pause", digest of the key, replica that says it); the value is [epoch, end on its clock]. Of one epoch the
latest end holds; who ends a pause before its time begins another epoch.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from ...clock import Clock
from ..crdt import LwwRegister, Path
from ..membership import Replica, StateListener
from .key import KeyState

__all__ = ["Pauses"]

SAME = 0.1
"""Seconds by which a pause has to end later to be another one: clocks are not compared more exactly."""
SHORT = 1.0
"""Seconds; see `Pauses.extend`."""

_PAUSE = "pause"


class Pauses(StateListener):
    """The pauses of all keys. But for those of `StateListener`, methods are called with the limiter's lock held.

    Args:
        clock: where time comes from.
        replica: this process among the others.
        lock: the limiter's.
        keys: by digest.
    """

    kinds = frozenset({_PAUSE})

    def __init__(
        self, clock: Clock, replica: Replica, lock: threading.Lock, keys: Mapping[str, KeyState]
    ) -> None:
        self._clock = clock
        self._replica = replica
        self._lock = lock
        self._keys = keys
        replica.attach(self)

    # -- a `StateListener`; called with the replica's lock held

    def merged(self, paths: list[Path]) -> None:
        with self._lock:
            for digest in {path[1] for path in paths if len(path) == 3}:
                state = self._keys.get(digest)
                if state is not None:
                    self.catch_up(state)

    def before_send(self, now: float) -> None:
        with self._lock:
            self._set_crowd(self._keys.values(), now)
            orphaned = [state for state in self._keys.values() if self._orphaned(state, now)]
        for state in orphaned:
            self.publish(state, state.pause.until)

    def members_changed(self, now: float) -> None:
        self.before_send(now)

    # -- for the limiter

    def catch_up(self, state: KeyState) -> None:
        """Do as the others have said; with the replica's lock held, too."""
        now, epoch, end = self._clock.monotonic(), state.epoch, -math.inf
        self._set_crowd([state], now)
        for path, entry in self._replica.state.entries.items():
            if path[0] != _PAUSE or path[1:2] != (state.subject.digest,):
                continue
            offset = self._replica.offset_of(path[-1])
            if offset is None or not isinstance(entry, LwwRegister) or not _is_pause(entry.value):
                continue
            if entry.value[0] > epoch:
                epoch, end = entry.value[0], entry.value[1] + offset
            elif entry.value[0] == epoch:
                end = max(end, entry.value[1] + offset)
        if end == -math.inf:
            return
        if epoch > state.epoch:  # somebody has opened it before its time
            state.epoch = epoch
            state.pause.end(now)
            self.extend(state, end, now)
            state.queue.hand_out(now)
        elif end > state.pause.until + SAME:
            self.extend(state, end, now)

    def extend(self, state: KeyState, end: float, now: float) -> bool:
        """Hand out nothing until then (monotonic); whether that is longer than before.

        A ramp follows, but for a moment's pause of those who are paced anyway.
        """
        until = self._clock.time() + end - now
        if not state.pause.extend(end, until, now, ramp=end - now > SHORT or not state.buckets):
            return False
        state.queue.wake_all()  # those whom it makes wait too long leave at once
        return True

    def publish(self, state: KeyState, end: float) -> None:
        """Tell the others; with the replica's lock only."""
        me = self._replica.id
        self._replica.own((_PAUSE, state.subject.digest, me), LwwRegister).set(
            [state.epoch, round(end, 3)], me
        )

    def _orphaned(self, state: KeyState, now: float) -> bool:
        """Whether those who told of the pause are no more: newcomers would not hear of it."""
        if not state.pause.active(now):
            return False
        replica, digest = self._replica, state.subject.digest
        tellers = [path[-1] for path in replica.state.entries if path[0] == _PAUSE and path[1] == digest]
        return not any(replica.live(name, now) for name in tellers)

    def _set_crowd(self, states: Iterable[KeyState], now: float) -> None:
        members = self._replica.members(now)
        for state in states:
            state.pause.crowd, state.pause.rank = len(members), members.index(self._replica.id)


def _is_pause(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 2
        and type(value[0]) is int
        and type(value[1]) in (int, float)
        and 0 <= value[0] < 2**53
        and abs(value[1]) < 1e12
    )
