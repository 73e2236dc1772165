"""Which queues a message goes to: exchanges, their bindings, and topic patterns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

EXCHANGE_KINDS = frozenset({"direct", "fanout", "topic"})


@dataclass(slots=True, eq=False)
class Exchange:
    """An exchange and the bindings that start from it."""

    name: str
    kind: str
    durable: bool
    auto_delete: bool
    arguments: Mapping[str, Any]
    bindings: dict[tuple[str, str], None] = field(default_factory=dict)
    """Pairs of routing key and queue, oldest first (a dict keeps the order)."""

    def targets(self, routing_key: str) -> Iterator[str]:
        """The queues that a message with this key goes to, each once, in the order of their bindings."""
        if self.kind == "fanout":
            found = (queue for _, queue in self.bindings)
        elif self.kind == "topic":
            found = (queue for pattern, queue in self.bindings if topic_matches(pattern, routing_key))
        else:
            found = (queue for key, queue in self.bindings if key == routing_key)
        return iter(dict.fromkeys(found))


def topic_matches(pattern: str, routing_key: str) -> bool:
    """Match words between dots: ``*`` stands for exactly one word, ``#`` for any number of them, also none.

    The rule is that of AMQP 0-9-1, section 3.1.3.3. All possible places in the pattern are followed at once,
    so that a pattern with many ``#`` costs no more than its length times the key's.
    """
    wanted = pattern.split(".") if pattern else []
    places = _skip_hashes(wanted, {0})
    for word in routing_key.split(".") if routing_key else []:
        moved: set[int] = set()
        for place in places:
            if place < len(wanted):
                if wanted[place] == "#":
                    moved.add(place)
                elif wanted[place] in ("*", word):
                    moved.add(place + 1)
        places = _skip_hashes(wanted, moved)
    return len(wanted) in places


def _skip_hashes(wanted: list[str], places: set[int]) -> set[int]:
    reached = set(places)
    for place in places:
        while place < len(wanted) and wanted[place] == "#":
            place += 1
            reached.add(place)
    return reached
