"""Virtual hosts on a running RabbitMQ: a test session, or a test that leaves work behind, has its own.

The management API does it in milliseconds; without that plugin `rabbitmqctl` does, which takes seconds.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator

DEFAULT_URL = "amqp://guest:guest@localhost:5672//"
MANAGEMENT_PORT = 15672


class RabbitMQUnavailable(Exception):
    """There is no RabbitMQ, or none on which virtual hosts can be made; the message says what to do."""


class RabbitMQAdmin:
    """Makes and deletes virtual hosts on the server at `url`.

    Args:
        url: An AMQP URL whose user may administer the server.

    Raises:
        RabbitMQUnavailable: Nothing answers there, or neither the management API nor rabbitmqctl can be used.
    """

    def __init__(self, url: str | None = None) -> None:
        parts = urllib.parse.urlsplit(url or os.environ.get("RABBITMQ_URL", DEFAULT_URL))
        self.host = parts.hostname or "localhost"
        self.port = parts.port or 5672
        self.user = urllib.parse.unquote(parts.username or "guest")
        self._password = urllib.parse.unquote(parts.password or "guest")
        self._check_that_it_listens()
        self._has_api = self._api("GET", "overview", missing_ok=True)
        self._rabbitmqctl = os.environ.get("RABBITMQCTL", "rabbitmqctl").split()
        if not self._has_api and shutil.which(self._rabbitmqctl[0]) is None:
            raise RabbitMQUnavailable(
                "RabbitMQ's management API does not answer, and rabbitmqctl is not installed"
            )

    @property
    def netloc(self) -> str:
        """`user:password@host:port`, as it stands in an AMQP URL."""
        user, password = (urllib.parse.quote(part, safe="") for part in (self.user, self._password))
        return f"{user}:{password}@{self.host}:{self.port}"

    def url(self, vhost: str) -> str:
        """The AMQP URL of a virtual host."""
        return f"amqp://{self.netloc}/{urllib.parse.quote(vhost, safe='')}"

    def add_vhost(self, vhost: str) -> None:
        """Make a virtual host in which our user may do everything."""
        if self._has_api:
            self._api("PUT", f"vhosts/{vhost}", {})
            everything = {"configure": ".*", "write": ".*", "read": ".*"}
            self._api("PUT", f"permissions/{vhost}/{urllib.parse.quote(self.user, safe='')}", everything)
        else:
            self._ctl("add_vhost", vhost)
            self._ctl("set_permissions", "-p", vhost, self.user, ".*", ".*", ".*")

    def delete_vhost(self, vhost: str) -> None:
        """Delete a virtual host with its queues; connections to it are closed."""
        if self._has_api:
            self._api("DELETE", f"vhosts/{vhost}")
        else:
            self._ctl("delete_vhost", vhost)

    @contextlib.contextmanager
    def temporary_vhost(self, prefix: str = "ri-test") -> Iterator[str]:
        """A virtual host with a name of its own, which is deleted afterwards."""
        vhost = f"{prefix}-{uuid.uuid4().hex[:12]}"
        self.add_vhost(vhost)
        try:
            yield vhost
        finally:
            self.delete_vhost(vhost)

    def queues(self, vhost: str) -> list[str]:
        """The names of a virtual host's queues; those of exclusive ones too, which nobody else can declare."""
        command = [*self._rabbitmqctl, "-q", "list_queues", "-p", vhost, "--no-table-headers", "name"]
        listed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return listed.stdout.split()

    def _check_that_it_listens(self) -> None:
        try:
            socket.create_connection((self.host, self.port), timeout=5).close()
        except OSError as exc:
            message = f"no RabbitMQ at {self.host}:{self.port} ({exc}): run `make services`"
            raise RabbitMQUnavailable(message) from exc

    def _api(self, method: str, path: str, body: object = None, *, missing_ok: bool = False) -> bool:
        request = urllib.request.Request(
            f"http://{self.host}:{MANAGEMENT_PORT}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        token = base64.b64encode(f"{self.user}:{self._password}".encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
        try:
            urllib.request.urlopen(request, timeout=20).close()
        except (urllib.error.URLError, OSError):
            if not missing_ok:
                raise
            return False
        return True

    def _ctl(self, *args: str) -> None:
        subprocess.run([*self._rabbitmqctl, "-q", *args], check=True, stdout=subprocess.DEVNULL, timeout=60)
