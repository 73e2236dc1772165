"""A session that looks at the deployment's rebuild epoch before every lease."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import RebuildFailed
from ..transport.session import RebuildResult, RemoteSession, SessionRebuildCause, SessionSnapshot

__all__ = ["EpochSession"]

logger = logging.getLogger(__name__)


class EpochSession:
    """Once the epoch was advanced, no request begins on the session of before.

    Args:
        session: what is guarded.
        rebuild_epoch: reads its number; comparing it is all that an ordinary lease costs.
    """

    def __init__(self, session: RemoteSession, rebuild_epoch: Callable[[], int]) -> None:
        self._session = session
        self._rebuild_epoch = rebuild_epoch
        self._seen = rebuild_epoch()
        self._lock = threading.Lock()

    @contextmanager
    def lease(self) -> Iterator[SessionSnapshot]:
        """As `RemoteSession.lease`, after a rebuild if one was asked for."""
        if self._rebuild_epoch() != self._seen:
            self._obey()
        with self._session.lease() as snapshot:
            yield snapshot

    def rebuild(self, cause: SessionRebuildCause, *, seen_generation: int | None = None) -> RebuildResult:
        """As `RemoteSession.rebuild`."""
        return self._session.rebuild(cause, seen_generation=seen_generation)

    def close(self) -> None:
        """Close the session."""
        self._session.close()

    def _obey(self) -> None:
        with self._lock:  # whoever comes meanwhile waits: it must not begin on the old session
            epoch = self._rebuild_epoch()
            if epoch == self._seen:
                return
            try:
                self._session.rebuild(SessionRebuildCause.OPERATOR)
            except RebuildFailed as error:
                logger.error("%s; the old session stays", error)
            self._seen = epoch

    def __repr__(self) -> str:
        return f"EpochSession({self._session!r}, rebuild_epoch={self._seen})"
