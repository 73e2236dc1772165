"""The surroundings of a case: a provider that counts, workers, a load, and what came of it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import psutil

from benchmarks.cluster.arrangement import Arrangement
from benchmarks.cluster.load import Load, Prompt
from benchmarks.cluster.outcome import Window
from benchmarks.cluster.plan import Plan
from benchmarks.cluster.workers import Worker, Workers
from benchmarks.measure import tree_cpu
from remote_inference.testing.arrivals import SOURCE_HEADER
from remote_inference.testing.process import ProviderProcess

__all__ = ["Say", "Seen", "Stage", "names", "stage"]

Say = Callable[[str], None]

_LONGEST_START = 60.0  # seconds, of the workers
_REPORT_EVERY = 10.0  # seconds


class Stage:
    """See the module; made by `stage`."""

    def __init__(
        self,
        plan: Plan,
        say: Say,
        provider: ProviderProcess,
        arrangement: Arrangement,
        workers: Workers,
        load: Load,
    ) -> None:
        self.plan = plan
        self.provider = provider
        self.deployments = arrangement.deployments
        self.inference = load.inference
        self.workers = workers
        self.load = load
        self.began = 0.0
        self._say = say
        self._report_at = 0.0
        self._cpu: dict[str, float] = {}

    def start(self, *groups: Sequence[str]) -> list[Worker]:
        """Start a worker for each group of deployments, and wait until all of them consume."""
        made = [self.workers.start(*group) for group in groups]
        self.ready(*(name for group in groups for name in group))
        return made

    def ready(self, *deployments: str) -> None:
        """Wait until these deployments are consumed.

        Raises:
            RuntimeError: They are not, after a minute, or a worker has ended; with what it said.
        """
        until = time.monotonic() + _LONGEST_START
        expected = len(self.workers.running)
        for name in deployments:
            while not self.load.ready(name):
                self.workers.check(expected)
                if time.monotonic() > until:
                    raise RuntimeError(f"nobody consumes {name}")
                time.sleep(0.1)

    def begin(self) -> None:
        """The first minute begins now."""
        self.began = time.monotonic()
        self._report_at = self.began + _REPORT_EVERY
        psutil.cpu_percent()
        self._cpu = self._used()

    def until(self, minutes: float) -> None:
        """Wait for a point in time, telling how it goes."""
        end = self.began + minutes * self.plan.minute
        expected = len(self.workers.running)
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))
            self.load.check()
            self.workers.check(expected)
            if time.monotonic() >= self._report_at:
                self._report_at += _REPORT_EVERY
                self.report()

    def report(self) -> None:
        """Say what the provider has counted."""
        stats = self.provider.stats
        seconds = time.monotonic() - self.began
        refused = f", {stats['refused']:,} refused" if stats["refused"] is not None else ""
        self._say(f"  {seconds:4.0f} s: {stats['count']:,} requests{refused}")

    def complaints(self) -> dict[str, Any]:
        """How much of what the workers said was a warning or worse, with the first; told too."""
        said = self.workers.complaints
        if said:
            self._say(f"  the workers' logs have {len(said)} warnings or errors: {said[0]}")
        return {"complaints": len(said), "first_complaint": said[0] if said else ""}

    def busy(self) -> dict[str, float]:
        """Since `begin`: how busy the machine was, and seconds of CPU by whose."""
        used = {who: round(seconds - self._cpu.get(who, 0.0), 2) for who, seconds in self._used().items()}
        return {"machine_percent": psutil.cpu_percent(), **used}

    def _used(self) -> dict[str, float]:
        workers = {f"worker_{worker.pid}": worker.cpu for worker in self.workers.running}
        return {"provider": tree_cpu(self.provider.pid), "load": time.process_time(), **workers}


def names(plan: Plan) -> list[str]:
    """A deployment for each worker. They differ from those of other runs on the same broker."""
    return [f"cluster-{os.getpid()}-{letter}" for letter in "abcdefgh"[: plan.workers]]


@contextlib.contextmanager
def stage(
    plan: Plan,
    say: Say,
    deployments: Mapping[str, Mapping[str, Any]],
    *,
    provider: Sequence[str] = (),
    prompts: Callable[[], Prompt] = Prompt,
    slots: int | None = None,
    pool: str = "threads",
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Stage]:
    """Provider and load, ready to be used; no worker is started yet.

    Args:
        plan: Sizes.
        say: Told of progress.
        deployments: What is configured of each, besides what all have: the same model at the same provider.
            `apart`: not so; it is another endpoint, with a limit and a circuit of its own.
        provider: Arguments of the provider's command.
        prompts: Makes the prompts of the steady load.
        slots: Of a worker; None: the plan's.
        pool: Of a worker: Celery's name of the kind.
        settings: The configuration besides the deployments.
    """
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ProviderProcess("--arrivals", *provider))
        base = {"provider": "openai", "model": "cluster", "endpoint": server.url, "queue_capacity": 20_000}
        configured = [
            {**base, "name": name, "headers": {SOURCE_HEADER: name}, **own}
            for name, own in deployments.items()
        ]
        for deployment in configured:
            if deployment.pop(
                "apart", False
            ):  # another name of the same host: a limit and a circuit of its own
                deployment["endpoint"] = server.url.replace("127.0.0.1", "localhost")
        broker = os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost//")
        arrangement = Arrangement(broker=broker, config={**(settings or {}), "deployment": configured})
        load = stack.enter_context(Load(arrangement.inference(), prompts))
        stack.callback(load.inference.close)
        workers = stack.enter_context(Workers(arrangement, slots or plan.slots, pool))
        yield Stage(plan, say, server, arrangement, workers, load)


class Seen:
    """What the provider saw, cut into spans. Times are `time.monotonic()`."""

    def __init__(self, columns: Mapping[str, list[Any]], *, tokens: bool, per_minute: float) -> None:
        self._columns = columns
        self._tokens = tokens
        self._per_minute = per_minute

    def refused(self, began: float) -> list[float]:
        """When requests were refused, in seconds after `began`."""
        columns = self._columns
        return [
            round(at - began, 3)
            for at, status in zip(columns["at"], columns["status"], strict=True)
            if status == 429
        ]

    def window(self, since: float, until: float) -> Window:
        """What came and was charged in a span."""
        columns = self._columns
        admitted = refused = spent = 0
        for at, status, tokens in zip(columns["at"], columns["status"], columns["input"], strict=True):
            if since <= at < until:
                if status == 429:
                    refused += 1
                else:
                    admitted += 1
                    spent += tokens if self._tokens else 1
        if self._tokens:
            spent += sum(
                tokens
                for at, tokens in zip(columns["spent_at"], columns["spent"], strict=True)
                if since <= at < until
            )
        share = spent / (self._per_minute * (until - since) / 60.0)
        return Window(share=share, admitted=admitted, refused=refused)
