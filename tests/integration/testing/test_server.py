"""The scriptable provider keeps its script: seen with http.client, not with our own client."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import trustme

from remote_inference.testing.behaviours import (
    Behaviour,
    Reply,
    Status,
    content_filter,
    context_length_exceeded,
    insufficient_quota,
    overloaded,
    rate_limited,
)
from remote_inference.testing.faults import (
    BadChunk,
    Comments,
    Cut,
    Drip,
    HugeLine,
    NoDone,
    Raw,
    Redirect,
    Silent,
    SlowHeaders,
    Stall,
    StreamError,
    Unfinished,
    WrongContentType,
)
from remote_inference.testing.limit import ExactLimit
from remote_inference.testing.process import ProviderProcess
from remote_inference.testing.server import ProviderServer
from remote_inference.testing.wire import ToolCall, Usage

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]


@pytest.fixture
def server() -> Iterator[ProviderServer]:
    with ProviderServer(tokens=5) as running:
        yield running


def connect(server: ProviderServer, timeout: float = 5.0) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)


def send(
    connection: http.client.HTTPConnection, *, stream: bool = True, key: str = "sk-test", **more: Any
) -> http.client.HTTPResponse:
    body = json.dumps({"model": "gpt-4o", "messages": MESSAGES, "stream": stream, **more})
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    return connection.getresponse()


def ask(server: ProviderServer, *, stream: bool = True, **more: Any) -> tuple[int, bytes]:
    connection = connect(server)
    try:
        response = send(connection, stream=stream, **more)
        return response.status, response.read()
    finally:
        connection.close()


def drain(response: http.client.HTTPResponse) -> tuple[bytes, OSError | None]:
    """All that comes, and the error that ended it, if one did."""
    body = b""
    try:
        while block := response.read1(65536):
            body += block
    except OSError as exc:
        return body, exc
    return body, None


def data_of(body: bytes) -> list[str]:
    return [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]


def text_of(body: bytes) -> str:
    chunks = [json.loads(data) for data in data_of(body) if data.startswith("{") and "choices" in data]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def sdk(server: ProviderServer, key: str = "sk-test") -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key=key, max_retries=0, timeout=5)


class TestAnswers:
    def test_the_official_client_reads_a_stream_with_usage(self, server: ProviderServer) -> None:
        with sdk(server) as client:
            stream = client.chat.completions.create(
                model="gpt-4o",
                messages=[{"role": "user", "content": "x" * 40}],
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "t0 t1 t2 t3 t4 "
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
        usage = chunks[-1].usage
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (10, 5, 15)

    def test_the_official_client_reads_an_answer_that_is_not_streamed(self, server: ProviderServer) -> None:
        server.script(
            Reply(
                "It is.",
                usage=Usage(7, cached_tokens=3, reasoning_tokens=2),
                tool_calls=(ToolCall("look", '{"at":"the sky"}'),),
                reasoning="Well now",
            )
        )
        with sdk(server) as client:
            answer = client.chat.completions.create(model="m", messages=MESSAGES)  # type: ignore[arg-type]
        choice = answer.choices[0]
        assert (choice.message.content, choice.finish_reason) == ("It is.", "tool_calls")
        assert choice.message.tool_calls is not None
        assert choice.message.tool_calls[0].function.arguments == '{"at":"the sky"}'
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 7
        assert answer.usage.prompt_tokens_details.cached_tokens == 3
        assert answer.usage.completion_tokens_details.reasoning_tokens == 2

    def test_usage_is_streamed_only_when_asked_for(self, server: ProviderServer) -> None:
        assert b'"usage"' not in ask(server)[1]
        assert b'"usage"' in ask(server, stream_options={"include_usage": True})[1]

    def test_tool_call_arguments_come_in_pieces_that_add_up(self, server: ProviderServer) -> None:
        arguments = json.dumps({"city": "Zürich", "days": [1, 2, 3]})
        server.script(
            Reply(tool_calls=(ToolCall("weather", arguments, "call_a"), ToolCall("time", "{}", "call_b")))
        )
        chunks = [json.loads(data) for data in data_of(ask(server)[1]) if data != "[DONE]"]
        calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
        first = [call["function"]["arguments"] for call in calls if call["index"] == 0]
        assert len(first) > 3
        assert "".join(first) == arguments
        assert [call["id"] for call in calls if "id" in call] == ["call_a", "call_b"]
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"

    def test_refusal_and_reasoning_are_streamed_in_their_own_fields(self, server: ProviderServer) -> None:
        server.script(Reply(refusal="I will not.", reasoning="Should I?", finish_reason="content_filter"))
        body = ask(server)[1].decode()
        assert '"refusal":"I"' in body
        assert '"reasoning_content":"Should"' in body
        assert '"finish_reason":"content_filter"' in body

    def test_a_close_delimited_body_ends_with_the_connection(self, server: ProviderServer) -> None:
        server.script(Reply("a b c", framing="close"))
        connection = connect(server)
        response = send(connection)
        assert response.getheader("transfer-encoding") is None
        assert response.getheader("content-length") is None
        assert text_of(response.read()) == "a b c"
        connection.close()

    def test_one_connection_serves_one_request_after_the_other(self, server: ProviderServer) -> None:
        connection = connect(server)
        for _ in range(3):
            assert send(connection).read().endswith(b"data: [DONE]\n\n")
        connection.close()
        assert {request.connection for request in server.requests} == {1}

    def test_tokens_are_paced_without_drift(self, server: ProviderServer) -> None:
        server.script(Reply(tokens=11, token_delay=0.01, first_token_delay=0.05))
        began = time.monotonic()
        ask(server)
        assert 0.15 <= time.monotonic() - began < 1.0

    def test_burst_puts_several_tokens_into_one_chunk(self, server: ProviderServer) -> None:
        server.script(Reply(tokens=10, burst=5))
        with socket.create_connection(("127.0.0.1", server.port), 5) as sock:
            body = json.dumps({"model": "m", "messages": MESSAGES, "stream": True}).encode()
            sock.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
            raw = b""
            while b"\r\n0\r\n\r\n" not in raw:
                raw += sock.recv(65536)
        chunks = raw.partition(b"\r\n\r\n")[2].split(b"\r\n")[1::2]
        assert [chunk.count(b'"content":"t') for chunk in chunks] == [0, 5, 5, 0, 0]

    def test_models_are_listed(self, server: ProviderServer) -> None:
        with sdk(server) as client:
            assert [model.id for model in client.models.list()] == ["gpt-4o", "gpt-4o-mini"]


class TestScript:
    def test_behaviours_are_used_one_a_request_then_the_default(self, server: ProviderServer) -> None:
        server.script(overloaded(), Reply("second"))
        assert ask(server)[0] == 503
        assert text_of(ask(server)[1]) == "second"
        assert text_of(ask(server)[1]) == "t0 t1 t2 t3 t4 "

    def test_rules_pick_by_model_and_by_predicate_the_newest_first(self, server: ProviderServer) -> None:
        server.on("slow", Reply("from the model's rule"))
        server.on(lambda request: request.body.get("seed") == 7, overloaded(), times=1)
        server.on("echo", lambda request: Reply(request.body["messages"][0]["content"]))
        assert text_of(ask(server, model="slow")[1]) == "from the model's rule"
        assert ask(server, model="slow", seed=7)[0] == 503
        assert ask(server, model="slow", seed=7)[0] == 200
        assert text_of(ask(server, model="echo")[1]) == "Why is the sky blue?"

    @pytest.mark.parametrize(
        ("behaviour", "status", "code"),
        [
            (context_length_exceeded(), 400, "context_length_exceeded"),
            (content_filter(), 400, "content_filter"),
            (insufficient_quota(), 429, "insufficient_quota"),
            (rate_limited(), 429, "rate_limit_exceeded"),
            (overloaded(529), 529, "overloaded"),
            (Status(418), 418, None),
        ],
    )
    def test_refusals_have_openais_shape(
        self, server: ProviderServer, behaviour: Behaviour, status: int, code: str | None
    ) -> None:
        server.script(behaviour)
        got, body = ask(server)
        assert (got, json.loads(body)["error"]["code"]) == (status, code)

    def test_status_takes_any_body_and_headers(self, server: ProviderServer) -> None:
        server.script(
            Status(502, "bad gateway", {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}), rate_limited(1.5)
        )
        connection = connect(server)
        response = send(connection)
        assert response.getheader("retry-after") == "Wed, 21 Oct 2026 07:28:00 GMT"
        assert response.read() == b"bad gateway"
        response = send(connection)
        assert response.getheader("retry-after") == "1.5"
        connection.close()

    def test_keys_can_change_while_it_runs(self, server: ProviderServer) -> None:
        server.keys = {"sk-old", "sk-new"}
        assert send(connect(server), key="sk-old").status == 200
        server.keys = {"sk-new"}
        refused = send(connect(server), key="sk-old")
        assert (refused.status, json.loads(refused.read())["error"]["code"]) == (401, "invalid_api_key")
        assert send(connect(server), key="sk-new").status == 200
        assert [request.key for request in server.requests] == ["sk-old", "sk-old", "sk-new"]

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": "m"}', b'{"messages": [{}]}'])
    def test_a_malformed_request_is_a_400_and_uses_up_no_script(
        self, server: ProviderServer, body: bytes
    ) -> None:
        server.script(Reply("next"))
        connection = connect(server)
        connection.request("POST", "/v1/chat/completions", body)
        assert connection.getresponse().status == 400
        connection.close()
        assert text_of(ask(server)[1]) == "next"

    def test_other_paths_are_not_found(self, server: ProviderServer) -> None:
        connection = connect(server)
        connection.request("GET", "/v1/chat/completions")
        assert connection.getresponse().status == 404
        connection.close()

    def test_the_exact_limit_refuses_with_the_headers_of_openai(self) -> None:
        with ProviderServer(limit=ExactLimit(requests_per_minute=2)) as server:
            connection = connect(server)
            first = send(connection)
            assert first.getheader("x-ratelimit-remaining-requests") == "1"
            first.read()
            send(connection).read()
            third = send(connection)
            assert third.status == 429
            assert 55 < float(third.getheader("retry-after") or 0) <= 60
            connection.close()
            assert server.stats["refused"] == 1


class TestFaults:
    @pytest.mark.parametrize("framing", ["chunked", "close"])
    def test_cut_resets_the_connection_after_its_tokens(self, server: ProviderServer, framing: Any) -> None:
        server.script(Cut(after=2, reply=Reply(tokens=9, framing=framing)))
        response = send(connect(server))
        assert isinstance(drain(response)[1], ConnectionResetError)
        assert server.requests[0].tokens_sent == 2

    def test_cut_without_reset_ends_too_early(self, server: ProviderServer) -> None:
        server.script(Cut(after=2, reset=False))
        with pytest.raises(http.client.IncompleteRead) as caught:
            send(connect(server)).read()
        assert text_of(caught.value.partial) == "t0 t1 "

    def test_cut_of_an_answer_that_is_not_streamed_misses_half_of_it(self, server: ProviderServer) -> None:
        server.script(Cut(reset=False))
        with pytest.raises(http.client.IncompleteRead):
            send(connect(server), stream=False).read()

    @pytest.mark.parametrize(
        ("behaviour", "text"), [(Stall(after=2), "t0 t1 "), (Silent("body"), ""), (Stall(after=0), "")]
    )
    def test_stall_sends_its_tokens_and_then_nothing(
        self, server: ProviderServer, behaviour: Behaviour, text: str
    ) -> None:
        server.script(behaviour)
        connection = connect(server, timeout=0.2)
        response = send(connection)
        assert response.status == 200
        body, end = drain(response)
        assert isinstance(end, TimeoutError)
        assert text_of(body) == text

    def test_silent_before_headers_sends_nothing_at_all(self, server: ProviderServer) -> None:
        server.script(Silent("headers"))
        with pytest.raises(TimeoutError):
            send(connect(server, timeout=0.2))
        assert server.requests[0].answered_at is None

    def test_comments_go_on_for_ever(self, server: ProviderServer) -> None:
        server.script(Comments(after=1, interval=0.002))
        connection = connect(server)
        response = send(connection)
        body = b""
        while body.count(b": ping\n\n") < 20:
            body += response.read1(65536)
        assert text_of(body) == "t0 "
        response.close()
        connection.close()
        server.wait_for(lambda s: s.requests[0].closed_early)

    @pytest.mark.parametrize(
        ("behaviour", "done", "reason"),
        [
            (Unfinished(), False, False),
            (Unfinished(done=True), True, False),
            (NoDone(), False, True),
            (Reply(), True, True),
        ],
    )
    def test_endings_lack_what_they_say(
        self, server: ProviderServer, behaviour: Behaviour, done: bool, reason: bool
    ) -> None:
        server.script(behaviour)
        _, body = ask(server)
        assert text_of(body).startswith("t0 t1 ")
        assert body.endswith(b"data: [DONE]\n\n") is done
        assert (b'"finish_reason":"stop"' in body) is reason

    def test_bad_chunk_is_not_json(self, server: ProviderServer) -> None:
        server.script(BadChunk(after=1))
        bad = data_of(ask(server)[1])[2]
        with pytest.raises(ValueError, match=r"delimiter|Unterminated"):
            json.loads(bad)

    def test_an_error_object_comes_inside_a_200_stream(self, server: ProviderServer) -> None:
        server.script(StreamError(after=1))
        status, body = ask(server)
        assert status == 200
        assert json.loads(data_of(body)[-1])["error"]["code"] == "overloaded"

    @pytest.mark.parametrize("behaviour", [Drip(64, interval=0.001), SlowHeaders(0.002)])
    def test_slow_bytes_add_up_to_a_whole_answer(self, server: ProviderServer, behaviour: Behaviour) -> None:
        server.script(behaviour)
        began = time.monotonic()
        status, body = ask(server)
        assert (status, body[-14:]) == (200, b"data: [DONE]\n\n")
        assert time.monotonic() - began > 0.01

    def test_a_huge_line_has_no_end(self, server: ProviderServer) -> None:
        server.script(HugeLine(1_000_000))
        response = send(connect(server, timeout=0.5))
        body, end = drain(response)
        assert isinstance(end, TimeoutError)
        assert b"\n" not in body
        assert len(body) == len("data: ") + 1_000_000

    def test_foreign_answers_are_what_they_say(self, server: ProviderServer) -> None:
        server.script(
            WrongContentType(), Redirect("http://127.0.0.1:9/v1"), Raw((b"data: a\r", b"\ndata: b\n\n"))
        )
        connection = connect(server)
        page = send(connection)
        assert (page.getheader("content-type"), page.status) == ("text/html", 200)
        page.read()
        redirect = send(connection)
        assert (redirect.status, redirect.getheader("location")) == (307, "http://127.0.0.1:9/v1")
        redirect.read()
        assert send(connection).read() == b"data: a\r\ndata: b\n\n"
        connection.close()

    @pytest.mark.parametrize(
        "behaviour",
        [
            Cut(),
            Stall(),
            Unfinished(),
            NoDone(),
            BadChunk(),
            StreamError(),
            Comments(),
            Silent(),
            HugeLine(),
            Drip(),
        ],
    )
    def test_faults_are_hashable_values(self, behaviour: Behaviour) -> None:
        assert hash(behaviour) == hash(type(behaviour)())
        assert behaviour == type(behaviour)()


class TestRecords:
    def test_a_client_that_goes_early_is_seen_at_once(self, server: ProviderServer) -> None:
        server.script(Stall(after=2), Silent("headers"))
        streaming, silent = connect(server), connect(server)
        response = send(streaming)
        silent.request("POST", "/v1/chat/completions", json.dumps({"model": "m", "messages": MESSAGES}))
        server.wait_for(lambda s: s.in_flight == 2)
        for connection in (streaming, silent):
            assert connection.sock is not None
            connection.sock.shutdown(socket.SHUT_RDWR)
        began = time.monotonic()
        server.wait_for(lambda s: all(request.closed_early for request in s.requests), timeout=1)
        assert server.in_flight == 0
        assert (server.max_in_flight, server.closed_early) == (2, 2)
        closed_at = server.requests[0].client_closed_at
        assert closed_at is not None
        assert closed_at - began < 0.5
        response.close()

    def test_a_client_that_stays_is_not_said_to_have_gone(self, server: ProviderServer) -> None:
        ask(server)
        server.wait_for(lambda s: s.connections == 0)
        (request,) = server.requests
        assert not request.closed_early
        assert request.finished_at is not None
        assert request.tokens_sent == 5

    def test_repr_shows_neither_prompt_nor_key(self, server: ProviderServer) -> None:
        send(connect(server), key="sk-secret").read()
        (request,) = server.requests
        assert request.key == "sk-secret"
        assert "sk-secret" not in repr(request) + repr(server)
        assert "sky" not in repr(request)

    def test_wait_for_says_what_it_saw(self, server: ProviderServer) -> None:
        ask(server)
        with pytest.raises(TimeoutError, match="POST /v1/chat/completions 200 5 tokens"):
            server.wait_for(lambda s: s.count == 2, timeout=0.05)

    def test_stopped_and_started_again_it_has_the_same_url(self) -> None:
        server = ProviderServer(tokens=1)
        with server:
            url = server.url
            connection = connect(server)
            send(connection).read()
        with pytest.raises(ConnectionRefusedError):
            send(connect(server))
        with server:
            assert server.url == url
            assert ask(server)[0] == 200

    def test_a_taken_port_is_an_error_in_start(self, server: ProviderServer) -> None:
        with pytest.raises(OSError, match="in use"):
            ProviderServer(port=server.port).start()


def test_it_serves_https_with_the_certificate_given(tmp_path: Path) -> None:
    authority = trustme.CA()
    pem = tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with ProviderServer(certfile=str(pem)) as server:
        assert server.url.startswith("https://")
        server.script(Reply("over TLS"), Stall(after=1))
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=5)
        assert text_of(send(connection).read()) == "over TLS"
        stalled = send(connection)
        stalled.read1(10)
        stalled.close()
        connection.close()
        server.wait_for(lambda s: s.requests[1].closed_early, timeout=1)


def test_as_a_process_it_prints_its_url_serves_and_ends_with_its_owner() -> None:
    with ProviderProcess("--tokens", "3", "--key", "sk-test") as process:
        parts = urlsplit(process.url)
        assert parts.hostname is not None
        connection = http.client.HTTPConnection(parts.hostname, parts.port or 0, timeout=5)
        assert text_of(send(connection).read()) == "t0 t1 t2 "
        assert send(connection, key="sk-other").status == 401
        connection.close()
        assert process.stats["count"] == 2
        assert process.stats["tokens_sent"] == 3
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((parts.hostname, parts.port or 0), 1)


def ask_process(process: ProviderProcess, prompt: str, source: str = "") -> str:
    client = openai.OpenAI(
        base_url=process.url, api_key="sk-test", max_retries=0, default_headers={"x-source": source}
    )
    with client:
        stream = client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": prompt}], stream=True
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_a_request_can_say_what_it_costs_and_every_arrival_is_kept():
    with ProviderProcess(
        "--directed", "--arrivals", "--tokens-per-minute", "100", "--tokens", "2", "--burst", "4"
    ) as process:
        before = time.monotonic()
        assert ask_process(process, "input=60 output=7 mark=first " + "x" * 1000, source="a").split() == [
            f"t{number}" for number in range(7)
        ]
        with pytest.raises(openai.RateLimitError):  # 67 of 100 are spent
            ask_process(process, "input=34 output=1 mark=second ", source="b")
        assert ask_process(process, "Hello", source="c").split() == [
            "t0",
            "t1",
        ]  # says nothing: counted as ever
        seen = process.arrivals()
        after = time.monotonic()
        assert seen["status"] == [200, 429, 200]
        assert seen["source"] == ["a", "b", "c"]
        assert seen["mark"] == ["first", "second", ""]
        assert seen["input"] == [60, 34, 1]
        assert seen["spent"] == [4, 3, 2]
        assert before < seen["at"][0] < seen["spent_at"][0] <= seen["spent_at"][1] < seen["at"][1] < after


def test_a_provider_process_refuses_the_next_request_when_it_is_told_to():
    with ProviderProcess("--tokens", "1") as process:
        process.refuse_next(2.5)
        with pytest.raises(openai.RateLimitError) as caught:
            ask_process(process, "Hello")
        assert caught.value.response.headers["retry-after"] == "2.5"
        assert ask_process(process, "Hello").split() == ["t0"]
