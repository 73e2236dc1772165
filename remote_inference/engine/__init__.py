"""One request through all its attempts; knows nothing of Celery."""

from __future__ import annotations

from .engine import RemoteEngine
from .metrics import CELLS, MetricsRecorder, metrics_from_cells
from .parts import EnginePart, Job
from .run import CREDENTIAL_UNAVAILABLE, SHUTDOWN
from .sink import NullSink, Sink

__all__ = [
    "CELLS",
    "CREDENTIAL_UNAVAILABLE",
    "EnginePart",
    "Job",
    "MetricsRecorder",
    "NullSink",
    "RemoteEngine",
    "SHUTDOWN",
    "Sink",
    "metrics_from_cells",
]
