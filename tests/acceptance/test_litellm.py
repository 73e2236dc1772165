"""LiteLLM's proxy before a real model: it completes, streams, counts, tells an id and a cost, and passes errors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services import missing_service
from shops import SmallShop

from remote_inference.errors import BadRequest, ContextLengthExceeded, ServerError, Unauthorized
from remote_inference.events import AttemptFailed, Event
from remote_inference.messaging.embedded import close_broker, register
from remote_inference.types import Completion

ROOT = Path(__file__).parents[2]
PROXY = ROOT / ".venv-litellm" / "bin" / "litellm"
KEY = "sk-marked-master-key"
PRICE = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    """The local model's endpoint."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import demo
    finally:
        sys.path.pop(0)
    server = demo.start_server()
    yield f"{server.listening_address}/v1"
    del server


@pytest.fixture(scope="module")
def proxy(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """LiteLLM's proxy before it, in an environment of its own."""
    if not PROXY.exists():
        missing_service("LiteLLM's proxy is not installed: make litellm")
    folder = tmp_path_factory.mktemp("litellm")
    local = {"model": "openai/smollm2", "api_base": model, "api_key": "none", **PRICE}
    gone = {**local, "api_base": "http://127.0.0.1:9/v1", "max_retries": 0}
    config = {
        "model_list": [
            {"model_name": "local", "litellm_params": local},
            {"model_name": "gone", "litellm_params": gone},
        ],
        "general_settings": {"master_key": KEY},
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # YAML has JSON in it
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LITELLM")}
    environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    command = [
        str(PROXY),
        "--config",
        "config.yaml",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--telemetry",
        "False",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_until_it_answers(f"http://127.0.0.1:{port}/health/liveliness", process, folder / "log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.fail(f"the proxy has ended:\n{log.read_text(errors='replace')[-3000:]}")
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the proxy does not answer:\n{log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return []


@pytest.fixture(scope="module")
def shop(proxy: str, events: list[Event]) -> Iterator[SmallShop]:
    register()
    common: dict[str, Any] = {
        "provider": "litellm",
        "endpoint": proxy,
        "api_key": {"from_env": "TEST_LITELLM_KEY"},
        "retry": {"max_retries": 0},
    }
    os.environ["TEST_LITELLM_KEY"] = KEY
    os.environ["TEST_LITELLM_BAD_KEY"] = "sk-somebody-elses"
    made = SmallShop(
        "embedded://litellm",
        {
            "streamed": {**common, "model": "local"},
            "whole": {**common, "model": "local", "stream": False},
            "gone": {**common, "model": "gone"},
            "nobody": {**common, "model": "nobody"},
            "refused": {**common, "model": "local", "api_key": {"from_env": "TEST_LITELLM_BAD_KEY"}},
        },
        hooks=[events.append],
    )
    made.work()
    yield made
    made.close()
    close_broker("litellm")
    del os.environ["TEST_LITELLM_KEY"], os.environ["TEST_LITELLM_BAD_KEY"]


def ask(shop: SmallShop, deployment: str, prompt: str = "Why is the sky blue?") -> Completion:
    return shop.inference.submit(deployment, prompt, max_tokens=8).result(timeout=120)


def test_it_streams_and_counts(shop: SmallShop) -> None:
    handle = shop.inference.submit("streamed", "Why is the sky blue?", max_tokens=8)
    pieces = [chunk.text_delta for chunk in handle if chunk.text_delta]
    completion = handle.result(timeout=60)
    assert len(pieces) >= 1
    assert "".join(pieces) == completion.text
    assert completion.finish_reason in ("stop", "length")
    assert 0 < completion.usage.completion_tokens <= 8
    assert completion.usage.prompt_tokens > 5
    assert not completion.usage.estimated
    assert len(completion.call_id) == 36, "LiteLLM's, by which the call is found in its log"


def test_a_whole_answer_tells_what_it_cost(shop: SmallShop) -> None:
    completion = ask(shop, "whole")
    assert len(completion.text.split()) > 1
    usage = completion.usage
    expected = usage.prompt_tokens * 1e-6 + usage.completion_tokens * 2e-6
    assert completion.cost_usd == pytest.approx(expected, rel=0.01)
    assert len(completion.call_id) == 36


def test_a_prompt_that_is_too_long_is_told_as_that(shop: SmallShop) -> None:
    for deployment in ("streamed", "whole"):
        with pytest.raises(ContextLengthExceeded):
            ask(shop, deployment, "word " * 3000)


def test_a_model_that_it_does_not_know_is_a_bad_request(shop: SmallShop) -> None:
    with pytest.raises(BadRequest):
        ask(shop, "nobody")


def test_a_provider_that_it_cannot_reach_is_a_servers_failure(shop: SmallShop, events: list[Event]) -> None:
    with pytest.raises(ServerError):
        ask(shop, "gone")
    [failed] = [e for e in events if isinstance(e, AttemptFailed) and e.deployment == "gone"]
    assert len(failed.call_id) == 36


def test_a_key_that_it_does_not_know_is_refused(shop: SmallShop) -> None:
    with pytest.raises(Unauthorized):
        ask(shop, "refused")
