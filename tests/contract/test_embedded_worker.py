"""An embedded worker is a Celery worker, over the embedded broker and over RabbitMQ."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, current_app
from celery.result import AsyncResult
from kombu.asynchronous import get_event_loop

from remote_inference.messaging.embedded import close_broker, register
from remote_inference.worker.embedded import EmbeddedWorker

MakeApp = Callable[[], Celery]


@pytest.fixture(params=["embedded", "rabbitmq"])
def contract_url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "rabbitmq":
        yield request.getfixturevalue("broker_url")
        return
    register()
    name = f"contract-{uuid4().hex}"
    yield f"embedded://{name}"
    close_broker(name)


class Gate:
    """Holds tasks up until the test opens it."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def app(contract_url: str, gate: Gate) -> Iterator[Celery]:
    app = Celery(f"shop-{uuid4().hex}", broker=contract_url, backend="cache+memory://", set_as_current=False)
    app.conf.update(
        task_default_queue=f"contract.{uuid4().hex}",
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )

    @app.task(name="shop.whose", shared=False)
    def whose() -> str:
        return str(current_app.main)

    @app.task(name="shop.wait", shared=False)
    def wait() -> str:
        gate.entered.release()
        assert gate.open.wait(10)
        return "done"

    yield app
    with app.connection_for_write() as connection:
        connection.channel().queue_delete(app.conf.task_default_queue)
    app.close()


def send(app: Celery, task: str, **options: Any) -> AsyncResult:
    return app.tasks[task].apply_async(**options)


def waiting(app: Celery) -> int:
    with app.connection_for_write() as connection:
        declared = connection.channel().queue_declare(app.conf.task_default_queue, passive=True)
        return int(declared.message_count)


def eventually(holds: Callable[[], bool], *, within: float = 5.0) -> None:
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, "did not come to hold"
        time.sleep(0.005)


def test_tasks_run_on_their_own_app_and_their_results_can_be_waited_for(app: Celery) -> None:
    with EmbeddedWorker(app, concurrency=2) as worker:
        assert worker.is_alive
        assert send(app, "shop.whose").get(timeout=10) == app.main
    assert not worker.is_alive


def test_as_many_tasks_run_at_once_as_there_are_slots(app: Celery, gate: Gate) -> None:
    with EmbeddedWorker(app, concurrency=2):
        results = [send(app, "shop.wait") for _ in range(4)]
        assert gate.entered.acquire(timeout=5)
        assert gate.entered.acquire(timeout=5)
        assert not gate.entered.acquire(timeout=0.1)
        gate.open.set()
        assert [result.get(timeout=10) for result in results] == ["done"] * 4


def test_an_idle_worker_stops_at_once(app: Celery) -> None:
    worker = EmbeddedWorker(app, concurrency=2)
    worker.start()
    begun = time.monotonic()
    assert worker.stop()
    assert time.monotonic() - begun < 0.5  # some milliseconds; Celery's own waits are a second and more
    assert worker.stop()


def test_stopping_waits_for_running_tasks_and_gives_back_the_others(app: Celery, gate: Gate) -> None:
    worker = EmbeddedWorker(app, concurrency=1)
    worker.start()
    running = send(app, "shop.wait")
    assert gate.entered.acquire(timeout=5)
    for _ in range(3):
        send(app, "shop.whose")
    assert not worker.stop(timeout=0.1)
    gate.open.set()
    assert worker.stop()
    assert running.get(timeout=5) == "done"
    eventually(lambda: waiting(app) == 3)
    with EmbeddedWorker(app, concurrency=1):
        eventually(lambda: waiting(app) == 0)


def test_remote_control_reaches_it(app: Celery, gate: Gate) -> None:
    with EmbeddedWorker(app, concurrency=1, hostname=f"one-{uuid4().hex}@here") as worker:
        assert app.control.ping(destination=[worker.hostname], timeout=2) == [
            {worker.hostname: {"ok": "pong"}}
        ]
        busy = send(app, "shop.wait")
        assert gate.entered.acquire(timeout=5)
        revoked = send(app, "shop.wait")
        app.control.revoke(revoked.id, reply=True, destination=[worker.hostname], timeout=2)
        gate.open.set()
        assert busy.get(timeout=5) == "done"
        eventually(lambda: revoked.state == "REVOKED")
        assert not gate.entered.acquire(blocking=False)


def test_its_events_can_be_read(app: Celery) -> None:
    seen: list[str] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": lambda event: seen.append(event["type"])})
        with (
            receiver.consumer_context() as (reading, _, _),  # a connection of its own
            EmbeddedWorker(app, concurrency=1, task_events=True),
        ):
            send(app, "shop.whose").get(timeout=10)
            while "task-succeeded" not in seen:
                reading.drain_events(timeout=5)
    assert [kind for kind in seen if kind.startswith("task-")] == [
        "task-received",
        "task-started",
        "task-succeeded",
    ]


def test_of_several_workers_one_stops_alone(app: Celery) -> None:
    first, second = EmbeddedWorker(app, concurrency=1), EmbeddedWorker(app, concurrency=1)
    first.start()
    second.start()
    try:
        answers = app.control.ping(destination=[first.hostname, second.hostname], timeout=2)
        assert {name for answer in answers for name in answer} == {first.hostname, second.hostname}
        assert first.stop()
        assert second.is_alive
        assert send(app, "shop.whose").get(timeout=10) == app.main
    finally:
        assert second.stop()


def test_what_the_process_has_one_of_is_left_as_it_was(app: Celery) -> None:
    lock, loop, timeout = app.clock.mutex, get_event_loop(), socket.getdefaulttimeout()
    with EmbeddedWorker(app, concurrency=1):
        pass
    assert app.clock.mutex is lock
    assert get_event_loop() is loop
    assert socket.getdefaulttimeout() == timeout


def test_it_is_started_once(app: Celery) -> None:
    with EmbeddedWorker(app, concurrency=1) as worker, pytest.raises(RuntimeError, match="started before"):
        worker.start()


def test_a_worker_without_its_broker_tells_so_and_stops(free_port: int) -> None:
    app = Celery("alone", broker=f"amqp://localhost:{free_port}//", set_as_current=False)
    app.conf.broker_connection_retry_on_startup = True
    worker = EmbeddedWorker(app, concurrency=1)
    with pytest.raises(RuntimeError, match="does not consume"):
        worker.start(timeout=0.2)
    eventually(lambda: not worker.is_alive)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
