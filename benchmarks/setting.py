"""What the processes of a benchmark are told: one value, passed as JSON in the environment."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace

__all__ = ["VARIABLE", "Setting"]

VARIABLE = "BENCHMARK_SETTING"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One benchmark's surroundings.

    Attributes:
        url: The provider's base URL, with `/v1`.
        tokens: Of each stream; a request that gets another number has failed.
        rate: Tokens a second of each stream; None: as fast as the server can.
        pool: The Celery pool of the worker.
        slots: Its concurrency.
        ca_file: PEM file of the authority to trust, when the URL is HTTPS.
        broker: RabbitMQ.
        redis: For side (b)'s pub/sub.
        run: Tells this run's queues from others'.
    """

    url: str = ""
    tokens: int = 100
    rate: float | None = None
    pool: str = "threads"
    slots: int = 32
    ca_file: str | None = None
    broker: str = field(
        default_factory=lambda: os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost//")
    )
    redis: str = field(default_factory=lambda: os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
    run: str = field(default_factory=lambda: f"{os.getpid()}")

    def environment(self) -> dict[str, str]:
        """The environment of a process that is to read this."""
        return {**os.environ, VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> Setting:
        """What the starter of this process set.

        Raises:
            RuntimeError: The process was not started by the benchmarks.
        """
        text = os.environ.get(VARIABLE)
        if text is None:
            raise RuntimeError(f"{VARIABLE} is not set: this module is run by `python -m benchmarks`")
        return cls(**json.loads(text))

    def but(self, **changes: object) -> Setting:
        """The same with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]
