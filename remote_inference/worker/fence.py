"""A session that looks at the operator's fence before every lease."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import RebuildFailed
from ..transport.session import RebuildResult, RemoteSession, SessionRebuildCause, SessionSnapshot

__all__ = ["FencedSession"]

logger = logging.getLogger(__name__)


class FencedSession:
    """Once the fence was raised, no request begins on the session of before.

    Args:
        session: what is guarded.
        fence: reads the fence's number; comparing it is all that an ordinary lease costs.
    """

    def __init__(self, session: RemoteSession, fence: Callable[[], int]) -> None:
        self._session = session
        self._fence = fence
        self._seen = fence()
        self._lock = threading.Lock()

    @contextmanager
    def lease(self) -> Iterator[SessionSnapshot]:
        """As `RemoteSession.lease`, after a rebuild if one was asked for."""
        if self._fence() != self._seen:
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
            fence = self._fence()
            if fence == self._seen:
                return
            try:
                self._session.rebuild(SessionRebuildCause.OPERATOR)
            except RebuildFailed as error:
                logger.error("%s; the old session stays", error)
            self._seen = fence

    def __repr__(self) -> str:
        return f"FencedSession({self._session!r}, fence={self._seen})"
