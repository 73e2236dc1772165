"""`Sender`: one message's way into its deployment's queue, or a typed error within the time limit."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from amqp.exceptions import AMQPError, ChannelError, NotFound

from ..clock import Clock
from ..config import CapacityPolicy, Deployment
from ..errors import Backpressure, InferenceError, SubmitUncertain
from ..events import CapacityMismatch, Hooks, SubmitRejected
from ..messaging.admission import Admission
from ..messaging.commands import send_cancel, send_command
from ..messaging.delivery import Delivery, DeliveryState, Probe
from ..messaging.publisher import Publisher
from ..messaging.queues import DeclaredQueue, declare_common, declare_inference_queue, queue_depth
from ..messaging.wire import Command
from ..types import Priority

__all__ = ["Parcel", "Sender"]

logger = logging.getLogger(__name__)

HURRY_GAP = 0.005
"""Seconds between two words to the workers that something urgent has come: one lets in all that is there by then."""

ROOM_PAUSE = 0.02, 0.1
"""Seconds between two looks at a full queue (the broker does not tell when there is room), drawn at random."""

SLICE = 2048
"""Messages of `Sender.send_many` under way at once."""


class Parcel(Protocol):
    """One of many messages: what is sent, and who is told if nobody knows how that ended."""

    delivery: Delivery

    def fail(self, error: InferenceError) -> None:
        """It ended with this error."""


P = TypeVar("P", bound=Parcel)


class _Unreachable(Exception):
    """The broker cannot be asked now; ``reason`` is `Backpressure`'s."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Sender:
    """Looks for room, publishes, waits for the confirm. Shared by the threads of one process.

    Args:
        publisher: this process's.
        clock, hooks: time, and who is told of refusals.
    """

    def __init__(self, publisher: Publisher, *, clock: Clock, hooks: Hooks) -> None:
        self._publisher = publisher
        self._clock = clock
        self._hooks = hooks
        self._admission = Admission(clock)
        self._hurried: dict[str, float] = {}
        self._declared: dict[str, tuple[int, int]] = {}  # queue: (connection, capacity that is kept to)

    def send(self, deployment: Deployment, priority: Priority, delivery: Delivery, end: float) -> None:
        """Publish one message, and wait for its confirm, until ``end`` (monotonic) at most.

        Raises:
            Backpressure, SubmitUncertain: nothing was sent; or nobody knows.
        """
        while True:
            granted, reason = self._take(deployment, priority, 1, end)
            if granted:
                self._publisher.publish(delivery)
                try:
                    delivery.wait(max(0.0, end - self._clock.monotonic()))
                    reason = self._ended(deployment, delivery)
                finally:
                    self._admission.settled(deployment.queue)
                if not reason:
                    self._hurry(deployment, priority)
                    return
            self._wait_for_room(deployment, reason, end)
            delivery = _again(delivery)

    def send_many(
        self, deployment: Deployment, priority: Priority, parcels: Sequence[P]
    ) -> list[tuple[P, Backpressure]]:
        """Publish many, in order, with gathered confirms.

        The time limit is for standing still: as long as some get in, the others wait.

        Returns:
            Those that were refused, and why. The `SubmitUncertain` of others is told to themselves.
        """
        left = list(parcels)
        end = self._clock.monotonic() + deployment.admission_timeout
        try:
            while left:
                granted, reason = self._take(deployment, priority, min(SLICE, len(left)), end)
                if granted:
                    batch, rest = left[:granted], left[granted:]
                    again, reason = self._send_batch(deployment, batch, end)
                    left = again + rest
                    if len(again) < len(batch):  # it moves: the time limit is for standing still
                        self._hurry(deployment, priority)
                        end = self._clock.monotonic() + deployment.admission_timeout
                if left and reason:
                    self._wait_for_room(deployment, reason, end)
        except Backpressure as exc:
            return [(parcel, exc) for parcel in left]
        return []

    def _hurry(self, deployment: Deployment, priority: Priority) -> None:
        """Tell the workers of an urgent request: where its deployment's gate is shut, they do not see it."""
        now = self._clock.monotonic()
        if priority >= Priority.HIGH and now >= self._hurried.get(deployment.name, -1.0) + HURRY_GAP:
            self._hurried[deployment.name] = now
            send_command(self._publisher, Command(kind="urgent", subject=deployment.name))

    def _send_batch(self, deployment: Deployment, batch: Sequence[P], end: float) -> tuple[list[P], str]:
        """Publish what there is room for; what may be tried again, and why."""
        reason, again = "", []
        self._publisher.publish_all(parcel.delivery for parcel in batch)
        for parcel in batch:
            parcel.delivery.wait(max(0.0, end - self._clock.monotonic()))
            try:
                why = self._ended(deployment, parcel.delivery)
            except SubmitUncertain as exc:
                parcel.fail(exc)
                continue
            finally:
                self._admission.settled(deployment.queue)
            if why:
                reason = why
                parcel.delivery = _again(parcel.delivery)
                again.append(parcel)
        return again, reason

    def _take(self, deployment: Deployment, priority: Priority, wanted: int, end: float) -> tuple[int, str]:
        """Take room for up to ``wanted`` messages; 0 and the reason, where there is none."""
        full = "queue_full" if priority is Priority.CRITICAL else "class_full"
        looked = False
        while True:
            connection, capacity = self._declared.get(deployment.queue, (-1, 0))
            granted = None
            if connection == self._publisher.connections and not self._publisher.trouble:
                granted = self._admission.take(deployment.queue, capacity, priority, wanted)
            if granted is not None:
                return granted, "" if granted else full
            left = end - self._clock.monotonic()
            if looked and left <= 0:
                return 0, full
            try:
                self._look(deployment, max(0.05, left))
            except _Unreachable as exc:
                return 0, exc.reason
            looked = True

    def reach(self, deployment: Deployment, end: float) -> None:
        """Make sure that the broker answers.

        Raises:
            Backpressure: it does not.
        """
        while True:
            try:
                self._look(deployment, max(0.05, end - self._clock.monotonic()))
                return
            except _Unreachable as exc:
                self._wait_for_room(deployment, exc.reason, end)

    def _look(self, deployment: Deployment, timeout: float) -> DeclaredQueue:
        """See how full the queue is, and declare it if this connection has not.

        Raises:
            _Unreachable: the broker does not answer.
            Backpressure: it refuses the queue.
        """
        name, configured = deployment.queue, deployment.queue_capacity
        known = self._declared.get(name)
        end = self._clock.monotonic() + timeout
        probe = Probe()
        self._publisher.publish(probe)
        if not probe.wait(timeout):
            self._publisher.withdraw(probe)
            raise _Unreachable(self._publisher.trouble or "broker_down")
        if probe.state in (DeliveryState.NOT_SENT, DeliveryState.UNCERTAIN):
            raise _Unreachable("broker_blocked" if probe.reason == "broker_blocked" else "broker_down")

        looking = self._admission.looking(name)

        def look(connection: Any) -> tuple[int, DeclaredQueue]:
            generation = self._publisher.connections
            if known is not None and known[0] == generation:
                try:
                    return generation, queue_depth(connection, name)
                except NotFound:
                    pass
            channel = connection.channel()
            declare_common(channel)
            channel.close()
            return generation, declare_inference_queue(connection, name, configured)

        try:
            generation, queue = self._publisher.call(look).result(max(0.05, end - self._clock.monotonic()))
        except ChannelError as exc:
            logger.error("queue %s: the broker refuses it: %s", name, exc)
            raise self.refused(deployment, "no_queue") from exc
        except (TimeoutError, OSError, AMQPError) as exc:
            raise _Unreachable(self._publisher.trouble or "broker_down") from exc
        if queue.capacity is not None:
            self._declared[name] = (generation, min(configured, queue.capacity))
            if queue.capacity != configured:
                self._hooks(
                    CapacityMismatch(
                        deployment=deployment.name, configured=configured, declared=queue.capacity
                    )
                )
        self._admission.seen(name, queue.waiting, looking)
        return queue

    def _ended(self, deployment: Deployment, delivery: Delivery) -> str:
        """How a delivery ended: "" when it is queued, else why it may be tried again.

        Raises:
            SubmitUncertain: nobody knows.
        """
        if delivery.state is DeliveryState.QUEUED and self._publisher.withdraw(delivery):
            return delivery.reason or "broker_down"
        if delivery.state is DeliveryState.CONFIRMED:
            return ""
        if delivery.state is DeliveryState.REFUSED:
            self._admission.seen(deployment.queue, deployment.queue_capacity)  # full, whatever we thought
            return "queue_full"
        if delivery.state is DeliveryState.UNROUTABLE:
            self._declared.pop(deployment.queue, None)
            return "no_queue"
        if delivery.state is DeliveryState.NOT_SENT:
            return delivery.reason or "broker_down"
        if delivery.state is DeliveryState.WRITTEN:
            self._publisher.reset(delivery)  # a late confirm must confirm nothing
        request_id = str(delivery.properties.get("correlation_id", ""))
        send_cancel(self._publisher, (request_id,), "uncertain")
        raise SubmitUncertain(request_id, deployment.name)

    def _wait_for_room(self, deployment: Deployment, reason: str, end: float) -> None:
        """Wait a little, or say that it is enough.

        Raises:
            Backpressure: the policy or the time limit says so.
        """
        left = end - self._clock.monotonic()
        may_wait = deployment.on_capacity_exhausted is CapacityPolicy.QUEUE or reason == "no_queue"
        if not may_wait or left <= 0:
            raise self.refused(deployment, reason)
        self._clock.sleep(min(left, random.uniform(*ROOM_PAUSE)))

    def refused(self, deployment: Deployment, reason: str) -> Backpressure:
        """The refusal, and the hooks told of it."""
        self._hooks(SubmitRejected(deployment=deployment.name, reason=reason))
        return Backpressure(deployment.name, reason, 1.0 if reason.endswith("full") else 5.0)

    def waiting(self, deployment: Deployment, timeout: float) -> DeclaredQueue:
        """How many requests wait in a deployment's queue."""
        try:
            return self._look(deployment, timeout)
        except _Unreachable as exc:
            raise self.refused(deployment, exc.reason) from exc

    def declare(self, timeout: float) -> None:
        """Have the exchange and the queues that all processes share, before something goes to the bus.

        Raises:
            TimeoutError: the broker did not answer in time.
        """

        def declare(connection: Any) -> None:
            channel = connection.channel()
            declare_common(channel)
            channel.close()

        self._publisher.call(declare).result(timeout)

    def __repr__(self) -> str:
        return f"Sender({self._publisher!r}, {self._admission!r})"


def _again(delivery: Delivery) -> Delivery:
    return Delivery(delivery.routing_key, delivery.body, delivery.properties, patient=delivery.patient)
