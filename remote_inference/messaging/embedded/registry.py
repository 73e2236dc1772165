"""Which broker a URL means: the process's one table of named brokers, and the transport's name for kombu."""

from __future__ import annotations

import threading

from kombu.transport import TRANSPORT_ALIASES

from remote_inference.messaging.embedded.broker import Broker

SCHEME = "embedded"
DEFAULT_NAME = "default"

_lock = threading.Lock()
_brokers: dict[str, Broker] = {}


def register() -> None:
    """Make ``embedded://<name>`` a broker URL for kombu and Celery. A second time does nothing.

    kombu finds transports by URL scheme in a table of its own and takes no class path in a URL, so this is
    the one change to foreign state that cannot be avoided. It is made on request, not by an import.
    """
    TRANSPORT_ALIASES[SCHEME] = "remote_inference.messaging.embedded.transport:Transport"


def broker_named(name: str = DEFAULT_NAME) -> Broker:
    """The broker that ``embedded://<name>`` connects to, made on first use.

    It stays, with all that its queues hold, when its last connection closes: a producer may be gone before
    the worker comes. `close_broker` ends it. URLs do not tell upper case from lower, so neither do names.
    """
    with _lock:
        return _brokers.setdefault(name.lower(), Broker(name.lower()))


def close_broker(name: str = DEFAULT_NAME) -> None:
    """End a broker: its messages are dropped, its connections fail. The name's next use makes another."""
    with _lock:
        broker = _brokers.pop(name.lower(), None)
    if broker is not None:
        broker.close()
