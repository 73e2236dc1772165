"""`Circuits`: this process's circuit breakers, one an endpoint, kept alike with those of the other replicas.

Each replica says of each circuit what it holds, in its own times; of what the others say, the latest transition is
adopted, and then said by this one too. So a state outlives whoever made it, and a newcomer hears it from everybody.
A breaker is made as soon as something is known of its circuit, for a forced state would be lost with the last replica
that has used the endpoint.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any, Protocol

from ..clock import Clock
from ..cluster import Replica, StateListener
from ..cluster.crdt import LwwRegister, Path
from ..config import Deployment, InferenceConfig
from ..events import CircuitChanged, Hooks
from ..messaging.probes import BrokerSlot, BrokerSlots
from ..messaging.publisher import Publisher
from ..policy.breaker import CircuitBreaker
from ..policy.circuit import CircuitState, circuit_id

__all__ = ["CircuitParts", "Circuits"]

KIND = "circuit"

LINGER = 1.0
"""Seconds for which a slot is kept after a probe that opened or closed the circuit: two periods of the gossip. Whoever
has not heard of it by then would probe once too often."""

NEWCOMER = 2.0
"""Seconds for which a process waits with its first request until it has heard the others. They answer within 0.1 s."""

_LATEST = 2**50
_LONGEST = 1e12


class CircuitParts(Protocol):
    """What is needed of the `Inference` object."""

    clock: Clock
    hooks: Hooks

    @property
    def config(self) -> InferenceConfig:
        """The deployments."""

    @property
    def publisher(self) -> Publisher:
        """This process's."""


class Circuits(StateListener):
    """One a process; it listens to its replica.

    Args:
        parts: clock, hooks, configuration and publisher.
        replica: None where there is nobody to share with: then each breaker is by itself.
        rng: for the order in which slots are tried.
        show: told of each state, by deployment: until when (seconds since the epoch) it is open, 0.0 for closed.
    """

    kinds = frozenset({KIND})

    def __init__(
        self,
        parts: CircuitParts,
        *,
        replica: Replica | None,
        rng: random.Random,
        show: Callable[[str, float], None] = lambda deployment, until: None,
    ) -> None:
        self._parts = parts
        self._clock = parts.clock
        self._replica = replica
        self._rng = rng
        self._show = show
        self._lock = threading.RLock() if replica is None else replica.lock
        self._breakers: dict[str, CircuitBreaker] = {}
        self._deployments: dict[str, list[Deployment]] = {}
        for deployment in parts.config.deployments.values():
            self._deployments.setdefault(_id_of(deployment), []).append(deployment)
        if replica is not None:
            replica.attach(self)

    def breaker(self, deployment: Deployment) -> CircuitBreaker:
        """The breaker of the deployment's endpoint. Its policy is that of the deployment that is first in the
        configuration, as in every process."""
        return self._breaker(_id_of(deployment))

    def wait_until_heard(self) -> None:
        """Wait until a newcomer can have heard from the others what is open; not for long, if nobody answers."""
        replica = self._replica
        if replica is None:
            return
        clock = self._clock
        end = clock.monotonic() + NEWCOMER
        if clock.wait(replica.life.reached, NEWCOMER):
            left = min(end, replica.life.listening_until) - clock.monotonic()
            clock.wait(replica.life.answered, max(0.0, left))

    def force(self, deployment: Deployment, seconds: float | None) -> None:
        """Open the circuit for so many seconds, or close it (None). The other replicas hear of it."""
        breaker = self.breaker(deployment)
        if seconds is None:
            breaker.force_close()
        else:
            breaker.force_open(seconds)

    def _breaker(self, circuit: str) -> CircuitBreaker:
        breaker = self._breakers.get(circuit)
        if breaker is None:
            with self._lock:
                breaker = self._breakers.get(circuit)
                if breaker is None:
                    breaker = self._breakers[circuit] = self._make(circuit)
                    self._catch_up(circuit)
        return breaker

    def _make(self, circuit: str) -> CircuitBreaker:
        deployments = self._deployments[circuit]
        policy, endpoint = deployments[0].circuit_breaker, deployments[0].endpoint or ""
        replica = self._replica

        def changed(old: str, new: str) -> None:
            name = deployments[0].name
            self._parts.hooks(CircuitChanged(deployment=name, endpoint=endpoint, old=old, new=new))

        slots = None
        if replica is not None:
            count = policy.half_open_max_probes
            slots = _Slots(BrokerSlots(self._parts.publisher, circuit, count, self._rng))
        return CircuitBreaker(
            policy,
            endpoint=endpoint,
            clock=self._clock,
            on_change=changed,
            on_transition=lambda state: self._on_transition(circuit),
            slots=slots,
            name=str if replica is None else (lambda: replica.id),
        )

    def _on_transition(self, circuit: str) -> None:
        with self._lock:
            self._say(circuit)
        if self._replica is not None:
            self._replica.urgent()

    # -- a part of the replica; all under its lock

    def merged(self, paths: list[Path]) -> None:
        """Others have said what they hold."""
        for path in paths:
            if len(path) == 3 and path[1] in self._deployments:
                heard = self._heard(path)
                if heard is not None and self._breaker(path[1]).adopt(heard[0]):
                    self._say(path[1])

    def before_send(self, now: float) -> None:
        """All is said when it happens."""

    def rejoined(self, before: str) -> None:
        """Say under the new id what is held."""
        for circuit in self._breakers:
            self._say(circuit)

    # -- what is said and heard

    def _catch_up(self, circuit: str) -> None:
        """A breaker is new; what is known of its circuit may not be."""
        if self._replica is None:
            return
        paths = [
            path for path in self._replica.state.entries if path[:2] == (KIND, circuit) and len(path) == 3
        ]
        heard = [found for path in paths if (found := self._heard(path)) is not None]
        if heard:
            latest, _ = max(heard, key=lambda found: (found[0].order, found[1]))
            if self._breakers[circuit].adopt(latest):
                self._say(circuit)

    def _say(self, circuit: str) -> None:
        """What is held now, which may be later than what made us speak."""
        state = self._breakers[circuit].shared
        until = self._clock.time() + state.until - self._clock.monotonic() if state.open else 0.0
        for deployment in self._deployments[circuit]:
            self._show(deployment.name, until)
        replica = self._replica
        if replica is not None and state.epoch:
            entry: LwwRegister = replica.own((KIND, circuit, replica.id), LwwRegister)
            entry.set(_to_wire(state), replica.id)

    def _heard(self, path: Path) -> tuple[CircuitState, bool] | None:
        """What a replica holds, in our times, and whether they are exact; None where it cannot be understood."""
        assert self._replica is not None
        register = self._replica.state.get(path, LwwRegister)
        fields = None if register is None else _from_wire(register.value)
        if fields is None:
            return None
        offset = self._replica.offset_of(path[-1])
        if fields["open"]:
            latest = (
                self._clock.monotonic() + fields["duration"]
            )  # opened just now: it was not later than that
            fields["until"] = latest if offset is None else min(latest, fields["until"] + offset)
        return CircuitState(**fields), offset is not None

    def __repr__(self) -> str:
        return f"Circuits({list(self._breakers.values())!r})"


class _Slots:
    """The broker's, each of them kept a while after a probe that changed the circuit."""

    def __init__(self, slots: BrokerSlots) -> None:
        self._slots = slots

    def take(self) -> _Slot | None:
        """As `BrokerSlots.take`."""
        slot = self._slots.take()
        return None if slot is None else _Slot(slot)


class _Slot:
    def __init__(self, slot: BrokerSlot) -> None:
        self._slot = slot

    def release(self, decided: bool) -> None:
        """Give it back now, or when the others know how the probe ended."""
        if not decided:
            self._slot.release()
            return
        later = threading.Timer(LINGER, self._slot.release)
        later.daemon = True
        later.start()


def _id_of(deployment: Deployment) -> str:
    return circuit_id(deployment.provider, deployment.endpoint or "")


def _to_wire(state: CircuitState) -> list[Any]:
    times = (round(seconds, 3) for seconds in (state.until, state.duration, state.next_duration))
    return [state.epoch, state.by, state.open, *times, state.forced]


def _from_wire(value: Any) -> dict[str, Any] | None:
    """Its fields, or None: it is none of ours. More than is known here is ignored."""
    if not isinstance(value, list) or len(value) < 7:
        return None
    epoch, by, is_open, until, duration, next_duration, forced = value[:7]
    if type(epoch) is not int or not 0 < epoch < _LATEST or type(by) is not str:
        return None
    if type(is_open) is not bool or type(forced) is not bool:
        return None
    for seconds in (until, duration, next_duration):
        if type(seconds) not in (int, float) or not -_LONGEST < seconds < _LONGEST:
            return None
    if next_duration < 0 or (is_open and duration <= 0):
        return None
    return {
        "epoch": epoch,
        "by": by,
        "open": is_open,
        "until": float(until) if is_open else 0.0,
        "duration": float(duration),
        "next_duration": float(next_duration),
        "forced": forced,
    }
