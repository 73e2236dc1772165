"""A message broker inside the process: what RabbitMQ's queues give, at ``embedded://<name>``, no server."""

from remote_inference.messaging.embedded.broker import Broker
from remote_inference.messaging.embedded.errors import QueueFull, QueueGone
from remote_inference.messaging.embedded.registry import broker_named, close_broker, register

__all__ = ["Broker", "QueueFull", "QueueGone", "broker_named", "close_broker", "register"]
