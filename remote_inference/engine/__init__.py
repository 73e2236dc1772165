"""One request through all its attempts; knows nothing of Celery."""

from __future__ import annotations

from .context import EngineContext, Job
from .engine import RemoteEngine
from .metrics import CELLS, MetricsRecorder, metrics_from_cells
from .run import CREDENTIAL_UNAVAILABLE, SHUTDOWN
from .sink import NullSink, Sink
from .upstream import Attempt, Upstream

__all__ = [
    "Attempt",
    "CELLS",
    "CREDENTIAL_UNAVAILABLE",
    "EngineContext",
    "Job",
    "MetricsRecorder",
    "NullSink",
    "RemoteEngine",
    "SHUTDOWN",
    "Sink",
    "Upstream",
    "metrics_from_cells",
]
