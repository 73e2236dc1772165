"""The scriptable provider as a process of its own, which ends with the process that started it."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import urllib.request
from typing import Any

__all__ = ["ProviderProcess"]


class ProviderProcess:
    """`python -m remote_inference.testing.server` with some arguments, in a `with`.

    Args:
        *arguments: As on the command line, for instance `"--tokens", "100", "--rate", "50"`.
    """

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def __repr__(self) -> str:
        return f"<ProviderProcess {self.url or 'stopped'}>"

    @property
    def pid(self) -> int:
        """Of the running process.

        Raises:
            RuntimeError: It is not running.
        """
        if self._process is None:
            raise RuntimeError("the provider process is not running")
        return self._process.pid

    @property
    def stats(self) -> dict[str, Any]:
        """Its counters."""
        stats: dict[str, Any] = self._control("stats")
        return stats

    def arrivals(self) -> dict[str, list[Any]]:
        """The columns of its `Arrivals` (with `--arrivals`)."""
        columns: dict[str, list[Any]] = self._control("arrivals")
        return columns

    def refuse_next(self, retry_after: float) -> None:
        """Have it answer the next request with 429 and that `Retry-After`."""
        self._control("refuse", {"retry_after": retry_after})

    def _control(self, command: str, body: Any = None) -> Any:
        url = f"{self.url.removesuffix('/v1')}/_control/{command}"
        context = None
        if url.startswith("https:"):  # our own child on loopback, asked for numbers: nothing to verify
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        data = None if body is None else json.dumps(body).encode()
        with opener.open(url, data, timeout=10) as response:
            return json.load(response)

    def start(self) -> ProviderProcess:
        """Start it and wait for its URL.

        Raises:
            RuntimeError: It ended without one; its own message is on standard error.
        """
        command = [sys.executable, "-m", "remote_inference.testing.server", "--until-eof", *self._arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        self.url = process.stdout.readline().strip()
        self._process = process
        if not self.url:
            self.stop()
            raise RuntimeError("the provider process did not start")
        return self

    def stop(self) -> None:
        """End it and wait for its end."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        self.url = ""

    def __enter__(self) -> ProviderProcess:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
