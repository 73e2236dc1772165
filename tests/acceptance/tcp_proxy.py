"""A TCP proxy in a process of its own: killed, its connections are lost; stopped, nothing moves and nobody is told."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from local_process import LocalProcess, free_port, wait_until


class TCPProxy:
    """Between a client and `host:port`; listens on a port of its own that stays the same."""

    def __init__(self, directory: Path, host: str, port: int) -> None:
        self.port = free_port()
        self._process = LocalProcess(
            "proxy",
            [sys.executable, __file__, str(self.port), host, str(port)],
            directory,
            environment={"PYTHONPATH": str(Path(__file__).parent)},
            ports={"listens/tcp": self.port},
        )

    def start(self) -> None:
        """Listen, and hand on."""
        self._process.start()
        wait_until(lambda: bool(self._process.open_ports()), "the proxy to listen")

    def drop(self) -> None:
        """Lose all connections, and refuse new ones until `start`."""
        self._process.remove()

    def freeze(self) -> None:
        """Hand on nothing more; connections stay open on both sides."""
        self._process.kill("SIGSTOP")

    def thaw(self) -> None:
        """Go on, with what was sent meanwhile."""
        self._process.kill("SIGCONT")


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _serve(port: int, host: str, target: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(host, target)
        await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
