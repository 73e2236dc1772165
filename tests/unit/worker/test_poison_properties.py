"""Whatever happens, in whatever order: the innocent are never set aside, and what kills every time is, soon."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from remote_inference.cancel import CancelToken
from remote_inference.errors import LimitReached, WorkerLost
from remote_inference.reasons import GateKind, GateReason
from remote_inference.testing.clock import VirtualClock
from remote_inference.worker.outcomes import RequestCancelled, Requeue
from remote_inference.worker.poison_guard import MAX_DEATHS, SECOND_LOOK

from .poison_world import Process, embedded_broker, marks_in

PROCESSES = 3
MOST_DEATHS = MAX_DEATHS + 1
"""The first delivery leaves no mark: its death is not counted."""


@dataclass
class Request:
    """A message, and what has become of it."""

    id: str
    poisonous: bool
    redelivered: bool = False
    deaths: int = 0
    at: int | None = None  # the process that has it
    begun: bool = False
    delivery: AbstractContextManager[Any] | None = None
    guard: Any = None

    def back(self) -> None:
        """In the queue."""
        self.at, self.begun, self.delivery, self.guard, self.redelivered = None, False, None, None, True


class Cluster(RuleBasedStateMachine):
    """Some processes and some requests. Nobody kills a process while an innocent call runs, but poisonous calls do."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = embedded_broker()
        self.clock = VirtualClock()
        self.processes = [Process(self.broker, self.clock) for _ in range(PROCESSES)]
        self.requests: list[Request] = []
        self.gone: list[Any] = []  # deliveries whose process died: they never end

    def teardown(self) -> None:
        self.broker.close()

    # -- what there is to choose from

    def some(self, data: st.DataObject, **wanted: Any) -> Request | None:
        """A request that is as wanted."""
        found = [r for r in self.requests if all(getattr(r, name) == value for name, value in wanted.items())]
        return data.draw(st.sampled_from(found)) if found else None

    def held(self, process: int) -> list[Request]:
        return [request for request in self.requests if request.at == process]

    def end(self, request: Request, error: BaseException | None) -> None:
        """Its delivery ends, in a process that lives."""
        assert request.delivery is not None
        with suppress(type(error) if error is not None else ()):
            request.delivery.__exit__(type(error) if error is not None else None, error, None)

    def die(self, process: int) -> None:
        for request in self.held(process):
            self.gone.append(request.delivery)
            request.back()
        self.processes[process] = Process(self.broker, self.clock)

    def reconnect_all(self) -> None:
        for process in self.processes:
            process.publisher.reconnect()

    # -- what happens

    @initialize(poisonous=st.integers(1, 2), innocent=st.integers(1, 3))
    def submit(self, poisonous: int, innocent: int) -> None:
        self.requests += [Request(f"poison-{number}", True) for number in range(poisonous)]
        self.requests += [Request(f"innocent-{number}", False) for number in range(innocent)]

    @rule(data=st.data(), process=st.integers(0, PROCESSES - 1))
    def deliver(self, data: st.DataObject, process: int) -> None:
        self.deliver_to(process, self.some(data, at=None))

    def deliver_to(self, process: int, request: Request | None) -> None:
        if request is None or self.processes[process].publisher.cut_off:
            return
        request.at = process
        request.delivery = self.processes[process].delivery(
            request.id, redelivered=request.redelivered, token=CancelToken()
        )
        request.guard = request.delivery.__enter__()

    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        request = self.some(data, begun=False)
        if request is not None and request.at is not None:
            self.begin_call(request)

    @rule(data=st.data(), process=st.integers(0, PROCESSES - 1), poisonous=st.booleans())
    def run(self, data: st.DataObject, process: int, poisonous: bool) -> None:
        request = self.some(data, at=None, poisonous=poisonous)
        self.deliver_to(process, request)
        if request is not None and request.at is not None:
            self.begin_call(request)

    @rule(process=st.integers(0, PROCESSES - 1))
    def run_all(self, process: int) -> None:
        for request in list(self.requests):
            if request.at is None:
                self.deliver_to(process, request)
                if request.at is not None:
                    self.begin_call(request)

    def begin_call(self, request: Request) -> None:
        self.clock.call_later(SECOND_LOOK - 1, self.reconnect_all)  # who lost the broker is back in time
        try:
            begun = request.guard.enter(None) and (
                request.guard.begin() or (request.guard.enter(None) and request.guard.begin())
            )
        except WorkerLost as error:
            assert request.poisonous, "an innocent request was set aside"
            assert request.deaths in (MAX_DEATHS, MOST_DEATHS)
            self.end(request, error)
            self.requests.remove(request)
            return
        except LimitReached:  # cut off
            begun = False
        if not begun:
            self.end(request, Requeue(GateReason(GateKind.LIMIT), 0.0))
            request.back()
            return
        request.begun = True
        if request.poisonous:
            others = [r for r in self.held(request.at) if r.begun and r is not request]
            request.deaths += 1
            assert request.deaths <= MOST_DEATHS, "it goes on killing"
            assert not others or request.deaths <= MOST_DEATHS - 2, "it did not die alone"
            self.die(request.at)

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        request = self.some(data, begun=True)
        if request is not None:
            self.end(request, None)
            self.requests.remove(request)
            assert (
                self.processes[request.at or 0].publisher.cut_off or marks_in(self.broker, request.id) is None
            )

    @rule(data=st.data())
    def attempt_fails(self, data: st.DataObject) -> None:
        request = self.some(data, begun=True)
        if request is not None:
            request.guard.leave()
            request.begun = False

    @rule(data=st.data(), begun=st.booleans())
    def put_back(self, data: st.DataObject, begun: bool) -> None:
        request = self.some(data, begun=begun)
        if request is not None and request.at is not None:
            self.end(request, Requeue(GateReason(GateKind.LIMIT), 0.0))
            request.back()

    @rule(process=st.integers(0, PROCESSES - 1))
    def lose_connection(self, process: int) -> None:
        self.processes[process].publisher.cut_off = True
        for request in self.held(process):
            self.end(request, RequestCancelled("connection_lost", quiet=True))
            request.back()

    @rule(process=st.integers(0, PROCESSES - 1))
    def reconnect(self, process: int) -> None:
        self.processes[process].publisher.reconnect()

    @rule(process=st.integers(0, PROCESSES - 1))
    def kill(self, process: int) -> None:
        """From outside, where nothing runs but what was only delivered."""
        if self.processes[process].publisher.cut_off or any(r.begun for r in self.held(process)):
            return
        self.die(process)

    @invariant()
    def one_that_must_be_alone_is(self) -> None:
        for process in range(PROCESSES):
            running = [request for request in self.held(process) if request.begun]
            assert len(running) < 2 or not any(request.guard._alone for request in running)


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
