"""A marked key and a marked prompt in nothing that is written: URLs, logs, errors, events, what workers say."""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from shops import SmallShop

from remote_inference.cli.main import main
from remote_inference.errors import InferenceError, error_to_wire
from remote_inference.events import Event
from remote_inference.messaging.embedded import close_broker, register
from remote_inference.testing.behaviours import Reply, Status
from remote_inference.testing.faults import Cut, Raw, Redirect, StreamError
from remote_inference.testing.server import ProviderServer

KEY = "sk-marked-key-4f1e"
PROMPT = "marked prompt 77"
ECHO = f"Incorrect API key provided: {KEY}. You wrote: {PROMPT}"

# What a provider may answer, each with the key and the prompt wherever there is room for them.
ANSWERS: list[Any] = [
    Reply("fine"),
    *(
        Status(code, {"error": {"message": ECHO, "type": ECHO, "code": KEY, "param": PROMPT}})
        for code in (400, 401, 403, 404, 408, 409, 413, 422, 429, 498, 500, 503, 529)
    ),
    Status(429, {"error": {"message": ECHO}}, {"retry-after": KEY, "x-ratelimit-reset": PROMPT}),
    Status(400, {"error": {"message": json.dumps({"error": {"message": ECHO, "code": KEY}})}}),
    Status(500, f"<html>{ECHO}</html>"),
    Status(200, {"error": {"message": ECHO, "code": KEY}}),
    Status(200, {"base_resp": {"status_code": 2049, "status_msg": ECHO}}),
    Status(200, f"<html>{ECHO}</html>"),
    Status(204, b""),
    Status(400, {"detail": ECHO}, {"x-request-id": KEY, "x-litellm-call-id": KEY}),
    Redirect(f"http://127.0.0.1:9/{KEY}"),
    StreamError(1, error={"error": {"message": ECHO, "type": ECHO, "code": KEY}}),
    Cut(1),
    Raw((f"data: {ECHO}\n\n".encode(),)),
    Raw((f"event: {KEY}\ndata: {ECHO}\n\n".encode(),)),
    Raw((f"{ECHO}\n\n".encode(),)),
    Raw((b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "' + KEY.encode() + b'"}]}\n\n',)),
    Raw((b'data: {"choices": [{"index": 0, "delta": {"tool_calls": "' + KEY.encode() + b'"}}]}\n\n',)),
]


class Written(logging.Handler):
    """Every record of every logger, with its arguments and its traceback."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.getMessage()} {record.args!r}")
        if record.exc_info and record.exc_info[1] is not None:
            self.lines.append("".join(traceback.format_exception(record.exc_info[1])))


@pytest.fixture
def written() -> Iterator[Written]:
    handler, root = Written(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def server() -> Iterator[ProviderServer]:
    with ProviderServer() as made:
        yield made


def _told(error: BaseException) -> str:
    """Everything that an error says, to a log, over a wire, and in a crash."""
    said = [repr(error), str(error), repr(error.args), "".join(traceback.format_exception(error))]
    if isinstance(error, InferenceError):
        said += [json.dumps(error_to_wire(error)), repr(pickle.dumps(error))]
    return "\n".join(said)


@pytest.mark.parametrize(("provider", "stream"), [("openai", True), ("openai", False), ("litellm", True)])
def test_the_key_and_the_prompt_are_nowhere(
    server: ProviderServer,
    written: Written,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
    capfd: pytest.CaptureFixture[str],
    provider: str,
    stream: bool,
) -> None:
    register()
    monkeypatch.setenv("MARKED_KEY", KEY)
    table = {
        "provider": provider,
        "endpoint": server.url,
        "api_key": {"from_env": "MARKED_KEY"},
        "stream": stream,
        "retry": {"max_retries": 1, "initial_backoff": 0.01, "max_backoff": 0.01},
        "circuit_breaker": {"failure_threshold": 1000},
    }
    events: list[Event] = []
    # one for each answer: a refused key shuts a gate
    deployments = {f"d{number}": {**table, "model": f"m{number}"} for number in range(len(ANSWERS))}
    for number, answer in enumerate(ANSWERS):
        server.on(f"m{number}", answer)
    shop = SmallShop("embedded://marked", deployments, hooks=[events.append])
    told: list[str] = []
    try:
        shop.work(concurrency=16)
        handles = [shop.inference.submit(name, PROMPT, deadline=20) for name in deployments]
        for handle in handles:
            try:
                completion = handle.result(timeout=30)
                told += [repr(completion), completion.call_id, repr(completion.usage)]
            except Exception as error:
                told.append(_told(error))
            told.append(repr(handle))
        told += [repr(shop.inference.status()), repr(shop.inference.workers()), repr(shop.inference)]
    finally:
        shop.close()
        close_broker("marked")
    (tmp_path / "inference.toml").write_text(
        f'[[deployment]]\nname = "d"\nmodel = "m"\nendpoint = "{server.url}"\napi_key = {{ from_env = "MARKED_KEY" }}\n'
    )
    assert main(["check", "--config", str(tmp_path / "inference.toml")]) == 0
    out = capfd.readouterr()
    told += [repr(event) for event in events]
    told += [json.dumps(vars(event), default=str) for event in events]
    everything = "\n".join([*written.lines, *told, out.out, out.err, *(r.path for r in server.requests)])
    assert len(server.requests) >= len(ANSWERS)
    assert len(written.lines) > 100, "the logs were looked at"
    assert KEY not in everything
    assert PROMPT not in everything
    for request in server.requests:
        assert KEY.encode() not in request.data
        assert [name for name, value in request.headers.items() if KEY in value] == ["authorization"]
