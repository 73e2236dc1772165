"""`Suspicion`: whether a request kills its workers, and how the innocent ones that died beside it are told apart.

A worker runs many requests, and dies of one of them: all are under suspicion then. The count (see
`remote_inference.messaging.suspects`) is of deaths *under* a request, so one that was always near the guilty one
would be set aside with it. So who has a single death left runs as the only one of its kind in a process: the guilty
one dies without them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from kombu.connection import Connection

from ..clock import Clock
from ..messaging.publisher import Publisher
from ..messaging.suspects import begin_suspect, deaths_under, end_suspect, note_survived
from .orders import HandBack, RequestCancelled

__all__ = ["MAX_DEATHS", "Suspicion"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_DEATHS = 3
"""Workers that may die under a request before it is set aside."""

ANSWER_TIMEOUT = 60.0
"""Seconds for the broker to tell how many have."""

TURN_PAUSE = 0.5
"""Seconds between two looks whether a request that waits for its turn can still be acknowledged."""


class SuspicionParts(Protocol):
    """What is needed of the `Inference` object."""

    clock: Clock

    @property
    def publisher(self) -> Publisher:
        """This process's."""


class Suspicion:
    """One a process.

    Args:
        parts: clock and publisher.
    """

    def __init__(self, parts: SuspicionParts) -> None:
        self._parts = parts
        self._turn = threading.Lock()

    @contextmanager
    def of(self, request_id: str, *, redelivered: bool, lost: Callable[[], bool]) -> Iterator[int]:
        """Run a delivery in the block, which is given the deaths so far; with `MAX_DEATHS` it must not run it.

        Args:
            request_id: the request's id.
            redelivered: whether it was delivered before; one that was not is under no suspicion.
            lost: whether the connection that delivered it is lost.

        Raises:
            HandBack: the broker does not tell; to run it, or to let it fail, would be wrong.
            RequestCancelled: the connection was lost while it waited for its turn.
        """
        deaths = self._ask(request_id, deaths_under) if redelivered else 0
        if deaths == MAX_DEATHS - 1:
            self._wait_for_turn(lost)
            try:
                with self._marked(request_id, redelivered, deaths):
                    yield deaths
            finally:
                self._turn.release()
        else:
            with self._marked(request_id, redelivered, deaths):
                yield deaths

    @contextmanager
    def _marked(self, request_id: str, redelivered: bool, deaths: int) -> Iterator[None]:
        if redelivered and deaths < MAX_DEATHS:
            self._ask(request_id, begin_suspect)
        comes_again = cut = False
        try:
            yield
        except HandBack:
            comes_again = True
            raise
        except RequestCancelled as exc:
            comes_again = cut = exc.quiet
            raise
        finally:  # patient: it is just when the connection was lost that this must be told
            publisher = self._parts.publisher
            if redelivered:
                publisher.call(lambda c: end_suspect(c, request_id, finished=not comes_again), patient=True)
            elif cut:
                publisher.call(lambda c: note_survived(c, request_id), patient=True)

    def _ask(self, request_id: str, function: Callable[[Connection, str], T]) -> T:
        try:
            return self._parts.publisher.call(lambda c: function(c, request_id)).result(ANSWER_TIMEOUT)
        except Exception as exc:  # whatever it was: a request that fails here would be lost
            logger.warning("%s: its deaths cannot be counted now: %s", request_id, type(exc).__name__)
            raise HandBack("the broker does not answer", self._parts.clock.time() + 1.0) from None

    def _wait_for_turn(self, lost: Callable[[], bool]) -> None:
        while not self._turn.acquire(timeout=TURN_PAUSE):
            if lost():
                raise RequestCancelled("connection_lost", quiet=True)

    def __repr__(self) -> str:
        return f"Suspicion({'one runs alone' if self._turn.locked() else 'nobody'})"
