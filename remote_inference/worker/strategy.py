"""What a worker does with a message of ours as it arrives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.worker.strategy import default

__all__ = ["inference_strategy"]


def inference_strategy(task: Any, app: Any, consumer: Any, **kwargs: Any) -> Callable[..., Any]:
    """Celery's default, behind the gate: what arrives while it is shut goes back without an event or a log line."""
    inner = default(task, app, consumer, **kwargs)
    main = task.inference.worker_main
    gate = main.gate

    def on_message(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **options: Any) -> Any:
        if gate.any_closed and gate.closed(gate.queue_of(message)):
            return gate.bounce(message, str(message.headers.get("id", "")))
        return inner(message, body, ack, reject, callbacks, **options)

    return on_message
