"""A process in the place of a Docker container, and how to wait for what it does.

As with Docker, SIGKILL takes every process along, and any other signal reaches the main process alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

START_LIMIT = 60.0  # seconds a node may take until it is ready; two cores under load are slow
EXIT_LIMIT = 20.0
INHERITED_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "COVERAGE_PROCESS_START")

LOCAL_PORTS = 32_768
"""Where the kernel begins to give ports to outgoing connections, if it does not say."""
_random = random.SystemRandom()  # several test processes look for ports at once

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_prctl: Callable[..., int] | None = getattr(ctypes.CDLL(None), "prctl", None)  # Linux only


def wait_until(condition: Callable[[], bool], what: str, limit: float = START_LIMIT) -> None:
    """Wait for a condition to become true.

    Args:
        condition: Asked twenty times a second.
        what: Names the condition in the error.
        limit: Seconds.

    Raises:
        TimeoutError: It did not become true in time.
    """
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {limit:g} s")
        time.sleep(0.05)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on.

    Below those that the kernel gives to outgoing connections. Who tries to reach a server that is down may else be
    given its very port, and is then connected with itself: the server finds its port in use when it comes back.
    """
    try:
        given_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        given_from = LOCAL_PORTS
    while True:
        port = _random.randrange(given_from - min(10_000, given_from // 2), given_from)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _die_with_parent() -> None:
    """In the child: be killed when our starter's thread ends (a pytest that was killed runs no teardown)."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class LocalProcess:
    """A process in the place of a Docker container.

    Start it in the main thread: it is killed when the thread that started it ends.

    Args:
        kind: Begins the name.
        command: Program and arguments.
        directory: Where the log goes.
        cwd: Working directory, `directory` unless given.
        environment: All that the process sees, but for a few variables that every program needs.
        ports: Where what a container would publish as, say, `5672/tcp` listens here.
        identity: Docker's container id: hexadecimal; the first twelve digits are its host name.
    """

    def __init__(
        self,
        kind: str,
        command: Sequence[str],
        directory: Path,
        *,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        ports: Mapping[str, int] | None = None,
        identity: str | None = None,
    ) -> None:
        self.id = identity or uuid.uuid4().hex
        self.name = f"{kind}-{self.id[:12]}"
        self.status = "created"
        self.command = list(command)
        self._cwd = cwd or directory
        self._environment = dict(environment or {})
        self._ports = dict(ports or {})
        self._log = directory / f"{self.name}.log"
        self._log_start = 0  # where the current run's part of the log begins
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<LocalProcess {self.name} {self.status}>"

    @property
    def attrs(self) -> dict[str, Any]:
        """What `docker inspect` would tell, as far as it is asked for."""
        address = ":".join(["127.0.0.1", *map(str, self._ports.values())])
        return {
            "Config": {
                "Hostname": address,
                "Env": [f"{name}={value}" for name, value in self._environment.items()],
                "Labels": {},
            },
            "NetworkSettings": {
                "Networks": {},
                "Ports": {name: [{"HostPort": str(port)}] for name, port in self._ports.items()},
            },
            "HostConfig": {"PortBindings": {}},
        }

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The main process of the current, or the last, run."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process

    @property
    def whole_log(self) -> str:
        """What all runs have written."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        """Start it in a process group of its own: ^C is pytest's alone, and a kill takes the pool along."""
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        inherited = {name: os.environ[name] for name in INHERITED_ENVIRONMENT if name in os.environ}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self._cwd,
                env=inherited | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self.status = "running"

    def reload(self) -> None:
        """Look whether it still runs: as in Docker, `status` is a snapshot."""
        if self._process is not None:
            self.status = "running" if self._process.poll() is None else "exited"

    def logs(self, **_options: Any) -> bytes:
        """What the current run has written.

        Docker's log goes on over a restart: there, a wait for a line of the new run finds the old run's.
        """
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read()

    def open_ports(self) -> list[str]:
        """The container's ports that are listened on."""
        return [name.partition("/")[0] for name, port in self._ports.items() if _listens(port)]

    def kill(self, sig: str | int | None = None) -> None:
        """Signal the main process; SIGKILL (the default) goes to all of the node, and is waited for."""
        number = _signal_number(sig)
        if number != signal.SIGKILL:
            self.process.send_signal(number)
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        self.process.wait(EXIT_LIMIT)

    def wait(self, timeout: float | None = None, **_options: Any) -> dict[str, int]:
        """Wait for the end of the main process, and tell its exit status as Docker does."""
        return {"StatusCode": self.process.wait(timeout)}

    def restart(self, timeout: float = EXIT_LIMIT) -> None:
        """Stop it with SIGTERM (after `timeout` seconds with SIGKILL), if it runs, and start it anew."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)
        self.kill()
        self.start()

    def remove(self, **_options: Any) -> None:
        """Kill it, if it was ever started."""
        if self._process is not None:
            self.kill()
            self.reload()


def _signal_number(value: str | int | None) -> signal.Signals:
    if value is None:
        return signal.SIGKILL
    return signal.Signals(value) if isinstance(value, int) else signal.Signals[value]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
