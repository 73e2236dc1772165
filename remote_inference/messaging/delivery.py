"""`Delivery`: one message on its way to the broker, and how that ended."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Delivery", "DeliveryState", "Probe"]


class DeliveryState(enum.Enum):
    """Where a delivery stands. The first two can still change."""

    QUEUED = "queued"
    WRITTEN = "written"
    CONFIRMED = "confirmed"
    REFUSED = "refused"
    UNROUTABLE = "unroutable"
    UNCERTAIN = "uncertain"
    NOT_SENT = "not_sent"


PROBE_KEY = "inference..probe"
"""No queue has this name: a deployment's begins with a letter or digit."""

_OPEN = (DeliveryState.QUEUED, DeliveryState.WRITTEN)


class Delivery:
    """One message on its way.

    Args:
        routing_key: the queue's name (default exchange), or anything with ``exchange``.
        body: JSON in UTF-8.
        properties: AMQP properties; ``application_headers`` for headers.
        confirm: whether its end is wanted; a chunk of a stream does not want it.
        patient: while the broker is down or blocked, wait in the inbox instead of ending as NOT_SENT.
        on_done: called once at the end, in the I/O thread; must not block.
    """

    __slots__ = (
        "_done",
        "body",
        "confirm",
        "exchange",
        "on_done",
        "patient",
        "properties",
        "reason",
        "routing_key",
        "state",
    )

    def __init__(
        self,
        routing_key: str,
        body: bytes,
        properties: dict[str, Any],
        *,
        exchange: str = "",
        confirm: bool = True,
        patient: bool = True,
        on_done: Callable[[Delivery], None] | None = None,
    ) -> None:
        self.routing_key = routing_key
        self.exchange = exchange
        self.body = body
        self.properties = properties
        self.confirm = confirm
        self.patient = patient
        self.on_done = on_done
        self.state = DeliveryState.QUEUED
        self.reason = ""
        self._done = threading.Event() if confirm and on_done is None else None

    def wait(self, timeout: float | None) -> bool:
        """Wait for its end; False if that did not come in time. Only without ``on_done``."""
        assert self._done is not None, "this delivery has a callback instead"
        return self._done.wait(timeout)

    def finish(self, state: DeliveryState, reason: str = "") -> None:
        """Its end; the I/O thread's."""
        if self.state not in _OPEN:
            return
        self.state, self.reason = state, reason
        if self.on_done is not None:
            self.on_done(self)
        elif self._done is not None:
            self._done.set()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.routing_key}, {len(self.body)} bytes, {self.state.value})"


class Probe(Delivery):
    """Asks whether the broker reads what is published. It goes nowhere, and ends as UNROUTABLE when all is well.

    A broker that is short of memory or disk blocks a connection only when that publishes, and tells it then. With
    a probe the first thing that waits in a socket for the broker to recover is nobody's request.
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(PROBE_KEY, b"", {"correlation_id": PROBE_KEY}, patient=False)
