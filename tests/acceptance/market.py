"""One provider, one client and the environment that `apps.market` needs to be their worker."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from celery import Celery

from remote_inference import Inference
from remote_inference.testing.server import ProviderServer

APP = "apps.market"
QUICK = "--without-mingle"  # a second less to start
CLOSED_WITHIN = 0.5  # seconds from a cancel to the closed upstream socket, or to the caller's being told


class Market:
    """A client's side. `server` is the provider of all deployments, which a deployment's model tells apart.

    Args:
        server: The provider.
        broker_url: Where the queues are.
        deployments: Their tables; `provider`, `endpoint` and `model` are filled in.
        settings: More Celery settings, for client and workers.
    """

    def __init__(
        self,
        server: ProviderServer,
        broker_url: str,
        deployments: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
    ) -> None:
        self.server = server
        self.broker_url = broker_url
        defaults = {"provider": "openai", "endpoint": server.url}
        self.tables = [{**defaults, "model": given["name"], **given} for given in deployments]
        self._settings = dict(settings)
        self.queues = ",".join(f"inference.{given['name']}" for given in deployments)
        self.app = Celery("client", broker=broker_url, set_as_current=False)
        self.app.conf.update(settings)
        self.inference = Inference(self.app, config={"deployment": self.tables})

    @property
    def environment(self) -> dict[str, str]:
        """What `apps.market` reads; as `tables` say now."""
        return {
            "MARKET_CONFIG": json.dumps({"deployment": self.tables}),
            "MARKET_SETTINGS": json.dumps(self._settings),
        }

    def arrivals(self, model: str) -> list[str]:
        """The prompts that reached the provider for a model, in that order."""
        return [
            request.body["messages"][-1]["content"]
            for request in self.server.requests
            if request.model == model
        ]

    def close(self) -> None:
        """Close the client's connections."""
        self.inference.close()
        self.app.close()


@contextlib.contextmanager
def open_market(
    broker_url: str, *deployments: Mapping[str, Any], server: ProviderServer | None = None, **settings: Any
) -> Iterator[Market]:
    """A `Market` with a provider of its own, unless one is given (which has been started)."""
    with contextlib.ExitStack() as stack:
        server = server or stack.enter_context(ProviderServer())
        market = Market(server, broker_url, deployments or [{"name": "a"}], settings)
        stack.callback(market.close)
        yield market


class EventLog:
    """The task events of all workers (which need `-E`), as they come."""

    def __init__(self, app: Celery) -> None:
        self.events: list[dict[str, Any]] = []
        self._app = app
        self._changed = threading.Condition()
        self._stopping = False
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> EventLog:
        self._thread.start()
        assert self._listening.wait(20)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping = True
        self._thread.join(20)

    def wait_for(self, kind: str, task_id: str, limit: float = 20.0) -> dict[str, Any]:
        """The first event of that kind about a task.

        Raises:
            TimeoutError: There was none; the message has what there was.
        """
        end = time.monotonic() + limit
        with self._changed:
            while True:
                about = [event for event in self.events if event.get("uuid") == task_id]
                for event in about:
                    if event["type"] == kind:
                        return event
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"no {kind} about {task_id}: {[event['type'] for event in about]}")
                self._changed.wait(left)

    def _run(self) -> None:
        with self._app.connection_for_read() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"*": self._take})
            with receiver.consumer_context() as (own, _channel, _consumers):
                self._listening.set()
                while not self._stopping:
                    with contextlib.suppress(TimeoutError):
                        own.drain_events(timeout=0.2)

    def _take(self, event: dict[str, Any]) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return sorted(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
