"""`HttpClient` against a real server on loopback: arrival, clocks, cancelling, reuse, refusals."""

from __future__ import annotations

import contextlib
import http.client
import inspect
import json
import os
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import requests
import trustme
import urllib3

from remote_inference.cancel import CancelToken
from remote_inference.clock import SystemClock
from remote_inference.config import Timeouts
from remote_inference.errors import (
    BadRequest,
    Cancelled,
    DeadlineExceeded,
    InvalidResponse,
    NetworkError,
    RequestError,
    StreamTruncated,
    Timeout,
)
from remote_inference.testing.behaviours import Reply, Status, Stop
from remote_inference.testing.faults import Comments, Drip, Raw, Redirect, Silent, SlowHeaders, Stall
from remote_inference.testing.server import ProviderServer
from remote_inference.transport.call import Call
from remote_inference.transport.http import HttpClient, map_failure

CLOCK = SystemClock()
BODY = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
WHOLE = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A server's certificate with its key, and the authority's certificate."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(
        str(folder / "server.pem")
    )
    return str(folder / "server.pem"), str(folder / "ca.pem")


@pytest.fixture(params=["http", "https"])
def provider(request: pytest.FixtureRequest, tls: tuple[str, str]) -> Iterator[ProviderServer]:
    with ProviderServer(certfile=tls[0] if request.param == "https" else None) as server:
        yield server


@pytest.fixture
def plain() -> Iterator[ProviderServer]:
    with ProviderServer() as server:
        yield server


@pytest.fixture
def client(tls: tuple[str, str]) -> Iterator[HttpClient]:
    made = client_with(ca_file=tls[1])
    yield made
    made.retire()


def client_with(
    connect: float = 2.0,
    first_byte: float = 5.0,
    read: float = 5.0,
    ca_file: str | None = None,
    **options: object,
) -> HttpClient:
    timeouts = Timeouts(connect=connect, first_byte=first_byte, read=read)
    return HttpClient(timeouts=timeouts, ca_file=ca_file, clock=CLOCK, proxies={}, **options)  # type: ignore[arg-type]


def url(server: ProviderServer) -> str:
    return f"{server.url}/chat/completions"


def post(client: HttpClient, where: ProviderServer | str, **options: object) -> bytes:
    target = where if isinstance(where, str) else url(where)
    with client.send(target, BODY, token=options.pop("token", CancelToken()), **options) as response:  # type: ignore[arg-type]
        return response.read()


class RawServer:
    """Answers each connection, in a thread of its own, by a function that gets the socket and its number."""

    def __init__(self, serve: Callable[[socket.socket, int], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._serve = serve
        self.accepted = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._one, args=(sock, self.accepted), daemon=True).start()

    def _one(self, sock: socket.socket, number: int) -> None:
        with sock:
            try:
                self._serve(sock, number)
            except OSError:
                pass

    def __enter__(self) -> RawServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


def read_request(sock: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            raise OSError("gone")
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
    )
    while len(body) < length:
        body += sock.recv(65536)
    return data


# arrival


@pytest.mark.parametrize("framing", ["chunked", "close"])
def test_tokens_are_handed_on_when_they_arrive(
    provider: ProviderServer, client: HttpClient, framing: str
) -> None:
    provider.script(Reply(tokens=3, token_delay=0.15, framing=framing))
    arrivals = []
    with client.send(url(provider), BODY, token=CancelToken()) as response:
        for piece in response.chunks():
            if b"t0 " in piece or b"t1 " in piece or b"t2 " in piece:
                arrivals.append(time.monotonic())
    assert len(arrivals) == 3
    assert arrivals[1] - arrivals[0] > 0.08
    assert arrivals[2] - arrivals[1] > 0.08


def test_a_body_with_a_length_is_handed_on_as_it_arrives(client: HttpClient) -> None:
    go_on = threading.Event()

    def serve(sock: socket.socket, _: int) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
        assert go_on.wait(5)
        sock.sendall(b"def")

    with RawServer(serve) as server, client.send(server.url, BODY, token=CancelToken()) as response:
        pieces = response.chunks()
        assert next(pieces) == b"abc"
        go_on.set()
        assert b"".join(pieces) == b"def"


def test_a_dripping_body_comes_whole(provider: ProviderServer, client: HttpClient) -> None:
    provider.script(Drip(1), Reply(tokens=3))
    assert post(client, provider) == post(client, provider)


# reuse


def test_a_connection_is_kept_after_a_stream(provider: ProviderServer, client: HttpClient) -> None:
    for _ in range(5):
        post(client, provider)
    assert {request.connection for request in provider.requests} == {provider.requests[0].connection}


def test_a_connection_is_kept_after_a_whole_answer_and_after_an_error(
    plain: ProviderServer, client: HttpClient
) -> None:
    plain.script(Status(500), Status(429), Reply(tokens=2))
    for _ in range(2):
        with client.send(url(plain), WHOLE, token=CancelToken(), stream=False) as response:
            assert response.status in (500, 429)
            response.read_error()
    with client.send(url(plain), WHOLE, token=CancelToken(), stream=False) as response:
        response.read()
    assert len({request.connection for request in plain.requests}) == 1


def test_a_stream_whose_end_was_not_read_is_drained_when_the_end_is_near(
    plain: ProviderServer, client: HttpClient
) -> None:
    for _ in range(3):
        with client.send(url(plain), BODY, token=CancelToken()) as response:
            for piece in response.chunks():
                if b"[DONE]" in piece:
                    break
    assert len({request.connection for request in plain.requests}) == 1


def test_a_stream_left_early_closes_its_connection(provider: ProviderServer, client: HttpClient) -> None:
    provider.script(Reply(tokens=1000, token_delay=0.01))
    response = client.send(url(provider), BODY, token=CancelToken())
    next(response.chunks())
    response.close()
    assert provider.wait_for(lambda server: server.closed_early == 1)


def test_no_more_connections_are_kept_than_asked_for_and_none_waits(plain: ProviderServer) -> None:
    client = client_with(max_connections=2)
    plain.default = Reply(tokens=2, first_byte_delay=0.2)
    threads = [threading.Thread(target=post, args=(client, plain)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert plain.max_in_flight == 6
    deadline = time.monotonic() + 5
    while plain.connections > 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert plain.connections == 2
    client.retire()


def test_a_connection_that_the_server_closed_is_replaced_once(client: HttpClient) -> None:
    # It takes the second request on the first connection and closes without a byte, unforeseeably.
    def serve(sock: socket.socket, number: int) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        read_request(sock)
        if number == 1:
            return
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with RawServer(serve) as server:
        assert post(client, server.url) == b"ok"
        assert post(client, server.url) == b"ok"
        assert server.accepted == 2


def test_a_request_that_must_not_be_repeated_is_not(client: HttpClient) -> None:
    def serve(sock: socket.socket, number: int) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        read_request(sock)

    with RawServer(serve) as server:
        post(client, server.url)
        with pytest.raises(NetworkError, match="reset"):
            post(client, server.url, repeatable=False)
        assert server.accepted == 1


def test_a_fresh_connection_that_breaks_is_an_error(client: HttpClient) -> None:
    with RawServer(lambda sock, _: (read_request(sock), None)[1]) as server:
        with pytest.raises(NetworkError, match="reset"):
            post(client, server.url)
        assert server.accepted == 1


def test_a_connection_that_broke_after_the_first_byte_is_not_replaced(client: HttpClient) -> None:
    def serve(sock: socket.socket, number: int) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        read_request(sock)
        sock.sendall(b"HTT")

    with RawServer(serve) as server:
        post(client, server.url)
        with pytest.raises(RequestError):
            post(client, server.url)
        assert server.accepted == 1


def test_bytes_after_the_end_of_a_body_end_the_connection(client: HttpClient) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"

    def serve(sock: socket.socket, number: int) -> None:
        read_request(sock)
        sock.sendall(answer + answer)
        read_request(sock)

    with RawServer(serve) as server:
        assert post(client, server.url) == b"ok"
        assert post(client, server.url) == b"ok"
        assert server.accepted == 2


# the clocks


def test_a_silent_server_runs_into_the_first_byte_timeout(
    provider: ProviderServer, tls: tuple[str, str]
) -> None:
    client = client_with(first_byte=0.2, ca_file=tls[1])
    provider.script(Silent())
    with pytest.raises(Timeout, match="first_byte"):
        post(client, provider)
    assert provider.wait_for(lambda server: server.closed_early == 1)


def test_dripping_headers_are_bounded_by_the_first_byte_timeout(
    provider: ProviderServer, tls: tuple[str, str]
) -> None:
    client = client_with(first_byte=0.3, ca_file=tls[1])
    provider.script(SlowHeaders(interval=0.05, size=1))
    started = time.monotonic()
    with pytest.raises(Timeout, match="first_byte"):
        post(client, provider)
    assert time.monotonic() - started < 1.5


@pytest.mark.parametrize("first", ["comments", "nothing"])
def test_headers_alone_do_not_stop_the_first_byte_clock(plain: ProviderServer, first: str) -> None:
    client = client_with(first_byte=0.3, read=5.0)
    plain.script(Comments(0, interval=0.05) if first == "comments" else Raw((b": hello\n\n",), end=Stop.HANG))
    with pytest.raises(Timeout, match="first_byte"):
        post(client, plain)


def test_comments_do_not_stop_the_clock_of_the_gap(plain: ProviderServer) -> None:
    client = client_with(first_byte=5.0, read=0.3)
    plain.script(Comments(2, interval=0.05))
    with client.send(url(plain), BODY, token=CancelToken()) as response:
        pieces = response.chunks()
        while b"t1 " not in next(pieces):
            response.progress()
        response.progress()
        with pytest.raises(Timeout, match="read"):
            list(pieces)


def test_data_stops_the_clock_of_the_gap(plain: ProviderServer) -> None:
    client = client_with(first_byte=0.4, read=0.4)
    plain.script(Reply(tokens=8, token_delay=0.1))
    with client.send(url(plain), BODY, token=CancelToken()) as response:
        for _ in response.chunks():
            response.progress()
    assert plain.requests[0].tokens_sent == 8


@pytest.mark.parametrize(
    "behaviour", [Silent(), Stall(2), Comments(1, interval=0.05), SlowHeaders(interval=0.05, size=1)]
)
def test_the_deadline_is_over_everything(
    provider: ProviderServer, client: HttpClient, behaviour: object
) -> None:
    provider.script(behaviour)  # type: ignore[arg-type]
    with pytest.raises(DeadlineExceeded, match="running"):
        post(client, provider, deadline=CLOCK.monotonic() + 0.3)


def test_a_deadline_that_has_passed_sends_nothing(plain: ProviderServer, client: HttpClient) -> None:
    post(client, plain)
    with pytest.raises(DeadlineExceeded):
        post(client, plain, deadline=CLOCK.monotonic() - 1)
    assert plain.count == 1


def test_a_call_that_is_not_streamed_may_take_longer_than_the_first_byte_timeout(
    plain: ProviderServer,
) -> None:
    client = client_with(first_byte=0.1, read=0.1)
    plain.script(Reply(tokens=2, first_byte_delay=0.4))
    with client.send(url(plain), WHOLE, token=CancelToken(), stream=False) as response:
        assert b"t0 t1 " in response.read()


def test_connecting_is_bounded() -> None:
    # A listener whose backlog is full does not answer.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        started = time.monotonic()
        with pytest.raises(Timeout, match="connect"):
            post(client_with(connect=0.3), f"http://127.0.0.1:{port}/v1")
        assert time.monotonic() - started < 2
        for filler in fillers:
            filler.close()


def test_a_tls_handshake_that_does_not_answer_is_bounded(tls: tuple[str, str]) -> None:
    with RawServer(lambda sock, _: (sock.recv(65536), time.sleep(2))[1]) as server:
        with pytest.raises(Timeout, match="connect"):
            post(client_with(connect=0.3, ca_file=tls[1]), server.url.replace("http:", "https:"))


# cancelling

SILENT_IN_EVERY_STATE = {
    "before the headers": Silent(),
    "in the body": Stall(2),
    "while it drips": Drip(1, interval=0.05, reply=Reply(tokens=1000)),
    "while headers drip": SlowHeaders(interval=0.05, size=1),
    "while comments come": Comments(1, interval=0.05),
    "delimited by the connection's end": Stall(2, reply=Reply(framing="close")),
}


@pytest.mark.parametrize("state", SILENT_IN_EVERY_STATE)
def test_a_cancel_closes_the_connection_in_every_state(
    provider: ProviderServer, client: HttpClient, state: str
) -> None:
    provider.script(SILENT_IN_EVERY_STATE[state])
    token = CancelToken()
    ended: list[object] = []

    def read() -> None:
        try:
            post(client, provider, token=token)
        except RequestError as exc:
            ended.append((exc, time.monotonic()))

    reader = threading.Thread(target=read)
    reader.start()
    provider.wait_for(lambda server: server.count == 1)
    reader.join(0.15)  # into the read; a cancel before it is another test's
    cancelled_at = time.monotonic()
    token.cancel("caller")
    reader.join(5)
    [(error, at)] = ended  # type: ignore[misc]
    assert isinstance(error, Cancelled)
    assert error.code == "caller"
    assert at - cancelled_at < 0.5
    assert provider.wait_for(lambda server: server.closed_early == 1)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_cancel_reaches_a_connection_that_is_being_made(scheme: str, tls: tuple[str, str]) -> None:
    token = CancelToken()
    ended = []

    def read(target: str) -> None:
        try:
            post(client_with(connect=10.0, ca_file=tls[1]), target, token=token)
        except RequestError as exc:
            ended.append(exc)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0 if scheme == "http" else 5)  # https: connected, but nobody shakes hands
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4 if scheme == "http" else 0)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        reader = threading.Thread(target=read, args=(f"{scheme}://127.0.0.1:{port}/v1",))
        reader.start()
        reader.join(0.2)
        started = time.monotonic()
        token.cancel()
        reader.join(5)
        assert time.monotonic() - started < 0.5
        for filler in fillers:
            filler.close()
    assert isinstance(ended[0], Cancelled)


def test_a_cancel_before_the_call_sends_nothing(plain: ProviderServer, client: HttpClient) -> None:
    token = CancelToken()
    token.cancel("revoked")
    with pytest.raises(Cancelled, match="revoked"):
        post(client, plain, token=token)
    assert plain.connections == 0


def test_a_cancel_after_the_call_leaves_the_kept_connection_alone(
    plain: ProviderServer, client: HttpClient
) -> None:
    token = CancelToken()
    post(client, plain, token=token)
    token.cancel()
    post(client, plain)
    assert len({request.connection for request in plain.requests}) == 1


def test_cancels_at_any_moment_cut_no_other_call(plain: ProviderServer) -> None:
    client = client_with(max_connections=4)
    plain.default = Reply(tokens=20)
    wrong: list[BaseException] = []
    stop = time.monotonic() + 2.0

    def run(cancelling: bool) -> None:
        while time.monotonic() < stop:
            token = CancelToken()
            timer = threading.Timer(0.002, token.cancel) if cancelling else None
            if timer:
                timer.start()
            try:
                post(client, plain, token=token)
            except Cancelled:
                if not cancelling:
                    wrong.append(AssertionError("cancelled by nobody"))
            except BaseException as exc:
                wrong.append(exc)
            if timer:
                timer.join()

    threads = [threading.Thread(target=run, args=(number % 2 == 0,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    client.retire()
    assert wrong == []


def test_cancelling_works_in_gevent(tls: tuple[str, str]) -> None:
    program = textwrap.dedent(
        """
        from gevent import monkey; monkey.patch_all()
        import sys, time, gevent
        sys.path[:0] = ["tests/integration/transport"]
        from remote_inference.cancel import CancelToken
        from remote_inference.clock import SystemClock
        from remote_inference.config import Timeouts
        from remote_inference.errors import Cancelled
        from remote_inference.transport.http import HttpClient
        url, ca, body = sys.argv[1:]
        client = HttpClient(timeouts=Timeouts(connect=5, first_byte=30, read=30), ca_file=ca or None,
                            clock=SystemClock(), proxies={})
        def call(token):
            try:
                with client.send(url, body.encode(), token=token) as answer:
                    answer.read()
            except Cancelled:
                return "cancelled"
        tokens = [CancelToken() for _ in range(20)]
        calls = [gevent.spawn(call, token) for token in tokens]
        gevent.sleep(0.5)
        started = time.monotonic()
        for token in tokens:
            token.cancel()
        gevent.joinall(calls, timeout=5)
        print([call.value for call in calls].count("cancelled"), time.monotonic() - started < 0.5)
        """
    )
    for scheme in ("http", "https"):
        with ProviderServer(default=Stall(1), certfile=tls[0] if scheme == "https" else None) as server:
            done = subprocess.run(
                [sys.executable, "-c", program, url(server), tls[1] if scheme == "https" else "", BODY],
                capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": os.getcwd()},
            )  # fmt: skip
            assert done.stdout.split() == ["20", "True"], done.stderr
            assert server.wait_for(lambda server: server.closed_early == 20)


# what comes back wrong


def test_a_redirect_is_not_followed(plain: ProviderServer, client: HttpClient) -> None:
    with ProviderServer() as elsewhere:
        plain.script(Redirect(url(elsewhere)))
        with pytest.raises(BadRequest, match="redirect") as caught:
            post(client, plain)
        assert caught.value.status == 307
        assert elsewhere.connections == 0
        assert elsewhere.count == 0


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_a_body_cut_short_is_not_taken_for_whole(client: HttpClient, how: str, framing: str) -> None:
    def serve(sock: socket.socket, _: int) -> None:
        read_request(sock)
        head = (
            b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
            if framing == "chunked"
            else b"Content-Length: 9\r\n\r\nhello"
        )
        sock.sendall(b"HTTP/1.1 200 OK\r\n" + head)
        if how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with RawServer(serve) as server, pytest.raises((StreamTruncated, NetworkError)) as caught:
        post(client, server.url)
    assert isinstance(caught.value, StreamTruncated if how == "close" else NetworkError) or how == "reset"


def test_a_body_is_bounded(plain: ProviderServer, client: HttpClient) -> None:
    plain.script(Status(200, b"x" * 200_000), Status(500, b"y" * 200_000))
    with client.send(url(plain), WHOLE, token=CancelToken(), stream=False) as response:
        with pytest.raises(InvalidResponse, match="too_large"):
            response.read(100_000)
    with client.send(url(plain), WHOLE, token=CancelToken(), stream=False) as response:
        assert response.read_error() == b"y" * 65_536


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"nonsense\r\n\r\n", InvalidResponse),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", InvalidResponse),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 2000 + b"\r\n", InvalidResponse),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", InvalidResponse),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", InvalidResponse),
    ],
)
def test_an_answer_that_is_not_http_is_invalid(
    client: HttpClient, answer: bytes, error: type[RequestError]
) -> None:
    def serve(sock: socket.socket, _: int) -> None:
        read_request(sock)
        sock.sendall(answer)
        sock.recv(1)

    with RawServer(serve) as server, pytest.raises(error):
        post(client, server.url)


def test_a_certificate_that_is_not_trusted_is_a_tls_error(tls: tuple[str, str]) -> None:
    with ProviderServer(certfile=tls[0]) as server, pytest.raises(NetworkError, match="tls"):
        post(client_with(), server)


def test_nobody_listening_and_no_such_host(client: HttpClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(NetworkError, match="refused"):
        post(client, f"http://127.0.0.1:{port}/v1")
    with pytest.raises(NetworkError, match="dns"):
        post(client, "http://no-such-host.invalid/v1")


@pytest.mark.parametrize("target", ["ftp://host/", "http://", "no url", "http://[::1/", "http://h:99999/"])
def test_a_bad_url_is_refused_before_anything_is_sent(client: HttpClient, target: str) -> None:
    with pytest.raises(BadRequest, match="invalid_url"):
        post(client, target)


def test_a_header_that_would_break_the_request_is_refused_without_being_shown(
    plain: ProviderServer, client: HttpClient
) -> None:
    with pytest.raises(BadRequest, match="invalid_header") as caught:
        post(client, plain, headers={"Authorization": "Bearer sk-secret\r\nX: y"})
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "sk-secret" not in repr(chain) + str(chain.args)
        chain = chain.__cause__ or chain.__context__
    assert plain.count == 0


def test_cookies_are_neither_kept_nor_sent(plain: ProviderServer, client: HttpClient) -> None:
    plain.default = Reply(tokens=1, headers={"set-cookie": "session=1; Path=/"})
    post(client, plain)
    post(client, plain)
    assert all("cookie" not in request.headers for request in plain.requests)


# proxies


def test_a_proxy_of_the_environment_is_used_but_not_for_loopback(
    plain: ProviderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    def serve(sock: socket.socket, _: int) -> None:
        seen.append(read_request(sock).split(b"\r\n")[0])
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with RawServer(serve) as proxy:
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        client = HttpClient(timeouts=Timeouts(), clock=CLOCK)
        monkeypatch.delenv("http_proxy")  # read once, at the beginning
        assert post(client, "http://provider.example/v1/chat") == b"ok"
        assert seen == [b"POST http://provider.example/v1/chat HTTP/1.1"]
        post(client, plain)
        assert plain.count == 1


def test_https_goes_through_a_tunnel(tls: tuple[str, str]) -> None:
    with ProviderServer(certfile=tls[0]) as server:

        def serve(sock: socket.socket, _: int) -> None:
            assert sock.recv(65536).startswith(b"CONNECT 127.0.0.1:")
            sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with socket.create_connection(("127.0.0.1", server.port)) as onward:
                back = threading.Thread(target=pump, args=(onward, sock), daemon=True)
                back.start()
                pump(sock, onward)

        def pump(source: socket.socket, sink: socket.socket) -> None:
            try:
                while data := source.recv(65536):
                    sink.sendall(data)
            except OSError:
                pass
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

        with RawServer(serve) as proxy:
            client = HttpClient(
                timeouts=Timeouts(),
                ca_file=tls[1],
                clock=CLOCK,
                proxies={"https": proxy.url.removesuffix("/v1")},
            )
            assert b"[DONE]" in post(client, server)
            assert b"[DONE]" in post(client, server)
            assert proxy.accepted == 1
            server.drop_connections()
            assert b"[DONE]" in post(client, server)
            client.retire()


def test_a_proxy_that_refuses_is_unreachable(client: HttpClient, tls: tuple[str, str]) -> None:
    def serve(sock: socket.socket, _: int) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

    with RawServer(serve) as proxy:
        client = HttpClient(
            timeouts=Timeouts(), clock=CLOCK, proxies={"https": proxy.url.removesuffix("/v1")}
        )
        with pytest.raises(NetworkError, match="unreachable"):
            post(client, "https://provider.example/v1")


# retiring


def test_a_retired_client_closes_with_its_last_call(plain: ProviderServer, client: HttpClient) -> None:
    post(client, plain)
    with client.send(url(plain), BODY, token=CancelToken()) as response:
        client.retire()
        assert b"[DONE]" in response.read()
        assert plain.connections == 1
    deadline = time.monotonic() + 5
    while plain.connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert plain.connections == 0


# the mapping

# Those that say nothing of what happened.
_GENERIC = {
    "requests.exceptions": set(
        "RequestException HTTPError ConnectionError RetryError StreamConsumedError "
        "UnrewindableBodyError".split()
    ),
    "urllib3.exceptions": set(
        "HTTPError PoolError RequestError ProtocolError MaxRetryError HostChangedError TimeoutStateError "
        "NewConnectionError EmptyPoolError FullPoolError ClosedPoolError UnrewindableBodyError".split()
    ),
}


def foreign_errors() -> list[type[BaseException]]:
    found = []
    for module in (requests.exceptions, urllib3.exceptions):
        for cls in vars(module).values():
            if (
                inspect.isclass(cls)
                and issubclass(cls, Exception)
                and not issubclass(cls, Warning)
                and cls.__module__ == module.__name__
            ):
                found.append(cls)
    return found


@pytest.mark.parametrize("cls", foreign_errors(), ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_no_error_of_the_libraries_is_missing_from_the_mapping(cls: type[BaseException]) -> None:
    call = Call(Timeouts(), CLOCK, CancelToken(), None, stream=True)
    error = map_failure(cls.__new__(cls), call)
    generic = isinstance(error, NetworkError) and error.code == "network"
    assert generic == (cls.__name__ in _GENERIC[cls.__module__])


@pytest.mark.parametrize(
    ("failure", "kind", "code"),
    [
        (ConnectionRefusedError(), NetworkError, "refused"),
        (ConnectionResetError(), NetworkError, "reset"),
        (BrokenPipeError(), NetworkError, "reset"),
        (OSError(113, "no route"), NetworkError, "unreachable"),
        (socket.gaierror(), NetworkError, "dns"),
        (ssl.SSLError(), NetworkError, "tls"),
        (ssl.SSLEOFError(), NetworkError, "reset"),
        (TimeoutError(), Timeout, "connect"),
        (http.client.RemoteDisconnected(), NetworkError, "reset"),
        (http.client.BadStatusLine("x"), InvalidResponse, "http"),
        (http.client.IncompleteRead(b""), InvalidResponse, "http"),
        (
            requests.ConnectionError(urllib3.exceptions.ProtocolError("x", ConnectionResetError())),
            NetworkError,
            "reset",
        ),
    ],
)
def test_what_the_socket_raises_is_told_apart(
    failure: Exception, kind: type[RequestError], code: str
) -> None:
    call = Call(Timeouts(), CLOCK, CancelToken(), None, stream=True)
    error = map_failure(failure, call)
    assert type(error) is kind
    assert error.code == code
