"""One request through all its attempts; knows nothing of Celery."""

from __future__ import annotations

from .context import CallGuard, EngineContext, Job, Unguarded
from .engine import RemoteEngine
from .metrics import CELLS, MetricsRecorder, metrics_from_cells
from .sink import NullSink, Sink
from .upstream import Attempt, Upstream

__all__ = [
    "Attempt",
    "CELLS",
    "CallGuard",
    "EngineContext",
    "Job",
    "MetricsRecorder",
    "NullSink",
    "RemoteEngine",
    "Sink",
    "Unguarded",
    "Upstream",
    "metrics_from_cells",
]
