"""JSON over HTTP: one request, its answer as it arrives, and every failure as one of our errors.

A request is prepared once for each URL and sent through an ``HTTPAdapter``, which costs a third less than
``Session.post``; there are no cookies, no netrc, no redirects and no retries of the library's own.
"""

from __future__ import annotations

import errno
import http.client
import os
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.models import PreparedRequest, Response
from requests.utils import DEFAULT_CA_BUNDLE_PATH, should_bypass_proxies
from urllib3.poolmanager import PoolManager, ProxyManager
from urllib3.util.ssl_ import create_urllib3_context

from ..cancel import CancelToken
from ..clock import Clock
from ..config import Timeouts
from ..errors import BadRequest, InvalidResponse, NetworkError, RequestError
from .call import Call
from .connection import CURRENT, POOL_CLASSES
from .response import HttpResponse
from .socks_proxy import EXTRA, SocksMissing, is_socks, socks_manager

__all__ = ["HttpClient", "HttpResponse", "map_failure"]


class HttpClient:
    """Sends JSON over connections that it keeps. Safe to use from threads and greenlets; not across a fork.

    Args:
        timeouts: for every call.
        ca_file: certificates to trust, a PEM file or a directory of them; None: what the environment names
            (``REQUESTS_CA_BUNDLE``, ``CURL_CA_BUNDLE``, ``SSL_CERT_FILE``, ``SSL_CERT_DIR``), else the bundled ones.
        headers: sent with every request, below those of the call.
        max_connections: kept open; more calls than that open connections that are closed after use.
        clock: of the timeouts.
        proxies: proxy URLs by scheme; None: from the environment (``HTTPS_PROXY``, ``NO_PROXY`` …), read
            once, here. One without a scheme is an HTTP proxy; ``socks5://`` and its relatives need the extra
            ``remote-inference[socks]``. A loopback address never goes through a proxy of the environment.
    """

    def __init__(
        self,
        *,
        timeouts: Timeouts,
        ca_file: str | None = None,
        headers: Mapping[str, str] | None = None,
        max_connections: int = 32,
        clock: Clock,
        proxies: Mapping[str, str] | None = None,
    ) -> None:
        self._timeouts = timeouts
        given = {} if headers is None else dict(headers)
        agent = (
            {} if any(name.lower() == "user-agent" for name in given) else {"User-Agent": "remote-inference"}
        )
        self._headers = {**agent, "Accept-Encoding": "identity", **given}
        self._clock = clock
        self._from_environment = proxies is None
        self._proxies = getproxies_environment() if proxies is None else dict(proxies)
        self._adapter = _Adapter(ca_file, max(1, max_connections))
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False

    def send(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "POST",
        token: CancelToken,
        deadline: float | None = None,
        stream: bool = True,
        repeatable: bool = True,
    ) -> HttpResponse:
        """Send the body; returns when the answer's status and headers are here. Close what comes back.

        A connection that the server closed while it lay idle is replaced once, where nothing of an answer had
        come.

        Args:
            url: http or https, with no credential in it.
            body: JSON, encoded; empty: none is sent.
            headers: of this call.
            method: of HTTP.
            token: cuts the connection, in any state.
            deadline: on the clock's `monotonic`, over everything.
            stream: the answer is a stream of events; otherwise its first byte comes with its end, and waits
                for the deadline (without one: `call.UNSTREAMED_LIMIT`).
            repeatable: whether the request may go out again when it is unclear if the server had taken it.

        Raises:
            RequestError: what `map_failure` makes of it; `Cancelled`; `DeadlineExceeded`; `BadRequest` with
                the code ``redirect``, ``invalid_url``, ``invalid_header``, ``invalid_proxy``, ``socks_not_installed``
                or ``ca_file``.
        """
        token.check()
        with ExitStack() as on_failure:
            with self._lock:
                self._users += 1
            on_failure.callback(self._done)
            request = self._prepare(method, url, body, headers)
            call = Call(self._timeouts, self._clock, token, deadline, stream=stream)
            on_failure.enter_context(token.interrupting(call.cut))
            raw = self._send(request, call, token, repeatable)
            response = HttpResponse(
                raw,
                call,
                token,
                on_failure.pop_all(),
                partial(self._failure, call, token),
                stream=stream,
            )
        if 300 <= response.status < 400:
            status = response.status
            response.close()
            # Followed, it would take the credential along.
            raise BadRequest("redirect", status=status)
        return response

    def _prepare(
        self, method: str, url: str, body: bytes, headers: Mapping[str, str] | None
    ) -> PreparedRequest:
        kind = {"Content-Type": "application/json"} if body else {}
        merged = {**self._headers, **kind, **(headers or {})}
        for name, value in merged.items():
            # http.client would quote the value, a credential maybe, in its error.
            if not (value.isascii() and value.isprintable()):
                raise BadRequest("invalid_header", param=name)
        if body or method == "POST":
            merged["Content-Length"] = str(len(body))
        if not self._adapter.knows(url):
            self._adapter.learn(url, self._proxy_for(url))
        request = PreparedRequest()
        request.method, request.url, request.body = method, url, body or None
        request.headers = merged  # type: ignore[assignment]  # a plain dict will do, and costs less
        return request

    def _proxy_for(self, url: str) -> str | None:
        try:
            parts = urlsplit(url)
            host, scheme = parts.hostname or "", parts.scheme.lower()
            bad = scheme not in ("http", "https") or not host or parts.port == 0
        except ValueError:
            bad = True
        if bad:
            raise BadRequest("invalid_url")
        proxy = self._proxies.get(scheme) or self._proxies.get("all")
        if proxy and self._from_environment and (_is_loopback(host) or should_bypass_proxies(url, None)):
            return None
        return _proxy_url(proxy) if proxy and proxy.strip() else None

    def _send(
        self, request: PreparedRequest, call: Call, token: CancelToken, repeatable: bool
    ) -> urllib3.HTTPResponse:
        mine = CURRENT.set(call)
        try:
            try:
                return self._adapter.send_call(request)
            except (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError, ValueError) as exc:
                failure = self._failure(call, token, exc)
                stale = not call.fresh and not call.received and failure.code == "reset"
                if not (stale and repeatable):
                    raise failure from exc
            call.again()
            try:
                return self._adapter.send_call(request)
            except (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError, ValueError) as exc:
                raise self._failure(call, token, exc) from exc
        finally:
            CURRENT.reset(mine)

    @staticmethod
    def _failure(call: Call, token: CancelToken, exc: Exception) -> RequestError:
        token.check()  # a cut looks like any other failure
        return map_failure(exc, call)

    def _done(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._retired and not self._users
        if last:
            self._adapter.close()

    def retire(self) -> None:
        """Close the connections, those in use with the end of the last call."""
        with self._lock:
            self._retired = True
            idle = not self._users
        if idle:
            self._adapter.close()

    def __repr__(self) -> str:
        state = ", retired" if self._retired else ""
        return f"<HttpClient {self._users} in use{state}>"


class _Adapter(HTTPAdapter):
    """An adapter that resolves each URL once, and hands out what came from the socket."""

    def __init__(self, ca_file: str | None, max_connections: int) -> None:
        self._ca_file = ca_file
        self._context: ssl.SSLContext | None = None
        self._targets: dict[str, tuple[Any, str]] = {}
        self._learning = threading.Lock()
        self._socks: dict[str, PoolManager] = {}
        self._max_connections = max_connections
        super().__init__(pool_connections=8, pool_maxsize=max_connections, max_retries=0, pool_block=False)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = POOL_CLASSES

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> ProxyManager:
        manager = cast(ProxyManager, super().proxy_manager_for(proxy, **kwargs))
        manager.pool_classes_by_scheme = POOL_CLASSES
        return manager

    def _manager_for(self, proxy: str | None) -> PoolManager:
        if proxy is None:
            return cast(PoolManager, self.poolmanager)
        try:
            if not is_socks(proxy):
                return self.proxy_manager_for(proxy)
            manager = self._socks.get(proxy)
            if manager is None:
                manager = self._socks[proxy] = socks_manager(proxy, maxsize=self._max_connections)
            return manager
        except SocksMissing as exc:
            raise BadRequest("socks_not_installed", param=EXTRA) from exc
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError):
            pass
        # Outside the handler: those errors quote the URL, and it may have a password.
        raise BadRequest("invalid_proxy")

    def knows(self, url: str) -> bool:
        return url in self._targets

    def learn(self, url: str, proxy: str | None) -> None:
        """Find the pool and the request target of a URL.

        Raises:
            BadRequest: it is not a URL that can be asked.
        """
        with self._learning:
            manager = self._manager_for(proxy)
            prepared = PreparedRequest()
            prepared.prepare_method("POST")
            try:
                prepared.prepare_url(url, None)
                parts = urlsplit(prepared.url or "")
                keywords = {"ssl_context": self._tls()} if parts.scheme == "https" else {}
                pool = manager.connection_from_host(parts.hostname, parts.port, parts.scheme, keywords)
                through = {parts.scheme: proxy} if proxy and not is_socks(proxy) else {}
                target = super().request_url(prepared, through)
            except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as exc:
                raise BadRequest("invalid_url") from exc
            self._targets[url] = (pool, target)

    def _tls(self) -> ssl.SSLContext:
        # One for all connections: urllib3 would make one, and read the certificates, for each.
        if self._context is None:
            context = create_urllib3_context()
            trusted = self._ca_file or _trusted_by_environment() or DEFAULT_CA_BUNDLE_PATH
            try:
                if os.path.isdir(trusted):
                    context.load_verify_locations(capath=trusted)
                else:
                    context.load_verify_locations(trusted)
            except OSError as exc:  # ssl's errors are some
                raise BadRequest("ca_file") from exc
            self._context = context
        return self._context

    def close(self) -> None:
        with self._learning:
            for pool, _ in self._targets.values():
                pool.close()  # the manager only drops it, for the garbage collector to close
            self._targets.clear()
        super().close()

    def send_call(self, request: PreparedRequest) -> urllib3.HTTPResponse:
        """Send; the answer's head is here."""
        return cast(urllib3.HTTPResponse, self.send(request, stream=True).raw)

    # What `send` asks for; the originals parse the URL, read the certificates and extract cookies on every
    # call.

    def get_connection_with_tls_context(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        return self._targets[request.url or ""][0]

    def request_url(self, request: PreparedRequest, proxies: Any) -> str:
        return self._targets[request.url or ""][1]

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """The TLS context has it all."""

    def build_response(self, req: PreparedRequest, resp: Any) -> Response:
        response = Response.__new__(Response)  # without its cookie jar
        response.raw = resp
        return response


def _trusted_by_environment() -> str | None:
    """The certificates that the environment names: what requests honours first, then what OpenSSL does."""
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
    return next((value for name in names if (value := os.environ.get(name))), None)


def _proxy_url(proxy: str) -> str:
    """A proxy's URL as it is meant: without a scheme, "proxy:3128" is an HTTP proxy.

    Raises:
        BadRequest: it is none. The error does not show it: it may have a password.
    """
    proxy = proxy.strip()
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    try:
        parts = urlsplit(proxy)
        good = bool(parts.hostname) and parts.port != 0 and not any(c.isspace() for c in proxy)
    except ValueError:
        good = False
    if not good:
        raise BadRequest("invalid_proxy")
    return proxy


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


_requests, _urllib3 = requests.exceptions, urllib3.exceptions

_TIMEOUT = (TimeoutError, _requests.Timeout, _urllib3.TimeoutError)
_NETWORK: tuple[tuple[str, tuple[type[BaseException], ...]], ...] = (
    ("dns", (socket.gaierror, socket.herror, _urllib3.NameResolutionError)),
    ("reset", (ssl.SSLEOFError, ssl.SSLZeroReturnError)),
    ("tls", (ssl.SSLError, ssl.CertificateError, _urllib3.SSLError, _requests.SSLError)),
    ("refused", (ConnectionRefusedError,)),
    (
        "reset",
        (ConnectionResetError, ConnectionAbortedError, BrokenPipeError, http.client.RemoteDisconnected),
    ),
    ("unreachable", (_urllib3.ProxyError, _requests.ProxyError)),
)
_REQUEST: tuple[tuple[str, tuple[type[BaseException], ...]], ...] = (
    (
        "invalid_url",
        (
            http.client.InvalidURL,
            _requests.InvalidProxyURL,
            _requests.InvalidSchema,
            _requests.InvalidURL,
            _requests.MissingSchema,
            _requests.URLRequired,
            _urllib3.LocationValueError,
            _urllib3.ProxySchemeUnknown,
            _urllib3.ProxySchemeUnsupported,
            _urllib3.URLSchemeUnknown,
        ),
    ),
    ("invalid_header", (_requests.InvalidHeader, _urllib3.InvalidHeader)),
    ("redirect", (_requests.TooManyRedirects,)),
)
_RESPONSE: tuple[tuple[str, tuple[type[BaseException], ...]], ...] = (
    ("not_json", (_requests.InvalidJSONError,)),
    ("content_encoding", (_urllib3.DecodeError, _requests.ContentDecodingError)),
    (
        "http",
        (
            http.client.HTTPException,
            _requests.ChunkedEncodingError,
            _urllib3.BodyNotHttplibCompatible,
            _urllib3.HeaderParsingError,
            _urllib3.ResponseError,
            _urllib3.ResponseNotChunked,
        ),
    ),
)
_UNREACHABLE = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}
)


def map_failure(failure: BaseException, call: Call) -> RequestError:
    """Our error for whatever requests, urllib3, http.client, ssl or the socket raised; `NetworkError` at
    worst.

    The wrappers are looked through: what they wrap says more than they do.
    """
    chain = list(_unwrapped(failure))

    def has(kinds: tuple[type[BaseException], ...]) -> bool:
        return any(isinstance(exc, kinds) for exc in chain)

    # urllib3 calls a refused connection a kind of connect timeout.
    if any(isinstance(exc, _TIMEOUT) and not isinstance(exc, _urllib3.NewConnectionError) for exc in chain):
        return call.timed_out()
    for code, kinds in _NETWORK:
        if has(kinds):
            return NetworkError(code)
    if any(isinstance(exc, OSError) and exc.errno in _UNREACHABLE for exc in chain):
        return NetworkError("unreachable")
    for code, kinds in _REQUEST:
        if has(kinds):
            return BadRequest(code)
    for code, kinds in _RESPONSE:
        if has(kinds):
            return InvalidResponse(code)
    return NetworkError("network")


def _unwrapped(failure: BaseException, depth: int = 0) -> Iterator[BaseException]:
    yield failure
    if depth < 8:
        inner = (
            *failure.args,
            failure.__cause__,
            getattr(failure, "reason", None),
            getattr(failure, "original_error", None),
        )
        for exc in inner:
            if isinstance(exc, BaseException):
                yield from _unwrapped(exc, depth + 1)
