"""What servers and proxies do to HTTP, and still mean well."""

from __future__ import annotations

import gzip
import socket
import ssl
import struct
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from remote_inference.cancel import CancelToken
from remote_inference.clock import SystemClock
from remote_inference.config import Timeouts
from remote_inference.errors import (
    BadRequest,
    Cancelled,
    InvalidResponse,
    NetworkError,
    RequestError,
    Timeout,
)
from remote_inference.testing.server import ProviderServer
from remote_inference.transport.http import HttpClient

CLOCK = SystemClock()
BODY = b'{"model": "m", "messages": [{"role": "user", "content": "why?"}], "stream": true}'
STREAM = b'data: {"a": 1}\n\ndata: [DONE]\n\n'


@pytest.fixture
def serving() -> Iterator[Callable[..., str]]:
    """Starts servers that read a request and do what they are told with the socket; gives the URL."""
    listeners: list[socket.socket] = []

    def start(answer: bytes | Callable[[socket.socket], None], *, read: bool = True) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(sock,), daemon=True).start()

        def one(sock: socket.socket) -> None:
            with sock:
                try:
                    if read:
                        data = b""
                        while b"\r\n\r\n" not in data:
                            data += sock.recv(65_536)
                    if isinstance(answer, bytes):
                        sock.sendall(answer)
                        sock.shutdown(socket.SHUT_WR)
                        sock.recv(65_536)
                    else:
                        answer(sock)
                except OSError:
                    pass

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

    yield start
    for listener in listeners:
        listener.close()


def client(**options: object) -> HttpClient:
    options.setdefault("proxies", {})
    return HttpClient(timeouts=Timeouts(connect=2, first_byte=5, read=5), clock=CLOCK, **options)  # type: ignore[arg-type]


def read(url: str, made: HttpClient | None = None, token: CancelToken | None = None) -> tuple[int, bytes]:
    with (made or client()).send(url, BODY, token=token or CancelToken()) as response:
        return response.status, b"".join(response.chunks())


def answer(head: str, body: bytes = STREAM, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body


# the head


@pytest.mark.parametrize("code", [100, 102, 103, 199])
def test_interim_answers_are_read_over(serving: Callable[..., str], code: int) -> None:
    interim = f"HTTP/1.1 {code} Wait\r\nLink: </a>; rel=preload\r\n\r\n".encode()
    assert read(serving(interim * 3 + answer(""))) == (200, STREAM)


def test_interim_answers_without_end_are_no_answer(serving: Callable[..., str]) -> None:
    with pytest.raises(InvalidResponse):
        read(serving(b"HTTP/1.1 102 Processing\r\n\r\n" * 1000))


def test_interim_answers_do_not_stop_the_clock_of_the_first_byte(serving: Callable[..., str]) -> None:
    stop = threading.Event()

    def drip(sock: socket.socket) -> None:
        while not stop.wait(0.05):
            sock.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")

    impatient = HttpClient(timeouts=Timeouts(connect=2, first_byte=0.3, read=5), clock=CLOCK, proxies={})
    with pytest.raises(Timeout, match="first_byte"):
        read(serving(drip), impatient)
    stop.set()


@pytest.mark.parametrize("count", [101, 300, 900])
def test_more_than_a_hundred_headers_are_taken(serving: Callable[..., str], count: int) -> None:
    head = "".join(f"x-ratelimit-{number}: 1\r\n" for number in range(count))
    assert read(serving(answer(head))) == (200, STREAM)


@pytest.mark.parametrize(
    "status", ["201 Created", "202 Accepted", "203 Non-Authoritative", "206 Partial Content"]
)
def test_another_2xx_comes_with_its_body(serving: Callable[..., str], status: str) -> None:
    assert read(serving(answer("", status=status))) == (int(status[:3]), STREAM)


# content codings


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)  # the same for all of the tests' processes


def deflate(data: bytes, window: int) -> bytes:
    made = zlib.compressobj(wbits=window)
    return made.compress(data) + made.flush()


@pytest.mark.parametrize(
    ("coding", "encoded"),
    [
        ("gzip", gzipped(STREAM)),
        ("x-gzip", gzipped(STREAM)),
        ("GZIP", gzipped(STREAM)),
        ("gzip, identity", gzipped(STREAM)),
        ("gzip, gzip", gzipped(gzipped(STREAM))),
        ("gzip", gzipped(STREAM[:9]) + gzipped(STREAM[9:])),
        ("gzip", gzipped(STREAM) + b"\0" * 8),
        ("deflate", deflate(STREAM, 15)),
        ("deflate", deflate(STREAM, -15)),
        ("identity", STREAM),
        ("utf-8", STREAM),
    ],
)
def test_a_coding_that_was_not_asked_for_is_taken_off(
    serving: Callable[..., str], coding: str, encoded: bytes
) -> None:
    assert read(serving(answer(f"Content-Encoding: {coding}\r\n", encoded))) == (200, STREAM)


def test_a_gzip_that_is_not_labelled_is_known_by_its_first_bytes(serving: Callable[..., str]) -> None:
    assert read(serving(answer("", gzipped(STREAM)))) == (200, STREAM)


def test_a_coded_stream_is_handed_on_as_it_arrives(serving: Callable[..., str]) -> None:
    seen = threading.Event()

    def serve(sock: socket.socket) -> None:
        made = zlib.compressobj(wbits=31)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n")
        sock.sendall(made.compress(b"data: 1\n\n") + made.flush(zlib.Z_SYNC_FLUSH))
        assert seen.wait(10), "the first event was held back"
        sock.sendall(made.compress(b"data: 2\n\n") + made.flush())

    with client().send(serving(serve), b"{}", token=CancelToken()) as response:
        pieces = response.chunks()
        assert next(pieces) == b"data: 1\n\n"
        seen.set()
        assert b"".join(pieces) == b"data: 2\n\n"


@pytest.mark.parametrize(("coding", "body"), [("br", b"x"), ("gzip", b"no gzip"), ("deflate", b"\xff\xff")])
def test_a_coding_that_cannot_be_taken_off_is_an_error(
    serving: Callable[..., str], coding: str, body: bytes
) -> None:
    with pytest.raises(InvalidResponse, match="content_encoding"):
        read(serving(answer(f"Content-Encoding: {coding}\r\n", body)))


def test_a_small_body_that_holds_a_large_one_is_bounded(serving: Callable[..., str]) -> None:
    bomb = gzip.compress(b"\0" * 20_000_000)
    url = serving(answer("Content-Encoding: gzip\r\n", bomb))
    with client().send(url, b"{}", token=CancelToken()) as response:
        sizes: list[int] = []
        with pytest.raises(InvalidResponse, match="too_large"):
            sizes.extend(len(piece) for piece in response.chunks(5_000_000))
        assert max(sizes) <= 1024 * 1024


# proxies


def test_a_proxy_without_a_scheme_is_an_http_proxy(serving: Callable[..., str]) -> None:
    proxy = serving(answer("")).removesuffix("/v1").removeprefix("http://")
    made = client(proxies={"http": proxy})
    assert read("http://provider.example/v1", made) == (200, STREAM)


class SocksServer:
    """A SOCKS5 proxy (RFC 1928, 1929) that connects everything to one place, and notes what it was asked for."""

    def __init__(
        self, target: int, *, password: str = "", hangs: bool = False, refuses: bool = False
    ) -> None:
        self.asked: list[tuple[str, int]] = []
        self.credentials: list[tuple[bytes, bytes]] = []
        self._target = target
        self._password = password
        self._hangs = hangs
        self._refuses = refuses

    def __call__(self, sock: socket.socket) -> None:
        version, count = sock.recv(2)
        assert version == 5
        sock.recv(count)
        if self._hangs:
            sock.recv(1)
            return
        sock.sendall(b"\x05\x02" if self._password else b"\x05\x00")
        if self._password:
            sock.recv(1)
            name = sock.recv(sock.recv(1)[0])
            self.credentials.append((name, sock.recv(sock.recv(1)[0])))
            sock.sendall(b"\x01\x00")
        kind = sock.recv(4)[3]
        host = sock.recv(sock.recv(1)[0]).decode() if kind == 3 else socket.inet_ntoa(sock.recv(4))
        self.asked.append((host, struct.unpack("!H", sock.recv(2))[0]))
        if self._refuses:
            sock.sendall(b"\x05\x05\x00\x01" + bytes(6))
            return
        with socket.create_connection(("127.0.0.1", self._target)) as onward:
            sock.sendall(b"\x05\x00\x00\x01" + bytes(6))
            threading.Thread(target=self._pump, args=(onward, sock), daemon=True).start()
            self._pump(sock, onward)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@pytest.fixture
def plain() -> Iterator[ProviderServer]:
    with ProviderServer() as server:
        yield server


def through(serving: Callable[..., str], proxy: SocksServer, scheme: str, user: str = "") -> HttpClient:
    place = serving(proxy, read=False).removesuffix("/v1").removeprefix("http://")
    return client(proxies={"all": f"{scheme}://{user}{place}"})


def test_a_socks_proxy_is_used_and_may_be_left_the_names(
    serving: Callable[..., str], plain: ProviderServer
) -> None:
    proxy = SocksServer(plain.port)
    made = through(serving, proxy, "socks5h")
    for _ in range(2):
        assert b"[DONE]" in read("http://provider.example/v1/chat/completions", made)[1]
    assert proxy.asked == [("provider.example", 80)], "and its connection is kept"
    made.retire()


def test_a_socks_proxy_is_given_its_password(serving: Callable[..., str], plain: ProviderServer) -> None:
    proxy = SocksServer(plain.port, password="p@ss")
    made = through(serving, proxy, "socks5", "user:p%40ss@")
    assert read(f"http://localhost:{plain.port}/v1/chat/completions", made)[0] == 200
    assert proxy.asked == [("127.0.0.1", plain.port)], "socks5 looks the name up here"
    assert proxy.credentials == [(b"user", b"p@ss")]


def test_tls_goes_through_a_socks_proxy(serving: Callable[..., str], tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("provider.example")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    with ProviderServer(certfile=str(tmp_path / "server.pem")) as server:
        proxy = SocksServer(server.port)
        place = serving(proxy, read=False).removesuffix("/v1").removeprefix("http://")
        made = client(proxies={"https": f"socks5h://{place}"}, ca_file=str(tmp_path / "ca.pem"))
        assert b"[DONE]" in read("https://provider.example/v1/chat/completions", made)[1]


def test_a_socks_proxy_that_refuses_is_unreachable(
    serving: Callable[..., str], plain: ProviderServer
) -> None:
    with pytest.raises(NetworkError, match="unreachable"):
        read("http://provider.example/v1", through(serving, SocksServer(1, refuses=True), "socks5h"))
    with pytest.raises(NetworkError, match="unreachable"):
        read("http://provider.example/v1", client(proxies={"http": "socks5h://127.0.0.1:9"}))


def test_a_socks_proxy_that_is_silent_runs_into_the_connect_timeout(serving: Callable[..., str]) -> None:
    proxy = SocksServer(1, hangs=True)
    place = serving(proxy, read=False).removesuffix("/v1").removeprefix("http://")
    made = HttpClient(
        timeouts=Timeouts(connect=0.3, first_byte=5, read=5),
        clock=CLOCK,
        proxies={"all": f"socks5h://{place}"},
    )
    with pytest.raises(Timeout, match="connect"):
        read("http://provider.example/v1", made)


def test_a_cancel_ends_the_talk_with_a_socks_proxy(serving: Callable[..., str]) -> None:
    token = CancelToken()
    threading.Timer(0.2, token.cancel).start()
    began = CLOCK.monotonic()
    with pytest.raises(Cancelled):
        read("http://provider.example/v1", through(serving, SocksServer(1, hangs=True), "socks5h"), token)
    assert CLOCK.monotonic() - began < 1.5


def test_without_the_extra_a_socks_proxy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socks", None)
    with pytest.raises(BadRequest, match=r"socks_not_installed param remote-inference\[socks\]") as caught:
        read("http://provider.example/v1", client(proxies={"http": "socks5://127.0.0.1:9"}))
    assert "pip install 'remote-inference[socks]'" in str(caught.value.__cause__)


@pytest.mark.parametrize("form", ["{}", "user:pass@{}", " {}\n", "http://{}"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_proxy_is_found_however_it_is_written(plain: ProviderServer, form: str, host: str) -> None:
    proxy = form.format(f"{host}:{plain.port}")
    # the server, asked as a proxy, is asked for the whole URL
    assert read("http://provider.example/v1/chat/completions", client(proxies={"http": proxy}))[0] in (
        200,
        404,
    )


@pytest.mark.parametrize(
    "proxy",
    [
        "http://user:marked-key@127.0.0.1:99999",
        "http://user:marked-key@ho st:9",
        "user:marked key@[::1:9",
        "127.0.0.1:marked-key",
        "http://user:marked-key@",
        "ftp://user:marked-key@127.0.0.1:9",
        "socks5://user:marked-key@127.0.0.1:99999",
    ],
)
def test_a_proxy_that_is_none_is_refused_without_being_shown(proxy: str) -> None:
    with pytest.raises(BadRequest, match="invalid_proxy") as caught:
        read("http://provider.example/v1", client(proxies={"http": proxy}))
    assert "marked" not in "".join(traceback.format_exception(caught.value))


# certificates


@pytest.fixture
def trusted(tmp_path: Path) -> Iterator[tuple[ProviderServer, Path]]:
    """A server, and the certificate of the authority that signed its own."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    with ProviderServer(certfile=str(tmp_path / "server.pem")) as server:
        yield server, tmp_path / "ca.pem"


VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", VARIABLES[:3])
def test_the_environment_names_certificates_to_trust(
    name: str, trusted: tuple[ProviderServer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, ca_file = trusted
    url = f"{server.url}/chat/completions"
    with pytest.raises(NetworkError, match="tls"):
        read(url)
    monkeypatch.setenv(name, str(ca_file))
    assert read(url)[0] == 200


def test_a_directory_of_certificates_will_do(
    trusted: tuple[ProviderServer, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, ca_file = trusted
    hashed = tmp_path / "hashed"
    hashed.mkdir()
    context = ssl.create_default_context(cafile=str(ca_file))
    assert context.get_ca_certs()
    # OpenSSL finds a certificate in a directory by the hash of its subject
    import subprocess

    try:
        found = subprocess.run(
            ["openssl", "x509", "-noout", "-hash", "-in", str(ca_file)],
            capture_output=True,
            text=True,
            check=True,
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    (hashed / f"{found.stdout.strip()}.0").write_bytes(ca_file.read_bytes())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(hashed))
    assert read(f"{server.url}/chat/completions")[0] == 200


def test_the_deployments_own_certificates_count_for_more(
    trusted: tuple[ProviderServer, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server, ca_file = trusted
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "other.pem"))
    assert read(f"{server.url}/chat/completions", client(ca_file=str(ca_file)))[0] == 200


@pytest.mark.parametrize("name", ["none.pem", "server.txt"])
def test_certificates_that_cannot_be_read_are_told(name: str, tmp_path: Path) -> None:
    (tmp_path / "server.txt").write_text("no certificate")
    with pytest.raises(RequestError, match="ca_file"):
        read("https://127.0.0.1:9/v1", client(ca_file=str(tmp_path / name)))
