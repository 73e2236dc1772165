"""`remote-inference batch`, with broker and worker in the process, against a provider on loopback."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import PROGRAM, eventually, records

from remote_inference.cli import main
from remote_inference.testing.behaviours import Reply, Status, context_length_exceeded

Prompts = Callable[..., Path]
Start = Callable[..., "subprocess.Popen[str]"]

BATCH = ["batch", "in.jsonl", "-o", "out.jsonl", "--embedded"]


def openai_line(custom_id: str, **body: Any) -> dict[str, Any]:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def test_lines_of_both_shapes_are_answered_each_in_its_own(folder, provider, prompts, capsys):
    prompts(
        {"id": "a", "prompt": "Hi", "priority": "critical"},
        openai_line("b", user="me"),
        "",
        {"id": 3, "prompt": "x"},
    )
    assert main(BATCH) == 0
    found = {record.get("custom_id", record["id"]): record for record in records(folder / "out.jsonl")}
    assert found.keys() == {"a", "b", 3}
    assert found["a"]["finish_reason"] == "stop"
    assert found["a"]["usage"]["completion_tokens"] == 5
    assert found["a"]["cost_usd"] > 0
    assert found["b"]["response"]["body"]["choices"][0]["message"]["content"] == found["a"]["text"]
    assert [request.body.get("user") for request in provider.requests].count("me") == 1
    output = capsys.readouterr()
    assert "3/3 done, 100 %" in output.err
    assert "all done: 3 lines have their result in out.jsonl" in output.out
    for heading in ("p50", "p95", "tokens", "retries", "cost", "critical", "normal", "all"):
        assert heading in output.out


def test_a_second_run_says_that_all_is_done_and_asks_nothing(folder, provider, prompts, capsys):
    prompts(6)
    assert main(BATCH) == 0
    before = (folder / "out.jsonl").read_bytes()
    capsys.readouterr()
    assert main(BATCH) == 0
    assert "all done: 6 lines have their result in out.jsonl, nothing was asked" in capsys.readouterr().out
    assert provider.count == 6
    assert (folder / "out.jsonl").read_bytes() == before


def test_a_bad_line_is_reported_with_its_number_and_does_not_stop_the_rest(folder, provider, prompts, capsys):
    prompts(
        {"id": "a", "prompt": "x"},
        "{oops",
        {"id": "b", "prompt": "x", "max_tokens": 0},
        {"id": "c", "prompt": "x"},
    )
    assert main(BATCH) == 1
    found = {record["id"]: record for record in records(folder / "out.jsonl")}
    assert found["a"]["text"]
    assert found["c"]["text"]
    assert found["b"]["error"]["line"] == 3
    assert found[None]["error"]["message"].startswith("line 2: is not JSON")
    output = capsys.readouterr()
    assert "in.jsonl: line 2: is not JSON" in output.err
    assert "in.jsonl: line 3: max_tokens:" in output.err
    assert "2 lines have their result in out.jsonl, 2 have an error" in output.out
    assert provider.count == 2


def test_the_second_of_two_lines_with_one_id_is_reported_and_covers_no_result(
    folder, provider, prompts, capsys
):
    prompts({"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"})
    for _ in range(2):
        assert main(BATCH) == 1
        assert "line 2: id: is that of line 1" in capsys.readouterr().err
        found = {record["id"]: record for record in records(folder / "out.jsonl")}
        assert found["a"]["text"]
        assert found[None]["error"]["code"] == "duplicate_id"
    assert provider.count == 1


def test_a_request_that_is_too_large_is_a_bad_line_among_good_ones(folder, provider, prompts, capsys):
    config = folder / "inference.toml"
    config.write_text(
        config.read_text().replace('model = "gpt-4o"', 'model = "gpt-4o"\nmax_request_bytes = 4096')
    )
    prompts({"id": "a", "prompt": "x"}, {"id": "b", "prompt": "x" * 5000}, {"id": "c", "prompt": "x"})
    assert main(BATCH) == 1
    found = {record["id"]: record for record in records(folder / "out.jsonl")}
    assert "max_request_bytes is 4096" in found["b"]["error"]["message"]
    assert found["a"]["text"]
    assert found["c"]["text"]


def test_a_failed_line_is_in_the_output_and_is_asked_again(folder, provider, prompts, capsys):
    prompts(4)
    provider.on(lambda request: "Say 2." in str(request.body), context_length_exceeded())
    assert main(BATCH) == 1
    [failed] = [record for record in records(folder / "out.jsonl") if "error" in record]
    assert failed["id"] == "p2"
    assert failed["error"]["code"] == "context_length_exceeded"
    assert "in.jsonl: line 3: ContextLengthExceeded" in capsys.readouterr().err
    provider.reset()
    assert main(BATCH) == 0
    assert sorted(record["id"] for record in records(folder / "out.jsonl")) == ["p0", "p1", "p2", "p3"]
    assert provider.count == 1


def test_retries_are_counted(folder, provider, prompts, capsys):
    prompts(3)
    provider.script(Status(500), Status(503))
    assert main(BATCH) == 0
    output = capsys.readouterr()
    assert "2 retried, 0 failed" in output.err
    assert sum(record["attempts"] for record in records(folder / "out.jsonl")) == 5


def test_an_open_circuit_is_waited_out_and_nothing_is_lost(folder, provider, prompts, capsys):
    config = folder / "inference.toml"
    brief = "failure_threshold = 3\nopen_duration = 1.5\n"
    config.write_text(config.read_text().replace("failure_threshold = 1000\n", brief))
    prompts(20)
    provider.script(Status(500), Status(500), Status(500))
    assert main([*BATCH, "--concurrency", "4"]) == 0
    assert sorted(record["id"] for record in records(folder / "out.jsonl")) == sorted(
        f"p{i}" for i in range(20)
    )
    assert "unexpected" not in capsys.readouterr().err


def test_a_torn_output_is_mended_and_only_what_is_missing_is_asked(folder, provider, prompts):
    prompts(5)
    assert main(BATCH) == 0
    path = folder / "out.jsonl"
    text = path.read_bytes()
    path.write_bytes(text[:-20])
    provider.reset()
    assert main(BATCH) == 0
    assert provider.count == 1
    assert sorted(record["id"] for record in records(path)) == [f"p{i}" for i in range(5)]


def test_a_refused_credential_ends_the_batch_with_a_clear_error(folder, provider, prompts, capsys):
    provider.keys = {"another"}
    prompts(30)
    assert main([*BATCH, "--concurrency", "2"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        "remote-inference: deployment local: the provider refuses the credential (env:PROVIDER_KEY)"
    )
    assert provider.count < 10
    provider.keys = {"sk-test"}
    assert main(BATCH) == 0
    assert len(records(folder / "out.jsonl")) == 30


def test_a_credential_that_cannot_be_read_ends_it_before_anything_is_asked(
    folder, provider, prompts, monkeypatch, capsys
):
    monkeypatch.delenv("PROVIDER_KEY")
    prompts(3)
    assert main(BATCH) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("remote-inference:")]
    assert "deployment local: env:PROVIDER_KEY" in line
    assert provider.count == 0
    assert (folder / "out.jsonl").read_text() == ""


def test_more_requests_than_the_queue_holds_wait_for_room(folder, provider, prompts):
    config = folder / "inference.toml"
    small = 'model = "gpt-4o"\nqueue_capacity = 4\non_capacity_exhausted = "reject"'
    config.write_text(config.read_text().replace('model = "gpt-4o"', small))
    prompts(60)
    assert main([*BATCH, "--window", "50", "--concurrency", "2"]) == 0
    assert len(records(folder / "out.jsonl")) == 60


def test_several_deployments_need_one_that_is_named(folder, provider, prompts, capsys):
    config = folder / "inference.toml"
    config.write_text(config.read_text() + '\n[[deployment]]\nname = "other"\nprovider = "loopback"\n')
    prompts({"id": "a", "prompt": "x"})
    assert main(BATCH) == 2
    assert "give --deployment NAME" in capsys.readouterr().err
    prompts({"id": "a", "prompt": "x"}, openai_line("b", model="other"))
    assert main([*BATCH, "--deployment", "local"]) == 0
    found = {record.get("custom_id", record["id"]): record for record in records(folder / "out.jsonl")}
    assert found["a"]["deployment"] == "local"
    assert found["b"]["response"]["body"]["choices"][0]["message"]["content"] == "ok"


def test_a_batch_in_a_pipe_is_answered_while_it_is_written(folder, provider, start: Start):
    process = start("batch", "-", "-o", "out.jsonl", "--embedded", stdin=subprocess.PIPE)
    assert process.stdin is not None
    for name in ("a", "b"):  # the second is written when the first is answered
        process.stdin.write(f'{{"id": "{name}", "prompt": "x"}}\n')
        process.stdin.flush()
        out = folder / "out.jsonl"
        eventually(lambda out=out, name=name: out.exists() and f'"id":"{name}"' in out.read_text())
    process.stdin.close()
    assert process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_batch_leaves_a_file_to_resume_from(
    folder, provider, prompts, start: Start, number: int
):
    prompts(40)
    provider.default = Reply(tokens=20, token_delay=0.02)
    out = folder / "out.jsonl"
    process = start(*BATCH, "--concurrency", "4")
    eventually(lambda: out.exists() and len(out.read_text().splitlines()) >= 6)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert re.search(r"stopped: \d+ lines have their result in out.jsonl; run it again to go on", stdout)
    assert "Traceback" not in stderr
    done = records(out)
    assert 6 <= len(done) < 40
    assert all("error" not in record for record in done)
    provider.wait_for(lambda server: server.in_flight == 0)
    provider.reset()
    provider.default = Reply(tokens=2)
    assert main(BATCH) == 0
    assert provider.count == 40 - len(done)
    assert sorted(record["id"] for record in records(out)) == sorted(f"p{i}" for i in range(40))


def test_a_killed_batch_leaves_a_file_to_resume_from(folder, provider, prompts, start: Start):
    prompts(40)
    provider.default = Reply(tokens=5, token_delay=0.02)
    out = folder / "out.jsonl"
    process = start(*BATCH)
    eventually(lambda: out.exists() and len(out.read_text().splitlines()) >= 6)
    process.kill()
    process.wait()
    before = len(out.read_text().splitlines())
    provider.wait_for(lambda server: server.in_flight == 0)
    provider.reset()
    assert main(BATCH) == 0
    assert provider.count <= 40 - before + 1
    assert sorted(record["id"] for record in records(out)) == sorted(f"p{i}" for i in range(40))


def test_an_output_that_cannot_be_written_ends_it(folder, prompts, capsys):
    prompts(3)
    assert main(["batch", "in.jsonl", "-o", "nowhere/out.jsonl", "--embedded"]) == 1
    assert "nowhere/out.jsonl: No such file" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_file(folder, provider, prompts):
    (folder / "loop.toml").write_text('[[deployment]]\nname = "loop"\nprovider = "loopback"\n')
    script = (
        "import sys; from remote_inference.cli import main; status = main(sys.argv[1:]); "
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]); sys.exit(status)"
    )
    options = ["--embedded", "--config", "loop.toml", "--window", "16"]
    peaks = []
    for count in (200, 2200):
        prompts(*({"id": f"p{i}", "prompt": "x" * 20_000} for i in range(count)))
        done = subprocess.run(
            [sys.executable, "-c", script, "batch", "in.jsonl", "-o", f"{count}.jsonl", *options],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        peaks.append(int(done.stdout.splitlines()[-1]))
    assert peaks[1] - peaks[0] < 12_000  # KiB; 2,000 prompts more have 40,000


def test_on_a_terminal_the_bar_and_the_answer_that_is_coming_are_shown(folder, provider, prompts):
    prompts(8)
    provider.default = Reply(text="Rayleigh scattering. " * 6, token_delay=0.03)
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *BATCH],
        env={**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
    )
    os.close(secondary)
    screen = b""
    while True:
        try:
            piece = os.read(primary, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        screen += piece
    os.close(primary)
    assert process.wait(30) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.decode())
    for part in ("8/8 done · 100 %", "in flight", "retried", "failed", "tokens/s", "ETA"):
        assert part in text
    assert re.search(r"p\d · normal", text)
    grown = {len(found) for found in re.findall(r"(?:Rayleigh scattering\. ?)+", text)}
    assert len(grown) > 2  # it was drawn as it came
