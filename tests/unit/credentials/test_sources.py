"""Each source gives what it holds now, or a typed error that does not show it."""

from __future__ import annotations

import os
import select
import sys
import types
import warnings

import pytest

from remote_inference.clock import SystemClock
from remote_inference.credentials import Credential, CredentialRef, CredentialWarning, Secret, provider_for

MARK = "sk-marked-5f1c"


def key(credential: Credential) -> str:
    assert credential.secret is not None
    return credential.secret.reveal()


def test_no_reference_is_no_key(clock) -> None:
    assert provider_for(None, clock=clock).fetch() == Credential(secret=None)


def test_a_literal_is_given_as_it_is(clock) -> None:
    provider = provider_for(CredentialRef(literal=Secret(MARK)), clock=clock)
    assert key(provider.fetch()) == MARK
    assert MARK not in repr(provider)


class TestEnv:
    ref = CredentialRef(from_env="REMOTE_INFERENCE_TEST_KEY")

    def test_is_read_at_each_fetch(self, clock, monkeypatch) -> None:
        provider = provider_for(self.ref, clock=clock)
        for value in ("one", "two"):
            monkeypatch.setenv("REMOTE_INFERENCE_TEST_KEY", value)
            assert key(provider.fetch()) == value
        assert repr(provider) == "EnvCredentials(env:REMOTE_INFERENCE_TEST_KEY)"

    def test_not_set_is_missing(self, clock, monkeypatch, failure) -> None:
        monkeypatch.delenv("REMOTE_INFERENCE_TEST_KEY", raising=False)
        error = failure(provider_for(self.ref, clock=clock))
        assert (error.source, error.code) == ("env:REMOTE_INFERENCE_TEST_KEY", "missing")
        assert "is not set" in str(error)

    @pytest.mark.parametrize(
        ("value", "code"),
        [
            ("", "empty"),
            ("  ", "empty"),
            ("\n", "empty"),
            ("marked\nX-Injected: 1", "malformed"),
            ("marked\tx", "malformed"),
            (" marked", "malformed"),
            ("marked-é", "malformed"),
            ("marked-\udcff", "malformed"),
            ("marked" * 12_000, "too_large"),
        ],
    )
    def test_what_no_header_can_carry_is_refused_unseen(
        self, clock, monkeypatch, failure, value, code
    ) -> None:
        monkeypatch.setenv("REMOTE_INFERENCE_TEST_KEY", value)
        assert failure(provider_for(self.ref, clock=clock)).code == code


class TestFile:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "key"
        path.touch(mode=0o600)
        return path

    @pytest.fixture
    def provider(self, path, clock):
        return provider_for(CredentialRef(from_file=path), clock=clock)

    @pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
    def test_the_line_end_is_left_out(self, path, provider, end) -> None:
        path.write_bytes((MARK + end).encode())
        assert key(provider.fetch()) == MARK

    def test_is_read_anew_also_when_it_is_swapped_by_a_link(self, path, provider, tmp_path) -> None:
        path.unlink()
        for value in ("one", "two"):
            (tmp_path / value).touch(mode=0o600)
            (tmp_path / value).write_text(value)
            (tmp_path / "new").symlink_to(tmp_path / value)
            os.replace(tmp_path / "new", path)
            assert key(provider.fetch()) == value

    def test_home_is_expanded(self, path, clock, monkeypatch) -> None:
        path.write_text(MARK)
        monkeypatch.setenv("HOME", str(path.parent))
        assert key(provider_for(CredentialRef(from_file="~/key"), clock=clock).fetch()) == MARK

    @pytest.mark.parametrize(
        ("content", "code"),
        [
            (b"", "empty"),
            (b"\n", "empty"),
            (b"marked\nsecond\n", "malformed"),
            (b"marked\xff", "malformed"),
            (b"\xef\xbb\xbfmarked", "malformed"),
            (b"marked" * 12_000, "too_large"),
        ],
    )
    def test_what_cannot_be_a_key_is_refused_unseen(self, path, provider, failure, content, code) -> None:
        path.write_bytes(content)
        assert failure(provider).code == code

    def test_what_is_no_file_is_refused_without_waiting(self, path, provider, failure) -> None:
        path.unlink()
        assert failure(provider).code == "missing"
        path.mkdir()
        assert failure(provider).code == "not_a_file"
        path.rmdir()
        os.mkfifo(path)
        assert failure(provider).code == "not_a_file"

    def test_what_cannot_be_opened_is_typed(self, path, provider, failure) -> None:
        path.unlink()
        path.symlink_to(path)  # a loop: refused to root, too
        assert failure(provider).code == "unreadable"

    def test_no_descriptor_is_left_open(self, path, provider, failure) -> None:
        path.write_text(MARK)
        provider.fetch()
        lowest = os.dup(0)
        os.close(lowest)
        provider.fetch()
        path.unlink()
        path.mkdir()
        failure(provider)
        again = os.dup(0)
        os.close(again)
        assert again == lowest

    def test_readable_by_all_warns_once(self, path, provider) -> None:
        path.write_text(MARK)
        path.chmod(0o644)
        with pytest.warns(CredentialWarning, match="every user") as caught:
            provider.fetch()
        assert MARK not in str(caught[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            provider.fetch()

    def test_readable_by_owner_and_group_does_not_warn(self, path, provider) -> None:
        path.write_text(MARK)
        path.chmod(0o640)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert key(provider.fetch()) == MARK

    def test_lifetime_sets_the_expiry(self, path, clock) -> None:
        path.write_text(MARK)
        provider = provider_for(CredentialRef(from_file=path, lifetime=60), clock=clock)
        assert provider.fetch().expires_at == clock.now + 60


class TestCommand:
    def provider(self, *argv: str, **options):
        return provider_for(CredentialRef(from_command=argv, **options), clock=SystemClock())

    def test_what_it_prints_is_the_key(self) -> None:
        assert key(self.provider("printf", f"{MARK}\\n").fetch()) == MARK

    def test_no_shell_reads_the_arguments(self) -> None:
        assert key(self.provider("printf", "%s", "$HOME;`id`|*").fetch()) == "$HOME;`id`|*"

    def test_is_run_at_each_fetch(self, tmp_path) -> None:
        provider = self.provider("cat", str(tmp_path / "key"))
        for value in ("one", "two"):
            (tmp_path / "key").write_text(value)
            assert key(provider.fetch()) == value

    def test_it_has_no_input_to_wait_for(self, failure) -> None:
        assert failure(self.provider("cat")).code == "empty"

    def test_a_failing_exit_is_typed_and_its_error_output_unseen(self, failure, capfd) -> None:
        error = failure(self.provider("sh", "-c", "echo out-marked; echo err-marked >&2; exit 3"))
        assert (error.code, error.exit_code) == ("exit", 3)
        assert "exit status 3" in str(error)
        assert capfd.readouterr() == ("", "")

    def test_death_by_a_signal_is_typed(self, failure) -> None:
        error = failure(self.provider("sh", "-c", "kill -TERM $$"))
        assert (error.code, error.exit_code) == ("exit", -15)

    def test_no_such_program(self, failure, tmp_path) -> None:
        assert failure(self.provider(str(tmp_path / "none"))).code == "not_found"
        (tmp_path / "text").write_text("no program")
        assert failure(self.provider(str(tmp_path / "text"))).code == "unreadable"

    @pytest.mark.parametrize("script", ["sleep 60", "exec >&-; sleep 60", "echo marked; sleep 60 & wait"])
    def test_the_time_limit_ends_it_and_what_it_started(self, failure, tmp_path, script) -> None:
        alive = tmp_path / "alive"
        os.mkfifo(alive)
        reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
        try:
            # Who lives holds the pipe open; its end is seen when the last of them is gone.
            script = f"exec 3>{alive}; echo x >&3; {script}"
            error = failure(self.provider("sh", "-c", script, timeout=0.2))
            assert error.code == "timeout"
            assert select.select([reader], [], [], 5)[0]
            os.read(reader, 10)
            assert select.select([reader], [], [], 5)[0]
            assert os.read(reader, 10) == b""
        finally:
            os.close(reader)

    def test_endless_output_is_cut_off(self, failure) -> None:
        assert failure(self.provider("yes", "marked")).code == "too_large"

    def test_binary_output_is_refused_unseen(self, failure) -> None:
        assert failure(self.provider("printf", "marked\\377")).code == "malformed"

    def test_lifetime_counts_from_the_start(self) -> None:
        before = SystemClock.time()
        expires = self.provider("printf", "k", lifetime=3600).fetch().expires_at
        assert before + 3600 <= expires <= SystemClock.time() + 3600


class TestCallable:
    def provider(self, target, clock, **options):
        return provider_for(CredentialRef(from_callable=target, **options), clock=clock)

    @pytest.mark.parametrize("value", [MARK, MARK + "\n", Secret(MARK), Credential(secret=Secret(MARK))])
    def test_may_give_a_string_a_secret_or_a_credential(self, clock, value) -> None:
        assert self.provider(lambda: value, clock).fetch() == Credential(secret=Secret(MARK))

    def test_its_own_expiry_goes_before_the_lifetime(self, clock) -> None:
        given = Credential(secret=Secret(MARK), expires_at=clock.now + 5)
        assert self.provider(lambda: given, clock, lifetime=60).fetch().expires_at == clock.now + 5
        assert self.provider(lambda: MARK, clock, lifetime=60).fetch().expires_at == clock.now + 60

    def test_is_called_at_each_fetch(self, clock) -> None:
        values = iter(["one", "two"])
        provider = self.provider(lambda: next(values), clock)
        assert [key(provider.fetch()) for _ in range(2)] == ["one", "two"]

    def test_a_named_one_is_imported_at_the_first_fetch_only(self, clock, monkeypatch, failure) -> None:
        provider = self.provider("remote_inference_test_vault:client.fetch", clock)
        assert failure(provider).code == "import"
        module = types.ModuleType("remote_inference_test_vault")
        module.client = types.SimpleNamespace(fetch=lambda: MARK)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        assert key(provider.fetch()) == MARK
        monkeypatch.delitem(sys.modules, module.__name__)
        assert key(provider.fetch()) == MARK

    @pytest.mark.parametrize("target", ["os:nothing_of_that_name", "os:environ.nothing", "os:name"])
    def test_a_name_that_is_no_function_is_typed(self, clock, failure, target) -> None:
        assert failure(self.provider(target, clock)).code == "import"

    def test_what_it_raises_is_told_by_its_class_alone(self, clock, failure) -> None:
        def refuse() -> str:
            token = "marked-token"
            raise ValueError(f"token {token} refused")

        error = failure(self.provider(refuse, clock))
        assert error.code == "raised"
        assert "ValueError" in str(error)

    async def _async(self) -> str:
        return "marked"

    @pytest.mark.parametrize("value", [None, 5, b"marked", ["marked"], ""])
    def test_what_is_no_key_is_refused_unseen(self, clock, failure, value) -> None:
        assert failure(self.provider(lambda: value, clock)).code == ("empty" if value == "" else "type")

    def test_an_async_function_is_refused(self, clock, failure) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert "async" in str(failure(self.provider(self._async, clock)))

    def test_one_that_has_expired_is_refused(self, clock, failure) -> None:
        given = Credential(secret=Secret(MARK), expires_at=clock.now)
        assert failure(self.provider(lambda: given, clock)).code == "expired"


@pytest.mark.parametrize("expires_at", ["soon", True, float("nan"), float("inf")])
def test_a_credential_checks_its_expiry(expires_at) -> None:
    with pytest.raises(TypeError):
        Credential(secret=None, expires_at=expires_at)


def test_a_credential_holds_no_bare_string() -> None:
    with pytest.raises(TypeError) as caught:
        Credential(secret="sk-marked")  # type: ignore[arg-type]
    assert "marked" not in str(caught.value)
