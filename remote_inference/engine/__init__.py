"""One request through all its attempts; knows nothing of Celery."""

from __future__ import annotations

from .engine import RemoteEngine
from .metrics import CELLS, MetricsRecorder, metrics_from_cells
from .parts import CallGuard, EnginePart, Job, Unguarded
from .sink import NullSink, Sink

__all__ = [
    "CELLS",
    "CallGuard",
    "EnginePart",
    "Job",
    "MetricsRecorder",
    "NullSink",
    "RemoteEngine",
    "Sink",
    "Unguarded",
    "metrics_from_cells",
]
