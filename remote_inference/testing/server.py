"""A scriptable provider: a real HTTP server on loopback that speaks OpenAI's chat completions.

In a thread of the test's own process::

    with ProviderServer(tokens=5) as server:
        server.script(rate_limited(1), Cut(after=2))  # then five tokens for each
        client = openai.OpenAI(base_url=server.url, api_key="sk-test")

or as a process, for benchmarks and for tests whose own process is busy or patched (gevent):
`python -m remote_inference.testing.server --port 0 --tokens 100` prints its URL as the first line;
`remote_inference.testing.process.ProviderProcess` wraps that.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import ssl
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from remote_inference.testing.arrivals import Arrivals, directions
from remote_inference.testing.arrivals import directed as _directed
from remote_inference.testing.behaviours import (
    Answer,
    Prompt,
    Reply,
    Status,
    invalid_api_key,
    rate_limited,
)
from remote_inference.testing.connection import Connection, ReceivedRequest
from remote_inference.testing.limit import ExactLimit
from remote_inference.testing.script import Match, Script, Scripted
from remote_inference.testing.wire import error_body, prompt_text

__all__ = ["ProviderServer", "main"]

T = TypeVar("T")

_CONTROL = "/_control/"


class ProviderServer:
    """The server, its script and what it saw. Start and stop it, or use it in a `with`.

    A behaviour is a value (`Reply`, `Status`, a fault) or a function from the request to one. A request is
    answered by the newest matching `on` rule, else by the next in the `script`, else by the default.

    Args:
        tokens: Of the default answer.
        rate: Tokens a second of the default answer; None: as fast as it can.
        burst: Tokens the default answer puts into one write.
        first_byte_delay: Seconds before the default answer's headers.
        default: Another default answer; the four arguments before are then unused.
        keys: API keys that are let in, all if None; may be changed while it runs.
        limit: Refuses with 429 what passes it.
        models: What `/v1/models` lists. A request may name any model.
        chars_per_token: Input tokens are counted as characters of the messages divided by this.
        record: Keep every request; off for benchmarks, where only the counters count.
        directed: The first words of a request's text say what it costs; see `remote_inference.testing.arrivals`.
        arrivals: Told of each request, and of what it is charged.
        host: Loopback, unless you know better.
        port: 0: any free one.
        certfile: A PEM file with the certificate, for HTTPS.
        keyfile: Its key, if it is not in the same file.
    """

    def __init__(
        self,
        *,
        tokens: int = 10,
        rate: float | None = None,
        burst: int = 1,
        first_byte_delay: float = 0.0,
        default: Scripted | None = None,
        keys: Collection[str] | None = None,
        limit: ExactLimit | None = None,
        models: Sequence[str] = ("gpt-4o", "gpt-4o-mini"),
        chars_per_token: float = 4.0,
        record: bool = True,
        directed: bool = False,
        arrivals: Arrivals | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        certfile: str | None = None,
        keyfile: str | None = None,
    ) -> None:
        delay = 1.0 / rate if rate else 0.0
        plain = Reply(tokens=tokens, token_delay=delay, burst=burst, first_byte_delay=first_byte_delay)
        if default is None:
            default = _directed(plain) if directed else plain
        self._script = Script(default)
        self.keys: Collection[str] | None = keys
        self.limit = limit
        self.models = tuple(models)
        self.count = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self.closed_early = 0
        self.tokens_sent = 0
        self.max_lateness = 0.0
        self._chars_per_token = chars_per_token
        self._record = record
        self._directed = directed
        self.arrivals = arrivals
        self._address = (host, port)
        self._tls: ssl.SSLContext | None = None
        if certfile is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certfile, keyfile)
        self._changed = threading.Condition()
        self._requests: list[ReceivedRequest] = []
        self._connections: set[Connection] = set()
        self._connection_numbers = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        where = f"port {self._address[1]}" if self._thread else "stopped"
        return f"<ProviderServer {where}: {self.count} requests, {self.in_flight} in flight>"

    # running

    @property
    def default(self) -> Scripted:
        """What answers when neither a rule nor the script does; may be set while it runs."""
        return self._script.default

    @default.setter
    def default(self, behaviour: Scripted) -> None:
        self._script.default = behaviour

    @property
    def url(self) -> str:
        """The base URL, with `/v1`."""
        scheme = "https" if self._tls else "http"
        host, port = self._address
        return f"{scheme}://{host}:{port}/v1"

    @property
    def port(self) -> int:
        """The port, once it is started."""
        return self._address[1]

    def start(self) -> ProviderServer:
        """Listen; returns when requests are taken.

        Raises:
            OSError: The port is taken.
        """
        ready: list[BaseException] = []
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(ready, started), name="provider-server", daemon=True
        )
        self._thread.start()
        started.wait()
        if ready:
            self._thread.join()
            self._thread = None
            raise ready[0]
        return self

    def stop(self) -> None:
        """Drop all connections and stop listening. It may be started again, then on the same port."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        self._loop = self._thread = None

    def __enter__(self) -> ProviderServer:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _run(self, failure: list[BaseException], started: threading.Event) -> None:
        loop = asyncio.new_event_loop()
        try:
            numbers = itertools.count(1)
            host, port = self._address
            server = loop.run_until_complete(
                loop.create_server(
                    lambda: Connection(self, numbers),
                    host,
                    port,
                    ssl=self._tls,
                    backlog=4096,
                    reuse_address=True,
                )
            )
        except BaseException as exc:  # handed to the thread that waits in start()
            failure.append(exc)
            loop.close()
            started.set()
            return
        self._address = (host, server.sockets[0].getsockname()[1])
        self._loop = loop
        started.set()
        try:
            loop.run_forever()
        finally:
            server.close()
            self._close_connections()
            loop.run_until_complete(asyncio.sleep(0))
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    def _close_connections(self) -> None:
        for connection in list(self._connections):
            connection.close()

    # the script

    def script(self, *behaviours: Scripted) -> None:
        """Queue behaviours, one a request; after them the default comes again."""
        with self._changed:
            self._script.queue(*behaviours)

    def on(self, match: Match, behaviour: Scripted, *, times: int | None = None) -> None:
        """Answer requests for a model, or those a predicate picks, with `behaviour` (so many times)."""
        with self._changed:
            self._script.on(match, behaviour, times)

    def reset(self) -> None:
        """Forget script, rules, requests and counters; what is in flight goes on and is still counted."""
        with self._changed:
            self._script.clear()
            self._requests.clear()
            self.count = self.closed_early = self.tokens_sent = 0
            self.max_in_flight = self.in_flight
            self.max_lateness = 0.0

    def drop_connections(self) -> None:
        """Close every open connection, as a provider that restarts does."""
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(self._close_connections)

    # what it saw

    @property
    def requests(self) -> list[ReceivedRequest]:
        """The chat completion requests so far, whatever they were answered."""
        with self._changed:
            return list(self._requests)

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    @property
    def stats(self) -> dict[str, Any]:
        """The counters, as `GET /_control/stats` gives them."""
        limit = self.limit
        return {
            "count": self.count,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "closed_early": self.closed_early,
            "tokens_sent": self.tokens_sent,
            "max_lateness": self.max_lateness,
            "connections": self.connections,
            "admitted": limit.admitted if limit else None,
            "refused": limit.refused if limit else None,
            "cpu_seconds": time.process_time(),
        }

    def wait_for(self, predicate: Callable[[ProviderServer], T], timeout: float = 5.0) -> T:
        """Wait until `predicate`, which is asked whenever a request changes, returns something true.

        Raises:
            TimeoutError: Nothing true in `timeout` seconds; the message has the requests so far.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                value = predicate(self)
                if value:
                    return value
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"nothing in {timeout} s; {self!r}: {self._requests!r}")
                self._changed.wait(left)

    # what a connection asks (in the server's thread)

    def respond(self, request: ReceivedRequest) -> Answer:
        """Choose the answer to a request."""
        path = request.path.partition("?")[0]
        if path.startswith(_CONTROL):
            return self._control(path.removeprefix(_CONTROL), request.body)
        with self._changed:
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
            chat = path == "/v1/chat/completions" and request.method == "POST"
            if chat:
                self.count += 1
                if self._record:
                    self._requests.append(request)
            answer = self._choose(request, path, chat)
            request.status = answer.status
            self._changed.notify_all()
            return answer

    def _choose(self, request: ReceivedRequest, path: str, chat: bool) -> Answer:
        if self.keys is not None and request.key not in self.keys:
            return invalid_api_key().answer(_NO_PROMPT)
        if path == "/v1/models" and request.method == "GET":
            models = [
                {"id": name, "object": "model", "created": 0, "owned_by": "fake"} for name in self.models
            ]
            return Status(200, {"object": "list", "data": models}).answer(_NO_PROMPT)
        if not chat:
            body = error_body(f"Unknown request URL: {path}", type="invalid_request_error")
            return Status(404, body).answer(_NO_PROMPT)
        fault = _fault(request.body)
        if fault:
            return Status(400, error_body(fault, type="invalid_request_error")).answer(_NO_PROMPT)
        options = request.body.get("stream_options") or {}
        prompt = Prompt(
            model=request.model,
            stream=bool(request.body.get("stream")),
            include_usage=bool(options.get("include_usage")),
            prompt_tokens=self._input_tokens(request),
        )
        answer = self._charged(request, prompt)
        if self.arrivals is not None:
            self.arrivals.came(request, prompt.prompt_tokens, answer.status)
        return answer

    def _input_tokens(self, request: ReceivedRequest) -> int:
        directed = directions(request).get("input") if self._directed else None
        if directed is not None:
            return int(directed)
        return max(1, round(len(prompt_text(request.body)) / self._chars_per_token))

    def _charged(self, request: ReceivedRequest, prompt: Prompt) -> Answer:
        if self.limit is not None:
            key = (request.key, request.model)
            admitted = self.limit.admit(key, prompt.prompt_tokens)
            headers = self.limit.headers(key)
            if not admitted:
                wait = f"{self.limit.retry_after(key):.3f}"
                return rate_limited(wait, headers).answer(prompt)
            answer = self._script.next(request).answer(prompt)
            return replace(answer, headers={**headers, **answer.headers})
        return self._script.next(request).answer(prompt)

    def _control(self, command: str, body: Any) -> Answer:
        """What a benchmark asks of the server in its own process."""
        answer: Any = {}
        if command == "stats":
            answer = self.stats
        elif command == "arrivals":
            answer = self.arrivals.to_json() if self.arrivals is not None else {}
        elif command == "refuse":
            self.script(rate_limited(body["retry_after"]))
        else:
            return Status(404).answer(_NO_PROMPT)
        return Status(200, answer).answer(_NO_PROMPT)

    def sent(self, request: ReceivedRequest, tokens: int) -> None:
        """Count tokens, against the limit too."""
        self.tokens_sent += tokens
        if self.arrivals is not None:
            self.arrivals.streamed(time.monotonic(), tokens)
        if self.limit is not None:
            self.limit.spend((request.key, request.model), tokens)

    def ended(self, request: ReceivedRequest) -> None:
        """Count a request out."""
        if request.path.startswith(_CONTROL):
            return
        with self._changed:
            self.in_flight -= 1
            self.closed_early += request.closed_early
            self._changed.notify_all()

    def late(self, seconds: float) -> None:
        """Remember the worst: a benchmark must know whether the server itself was late."""
        self.max_lateness = max(self.max_lateness, seconds)

    def connected(self, connection: Connection) -> int:
        """A new connection."""
        self._connections.add(connection)
        return next(self._connection_numbers)

    def disconnected(self, connection: Connection) -> None:
        """A closed one."""
        self._connections.discard(connection)
        with self._changed:
            self._changed.notify_all()


_NO_PROMPT = Prompt(model="", stream=False, include_usage=False, prompt_tokens=0)


def _fault(body: object) -> str:
    """What is wrong with a request's body, empty if nothing is."""
    if not isinstance(body, dict):
        return "We could not parse the JSON body of your request."
    if not isinstance(body.get("model"), str):
        return "you must provide a model parameter"
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        return "[] is too short - 'messages'"
    return ""


def main(argv: Iterable[str] | None = None) -> int:
    """Serve until standard input ends (`--until-eof`) or the process is told to stop."""
    parser = argparse.ArgumentParser(prog="python -m remote_inference.testing.server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument(
        "--rate", type=float, help="tokens a second of each stream; default: as fast as it can"
    )
    parser.add_argument("--burst", type=int, default=1, help="tokens a write")
    parser.add_argument("--first-byte-delay", type=float, default=0.0)
    parser.add_argument("--key", action="append", help="an API key that is let in; repeatable")
    parser.add_argument("--requests-per-minute", type=int)
    parser.add_argument("--tokens-per-minute", type=int)
    parser.add_argument("--chars-per-token", type=float, default=4.0)
    parser.add_argument("--directed", action="store_true", help="requests say what they cost")
    parser.add_argument("--arrivals", action="store_true", help="keep when which request came")
    parser.add_argument("--certfile")
    parser.add_argument("--keyfile")
    parser.add_argument("--until-eof", action="store_true", help="stop when standard input ends")
    options = parser.parse_args(None if argv is None else list(argv))
    limit = None
    if options.requests_per_minute is not None or options.tokens_per_minute is not None:
        limit = ExactLimit(
            requests_per_minute=options.requests_per_minute, tokens_per_minute=options.tokens_per_minute
        )
    server = ProviderServer(
        tokens=options.tokens,
        rate=options.rate,
        burst=options.burst,
        first_byte_delay=options.first_byte_delay,
        keys=set(options.key) if options.key else None,
        limit=limit,
        chars_per_token=options.chars_per_token,
        record=False,
        directed=options.directed,
        arrivals=Arrivals() if options.arrivals else None,
        host=options.host,
        port=options.port,
        certfile=options.certfile,
        keyfile=options.keyfile,
    )
    with server:
        print(server.url, flush=True)
        try:
            if options.until_eof:
                sys.stdin.buffer.read()
            else:
                threading.Event().wait()
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
