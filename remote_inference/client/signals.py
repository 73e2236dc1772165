"""Signals in Celery's manner, for applications that tell us something."""

from __future__ import annotations

from celery.utils.dispatch import Signal

__all__ = ["credentials_changed"]

credentials_changed = Signal(name="credentials_changed", providing_args={"deployment"})
"""Send it when a key was rotated: ``credentials_changed.send(sender=None, deployment="gpt-6.2-sol")``.

Without ``deployment`` all sessions are rebuilt. It may be sent in any process that has an `Inference`: the command goes
to all workers.
"""
