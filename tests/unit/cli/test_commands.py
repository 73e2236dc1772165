"""The commands as they are called, where nothing has to run for it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from remote_inference.cli import main
from remote_inference.cli.main import COMMANDS, cli
from remote_inference.cli.options import Settings, shown_url
from remote_inference.cli.worker import celery_arguments, environment
from remote_inference.config import load_config

LOOP = '[[deployment]]\nname = "loop"\nprovider = "loopback"\n'


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "inference.toml"
    path.write_text(LOOP)
    monkeypatch.chdir(tmp_path)
    return path


def error_of(capsys: pytest.CaptureFixture[str], arguments: list[str], status: int) -> str:
    assert main(arguments) == status
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("remote-inference: ")
    return line


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_command_has_help_and_the_options_that_all_have(name: str, capsys: pytest.CaptureFixture[str]):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--config FILE", "--broker URL", "--debug"):
        assert option in text
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter


def test_the_group_lists_its_commands(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in COMMANDS if name not in text] == []
    assert main([]) == 2


def test_importing_the_command_line_draws_in_no_engine_and_nothing_that_draws():
    code = (
        "import sys, remote_inference.cli; "
        "print([m for m in ('rich', 'requests', 'remote_inference.engine', 'sqlite3') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


class TestErrors:
    def test_a_missing_configuration_is_one_line(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        line = error_of(capsys, ["batch", "in", "-o", "out"], 1)
        assert line == "remote-inference: inference.toml: cannot be read: No such file or directory"

    def test_a_missing_input_is_one_line(self, config, capsys):
        assert "in.jsonl: No such file" in error_of(capsys, ["batch", "in.jsonl", "-o", "out"], 1)

    def test_wrong_usage_is_one_line_with_status_2(self, config, capsys):
        assert "batch --help" in error_of(capsys, ["batch", "in.jsonl"], 2)
        assert "No such command" in error_of(capsys, ["frobnicate"], 2)

    def test_the_output_may_not_be_the_input(self, config, tmp_path, capsys):
        (tmp_path / "x.jsonl").touch()
        assert "the same file" in error_of(capsys, ["batch", "x.jsonl", "-o", "x.jsonl"], 2)

    def test_an_unknown_deployment_is_named(self, config, tmp_path, capsys):
        (tmp_path / "x.jsonl").touch()
        line = error_of(capsys, ["batch", "x.jsonl", "-o", "y", "--deployment", "other"], 1)
        assert "'other'" in line
        assert "loop" in line

    def test_many_faults_become_one_line_that_says_where_all_are(self, config, tmp_path, capsys):
        config.write_text(LOOP + "queue_capacity = 0\nadmission_timeout = -1\n")
        (tmp_path / "x.jsonl").touch()
        line = error_of(capsys, ["batch", "x.jsonl", "-o", "y"], 1)
        assert "2 faults" in line
        assert "remote-inference check" in line

    def test_debug_shows_the_trace(self, config, capsys):
        with pytest.raises(FileNotFoundError):
            main(["batch", "in.jsonl", "-o", "out", "--debug"])

    def test_an_unreachable_broker_is_one_line_without_its_password(self, config, monkeypatch, capsys):
        monkeypatch.setattr("remote_inference.cli.setup.BROKER_PATIENCE", 0.3)
        line = error_of(capsys, ["status", "--broker", "amqp://me:hunter2@127.0.0.1:1//"], 1)
        assert "cannot be reached at amqp://me:**@127.0.0.1:1//" in line


def test_a_url_is_shown_without_its_password():
    assert shown_url("amqp://guest@localhost//") == "amqp://guest@localhost//"
    assert shown_url("amqp://a:b@h:1/v") == "amqp://a:**@h:1/v"
    assert "b" not in repr(Settings(config_path="f", broker="amqp://x:bbb@h//")).replace("broker", "")


class TestCheck:
    def test_a_good_configuration_tells_its_deployments(self, config, capsys):
        assert main(["check"]) == 0
        text = capsys.readouterr().out
        assert "inference.toml: 1 deployment, no faults" in text
        assert "loop: loopback" in text
        assert "credential: none" in text

    def test_every_fault_is_told_at_once(self, config, capsys):
        config.write_text(
            LOOP.replace("loop", "a", 1)
            + 'queue_capacity = 0\n[[deployment]]\nname = "b"\nmodel = "gpt-4o"\nspeed = 1\n'
        )
        assert main(["check"]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert any(line.startswith("deployment[0].queue_capacity:") for line in lines)
        assert any(line.startswith("deployment[1].speed:") for line in lines)
        assert lines[-1] == "remote-inference: inference.toml: 2 faults"

    def test_a_providers_options_are_checked_by_path_also_beside_other_faults(self, config, capsys):
        config.write_text(
            LOOP
            + "[deployment.options]\nfirst_delay = -1\nwords = 3\n[[deployment]]\nname = 'b'\nmodel = 'gpt-4o'\nx = 1\n"
        )
        assert main(["check"]) == 1
        faults = capsys.readouterr().err
        assert "deployment[0].options.first_delay" in faults
        assert "deployment[0].options.words" in faults
        assert "deployment[1].x" in faults

    def test_it_says_which_credentials_can_be_read_and_shows_none(self, config, monkeypatch, capsys):
        config.write_text(
            '[[deployment]]\nname = "one"\nmodel = "gpt-4o"\napi_key = { from_env = "KEY_ONE" }\n'
            '[[deployment]]\nname = "two"\nmodel = "gpt-4o"\napi_key = { from_env = "KEY_TWO" }\n'
        )
        monkeypatch.setenv("KEY_ONE", "sk-very-secret")
        monkeypatch.delenv("KEY_TWO", raising=False)
        assert main(["check"]) == 0
        output = capsys.readouterr()
        assert "env:KEY_ONE, can be read" in output.out
        assert "cannot be read here: env:KEY_TWO" in output.out
        assert "sk-very-secret" not in output.out + output.err

    def test_it_tells_what_was_inferred(self, config, monkeypatch, capsys):
        config.write_text(
            '[[deployment]]\nname = "gpt-5"\n'
            '[[deployment]]\nname = "fast"\nmodel = "m"\nprovider = "groq"\nmax_concurrent = 3\n'
            "[deployment.rate_limits]\ntokens_per_minute = 6000\nlearn = true\n"
            '[[deployment]]\nname = "own"\nmodel = "m"\nendpoint = "http://localhost:9/v1"\n'
        )
        monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
        monkeypatch.delenv("GROQ_API_KEY", raising=False)
        assert main(["check"]) == 0
        first, second, third = re.split(r"\n  (?=\S)", capsys.readouterr().out)[1:]
        assert "model: gpt-5 (not given; told by the deployment's name)" in first
        assert "provider: openai (not given; told by the model's name)" in first
        assert "endpoint: https://api.openai.com/v1 (not given; told by the provider's own)" in first
        assert (
            "env:OPENAI_API_KEY, can be read (not given: the variable of the provider's own client)" in first
        )
        assert "limits: none are named; the provider tells its own in x-ratelimit-" in first
        assert "endpoint: https://api.groq.com/openai/v1 (not given" in second
        assert "cannot be read here: env:GROQ_API_KEY" in second
        assert (
            "limits: tokens per minute 6000, max concurrent 3; found out, the provider tells its own"
            in second
        )
        assert "provider: openai (not given; told by that there is an endpoint)" in third
        assert "credential: none (not given: no key is known)" in third

    def test_a_literal_key_draws_a_warning_that_does_not_show_it(self, config, capsys):
        config.write_text('[[deployment]]\nname = "one"\nmodel = "gpt-4o"\napi_key = "sk-very-secret"\n')
        assert main(["check"]) == 0
        output = capsys.readouterr()
        assert "warning: deployment one" in output.err
        assert "sk-very-secret" not in output.out + output.err


class TestWorker:
    CONFIG = load_config({"deployment": [{"name": "a", "model": "gpt-4o"}, {"name": "b", "model": "gpt-4o"}]})

    def test_threads_and_all_queues_are_the_default(self):
        arguments = celery_arguments(self.CONFIG, ("-c", "32"))
        assert arguments[:3] == ["-A", "remote_inference.cli.worker_app:app", "worker"]
        assert "-c" in arguments
        assert arguments[arguments.index("--pool") + 1] == "threads"
        assert arguments[arguments.index("--queues") + 1] == "inference.a,inference.b,inference.control"

    @pytest.mark.parametrize(
        "given", [("-P", "gevent"), ("-Pgevent",), ("--pool=gevent",), ("--pool", "gevent")]
    )
    def test_another_pool_is_celerys_own_option(self, given: tuple[str, ...]):
        arguments = celery_arguments(self.CONFIG, given)
        assert "threads" not in arguments
        assert arguments[3 : 3 + len(given)] == list(given)

    @pytest.mark.parametrize("given", [("-Q", "inference.a"), ("--queues=inference.a",)])
    def test_queues_that_are_given_are_the_only_ones(self, given: tuple[str, ...]):
        assert "inference.b" not in str(celery_arguments(self.CONFIG, given))

    def test_the_brokers_password_is_on_no_command_line(self):
        settings = Settings(config_path="inference.toml", broker="amqp://u:pw@h//")
        assert "pw" not in str(celery_arguments(self.CONFIG, ()))
        made = environment(settings, {"HOME": "/h"})
        assert made["CELERY_BROKER_URL"] == "amqp://u:pw@h//"
        assert Path(made["REMOTE_INFERENCE_CONFIG"]).is_absolute()
        assert made["HOME"] == "/h"

    def test_the_command_becomes_celerys_program(self, config, monkeypatch):
        called = []
        monkeypatch.setattr("os.execve", lambda *arguments: called.append(arguments))
        assert main(["worker", "-c", "4", "-n", "one@%h", "-E", "--broker", "amqp://h//"]) == 0
        [(program, arguments, made)] = called
        assert program == sys.executable
        assert arguments[1:3] == ["-m", "celery"]
        for option in ("-c", "4", "-n", "one@%h", "-E", "inference.loop,inference.control"):
            assert option in arguments
        assert "amqp://h//" not in arguments
        assert made["CELERY_BROKER_URL"] == "amqp://h//"


def test_the_reference_configuration_is_what_the_worker_runs_with():
    import celeryconfig
    from remote_inference.cli import worker_settings

    names = [name for name in vars(worker_settings) if name.islower() and not name.startswith("_")]
    assert "worker_concurrency" in names
    for name in names:
        assert getattr(celeryconfig, name) == getattr(worker_settings, name)
