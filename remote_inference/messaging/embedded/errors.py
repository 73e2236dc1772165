"""The two refusals that a publisher meets on the embedded broker; everything else is py-amqp's own error.

::

    amqp.exceptions.MessageNacked
    └── QueueFull      what a RabbitMQ queue with ``x-overflow=reject-publish`` says through a nack
    amqp.ChannelError
    └── QueueGone      a mandatory message that no queue takes: ``basic.return`` with code 312

Neither is among the transport's recoverable errors, so kombu's and Celery's publish retries hand them on at
once instead of publishing again.
"""

from __future__ import annotations

from amqp.exceptions import IrrecoverableChannelError, MessageNacked

NO_ROUTE = 312
"""The reply code of a returned message that had no queue to go to (AMQP 0-9-1, ``no-route``)."""


class QueueFull(MessageNacked):
    """The queue holds as many messages as it may, and refuses more. Nothing was enqueued anywhere.

    Args:
        queue: The queue that refused. If several were to take the message, the first that is full.
    """

    def __init__(self, queue: str) -> None:
        super().__init__(queue)
        self.queue = queue

    def __str__(self) -> str:
        return f"queue {self.queue!r} is full"


class QueueGone(IrrecoverableChannelError):
    """A mandatory message found no queue. It was not enqueued.

    Args:
        exchange: Where it was published; the empty string is the default exchange.
        routing_key: With the default exchange, the name of the queue that is gone.
    """

    code = NO_ROUTE

    def __init__(self, exchange: str, routing_key: str) -> None:
        super().__init__(
            f"NO_ROUTE - nothing takes {routing_key!r} from exchange {exchange!r}", (60, 40), None, NO_ROUTE
        )
        self.exchange = exchange
        self.routing_key = routing_key
        self.args = (exchange, routing_key)  # what pickle calls the class with
