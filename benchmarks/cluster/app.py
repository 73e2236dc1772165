"""The Celery app of the workers, as the quickstart has it."""

from __future__ import annotations

from benchmarks.cluster.arrangement import Arrangement

__all__ = ["app", "inference"]

inference = Arrangement.from_environment().inference()
app = inference.app
