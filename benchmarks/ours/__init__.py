"""Side (a): this library, through RabbitMQ."""

from __future__ import annotations

from benchmarks.ours.side import Ours

__all__ = ["Ours"]
