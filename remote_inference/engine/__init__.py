"""One request through all its attempts; knows nothing of Celery."""

from __future__ import annotations

from .engine import RemoteEngine
from .metrics import CELLS, MetricsRecorder, metrics_from_cells
from .parts import CallGuard, EnginePart, Job, Unguarded
from .run import CREDENTIAL_UNAVAILABLE, MARKS_UNAVAILABLE, RESERVED, SHUTDOWN
from .sink import NullSink, Sink

__all__ = [
    "CELLS",
    "CREDENTIAL_UNAVAILABLE",
    "CallGuard",
    "EnginePart",
    "Job",
    "MARKS_UNAVAILABLE",
    "MetricsRecorder",
    "NullSink",
    "RESERVED",
    "RemoteEngine",
    "SHUTDOWN",
    "Sink",
    "Unguarded",
    "metrics_from_cells",
]
