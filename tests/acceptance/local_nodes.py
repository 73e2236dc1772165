"""pytest-celery's nodes on local processes: real workers and servers that can be killed, without Docker.

pytest-celery's containers and nodes expect a container of the Docker SDK. `LocalProcess` is as much of one as
they use; the classes here replace only what asks Docker about a container's inside.
"""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from local_process import EXIT_LIMIT, START_LIMIT, LocalProcess, free_port, wait_until
from pytest_celery import (
    CeleryTestContainer,
    CeleryTestWorker,
    CeleryWorkerContainer,
    RabbitMQContainer,
    RabbitMQTestBroker,
    RedisContainer,
    RedisTestBackend,
)

ACCEPTANCE = Path(__file__).parent
REPOSITORY = ACCEPTANCE.parents[1]


class NotInstalled(Exception):
    """A server's program is not on this machine."""


class LocalContainer(CeleryTestContainer):
    """A pytest-celery container around a `LocalProcess`, which it asks where Docker's looks inside."""

    _container: LocalProcess

    @property
    def process(self) -> LocalProcess:
        """The process itself."""
        return self._container

    def get_addr(self, port: str) -> tuple[str, int]:
        return "127.0.0.1", self.ports[port][0]

    def get_open_tcp_ports(self) -> list[str]:
        return self._container.open_ports()

    def logs(self) -> str:
        return self._container.logs().decode(errors="replace")

    def ready(self) -> bool:
        """Whether it has said that it is, and listens; raises where it has ended instead. Does not wait."""
        self._container.reload()
        if self._container.status == "exited":
            raise RuntimeError(f"{self.name} ended instead of getting ready:\n{self.logs()[-4000:]}")
        listens = set(self._container.open_ports()) == {name.partition("/")[0] for name in self.ports}
        return listens and (self.ready_prompt or "") in self.logs()

    def restart(self, timeout: float = EXIT_LIMIT) -> None:
        self._container.restart(timeout)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        wait_until(self.ready, f"{self.name} to get ready")


class LocalWorkerContainer(LocalContainer, CeleryWorkerContainer):
    """A `celery worker` process."""


class LocalRabbitMQContainer(LocalContainer, RabbitMQContainer):
    """A RabbitMQ server of one's own."""


class LocalRedisContainer(LocalContainer, RedisContainer):
    """A Redis server of one's own."""


class WorkerNode(CeleryTestWorker):
    """A worker that can be killed and started again; what it logs can be waited for.

    `kill(signal)`, `restart()` and `hostname()` are pytest-celery's. A restart waits until the worker is
    ready; both it and a wait for a log line look at the new run's log only.
    """

    container: LocalWorkerContainer

    def __repr__(self) -> str:
        return f"<WorkerNode {self.hostname()} {self.container.status}>"

    @property
    def pid(self) -> int:
        """The worker's main process, that of the newest run."""
        return self.container.process.process.pid

    @property
    def log(self) -> str:
        """What the worker has logged, in all runs."""
        return self.container.process.whole_log

    def wait_for_log(self, log: str, message: str = "", timeout: float = START_LIMIT) -> None:
        """Wait for a piece of text in the log.

        Raises:
            TimeoutError: It did not show within `timeout` seconds.
        """
        wait_until(lambda: log in self.logs(), message or f"{self.hostname()} to log {log!r}", timeout)

    def wait_for_exit(self, timeout: float = EXIT_LIMIT) -> int:
        """Wait for the worker to end, after a warm shutdown say, and return its exit status.

        Raises:
            subprocess.TimeoutExpired: It still runs after `timeout` seconds.
        """
        return self.container.process.wait(timeout)["StatusCode"]


def worker(
    directory: Path,
    app: str,
    arguments: Sequence[str],
    *,
    pool: str,
    environment: Mapping[str, str],
) -> WorkerNode:
    """Start `celery -A app worker`; it boots while the caller goes on (`LocalContainer.wait_until_ready`).

    Args:
        directory: Where its log goes.
        app: A module that can be imported from `tests/acceptance`, `apps.echo` say.
        arguments: More arguments for the worker.
        pool: Celery's name of the pool: `threads`, `gevent`, `prefork` or `solo`.
        environment: The broker's and the result backend's URL, and what else the app reads.
    """
    identity = uuid.uuid4().hex
    name = f"{LocalWorkerContainer.worker_name()}@{identity[:12]}"
    process = LocalProcess(
        "worker",
        [
            sys.executable,
            "-m",
            "celery",
            "-A",
            app,
            "worker",
            "-l",
            "INFO",
            "-n",
            name,
            "-P",
            pool,
            *arguments,
        ],
        directory,
        cwd=ACCEPTANCE,
        environment={"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(REPOSITORY), **environment},
        identity=identity,
    )
    process.start()
    return WorkerNode(LocalWorkerContainer(process), None)


def rabbitmq_server(directory: Path) -> RabbitMQTestBroker:
    """Start a RabbitMQ server that a test may stop: takes some six seconds; keeps its data over a restart.

    Raises:
        NotInstalled: RabbitMQ's server is not on this machine (in a container beside it, perhaps).
    """
    # Not Debian's wrapper in /usr/sbin, which insists on the system's own data directory.
    candidates = (
        os.environ.get("RABBITMQ_SERVER"),
        "/usr/lib/rabbitmq/bin/rabbitmq-server",
        "rabbitmq-server",
    )
    program = next((found for path in candidates if path and (found := shutil.which(path))), None)
    if program is None:
        raise NotInstalled(
            "a test that stops the broker needs rabbitmq-server installed here: run `make services` as root"
        )
    home = directory / f"rabbitmq-{uuid.uuid4().hex[:8]}"
    home.mkdir()
    port = free_port()
    settings = {
        "NODENAME": f"{home.name}@localhost",
        "NODE_IP_ADDRESS": "127.0.0.1",
        "NODE_PORT": str(port),
        "DIST_PORT": str(free_port()),
        "SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "MNESIA_BASE": str(home),
        "LOG_BASE": str(home),
        "LOGS": "-",
        "PID_FILE": str(home / "pid"),
        # None of the machine's own configuration.
        "CONF_ENV_FILE": os.devnull,
        "CONFIG_FILE": str(home / "none"),
        "ENABLED_PLUGINS_FILE": str(home / "plugins"),
    }
    process = LocalProcess(
        "rabbitmq",
        [program],
        directory,
        environment={f"RABBITMQ_{name}": value for name, value in settings.items()}
        | {"HOME": str(home), "ERL_EPMD_ADDRESS": "127.0.0.1"},
        ports={"5672/tcp": port},
    )
    process.start()
    container = LocalRabbitMQContainer(process)
    container.wait_until_ready()
    return RabbitMQTestBroker(container)


def redis_server(directory: Path) -> RedisTestBackend:
    """Start a Redis server that a test may stop; it forgets everything then.

    Raises:
        NotInstalled: Redis's server is not on this machine.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise NotInstalled(
            "a test that stops Redis needs redis-server installed here: run `make services` as root"
        )
    port = free_port()
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(directory)]
    process = LocalProcess("redis", command, directory, ports={"6379/tcp": port})
    process.start()
    container = LocalRedisContainer(process)
    container.wait_until_ready()
    return RedisTestBackend(container)
