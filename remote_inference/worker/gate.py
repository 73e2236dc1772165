"""`Gate`: stop taking one deployment's requests until it can send again; the worker's other queues do not notice.

A request that finds its deployment unable to send is put back into the queue, at its place, and the worker stops
consuming that queue. Both frames leave in one go: a cancel after the requeue would get the message right back. What
the broker had already sent comes back the same way. A timer resumes.

The channel belongs to the consumer's loop. With Celery's event loop (threads, prefork over AMQP) everything is done
in it. With the blocking loop (gevent; the embedded broker) a callback may wait two seconds there; that loop's
sockets and the embedded broker bear frames from elsewhere, if nobody waits for an answer; a lock keeps two threads
from opening and closing at a time. A timer runs in the loop (or where there is none) already, and must not ask it for
a later turn: that comes up to a second later.

Where only a limit keeps the others out, an urgent request goes through: a word on the bus opens the gate for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ..events import GateClosed, GateOpened, Hooks
from ..messaging.names import deployment_of, is_inference_queue
from ..reasons import GateKind, GateReason
from ..types import Priority

__all__ = ["Gate"]

logger = logging.getLogger(__name__)

HURRY = 0.5
"""Seconds for which it is remembered that something urgent is in the queue."""
HURRY_LOOK = 0.01
"""Seconds after which a gate that shuts meanwhile opens once more for it."""

TAGS = 1000
"""Consumers' tags that are remembered, though each opening makes a new one."""

LONGEST_HOLD = 5.0
"""Seconds for which a message of a queue that has no gate is held before it is put back."""


class Gate:
    """One a worker; used in its main process only.

    Args:
        consumer: Celery's consumer.
        hooks: told when a gate closes and opens.
        now: seconds since the epoch.
    """

    def __init__(self, consumer: Any, hooks: Hooks, now: Callable[[], float] = time.time) -> None:
        self._consumer = consumer
        self._hooks = hooks
        self._now = now
        self._until: dict[str, float] = {}
        self._reasons: dict[str, GateReason] = {}
        self._tags: dict[str, str] = {}
        self._timers: dict[str, Any] = {}
        self._hurried: dict[str, float] = {}
        self._lock = threading.RLock()  # of what is not done in a loop
        self.handed_back = 0
        self.bounced = 0

    def closed(self, queue: str) -> bool:
        """Whether the queue's deployment cannot send now."""
        return bool(self._until) and self._until.get(queue, 0.0) > self._now()

    @property
    def any_closed(self) -> bool:
        """Cheap: whether there is anything to look at."""
        return bool(self._until)

    def refuses(self, message: Any) -> bool:
        """Whether a message that has arrived is to be put back."""
        queue = self.queue_of(message)  # while its consumer's tag is known
        if not self.closed(queue):
            return False
        return int(message.properties.get("priority") or 0) < Priority.HIGH or not self._limited(queue)

    def _limited(self, queue: str) -> bool:
        """Whether only a limit keeps it shut."""
        return self._is_kind(queue, GateKind.LIMIT)

    def _is_kind(self, queue: str, kind: GateKind) -> bool:
        reason = self._reasons.get(queue)
        return reason is not None and reason.kind is kind

    def status(self) -> dict[str, dict[str, Any]]:
        """The gates that are shut, by deployment."""
        reasons = self.reasons()
        return {
            deployment_of(queue): {"until": until, "reason": reasons[deployment_of(queue)].to_wire()}
            for queue, until in list(self._until.items())
            if deployment_of(queue) in reasons
        }

    def reasons(self) -> dict[str, GateReason]:
        """Why those that are shut are, by deployment."""
        return {deployment_of(queue): reason for queue, reason in list(self._reasons.items())}

    def queue_of(self, message: Any) -> str:
        """The queue that a message came from."""
        known: str | None = getattr(message, "queue", None)
        if known is None:
            known = message.queue = self._find_queue(message.delivery_info)
        return known

    def _find_queue(self, info: Any) -> str:
        tag = info.get("consumer_tag")
        queue = self._tags.get(tag) if tag is not None else info["routing_key"]
        if queue is None:
            active = self._consumer.task_consumer._active_tags
            self._tags.update({known: name for name, known in list(active.items())})
            queue = self._tags.get(tag)
        return queue or str(info.get("routing_key", ""))

    # -- from any thread

    def hand_back(self, message: Any, request_id: str, reason: GateReason, until: float) -> None:
        """Put a message back and close its queue's gate."""
        queue = self.queue_of(message)
        self._do(partial(self._hand_back, message, request_id, queue, reason, until))

    def bounce(self, message: Any, request_id: str) -> None:
        """Put back a message that arrived while the gate is shut."""
        self._do(partial(self.put_back, message, request_id))

    def open(self, queue: str) -> None:
        """Open a gate before its time."""
        if queue in self._until:
            self._do(partial(self.resume, queue))

    def hurry(self, queue: str) -> None:
        """Something urgent has come into the queue: let it in, where only a limit keeps the others out."""
        self._do(partial(self._hurry, queue))

    def forget(self, queue: str) -> None:
        """An operator decides whether the queue is consumed from now on. From the consumer's loop."""
        with self._lock:
            self._until.pop(queue, None)
            self._reasons.pop(queue, None)
            self._hurried.pop(queue, None)
            self._disarm(queue)

    def reconnected(self) -> None:
        """The consumer has a new channel: the tags are others, and the gates that are shut stay so."""
        self._tags = {}
        for queue in list(self._until):
            self._arm(queue)

    # -- in the consumer's loop

    def _do(self, action: Callable[[], None]) -> None:
        hub = self._consumer.hub
        if hub is not None:
            hub.call_soon(action)
        else:
            action()

    def _hand_back(self, message: Any, request_id: str, queue: str, reason: GateReason, until: float) -> None:
        self.handed_back += 1
        if is_inference_queue(queue):
            with self._lock:
                outdated = reason.kind is GateKind.LIMIT and self._is_outdated(message, queue)
                closed = None if outdated else self._pause(queue, reason, until)
                self._reject(message, request_id)
            if closed is not None:
                logger.info(
                    "%s: not taking requests for %.1f s: %s",
                    closed.deployment,
                    closed.until - self._now(),
                    reason,
                )
                self._hooks(closed)
            return
        # routed by hand to a queue that has other work too: only this message waits, or it would be back at once
        delay = min(max(until - self._now(), 0.001), LONGEST_HOLD)
        self._consumer.timer.call_after(delay, self._reject, (message, request_id))

    def _is_outdated(self, message: Any, queue: str) -> bool:
        """Whether the gate has opened since the message was taken: what came in with that shows what is so now."""
        tag = self._consumer.task_consumer._active_tags.get(queue)
        return tag is not None and message.delivery_info.get("consumer_tag") not in (None, tag)

    def put_back(self, message: Any, request_id: str) -> None:
        """Put back a message that has just arrived."""
        self.bounced += 1
        self._reject(message, request_id)

    def _reject(self, message: Any, request_id: str) -> None:
        try:
            message.reject(requeue=True)
        except self._consumer.connection_errors as exc:
            # the broker puts it back by itself
            logger.debug("%s: not put back: %s", request_id, type(exc).__name__)

    def _pause(self, queue: str, reason: GateReason, until: float) -> GateClosed | None:
        """Shut it until then; what is to be told of that, if it was open."""
        known = self._until.get(queue)
        if known is not None and (self._is_kind(queue, GateKind.SHUTDOWN) or self._now() < known <= until):
            return (
                None  # the earliest counts: one of the pool's processes may have a permit before the others
            )
        if self._now() < self._hurried.get(queue, 0.0) and reason.kind is GateKind.LIMIT:
            until = self._now() + HURRY_LOOK
        consumer_set = self._consumer.task_consumer
        tag = consumer_set._active_tags.pop(queue, None)
        if tag is None and known is None:
            return None  # an operator has ended the consuming: it is not ours to begin it again
        self._until[queue] = until
        self._reasons[queue] = reason
        self._arm(queue)
        if tag is None:
            return None  # shut already
        self._tags[tag] = queue  # deliveries may still be on their way
        while len(self._tags) > TAGS:
            self._tags.pop(next(iter(self._tags)))  # the oldest; what is still consumed is found again
        consumer_set._active_queue_no_ack.pop(queue, None)
        consumer_set._queues.pop(queue, None)
        self._consumer.app.amqp.queues.deselect(queue)  # stays so over a reconnect
        channel = consumer_set.channel
        if self._consumer.connection.transport.driver_type == "amqp":
            channel.basic_cancel(tag, nowait=True)  # one frame, no wait
        else:
            channel.basic_cancel(tag)
        return GateClosed(deployment=deployment_of(queue), reason=reason, until=until)

    def _arm(self, queue: str) -> None:
        self._disarm(queue)
        until = self._until[queue]
        delay = max(until - self._now(), 0.001)
        self._timers[queue] = self._consumer.timer.call_after(delay, self._due, (queue, until))

    def _disarm(self, queue: str) -> None:
        timer = self._timers.pop(queue, None)
        if timer is not None:
            timer.cancel()

    def _due(self, queue: str, until: float) -> None:
        with self._lock:
            if self._until.get(queue) != until:
                return  # opened, or another time: that has a timer of its own
            self._timers.pop(queue, None)  # it is running: with gevent, to cancel it would end it here
            if self.closed(queue):  # the timer's clock is not the wall's
                self._arm(queue)
                return
        self.resume(queue)

    def _hurry(self, queue: str) -> None:
        with self._lock:
            if self._limited(queue):
                self.resume(queue)
            # it may be about to shut, for what was taken before
            self._hurried[queue] = self._now() + HURRY

    def resume(self, queue: str) -> None:
        """Open a gate before its time. From the consumer's loop or a timer; `open` is for any thread."""
        with self._lock:
            opened = self._resume(queue)
        if opened:
            self._hooks(GateOpened(deployment=deployment_of(queue)))

    def _resume(self, queue: str) -> bool:
        if not self._consumer.pool.active:
            return False  # the worker ends: what it took now, nobody would run
        if self._until.pop(queue, None) is None:
            return False
        self._disarm(queue)
        self._reasons.pop(queue, None)
        self._hurried.pop(queue, None)
        queues = self._consumer.app.amqp.queues
        selected = queues.select_add(queues[queue])  # a reconnect takes it up from here
        consumer_set = self._consumer.task_consumer
        if consumer_set is None or consumer_set.consuming_from(queue):
            return False
        try:
            bound = selected(consumer_set.channel)
            consumer_set._queues[queue] = bound
            consumer_set._basic_consume(bound, no_ack=consumer_set.no_ack, nowait=True)
        except self._consumer.connection_errors as exc:
            consumer_set._active_tags.pop(queue, None)
            logger.debug("%s: resumed with the next connection: %s", queue, type(exc).__name__)
        return True

    def __repr__(self) -> str:
        return f"Gate(shut={sorted(self._until)}, handed_back={self.handed_back}, bounced={self.bounced})"
