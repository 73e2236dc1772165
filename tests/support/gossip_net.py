"""Replicas on a virtual clock that hear each other at once, without a broker; one can be cut off."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from remote_inference.cluster import Replica
from remote_inference.testing.clock import VirtualClock


class SkewedClock:
    """Another machine's: the same seconds, counted from elsewhere."""

    def __init__(self, clock: VirtualClock, ahead: float) -> None:
        self._clock = clock
        self._ahead = ahead

    def time(self) -> float:
        return self._clock.time() + self._ahead

    def monotonic(self) -> float:
        return self._clock.monotonic() + 1000.0 * self._ahead

    def sleep(self, seconds: float) -> None:
        self._clock.sleep(seconds)

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        return self._clock.wait(event, timeout)


class GossipNet:
    """Where messages go: to everybody but those who are cut off, the sender included."""

    def __init__(self, seed: int = 1) -> None:
        self.clock = VirtualClock()
        self.replicas: list[Replica] = []
        self.cut: set[int] = set()
        self.messages = 0
        self._rng = random.Random(seed)

    def join(self, ahead: float = 0.0) -> Replica:
        """A replica that is about to say hello; attach the parts, then `run`. Its clocks are ``ahead``."""
        replica = Replica(SkewedClock(self.clock, ahead), rng=random.Random(self._rng.random()))  # type: ignore[arg-type]
        index = len(self.replicas)
        replica.send = lambda body: self._send(index, body)
        self.replicas.append(replica)
        replica.start()
        return replica

    def _send(self, sender: int, body: bytes) -> None:
        if sender in self.cut:
            return
        self.messages += 1
        for index, replica in enumerate(self.replicas):
            if index not in self.cut:
                replica.receive(body)

    def online(self) -> None:
        """All that have joined say hello."""
        for replica in self.replicas:
            if not replica._online:
                replica.online()

    def run(self, seconds: float, step: float = 0.0625) -> None:
        """Let time pass, and each replica do what is due. (Messages tell times in rounded decimals: steps that are
        not rounded make them exact.)"""
        self.online()
        end = self.clock.monotonic() + seconds
        while self.clock.monotonic() < end:
            self.clock.advance(step)
            for replica in self.replicas:
                replica.tick()

    @contextmanager
    def without(self, *indexes: int) -> Iterator[None]:
        """These neither hear nor are heard."""
        self.cut |= set(indexes)
        try:
            yield
        finally:
            self.cut -= set(indexes)
