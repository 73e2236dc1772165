"""Which transport an endpoint wants: HTTP, or none."""

from __future__ import annotations

from ..clock import Clock
from ..config import Deployment
from .base import Client
from .http import HttpClient
from .loopback import LoopbackClient

__all__ = ["Clients", "http_client_for"]


class Clients:
    """Makes the client of a deployment. One a process: the loopback's scripts are counted over its sessions.

    Args:
        clock: of the timeouts.
        max_connections: as many as the worker has slots.
    """

    def __init__(self, *, clock: Clock, max_connections: int = 32) -> None:
        self._clock = clock
        self._max_connections = max_connections
        self._loopback = LoopbackClient(clock=clock)

    def __call__(self, deployment: Deployment) -> Client:
        """A new client, as the deployment's configuration says."""
        if deployment.endpoint.startswith("loopback://"):
            return self._loopback
        return http_client_for(deployment, clock=self._clock, max_connections=self._max_connections)

    def __repr__(self) -> str:
        return f"Clients({self._loopback!r})"


def http_client_for(deployment: Deployment, *, clock: Clock, max_connections: int = 32) -> HttpClient:
    """The client for a deployment with an endpoint on a network, as its configuration says.

    Args:
        deployment: names the timeouts, the certificates and the headers.
        clock: of the timeouts.
        max_connections: as many as the worker has slots.
    """
    return HttpClient(
        timeouts=deployment.timeouts,
        ca_file=deployment.ca_file,
        headers=deployment.headers,
        max_connections=max_connections,
        clock=clock,
    )
