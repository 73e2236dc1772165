"""`PoisonGuard`: sets a request aside that kills its worker every time, and no request that only died with it.

What is counted is a death under the request's own call (see `remote_inference.messaging.delivery_marks`): a request
that was delivered and had not begun its call is innocent of its worker's death. A worker that runs many calls dies of
one of them, and each may have been the one. So the first two deaths only make a request suspect: from then on it calls
as the only one of its process, and only if that process dies as well, twice, is it set aside. An innocent one that ran
beside a poisonous one cannot die of it then.

=====================  ==================================================  =========
deaths under its call  the next call                                       marked as
=====================  ==================================================  =========
0, delivered once      beside others, without a mark (costs nothing)
0 or 1                 beside others                                       together
2 or 3                 alone in its process                                alone
4, two of them alone   none: it is set aside
=====================  ==================================================  =========

So a request that kills its worker every time is set aside after five deaths, or four if its first delivery was put
back. One that is killed from outside has to be unlucky in all of its runs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from ..cancel import CancelToken
from ..clock import Clock
from ..errors import LimitReached, WorkerLost
from ..messaging.delivery_marks import Deaths, Mark, forget_marks, leave_mark, take_mark_away
from ..messaging.publisher import Publisher
from ..reasons import LimitReason
from .call_lock import CallLock
from .outcomes import RequestCancelled, Requeue

__all__ = ["MAX_DEATHS", "CallGuard", "PoisonGuard"]

logger = logging.getLogger(__name__)

MAX_DEATHS = 4
"""Deaths under its calls after which a request is set aside."""

DEATHS_ALONE = 2
"""How many of them, at least and last of all, must have been in processes where it was the only one."""

ANSWER_TIMEOUT = 10.0
"""Seconds for the broker to take a mark, while a permit is held."""

UNANSWERED_PAUSE = 1.0
"""Seconds before a request whose mark was not taken is tried again."""

SECOND_LOOK = 5.0
"""Seconds before a request is set aside, after which it is counted once more. A process that lost the broker and lives
takes its mark away as soon as it is connected again, and that may be after the message was delivered to another."""

SHARED_PATIENCE = 1.0
"""Seconds for which a request waits in its slot for one that must be alone; then it goes elsewhere."""

ALONE_PATIENCE = 300.0
"""Seconds for which one that must be alone waits for the others to end. Those that come meanwhile are not let in before
it, so this is long enough for most streams: when it gives up they are, and it would never have its turn."""


def must_be_alone(deaths: Deaths) -> bool:
    """Whether its next call may only run where no other one does."""
    return deaths.total >= MAX_DEATHS - DEATHS_ALONE


def is_poison(deaths: Deaths) -> bool:
    """Whether it is to be set aside."""
    return deaths.total >= MAX_DEATHS and deaths.alone >= DEATHS_ALONE


class PoisonGuardParts(Protocol):
    """What is needed of the `Inference` object."""

    clock: Clock

    @property
    def publisher(self) -> Publisher:
        """This process's."""


class PoisonGuard:
    """One a process.

    Args:
        parts: clock and publisher.
    """

    def __init__(self, parts: PoisonGuardParts) -> None:
        self._parts = parts
        self._calls = CallLock(parts.clock)

    @contextmanager
    def delivery(
        self, request_id: str, *, redelivered: bool, token: CancelToken, draining: Callable[[], bool]
    ) -> Iterator[CallGuard]:
        """Run a delivery in the block, which is given what guards its calls.

        Args:
            request_id: the request's id.
            redelivered: whether it was delivered before; only then it leaves marks.
            token: how it is cancelled.
            draining: whether the process is about to end.
        """
        guard = CallGuard(self._parts, self._calls, request_id, redelivered, token, draining)
        comes_again = True  # also for what is no `Exception`: most likely it ends the process, in good order
        try:
            yield guard
            comes_again = False
        except RequestCancelled as exc:
            comes_again = exc.quiet
            raise
        except Requeue:
            raise
        except Exception:
            comes_again = False
            raise
        finally:
            guard.close(comes_again=comes_again)

    def __repr__(self) -> str:
        return f"PoisonGuard({self._calls!r})"


class CallGuard:
    """The calls of one delivery: see `remote_inference.engine.parts.CallGuard`, whose implementation it is."""

    def __init__(
        self,
        parts: PoisonGuardParts,
        calls: CallLock,
        request_id: str,
        redelivered: bool,
        token: CancelToken,
        draining: Callable[[], bool],
    ) -> None:
        self._parts = parts
        self._calls = calls
        self._request_id = request_id
        self._redelivered = redelivered
        self._token = token
        self._draining = draining
        self._alone = False
        self._entered = False
        self._run = ""

    def enter(self, time_left: float | None) -> bool:
        """Wait for leave to call: beside others, or alone."""
        if self._entered or self._calls.acquire(alone=self._alone):
            self._entered = True
            return True
        patience = ALONE_PATIENCE if self._alone else SHARED_PATIENCE
        if time_left is not None:
            patience = min(patience, time_left)
        token = self._token
        token.resting = True  # before the look: whoever drains does it the other way round
        try:
            if self._draining():
                token.cancel(LimitReason.SHUTDOWN)
            self._entered = self._calls.acquire(alone=self._alone, patience=patience, token=token)
        finally:
            token.resting = False
        return self._entered

    def begin(self) -> bool:
        """Leave a mark, where the message was delivered before; False if it may only be alone, and is not.

        Raises:
            WorkerLost: it is poison.
            LimitReached: the broker does not take the mark.
            Cancelled: it was cancelled meanwhile.
        """
        if not self._redelivered:
            return True
        deaths = self._leave_mark()
        if is_poison(deaths):
            self._parts.clock.wait(self._token.event, SECOND_LOOK)
            self._token.check()
            deaths = self._leave_mark()
            if is_poison(deaths):
                raise WorkerLost("poison", deaths=deaths.total)
        if self._may_begin(deaths):
            return True
        self.leave()
        self._alone = True
        return False

    def leave(self) -> None:
        """The call has failed, and another one may follow after a rest."""
        if self._run:
            take_away = partial(take_mark_away, request_id=self._request_id, run=self._run)
            # patient: it is just when the connection was lost that this must be told
            self._parts.publisher.call(take_away, patient=True)
            self._run = ""
        if self._entered:
            self._entered = False
            self._calls.release(alone=self._alone)

    def close(self, *, comes_again: bool) -> None:
        """The delivery has ended, and its worker lives."""
        if self._redelivered and not comes_again:
            self._run = ""
            forget = partial(forget_marks, request_id=self._request_id)
            self._parts.publisher.call(forget, patient=True)
        self.leave()

    def _may_begin(self, deaths: Deaths) -> bool:
        return not is_poison(deaths) and (self._alone or not must_be_alone(deaths))

    def _leave_mark(self) -> Deaths:
        mark = Mark(os.urandom(8).hex(), alone=self._alone)
        self._run = mark.run  # from now on it may be there
        leave = partial(leave_mark, request_id=self._request_id, mark=mark, may_begin=self._may_begin)
        try:
            deaths = self._parts.publisher.call(leave).result(ANSWER_TIMEOUT)
        except Exception as exc:  # whatever it was: to run it unmarked, or to let it fail, would be wrong
            logger.warning("%s: its mark was not taken: %s", self._request_id, type(exc).__name__)
            retry_at = self._parts.clock.time() + UNANSWERED_PAUSE
            raise LimitReached(LimitReason.MARKS_UNAVAILABLE, retry_at=retry_at) from None
        if not self._may_begin(deaths):
            self._run = ""
        return deaths

    def __repr__(self) -> str:
        state = "calls" if self._entered else "waits"
        return f"CallGuard({self._request_id}, {state}{', alone' if self._alone else ''})"
