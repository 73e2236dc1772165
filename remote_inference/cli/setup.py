"""`Backend`: an `Inference` object as the commands need it, over a broker or with broker and worker in this process."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable

import click
from celery import Celery

from ..clock import SystemClock
from ..config import Deployment, InferenceConfig
from ..credentials import CredentialError, provider_for
from ..events import Hook
from ..inference import Inference
from ..messaging.embedded import close_broker
from ..worker.embedded import EmbeddedWorker
from . import worker_settings
from .options import Settings, shown_url

__all__ = ["Backend", "make_inference"]

BROKER_PATIENCE = 5.0
"""Seconds in which the broker has to answer a command."""

STOP_PATIENCE = 10.0
"""Seconds in which the embedded worker has to end."""


def make_inference(config: InferenceConfig, broker: str, hooks: Iterable[Hook] = ()) -> Inference:
    """The app that the command line's worker and clients share."""
    app = Celery("remote-inference", broker=broker, set_as_current=False)
    app.config_from_object(worker_settings)
    app.conf.broker_url = broker  # the option, whatever Celery's own variables say
    return Inference(app, config=config, hooks=hooks)


class Backend:
    """Where a command's requests go.

    Args:
        settings: the broker.
        config: the deployments.
        embedded: broker and worker in this process.
        concurrency: of the embedded worker.
        hooks: told what happens in this process.
    """

    def __init__(
        self,
        settings: Settings,
        config: InferenceConfig,
        *,
        embedded: bool,
        concurrency: int,
        hooks: Iterable[Hook] = (),
    ) -> None:
        self.embedded = embedded
        self._settings = settings
        self._config = config
        self._concurrency = concurrency
        self._name = f"cli-{secrets.token_hex(8)}"
        broker = f"embedded://{self._name}" if embedded else settings.broker
        self.inference = make_inference(config, broker, hooks)
        self._worker: EmbeddedWorker | None = None

    def start(self, deployments: Iterable[Deployment]) -> None:
        """Begin.

        Args:
            deployments: those that requests will go to, where that is known: an embedded worker looks at their
                credentials before anything is asked.

        Raises:
            click.ClickException: the broker cannot be reached, or a credential cannot be read.
        """
        if not self.embedded:
            self._reach_broker()
            return
        for deployment in deployments:
            try:
                provider_for(deployment.api_key, clock=SystemClock()).fetch()
            except CredentialError as exc:
                raise click.ClickException(f"deployment {deployment.name}: {exc}") from exc
        queues = [deployment.queue for deployment in self._config.deployments.values()]
        worker = EmbeddedWorker(self.inference.app, concurrency=self._concurrency, queues=queues)
        worker.start()
        self._worker = worker

    def running(self) -> int | None:
        """Requests that the embedded worker is at; None where that is not known here."""
        main = self.inference.worker_main
        if self._worker is None or main is None:
            return None
        return sum(metrics.in_flight for metrics in main.counters.metrics().values())

    def retried(self) -> int | None:
        """Attempts after the first one, by the embedded worker."""
        main = self.inference.worker_main
        if self._worker is None or main is None:
            return None
        return sum(metrics.retried for metrics in main.counters.metrics().values())

    @property
    def has_ended(self) -> bool:
        """Whether the embedded worker is gone, so that nothing will be answered."""
        return self._worker is not None and not self._worker.is_alive

    def without_workers(self, tell: Callable[[str], None]) -> None:
        """Tell if no worker answers (it looks for a second)."""
        if self.embedded:
            return
        try:
            answers = self.inference.workers()
        except TimeoutError:
            return
        if not answers:
            tell(
                "no worker answers: requests wait in the queue until one is started (remote-inference worker)"
            )

    def close(self) -> None:
        """End the embedded worker, and this process's connections."""
        if self._worker is not None:
            self._worker.stop(STOP_PATIENCE)
        self.inference.close()
        if self.embedded:
            close_broker(self._name)

    def _reach_broker(self) -> None:
        try:
            self.inference.submitter.sender.declare(BROKER_PATIENCE)
        except (TimeoutError, OSError) as exc:
            trouble = self.inference.publisher.trouble.replace("_", " ")
            said = f" ({trouble})" if trouble else ""
            where = shown_url(self._settings.broker)
            raise click.ClickException(f"the broker cannot be reached at {where}{said}") from exc
