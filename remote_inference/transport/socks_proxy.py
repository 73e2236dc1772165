"""Connections through a SOCKS proxy, for which the extra ``remote-inference[socks]`` installs PySocks."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import unquote, urlsplit

from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, ProxyError
from urllib3.poolmanager import PoolManager
from urllib3.util.connection import allowed_gai_family

from .connection import SOCKET_OPTIONS, Connection, FreshFirst

__all__ = ["EXTRA", "SocksMissing", "is_socks", "socks_manager"]

EXTRA = "remote-inference[socks]"


class SocksMissing(ImportError):
    """PySocks is not installed."""


_VERSIONS = {
    "socks5": (5, False),
    "socks5h": (5, True),
    "socks4": (4, False),
    "socks4a": (4, True),
    "socks": (5, True),
}


def is_socks(proxy: str) -> bool:
    """Whether a proxy's URL names a SOCKS proxy."""
    return urlsplit(proxy).scheme.lower() in _VERSIONS


def socks_manager(proxy: str, **pool_options: Any) -> PoolManager:
    """A manager of connections through the proxy. ``socks5h`` and ``socks4a`` leave the names to the proxy.

    Raises:
        SocksMissing: see there.
        ValueError: the URL is none.
    """
    try:
        import socks
    except ImportError as exc:
        raise SocksMissing(f"SOCKS proxies need the extra {EXTRA}: pip install '{EXTRA}'") from exc
    parts = urlsplit(proxy)
    version, remote_names = _VERSIONS[parts.scheme.lower()]
    if not parts.hostname:
        raise ValueError("not the URL of a proxy")
    options = {
        "socks_version": socks.PROXY_TYPE_SOCKS5 if version == 5 else socks.PROXY_TYPE_SOCKS4,
        "proxy_host": parts.hostname,
        "proxy_port": parts.port or 1080,
        "username": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
        "rdns": remote_names,
    }
    manager = PoolManager(_socks_options=options, **pool_options)
    manager.pool_classes_by_scheme = {"http": _SocksPool, "https": _SocksTLSPool}
    return manager


class _SocksConnection(Connection):
    """A connection whose socket leads through the proxy."""

    def __init__(self, _socks_options: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self._socks_options = _socks_options
        super().__init__(*args, **kwargs)

    def _new_conn(self) -> socket.socket:
        import socks

        call, options = self.serve(), self._socks_options
        failure: Exception = OSError("no address")
        try:
            found = socket.getaddrinfo(
                options["proxy_host"], options["proxy_port"], allowed_gai_family(), socket.SOCK_STREAM
            )
        except OSError as exc:
            raise ProxyError("the proxy is not known", exc) from exc
        for family, kind, protocol, _, address in found:
            sock = socks.socksocket(family, kind, protocol)
            try:
                for option in SOCKET_OPTIONS:
                    sock.setsockopt(*option)
                sock.set_proxy(
                    options["socks_version"],
                    address[0],
                    address[1],
                    rdns=options["rdns"],
                    username=options["username"],
                    password=options["password"],
                )
                call.dialling(sock)
                sock.settimeout(call.remaining())
                sock.connect((self._dns_host.strip("[]"), self.port))
                sock.settimeout(call.remaining())
            except OSError as exc:
                failure = exc
                call.close(sock)
            else:
                return sock  # type: ignore[no-any-return]  # a socket of PySocks is one
        if isinstance(failure, TimeoutError) or isinstance(
            getattr(failure, "socket_err", None), TimeoutError
        ):
            raise ConnectTimeoutError(self, "connecting took too long") from failure
        raise ProxyError("the proxy does not connect", failure) from failure


class _SocksTLSConnection(_SocksConnection, HTTPSConnection):
    pass


class _SocksPool(FreshFirst, HTTPConnectionPool):
    ConnectionCls = _SocksConnection


class _SocksTLSPool(FreshFirst, HTTPSConnectionPool):
    ConnectionCls = _SocksTLSConnection
