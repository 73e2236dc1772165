"""Side (b): what people write today. A Celery task with openai, tokens by Redis pub/sub."""

from __future__ import annotations

from benchmarks.baseline.side import Baseline

__all__ = ["Baseline"]
