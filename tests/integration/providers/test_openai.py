"""The OpenAI provider against the scripted server: answers, faults, errors, cancelling, and a rotation under load."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from remote_inference.cancel import CancelToken
from remote_inference.clock import SystemClock
from remote_inference.config import Deployment, Timeouts
from remote_inference.credentials import Credential, Secret
from remote_inference.engine import Attempt, Upstream
from remote_inference.errors import (
    BadRequest,
    Cancelled,
    ContentFiltered,
    ContextLengthExceeded,
    DeadlineExceeded,
    Forbidden,
    InvalidResponse,
    NetworkError,
    RateLimited,
    RequestError,
    ServerError,
    StreamTruncated,
    Timeout,
    Unauthorized,
)
from remote_inference.policy.quota import Quota, QuotaReport
from remote_inference.providers import AnswerHead, provider_named
from remote_inference.testing.behaviours import (
    Reply,
    Status,
    content_filter,
    context_length_exceeded,
    insufficient_quota,
    invalid_api_key,
    overloaded,
    rate_limited,
)
from remote_inference.testing.faults import (
    BadChunk,
    Comments,
    Cut,
    HugeLine,
    NoDone,
    Raw,
    Redirect,
    Silent,
    Stall,
    StreamError,
    Unfinished,
    WrongContentType,
)
from remote_inference.testing.limit import ExactLimit
from remote_inference.testing.server import ProviderServer
from remote_inference.testing.wire import DONE, ToolCall, Usage, chunk
from remote_inference.transport.clients import http_client_for
from remote_inference.transport.session import RemoteSession, SessionRebuildCause
from remote_inference.types import FinishReason, InferenceRequest, TokenChunk, TokenUsage

CLOCK = SystemClock()
KEY = "sk-marked-key"


class Keys:
    def __init__(self, key: str | None = KEY) -> None:
        self.key = key

    def fetch(self) -> Credential:
        return Credential(secret=Secret(self.key) if self.key else None)


class Caller:
    """A deployment on the server, and a session for it."""

    def __init__(self, server: ProviderServer, key: str | None = KEY, **settings: Any) -> None:
        settings.setdefault("timeouts", Timeouts(connect=2.0, first_byte=5.0, read=5.0))
        options = settings.pop("options", {})
        self.deployment = Deployment(
            name="gpt", model="gpt-4o", provider="openai", endpoint=server.url, **settings
        )
        if options:  # as configuration will give them
            object.__setattr__(self.deployment, "options", options)
        self.keys = Keys(key)
        self.session = RemoteSession(
            self.deployment,
            self.keys,
            lambda made: http_client_for(made, clock=CLOCK),
            clock=CLOCK,
            debounce=0.05,
        )
        self.upstream = Upstream(provider_named("openai"), clock=CLOCK)

    def stream(
        self,
        *,
        stream: bool = True,
        token: CancelToken | None = None,
        deadline: float | None = None,
        on_head: Callable[[AnswerHead], None] | None = None,
        **options: Any,
    ) -> Iterator[TokenChunk]:
        request = InferenceRequest.parse("gpt", options.pop("messages", "marked prompt"), **options)
        with self.session.lease() as snapshot:
            yield from self.upstream.stream(
                Attempt(
                    request=request,
                    deployment=self.deployment,
                    snapshot=snapshot,
                    token=token or CancelToken(),
                    deadline=deadline,
                    stream=stream,
                    on_head=on_head,
                )
            )

    def ask(self, **options: Any) -> list[TokenChunk]:
        return list(self.stream(**options))


@pytest.fixture
def server() -> Iterator[ProviderServer]:
    with ProviderServer() as made:
        yield made


@pytest.fixture
def caller(server: ProviderServer) -> Iterator[Caller]:
    made = Caller(server)
    yield made
    made.session.close()


def text(chunks: list[TokenChunk]) -> str:
    return "".join(chunk.text_delta for chunk in chunks)


both = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


# answers


@both
def test_an_answer_comes_with_its_finish_reason_and_usage(
    server: ProviderServer, caller: Caller, stream: bool
) -> None:
    server.script(Reply("The sky is blue.", usage=Usage(7, 5, cached_tokens=3, reasoning_tokens=2)))
    chunks = caller.ask(stream=stream)
    assert text(chunks) == "The sky is blue."
    assert chunks[-1].finish_reason is FinishReason.STOP
    assert chunks[-1].usage == TokenUsage(
        prompt_tokens=7, completion_tokens=5, cached_tokens=3, reasoning_tokens=2
    )
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])


@both
def test_tool_calls_reasoning_and_refusals_come_through(
    server: ProviderServer, caller: Caller, stream: bool
) -> None:
    calls = (ToolCall("weather", '{"city": "Ulm"}', "call_a"), ToolCall("time", "{}", "call_b"))
    server.script(
        Reply(tool_calls=calls), Reply("done", reasoning="let me think"), Reply(refusal="I will not do it")
    )
    chunks = caller.ask(stream=stream)
    pieces = [piece for chunk in chunks for piece in chunk.tool_calls]
    for index, call in enumerate(calls):
        mine = [piece for piece in pieces if piece.index == index]
        assert (mine[0].id, mine[0].name) == (call.id, call.name)
        assert "".join(piece.arguments for piece in mine) == call.arguments
    assert chunks[-1].finish_reason is FinishReason.TOOL_CALLS
    chunks = caller.ask(stream=stream)
    assert "".join(chunk.reasoning_delta for chunk in chunks) == "let me think"
    assert text(chunks) == "done"
    assert "".join(chunk.refusal_delta for chunk in caller.ask(stream=stream)) == "I will not do it"


def test_tokens_are_yielded_when_they_arrive(server: ProviderServer, caller: Caller) -> None:
    for framing in ("chunked", "close"):
        server.script(Reply(tokens=3, token_delay=0.15, framing=framing))  # type: ignore[arg-type]
        times = [time.monotonic() for chunk in caller.stream() if chunk.text_delta]
        assert times[1] - times[0] > 0.08
        assert times[2] - times[1] > 0.08


def test_the_key_goes_into_the_header_and_nowhere_else(server: ProviderServer, caller: Caller) -> None:
    caller.ask()
    request = server.requests[0]
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in request.path
    assert KEY.encode() not in request.data


def test_without_a_key_there_is_no_header(server: ProviderServer) -> None:
    Caller(server, key=None).ask()
    assert "authorization" not in server.requests[0].headers


def test_a_key_can_go_into_a_header_of_its_own(server: ProviderServer) -> None:
    Caller(server, options={"auth_header": "api-key"}).ask()
    assert server.requests[0].headers["api-key"] == KEY
    assert "authorization" not in server.requests[0].headers


def test_the_deployments_headers_are_sent(server: ProviderServer) -> None:
    Caller(server, headers={"OpenAI-Project": "p1"}).ask()
    assert server.requests[0].headers["openai-project"] == "p1"


def test_connections_are_reused_by_streams_and_whole_answers(server: ProviderServer, caller: Caller) -> None:
    for number in range(6):
        caller.ask(stream=number % 2 == 0)
    assert len({request.connection for request in server.requests}) == 1


def test_an_answer_that_is_whole_although_a_stream_was_asked_for_is_taken(
    server: ProviderServer, caller: Caller
) -> None:
    whole = Reply("whole").whole(_prompt())
    server.script(Raw((whole,), content_type="application/json"))
    assert text(caller.ask()) == "whole"


def _prompt() -> Any:
    from remote_inference.testing.behaviours import Prompt

    return Prompt("gpt-4o", True, True, 1)


# streams that break

FAULTS = [
    (Cut(3, reset=False), StreamTruncated, "incomplete_body"),
    (Cut(3, reset=False, reply=Reply(framing="close")), StreamTruncated, "no_finish_reason"),
    (Unfinished(), StreamTruncated, "no_finish_reason"),
    (BadChunk(), InvalidResponse, "not_json"),
    (StreamError(), ServerError, "overloaded"),
    (Raw((b"data: {}\n\n", DONE)), StreamTruncated, "no_finish_reason"),
    (Raw((b"",)), StreamTruncated, "no_finish_reason"),
    (Raw((chunk("m", {"content": "a"}), b"data: [1]\n\n")), InvalidResponse, "not_json"),
    (Raw((chunk("m", {"content": "a"}), b'data: {"choices": "x"}\n\n')), InvalidResponse, "no_choices"),
    (Raw((chunk("m", {"content": 7}), DONE)), InvalidResponse, "content"),
    (Raw((chunk("m", {"content": "a"}, "abort"), DONE)), StreamTruncated, "abort"),
    (Raw((chunk("m", {}, "error"), DONE)), ServerError, "error"),
    (Raw((b"event: error\ndata: oh no\n\n",)), ServerError, "error_in_stream"),
    (WrongContentType(), InvalidResponse, "content_type"),
]


@pytest.mark.parametrize(
    ("fault", "kind", "code"), FAULTS, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_broken_stream_is_a_failed_attempt(
    server: ProviderServer, caller: Caller, fault: Any, kind: type[RequestError], code: str
) -> None:
    server.script(fault)
    with pytest.raises(RequestError) as caught:
        caller.ask()
    assert type(caught.value) is kind
    assert caught.value.code == code


def test_a_reset_is_a_network_error(server: ProviderServer, caller: Caller) -> None:
    server.script(Cut(3, reset=True))
    with pytest.raises(NetworkError, match="reset"):
        caller.ask()


@pytest.mark.parametrize(
    ("fault", "code"),
    [(Silent(), "first_byte"), (Stall(0), "first_byte"), (Comments(0, interval=0.02), "first_byte"), (Stall(2), "read"),
     (Comments(2, interval=0.02), "read")],
)  # fmt: skip
def test_a_stall_is_a_timeout_also_when_comments_come(server: ProviderServer, fault: Any, code: str) -> None:
    caller = Caller(server, timeouts=Timeouts(connect=1.0, first_byte=0.3, read=0.3))
    server.script(dataclasses.replace(fault, reply=Reply()) if hasattr(fault, "reply") else fault)
    with pytest.raises(Timeout) as caught:
        caller.ask()
    # Its first chunk, with the role, is data already.
    assert caught.value.code in ({code, "read"} if isinstance(fault, Stall) else {code})


@pytest.mark.parametrize("fault", [NoDone(), NoDone(reply=Reply(framing="close"))])
def test_a_stream_without_done_is_whole_if_it_has_its_finish_reason(
    server: ProviderServer, caller: Caller, fault: Any
) -> None:
    server.script(fault)
    chunks = caller.ask()
    assert chunks[-1].finish_reason is FinishReason.STOP
    assert chunks[-1].usage is not None


def test_a_connection_that_breaks_after_the_finish_reason_breaks_nothing(
    server: ProviderServer, caller: Caller
) -> None:
    from remote_inference.testing.behaviours import Stop

    for end in (Stop.CLOSE, Stop.RESET):
        server.script(Raw((chunk("m", {"content": "all"}), chunk("m", {}, "stop")), interval=0.05, end=end))
        assert text(caller.ask()) == "all"


def test_a_huge_line_is_refused(server: ProviderServer, caller: Caller) -> None:
    server.script(HugeLine(9 * 1024 * 1024))
    with pytest.raises(InvalidResponse, match="too_long"):
        caller.ask()


def test_a_filtered_answer_is_an_error_and_its_usage_is_told(server: ProviderServer, caller: Caller) -> None:
    server.script(Reply("some text", finish_reason="content_filter", usage=Usage(4, 2)))
    seen: list[TokenChunk] = []
    with pytest.raises(ContentFiltered):
        seen.extend(caller.stream())
    assert seen[-1].usage == TokenUsage(prompt_tokens=4, completion_tokens=2)
    assert seen[-1].finish_reason is None


# errors by status and body

ERRORS = [
    (rate_limited(2), RateLimited, "rate_limit_exceeded"),
    (insufficient_quota(), RateLimited, "insufficient_quota"),
    (invalid_api_key(), Unauthorized, "invalid_api_key"),
    (context_length_exceeded(), ContextLengthExceeded, "context_length_exceeded"),
    (content_filter(), ContentFiltered, "content_filter"),
    (overloaded(), ServerError, "overloaded"),
    (overloaded(529), ServerError, "overloaded"),
    (Status(500, "<html>oops</html>"), ServerError, ""),
    (Status(502, b"\xff\xfe"), ServerError, ""),
    (Status(403, {"error": "forbidden for you"}), Forbidden, ""),
    (Status(404, {"detail": "Not Found"}), BadRequest, ""),
    (Status(408), Timeout, "server"),
    (Status(409), ServerError, "invalid_request_error"),
    (Status(422, [{"error": {"code": 422, "status": "INVALID"}}]), BadRequest, ""),
    (Status(400, {"object": "error", "message": "This model's maximum context length is 4096 tokens.",
                  "type": "BadRequestError", "code": 400}), ContextLengthExceeded, "context_length_exceeded"),
    (Status(400, {"error": {"code": 400, "message": "the request exceeds the available context size",
                            "type": "exceed_context_size_error"}}), ContextLengthExceeded, None),
    (Status(500, {"error": {"code": "x" * 100 + " free text"}}), ServerError, ""),
    (Redirect("http://elsewhere.example/"), BadRequest, "redirect"),
]  # fmt: skip


@both
@pytest.mark.parametrize(("answer", "kind", "code"), ERRORS)
def test_a_refusal_is_typed(
    server: ProviderServer,
    caller: Caller,
    answer: Any,
    kind: type[RequestError],
    code: str | None,
    stream: bool,
) -> None:
    server.script(answer)
    with pytest.raises(RequestError) as caught:
        caller.ask(stream=stream)
    assert type(caught.value) is kind
    assert code is None or caught.value.code == code


def test_retry_after_and_quota_are_told(server: ProviderServer, caller: Caller) -> None:
    server.script(rate_limited(2), rate_limited(headers={"retry-after-ms": "1500"}), insufficient_quota())
    found = []
    for _ in range(3):
        with pytest.raises(RateLimited) as caught:
            caller.ask()
        found.append((caught.value.retry_after, caught.value.quota))
    assert found == [(2.0, False), (1.5, False), (None, True)]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": "rate_limit_exceeded"}, RateLimited),
        ({"code": 429, "message": "slow down"}, RateLimited),
        ({"code": "502", "message": "bad"}, ServerError),
        ({"type": "overloaded_error"}, ServerError),
        ({"code": "context_length_exceeded"}, ContextLengthExceeded),
        ({"type": "invalid_request_error", "param": "messages"}, BadRequest),
        ("just a string", ServerError),
    ],
)
@both
def test_an_error_object_inside_a_200_is_typed(
    server: ProviderServer, caller: Caller, error: Any, kind: type[RequestError], stream: bool
) -> None:
    server.script(StreamError(2, error={"error": error}))
    with pytest.raises(RequestError) as caught:
        caller.ask(stream=stream)
    assert type(caught.value) is kind


def test_no_error_carries_the_key_or_the_prompt(server: ProviderServer, caller: Caller) -> None:
    leak = {"error": {"message": f"marked prompt {KEY}", "code": KEY, "type": KEY, "param": KEY}}
    bad = '{"choices": [{"delta": {"content": "marked prompt '
    server.script(Status(400, leak), Status(401, leak), StreamError(1, error=leak), BadChunk(1, data=bad))
    for _ in range(4):
        with pytest.raises(RequestError) as caught:
            caller.ask()
        exc: BaseException | None = caught.value
        while exc is not None:
            shown = f"{exc!r} {exc} {exc.args} {vars(exc)}"
            assert KEY not in shown
            assert "marked prompt" not in shown
            exc = exc.__cause__ or exc.__context__


def test_a_proxys_html_page_does_not_hang_or_leak(server: ProviderServer, caller: Caller) -> None:
    server.script(Status(503, "<html>" + "x" * 500_000))
    with pytest.raises(ServerError) as caught:
        caller.ask()
    assert caught.value.status == 503


# ending from outside


def test_a_cancel_closes_the_upstream_connection(server: ProviderServer, caller: Caller) -> None:
    server.default = Reply(tokens=10_000, token_delay=0.05)
    token = CancelToken()
    started = threading.Event()
    ended: list[float] = []

    def read() -> None:
        try:
            for _ in caller.stream(token=token):
                started.set()
        except Cancelled:
            ended.append(time.monotonic())

    reader = threading.Thread(target=read)
    reader.start()
    assert started.wait(5)
    at = time.monotonic()
    token.cancel()
    reader.join(5)
    assert ended[0] - at < 0.5
    assert server.wait_for(lambda server: server.closed_early == 1)


def test_closing_the_generator_closes_the_upstream_connection(server: ProviderServer, caller: Caller) -> None:
    server.default = Reply(tokens=10_000, token_delay=0.05)
    chunks = caller.stream()
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]  # it is a generator
    assert server.wait_for(lambda server: server.closed_early == 1)


@both
def test_the_deadline_ends_the_call(server: ProviderServer, caller: Caller, stream: bool) -> None:
    server.script(Reply(tokens=100, token_delay=0.05))
    with pytest.raises(DeadlineExceeded):
        caller.ask(stream=stream, deadline=CLOCK.monotonic() + 0.3)
    assert server.wait_for(lambda server: server.closed_early == 1)


# rotation


def test_a_rotation_under_load_fails_no_request(server: ProviderServer) -> None:
    server.default = Reply(tokens=5, token_delay=0.002)
    server.keys = {"key-0"}
    caller = Caller(server, key="key-0")
    stop = threading.Event()
    failed: list[BaseException] = []
    done = [0]

    def work() -> None:
        while not stop.is_set():
            try:
                caller.ask()
                done[0] += 1
            except BaseException as exc:
                failed.append(exc)
                return

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for number in range(1, 6):
        server.keys = {f"key-{number - 1}", f"key-{number}"}
        caller.keys.key = f"key-{number}"
        generation = caller.session.rebuild(SessionRebuildCause.OPERATOR).generation
        assert generation >= number
        # Requests that began before the swap are done when this many have ended since.
        began = len(server.requests)
        server.wait_for(
            lambda server, n=number, began=began: (
                sum(request.key == f"key-{n}" and not request.open for request in server.requests[began:])
                > 12
            )
        )
        server.wait_for(
            lambda server, n=number: not any(r.open and r.key == f"key-{n - 1}" for r in server.requests)
        )
        server.keys = {f"key-{number}"}
    stop.set()
    for thread in threads:
        thread.join(10)
    assert failed == []
    assert done[0] > 50


# limits


@both
def test_what_the_headers_say_of_limits_is_told_once_an_answer_and_before_it(stream: bool) -> None:
    with ProviderServer(limit=ExactLimit(requests_per_minute=2)) as limited:
        caller = Caller(limited)
        heard: list[QuotaReport] = []
        for expected in (1, 0):
            chunks = caller.stream(stream=stream, on_head=lambda head: heard.append(head.quota))
            first = next(chunks)
            assert first is not None
            assert heard[-1].remaining() == {"requests": expected}
            assert len(list(chunks)) > 0
        assert [report.per_minute() for report in heard] == [{"requests": 2.0}] * 2
        with pytest.raises(RateLimited):
            caller.ask(stream=stream, on_head=lambda head: heard.append(head.quota))
        assert len(heard) == 3, "a refusal says it too"
        assert heard[-1].pause is not None
        assert isinstance(heard[-1].quotas[0], Quota)
        caller.session.close()


def test_who_says_nothing_of_limits_is_not_heard(server: ProviderServer, caller: Caller) -> None:
    heard: list[QuotaReport | None] = []
    caller.ask(on_head=lambda head: heard.append(head.quota))
    assert heard == [None]
