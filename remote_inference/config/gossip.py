"""`GossipSettings`: how often the workers tell each other what they send."""

from __future__ import annotations

from dataclasses import dataclass

from ..value import Value
from .checks import Checker

__all__ = ["GossipSettings"]

_SHORTEST, _LONGEST = 0.1, 2.0


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GossipSettings(Value):
    """How the workers share limits and circuits over RabbitMQ.

    Attributes:
        interval: seconds (or a timedelta) between two messages of a worker while something changes, from 0.1 to 2.
            Less shares limits more closely, and costs more messages. What is urgent does not wait for it.

    Raises:
        ConfigurationError: with every fault.
    """

    interval: float = 0.5

    def __post_init__(self) -> None:
        check = Checker(self)
        if check.seconds("interval", _LONGEST) and self.interval < _SHORTEST:
            check.fault("interval", f"must be at least {_SHORTEST:g}")
        check.done()
