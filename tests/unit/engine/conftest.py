"""An engine with a scripted provider, on a clock of its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from remote_inference.cancel import CancelToken
from remote_inference.cluster import GossipRateLimiter
from remote_inference.config import Deployment
from remote_inference.engine import CallGuard, EngineContext, Job, MetricsRecorder, RemoteEngine, Unguarded
from remote_inference.errors import RebuildFailed
from remote_inference.events import Event, Hooks
from remote_inference.policy.breaker import CircuitBreaker
from remote_inference.testing.clock import VirtualClock
from remote_inference.transport.session import RebuildResult, SessionSnapshot
from remote_inference.types import Completion, FinishReason, InferenceRequest, TokenChunk, TokenUsage

USAGE = TokenUsage(prompt_tokens=10, completion_tokens=4)
ANSWER: tuple[Any, ...] = (
    TokenChunk("Hel"),
    TokenChunk("lo"),
    TokenChunk(finish_reason=FinishReason.STOP, usage=USAGE),
)


class ScriptedProvider:
    """Plays one script a call, and the good answer when there are no more.

    A script is a sequence of chunks to yield, exceptions to raise and functions to call.
    """

    name = "loopback"
    default_endpoint = "loopback://"

    def __init__(self) -> None:
        self.scripts: list[tuple[Any, ...]] = []
        self.calls: list[Any] = []
        self.open = 0

    def check(self, deployment: Deployment) -> None:
        """Nothing to check."""

    def stream(self, call: Any) -> Generator[TokenChunk, None, None]:
        self.calls.append(call)
        script = self.scripts.pop(0) if self.scripts else ANSWER
        self.open += 1
        try:
            for step in script:
                if isinstance(step, BaseException):
                    raise step
                if isinstance(step, TokenChunk):
                    yield step
                else:
                    step()
        finally:
            self.open -= 1


class FakeSession:
    """Generations instead of credentials. ``rebuilds``: what each rebuild does: True (another credential), False,
    or an error."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.generation = 1
        self.leased = 0
        self.rebuilds: list[bool | RebuildFailed] = []
        self.seen: list[int | None] = []
        self.fails: list[BaseException] = []

    @contextmanager
    def lease(self) -> Iterator[SessionSnapshot]:
        if self.fails:
            raise self.fails.pop(0)
        self.leased += 1
        try:
            yield SessionSnapshot(
                client=None,  # type: ignore[arg-type]
                credential=None,
                generation=self.generation,
                deployment=self.deployment,
            )
        finally:
            self.leased -= 1

    def rebuild(self, cause: Any, *, seen_generation: int | None = None) -> RebuildResult:
        self.seen.append(seen_generation)
        result = self.rebuilds.pop(0) if self.rebuilds else False
        if isinstance(result, RebuildFailed):
            raise result
        self.generation += result
        return RebuildResult(generation=self.generation, changed=result)

    def close(self) -> None:
        """Nothing to close."""


class RecordingSink:
    """The texts of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[str] = []
        self.on_push: Callable[[], None] = lambda: None

    def begin(self) -> None:
        self.epochs.append("")

    def push(self, chunk: TokenChunk) -> None:
        self.epochs[-1] += chunk.text_delta
        self.on_push()


class Rig:
    """The engine and everything around it."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("retry", {"jitter": "none", "initial_backoff": 1.0})
        self.clock = VirtualClock()
        self.deployment = Deployment(name="gpt", provider="loopback", **settings)
        self.provider = ScriptedProvider()
        self.session = FakeSession(self.deployment)
        self.limiter = GossipRateLimiter(self.clock)
        self.breaker = CircuitBreaker(self.deployment.circuit_breaker, endpoint="e", clock=self.clock)
        self.events: list[Event] = []
        self.engine = RemoteEngine(
            EngineContext(
                deployment=self.deployment,
                upstream=self.provider,
                session=self.session,
                limiter=self.limiter,
                breaker=self.breaker,
                clock=self.clock,
                hooks=Hooks([self.events.append]),
                metrics=MetricsRecorder(),
                rng=random.Random(5),
            )
        )
        self.sink = RecordingSink()
        self.token = CancelToken()
        self.retries: list[str] = []
        self.draining = False
        self.guard: CallGuard = Unguarded()

    def run(
        self, *scripts: tuple[Any, ...], prompt: str = "hi", deadline: float | None = None, **options: Any
    ):
        """Play the scripts, one an attempt."""
        self.provider.scripts = list(scripts)
        job = Job(
            request_id="id",
            token=self.token,
            deadline=None if deadline is None else self.clock.time() + deadline,
            submitted=self.clock.time() - 2,
            on_retry=lambda error: self.retries.append(type(error).__name__),
            draining=lambda: self.draining,
            guard=self.guard,
        )
        return self.engine.execute(InferenceRequest.parse("gpt", prompt, **options), job, self.sink)

    def failing(self, *scripts: tuple[Any, ...], **options: Any) -> BaseException:
        """The same, for its error."""
        try:
            completion: Completion = self.run(*scripts, **options)
        except BaseException as error:
            return error
        raise AssertionError(f"completed: {completion!r}")

    @property
    def used(self) -> dict[str, int]:
        """What the limiter's window counts."""
        [status] = self.limiter.snapshot().values()
        return status["used"]

    @property
    def event_names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]

    def all_given_back(self) -> None:
        """What must hold whenever no request runs."""
        assert self.provider.open == 0
        assert self.session.leased == 0
        assert self.used["concurrent"] == 0
        assert "0 probes running" in repr(self.breaker)
        metrics = self.engine.metrics.snapshot()
        assert metrics.in_flight == 0
        assert metrics.started == (
            metrics.completed + metrics.failed + metrics.rejected + metrics.cancelled + metrics.handed_back
        )


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    """Makes rigs, and looks afterwards whether each got everything back."""
    made: list[Rig] = []

    def make(**settings: Any) -> Rig:
        made.append(Rig(**settings))
        return made[-1]

    yield make
    for rig in made:
        rig.all_given_back()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    """One with the defaults, and no jitter."""
    return make_rig()
