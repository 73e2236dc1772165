"""What the breakers of one endpoint share: the circuit's state, and the slots of its probes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

from ..value import Value

__all__ = ["CircuitState", "ProbeSlot", "ProbeSlots", "circuit_id"]


def circuit_id(provider: str, endpoint: str) -> str:
    """What the circuit of an endpoint is called between processes: 16 hexadecimal digits, however long the URL."""
    return hashlib.sha256(f"{provider}\0{endpoint}".encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CircuitState(Value):
    """What one breaker tells others of a transition. (Half-open is none: it is an open circuit whose time has passed.)

    Attributes:
        epoch: one more than that of the state it followed; 0 for the state that every circuit begins with.
        by: who made the transition. Of two with the same epoch, the greater name's holds.
        open: whether it is open.
        until: when an open one may be probed, on this process's monotonic clock.
        duration: for how many seconds it was opened.
        next_duration: for how many it opens next, should its probes fail.
        forced: by the operator.
    """

    epoch: int = 0
    by: str = ""
    open: bool = False
    until: float = 0.0
    duration: float = 0.0
    next_duration: float = 0.0
    forced: bool = False

    @property
    def order(self) -> tuple[int, str]:
        """The later of two states has the greater one."""
        return self.epoch, self.by


class ProbeSlot(Protocol):
    """The right to have one probe under way."""

    def release(self, decided: bool) -> None:
        """It has ended. ``decided``: it opened or closed the circuit; nobody should probe before knowing that."""


class ProbeSlots(Protocol):
    """The slots that all breakers of one endpoint share. Called outside the breaker's lock: they may do I/O."""

    def take(self) -> ProbeSlot | None:
        """A slot, or None: all are taken, or that cannot be told now."""
