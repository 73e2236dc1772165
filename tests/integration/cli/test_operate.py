"""The command line over a real broker: a worker, its status, a rebuild, a batch and a chat through it."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_support import eventually, records

from remote_inference.cli import main
from remote_inference.testing.behaviours import Reply

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def broker(fresh_broker_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CELERY_BROKER_URL", fresh_broker_url)
    return fresh_broker_url


@pytest.fixture
def worker(broker: str, start: Start, capsys: pytest.CaptureFixture[str]) -> Iterator[subprocess.Popen[str]]:
    process = start("worker", "-c", "3", "-n", "one@test", "-l", "ERROR")

    def answers() -> bool:
        assert process.poll() is None, process.stderr and process.stderr.read()
        main(["status", "--json", "--timeout", "0.5"])
        return bool(json.loads(capsys.readouterr().out)["workers"])

    eventually(answers)
    yield process
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_a_worker_answers_a_batch_and_tells_its_status(worker, folder, provider, prompts, capsys):
    prompts(12)
    assert main(["batch", "in.jsonl", "-o", "out.jsonl"]) == 0
    assert len(records(folder / "out.jsonl")) == 12
    assert "no worker answers" not in capsys.readouterr().err
    assert main(["status"]) == 0
    text = capsys.readouterr().out
    assert "local" in text
    assert "12" in text
    assert "one@test" in text
    assert main(["status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["deployments"]["local"]["completed"] == 12
    assert told["deployments"]["local"]["in_flight"] == 0
    assert told["workers"]["one@test"]["pid"] == worker.pid

    assert main(["rebuild-session", "local"]) == 0
    assert "one@test: session of local rebuilt" in capsys.readouterr().out


def test_rebuilding_what_is_not_there_is_an_error(broker, folder, capsys):
    assert main(["rebuild-session", "other"]) == 1
    assert "no such deployment" in capsys.readouterr().err
    assert main(["rebuild-session", "local"]) == 1
    assert capsys.readouterr().err == "remote-inference: no worker answers\n"


def test_without_a_worker_the_batch_says_so_and_waits(broker, folder, prompts, start: Start):
    prompts(1)
    process = start("batch", "in.jsonl", "-o", "out.jsonl")
    assert process.stderr is not None
    assert "no worker answers" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


class TestChat:
    def test_in_a_pipe_each_line_is_answered_with_the_conversation_before_it(
        self, folder, provider, start: Start
    ):
        provider.default = Reply(text="Blue.")
        process = start("chat", "--embedded", "--system", "Be brief.", stdin=subprocess.PIPE)
        stdout, stderr = process.communicate(
            "The sky?\n\nAnd the sea?\n/reset\nAnew?\n/quit\nnever\n", timeout=30
        )
        assert (stdout, stderr) == ("Blue.\nBlue.\nBlue.\n", "")
        assert process.returncode == 0
        asked = [[message["role"] for message in request.body["messages"]] for request in provider.requests]
        assert asked == [["system", "user"], ["system", "user", "assistant", "user"], ["system", "user"]]

    def test_an_error_is_one_line_and_the_exit_status(self, folder, provider, start: Start):
        provider.keys = {"another"}
        process = start("chat", "--embedded", stdin=subprocess.PIPE)
        _, stderr = process.communicate("The sky?\n", timeout=30)
        assert process.returncode == 1
        [line] = stderr.splitlines()
        assert line.startswith("remote-inference: Unauthorized")

    def test_ctrl_c_ends_it_and_closes_the_upstream_call(self, folder, provider, start: Start):
        provider.default = Reply(tokens=1000, token_delay=0.02)
        process = start("chat", "--embedded", stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write("The sky?\n")
        process.stdin.flush()
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        provider.wait_for(lambda server: server.closed_early == 1)
        process.stdin.close()
