"""A provider on loopback, a configuration for it, and the command line as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import PROGRAM

from remote_inference.testing.server import ProviderServer

CONFIG = """\
[[deployment]]
name = "local"
model = "gpt-4o"
provider = "openai"
endpoint = "{url}"
api_key = {{ from_env = "PROVIDER_KEY" }}
[deployment.retry]
initial_backoff = 0.02
max_backoff = 0.05
[deployment.circuit_breaker]
failure_threshold = 1000
[deployment.price]
input_usd_per_million = 1.0
output_usd_per_million = 10.0
"""


@pytest.fixture
def provider() -> Iterator[ProviderServer]:
    with ProviderServer(tokens=5) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, provider: ProviderServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `inference.toml`; its deployment is `local`."""
    (tmp_path / "inference.toml").write_text(CONFIG.format(url=provider.url))
    monkeypatch.setenv("PROVIDER_KEY", "sk-test")
    monkeypatch.delenv("REMOTE_INFERENCE_CONFIG", raising=False)
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def prompts(folder: Path) -> Callable[..., Path]:
    """`prompts(*lines)` writes `in.jsonl`; a number stands for so many good lines."""

    def write(*lines: Any) -> Path:
        if len(lines) == 1 and isinstance(lines[0], int):
            lines = tuple({"id": f"p{i}", "prompt": f"Say {i}."} for i in range(lines[0]))
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        path = folder / "in.jsonl"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`start("batch", …)` starts the command line as a process, in the folder."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=options.pop("stdin", subprocess.DEVNULL),
            text=True,
            start_new_session=True,
            **options,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
