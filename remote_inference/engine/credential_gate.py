"""`CredentialGate`: no requests while the provider refuses the credential, until there is another one."""

from __future__ import annotations

import threading

from ..clock import Clock
from ..errors import LimitReached, RebuildFailed
from ..events import GateClosed, GateOpened, Hooks
from ..reasons import GateReason, LimitReason
from ..transport.session import SessionRebuildCause
from .context import Session

__all__ = ["RECHECK", "REFUSALS", "CredentialGate"]

REFUSALS = 3
"""401s in a row with one credential that shut the gate."""

RECHECK = 30.0
"""Seconds after which a shut gate looks whether the credential's source has another one."""


class CredentialGate:
    """Shut by `REFUSALS` 401s that no rebuild could mend; opened by another credential, by a request that the
    provider took after all, or by the operator.

    Args:
        deployment: the deployment's name.
        session: is rebuilt to see whether there is another credential.
        clock, hooks: time, and who is told.
    """

    def __init__(self, deployment: str, session: Session, clock: Clock, hooks: Hooks) -> None:
        self._deployment = deployment
        self._session = session
        self._clock = clock
        self._hooks = hooks
        self._lock = threading.Lock()
        self._refusals = 0
        self._until = 0.0

    @property
    def until(self) -> float:
        """When it looks again, in seconds since the epoch; 0.0 while it is open."""
        return self._until

    def check(self) -> None:
        """Pass, or look for another credential if it is time to.

        Raises:
            LimitReached: it is shut.
        """
        if not self._until:
            return
        with self._lock:
            now = self._clock.time()
            looks = 0 < self._until <= now
            if looks:
                self._until = now + RECHECK  # one looks, the others wait
        if looks and self._has_another():
            self.open()
        until = self._until
        if until:
            raise LimitReached(LimitReason.CREDENTIAL_REFUSED, self._deployment, retry_at=until)

    def refused(self) -> None:
        """A 401 that no rebuild could mend."""
        with self._lock:
            self._refusals += 1
            if self._refusals < REFUSALS or self._until:
                return
            until = self._until = self._clock.time() + RECHECK
        reason = GateReason.of_limit(LimitReason.CREDENTIAL_REFUSED)
        self._hooks(GateClosed(deployment=self._deployment, reason=reason, until=until))

    def open(self) -> None:
        """The credential is taken, there is another one, or the operator says so."""
        if not self._refusals and not self._until:
            return  # as nearly always
        with self._lock:
            shut, self._until, self._refusals = bool(self._until), 0.0, 0
        if shut:
            self._hooks(GateOpened(deployment=self._deployment))

    def _has_another(self) -> bool:
        try:
            return self._session.rebuild(SessionRebuildCause.UNAUTHORIZED).changed
        except RebuildFailed:
            return False

    def __repr__(self) -> str:
        state = f"shut until {self._until:.0f}" if self._until else f"open, {self._refusals} refusals"
        return f"CredentialGate({self._deployment}, {state})"
