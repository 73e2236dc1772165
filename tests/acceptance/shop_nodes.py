"""The application `apps.shop` in a test: its provider, its workers as processes, its caller in the test's own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import Connection
from local_nodes import WorkerNode
from local_process import wait_until

from remote_inference import EngineMetrics, Inference, InferenceHandle, TokenChunk
from remote_inference.testing.behaviours import Answer, Pause, Prompt, Reply, Step
from remote_inference.testing.server import ProviderServer

DEPLOYMENT = "chat"
QUEUE = f"inference.{DEPLOYMENT}"
LIMIT = 60.0  # seconds for anything to happen on a loaded machine


@dataclass
class Shop:
    """One deployment, `chat`, of which a test starts the parts that it needs.

    Attributes:
        provider: what the workers ask.
        broker_url: where workers and callers meet, unless told otherwise.
        options: of the deployment, besides name, model, provider and endpoint.
        tables: of the configuration, besides the deployment.
        celery: settings of the workers' app.
        poison, poison_after: the files of ids under which a worker dies, see `apps.shop`.
    """

    start_workers: Any
    provider: ProviderServer
    broker_url: str
    directory: Path
    options: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    celery: dict[str, Any] = field(default_factory=dict)
    callers: list[Inference] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.poison, self.poison_after = self.directory / "poison", self.directory / "poison-after"
        self.poison.touch()
        self.poison_after.touch()

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, the same for workers and callers."""
        deployment = {
            "name": DEPLOYMENT,
            "model": "gpt-4o",
            "provider": "openai",
            "endpoint": self.provider.url,
        }
        return {"deployment": [deployment | self.options]} | self.tables

    @property
    def environment(self) -> dict[str, str]:
        """What `apps.shop` reads."""
        return {
            "SHOP_CONFIG": json.dumps(self.config),
            "SHOP_CELERY": json.dumps(self.celery),
            "SHOP_POISON": str(self.poison),
            "SHOP_POISON_AFTER": str(self.poison_after),
        }

    def workers(
        self,
        count: int,
        *,
        slots: int = 1,
        pool: str = "threads",
        broker_url: str | None = None,
        wait: bool = True,
    ) -> list[WorkerNode]:
        """Start workers that consume the deployment's queue; ``wait`` until they are ready."""
        nodes: list[WorkerNode] = self.start_workers(
            count,
            *("-Q", QUEUE, "-c", str(slots)),
            app="apps.shop",
            env=self.environment,
            pool=pool,
            broker_url=broker_url or self.broker_url,
            wait=wait,
        )
        return nodes

    def caller(self, backend: str | None = None) -> Inference:
        """The application in this process."""
        app = Celery("shop", broker=self.broker_url, backend=backend, set_as_current=False)
        self.callers.append(Inference(app, config=self.config))
        return self.callers[-1]

    def close(self) -> None:
        """Close the callers."""
        for caller in self.callers:
            caller.close()
            caller.app.close()


@dataclass(frozen=True)
class Held:
    """A reply that stops after `after` tokens until `release`, a file, is there."""

    reply: Reply
    release: Path
    after: int = 3

    def answer(self, prompt: Prompt) -> Answer:
        """The first tokens, the wait, the rest."""
        return self.reply.streamed(self._steps(prompt))

    def _steps(self, prompt: Prompt) -> Iterator[Step]:
        speech = list(self.reply.speech(prompt))
        yield from speech[: self.after + 1]
        while not self.release.exists():
            yield Pause(0.02)
        yield from speech[self.after + 1 :]
        yield from self.reply.ending(prompt)


def text_of(chunks: list[TokenChunk]) -> str:
    """What a reader of these chunks has in the end."""
    text = ""
    for chunk in chunks:
        text = "" if chunk.restarted else text + chunk.text_delta
    return text


def begin(handle: InferenceHandle) -> tuple[Iterator[TokenChunk], TokenChunk]:
    """A loop over the handle that has read one chunk."""
    loop = iter(handle)
    return loop, next(loop)


def settled(caller: Inference, **wanted: int) -> EngineMetrics:
    """The deployment's counts over all workers, as soon as nothing is in flight and they are as `wanted`.

    Raises:
        TimeoutError: they do not become so; the message has them.
    """
    seen: list[EngineMetrics] = []

    def as_wanted() -> bool:
        seen.append(caller.status(timeout=0.3)[DEPLOYMENT])
        metrics = seen[-1]
        return metrics.in_flight == 0 and all(getattr(metrics, name) == n for name, n in wanted.items())

    try:
        wait_until(as_wanted, f"counts of {wanted}", 20)
    except TimeoutError as exc:
        raise TimeoutError(f"{exc}: {seen[-1]}") from exc
    metrics = seen[-1]
    ended = metrics.completed + metrics.failed + metrics.rejected + metrics.cancelled + metrics.handed_back
    assert metrics.started == ended, f"the sums do not agree: {metrics}"
    return metrics


def messages_in(broker_url: str, queue: str) -> list[tuple[Mapping[str, Any], Any]]:
    """Headers and JSON body of what waits in a queue; it stays there."""
    with Connection(broker_url) as connection:
        channel = connection.channel()
        found = []
        while (message := channel.basic_get(queue, no_ack=False)) is not None:
            found.append((message.headers, json.loads(message.body)))
        return found
