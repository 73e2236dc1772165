"""What a worker does with a message of ours as it arrives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.worker.strategy import default

__all__ = ["inference_strategy"]


def inference_strategy(task: Any, app: Any, consumer: Any, **kwargs: Any) -> Callable[..., Any]:
    """Celery's default, behind the gate: what arrives while it is shut goes back without an event or a log line.

    So does what arrives when the worker ends: the pool takes nothing more.

    And behind a look at the message's form: a body that only turns out in the pool to be no task's, is never
    acknowledged by Celery, or ends the worker.
    """
    inner = default(task, app, consumer, **kwargs)
    main = task.inference.worker_main
    gate = main.gate

    def on_message(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **options: Any) -> Any:
        if not consumer.pool.active:  # it came while the worker, which ends, said that it takes no more
            return gate.put_back(message, str(message.headers.get("id", "")))
        if gate.refuses(message):
            return gate.bounce(message, str(message.headers.get("id", "")))
        if (
            message.content_type != "application/json"
        ):  # whatever the app accepts: nothing else is decoded here
            return main.refuse(message, "it is not JSON by its content type")
        fault = "it is of an old task protocol" if body is not None else _fault(message)
        if fault:
            return main.refuse(message, fault)
        return inner(message, body, ack, reject, callbacks, **options)

    return on_message


def _fault(message: Any) -> str:
    """What is wrong with the form of a message of Celery's task protocol 2; "" for nothing."""
    request_id = message.headers.get("id")
    if not isinstance(request_id, str) or not request_id:
        return "it has no id"
    payload = message.payload  # decoded once; what cannot be decoded is Celery's to notice
    if isinstance(payload, (list, tuple)) and len(payload) == 3:
        args, kwargs, embed = payload
        if (
            isinstance(args, (list, tuple))
            and isinstance(kwargs, dict)
            and isinstance(embed, (dict, type(None)))
        ):
            return ""
    return "its body is not a task's: arguments, keyword arguments, options"
