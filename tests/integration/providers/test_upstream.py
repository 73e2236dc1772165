"""The way from bytes on a socket to chunks: what waits for what, and what a broken end breaks."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from remote_inference.cancel import CancelToken
from remote_inference.clock import SystemClock
from remote_inference.config import Deployment, Timeouts
from remote_inference.credentials import Credential, Secret
from remote_inference.engine import Attempt, Upstream, upstream
from remote_inference.errors import InvalidResponse, RequestError, StreamTruncated, Timeout
from remote_inference.providers import AnswerHead, provider_named
from remote_inference.transport.clients import Clients
from remote_inference.transport.session import RemoteSession
from remote_inference.types import FinishReason, InferenceRequest, TokenChunk

CLOCK = SystemClock()


class Key:
    def fetch(self) -> Credential:
        return Credential(secret=Secret("marked-key"))


def event(delta: Any, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice], **more})}\n\n".encode()


HELLO, WORLD, STOP, DONE = (
    event({"content": "Hello "}),
    event({"content": "world"}),
    event({}, "stop"),
    b"data: [DONE]\n\n",
)
WHOLE = json.dumps(
    {"choices": [{"index": 0, "message": {"content": "Hello world"}, "finish_reason": "stop"}]}
).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[list[TokenChunk], AnswerHead]]]:
    """Asks a server that plays bytes and pauses, with a patience of 0.2 seconds after an answer's end."""
    monkeypatch.setattr(upstream, "TAIL_PATIENCE", 0.2)
    listeners: list[socket.socket] = []

    def asked(
        *play: bytes | float, stream: bool = True, read: float = 5.0, seen: list[TokenChunk] | None = None
    ) -> tuple[list[TokenChunk], AnswerHead]:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        over = threading.Event()

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                while b"\r\n\r\n" not in sock.recv(65_536):
                    pass
                for step in play:
                    if isinstance(step, bytes):
                        sock.sendall(step)
                    elif step < 0:
                        over.wait(10)
                    else:
                        over.wait(step)

        threading.Thread(target=serve, daemon=True).start()
        deployment = Deployment(
            name="d",
            model="m",
            endpoint=f"http://127.0.0.1:{listener.getsockname()[1]}/v1",
            timeouts=Timeouts(connect=2.0, first_byte=5.0, read=read),
        )
        session = RemoteSession(deployment, Key(), Clients(clock=CLOCK), clock=CLOCK)
        chunks: list[TokenChunk] = [] if seen is None else seen
        heads: list[AnswerHead] = []
        try:
            with session.lease() as snapshot:
                attempt = Attempt(
                    request=InferenceRequest.parse("d", "why?"),
                    deployment=deployment,
                    snapshot=snapshot,
                    token=CancelToken(),
                    stream=stream,
                    on_head=heads.append,
                )
                for chunk in Upstream(provider_named("openai"), clock=CLOCK).stream(attempt):
                    chunks.append(chunk)
        finally:
            over.set()
            session.close()
        return chunks, heads[-1]

    yield asked
    for listener in listeners:
        listener.close()


def text(chunks: list[TokenChunk]) -> str:
    return "".join(chunk.text_delta for chunk in chunks)


def test_an_end_that_comes_before_the_text_does_not_shorten_the_patience(ask: Callable[..., Any]) -> None:
    early = event({"role": "assistant", "content": ""}, "stop")
    chunks, _ = ask(HEAD, early, 0.5, HELLO, 0.5, WORLD, DONE)
    assert text(chunks) == "Hello world"
    assert chunks[-1].finish_reason is FinishReason.STOP


def test_after_a_complete_answer_nobody_is_waited_for_longer_than_the_patience(
    ask: Callable[..., Any],
) -> None:
    began = CLOCK.monotonic()
    chunks, _ = ask(HEAD, HELLO, WORLD, STOP, -1)
    assert text(chunks) == "Hello world"
    assert CLOCK.monotonic() - began < 2.0


def test_a_stream_that_stalls_after_an_early_end_has_timed_out(ask: Callable[..., Any]) -> None:
    seen: list[TokenChunk] = []
    with pytest.raises(Timeout, match="read"):
        ask(HEAD, event({"content": ""}, "stop"), HELLO, -1, read=0.4, seen=seen)
    assert text(seen) == "Hello "


def test_a_stream_that_breaks_off_after_an_early_end_is_no_answer(ask: Callable[..., Any]) -> None:
    with pytest.raises(StreamTruncated):
        ask(HEAD, event({"content": ""}, "stop"), HELLO)


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize("stream", [True, False])
def test_the_first_bytes_tell_what_came_whatever_was_asked_for_and_written_on_it(
    ask: Callable[..., Any], stream: bool, step: int
) -> None:
    as_json = HEAD.replace(b"text/event-stream", b"application/json")
    for head, body in (
        (as_json, HELLO + WORLD + STOP + DONE),
        (HEAD, WHOLE),
        (HEAD, b"\xef\xbb\xbf\r\n " + WHOLE),
    ):
        pieces = [body[at : at + step] for at in range(0, len(body), step)]
        chunks, _ = ask(head, *pieces, stream=stream)
        assert text(chunks) == "Hello world"
        assert chunks[-1].finish_reason is FinishReason.STOP


@pytest.mark.parametrize("status", ["201 Created", "202 Accepted", "206 Partial Content"])
def test_another_2xx_is_an_answer(ask: Callable[..., Any], status: str) -> None:
    head = HEAD.replace(b"200 OK", status.encode())
    assert text(ask(head, HELLO + WORLD + STOP + DONE)[0]) == "Hello world"


def test_a_204_is_no_answer(ask: Callable[..., Any]) -> None:
    with pytest.raises(InvalidResponse):
        ask(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")


def test_an_answer_that_was_compressed_although_nobody_asked_for_it(ask: Callable[..., Any]) -> None:
    head = HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    assert text(ask(head, gzip.compress(HELLO + WORLD + STOP + DONE))[0]) == "Hello world"


def test_a_gateways_id_and_cost_are_told(ask: Callable[..., Any]) -> None:
    own = b"\r\nx-litellm-call-id: 5f1c-9\r\nx-request-id: other\r\nx-litellm-response-cost: 3.5e-05\r\n\r\n"
    _, head = ask(HEAD.replace(b"\r\n\r\n", own), HELLO + STOP + DONE)
    assert (head.call_id, head.cost_usd) == ("5f1c-9", 3.5e-05)


def test_an_id_that_looks_like_text_is_not_told(ask: Callable[..., Any]) -> None:
    own = b"\r\nx-request-id: why is the sky blue?\r\nx-litellm-response-cost: nan\r\n\r\n"
    _, head = ask(HEAD.replace(b"\r\n\r\n", own), HELLO + STOP + DONE)
    assert (head.call_id, head.cost_usd) == ("", None)


def test_harmless_events_keep_a_slow_stream_awake(ask: Callable[..., Any]) -> None:
    ping = b"event: ping\ndata: \n\n"
    chunks, _ = ask(HEAD, HELLO, *[0.2, ping] * 4, WORLD, STOP, DONE, read=0.5)
    assert text(chunks) == "Hello world"


def test_the_usage_is_told_before_an_error_in_the_stream(ask: Callable[..., Any]) -> None:
    seen: list[TokenChunk] = []
    counted = event({"content": "Hello"}, usage={"prompt_tokens": 9, "completion_tokens": 1})
    broken = b'data: {"error": {"message": "x", "code": 502}}\n\n'
    with pytest.raises(RequestError):
        ask(HEAD, counted, broken, seen=seen)
    assert seen[-1].usage is not None
    assert seen[-1].usage.prompt_tokens == 9
