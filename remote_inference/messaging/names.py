"""What our queues, exchange, headers and tasks are called in the broker."""

from __future__ import annotations

__all__ = [
    "BUS_EXCHANGE",
    "CANCELLED_QUEUE",
    "CONTROL_QUEUE",
    "DEAD_LETTER_QUEUE",
    "GOSSIP_EXCHANGE",
    "HEADER",
    "INFER_TASK",
    "REBUILD_TASK",
    "chunk_queue",
    "deployment_of",
    "inference_queue",
    "is_inference_queue",
    "ledger_queue",
    "marks_queue",
    "probe_queue",
    "reply_queue",
]

INFER_TASK = "remote_inference.infer"
REBUILD_TASK = "remote_inference.rebuild_session"

PREFIX = "inference."
CONTROL_QUEUE = PREFIX + "control"
DEAD_LETTER_QUEUE = PREFIX + "dead-letter"
CANCELLED_QUEUE = PREFIX + "cancelled"
BUS_EXCHANGE = PREFIX + "bus"
GOSSIP_EXCHANGE = PREFIX + "gossip"

HEADER = "inference"
"""The one message header of ours: a mapping, see `remote_inference.messaging.wire`."""

_NOT_DEPLOYMENTS = (PREFIX, CONTROL_QUEUE, DEAD_LETTER_QUEUE, CANCELLED_QUEUE)
_OURS = tuple(
    PREFIX + part for part in ("reply.", "marks.", "bus.", "cancelled.", "gossip.", "probe.", "ledger.")
)


def inference_queue(deployment: str) -> str:
    """The queue in which a deployment's requests wait."""
    return PREFIX + deployment


def is_inference_queue(queue: str) -> bool:
    """Whether requests wait in it."""
    return queue.startswith(PREFIX) and queue not in _NOT_DEPLOYMENTS and not queue.startswith(_OURS)


def deployment_of(queue: str) -> str:
    """The deployment whose requests wait in the queue."""
    return queue[len(PREFIX) :]


def reply_queue(client: str) -> str:
    """Where a client process gets its outcomes; ``client`` is its 16 hexadecimal digits."""
    return f"{PREFIX}reply.{client}"


def chunk_queue(client: str) -> str:
    """Where a client process gets its token chunks."""
    return f"{PREFIX}reply.{client}.chunks"


def marks_queue(request_id: str) -> str:
    """Holds a mark for each call of a request that has begun and not ended, see `delivery_marks`."""
    return f"{PREFIX}marks.{request_id}"


def probe_queue(circuit: str, number: int) -> str:
    """Is held by whoever has that probe's slot of a circuit."""
    return f"{PREFIX}probe.{circuit}.{number}"


def ledger_queue(subject: str) -> str:
    """Holds the ledger of a limit: who holds how many rights to it."""
    return f"{PREFIX}ledger.{subject}"
