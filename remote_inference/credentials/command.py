"""A key that a program prints (a password manager, a cloud's command line), run without a shell."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
from typing import NamedTuple

from ..clock import Clock
from .base import MAX_SECRET_BYTES, Credential, CredentialError, usable
from .ref import CredentialRef
from .secret import Secret

__all__ = ["CommandCredentials"]

DEFAULT_TIMEOUT = 10.0


class _Outcome(NamedTuple):
    """What became of a run; without output: why."""

    output: Secret | None = None
    code: str = ""
    detail: str = ""
    exit_code: int | None = None


class CommandCredentials:
    """Runs a command at each fetch and takes what it prints. POSIX only (it waits for a pipe).

    Its standard error goes nowhere, since such programs quote what they were given. It is run in a session of
    its own, so that the time limit also ends what it has started.
    """

    def __init__(self, ref: CredentialRef, clock: Clock) -> None:
        self.label = ref.label
        self._argv = ref.from_command or ()
        self._timeout = ref.timeout or DEFAULT_TIMEOUT
        self._lifetime = ref.lifetime
        self._clock = clock

    def fetch(self) -> Credential:
        """Run the command.

        Raises:
            CredentialError: ``not_found``, ``unreadable`` (it cannot be started), ``timeout``, ``exit``
                (with ``exit_code``), ``too_large``, ``empty`` or ``malformed``.
        """
        started = self._clock.time()
        outcome = self._run()
        if outcome.output is None:  # raised here: a traceback must reach no frame that has held the output
            raise CredentialError(self.label, outcome.code, outcome.detail, outcome.exit_code)
        secret = usable(outcome.output, self.label)
        expires = None if self._lifetime is None else started + self._lifetime
        return Credential(secret=secret, expires_at=expires)

    def _run(self) -> _Outcome:
        try:
            process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except FileNotFoundError:
            return _Outcome(code="not_found", detail="there is no such program")
        except OSError as exc:
            return _Outcome(code="unreadable", detail=f"cannot be started: {exc.strerror}")
        deadline = self._clock.monotonic() + self._timeout
        status: int | None = None
        with process:
            try:
                output = self._output(process, deadline)
                if output is not None and len(output) <= MAX_SECRET_BYTES:
                    status = process.wait(max(0.0, deadline - self._clock.monotonic()))
            except subprocess.TimeoutExpired:
                pass
            finally:
                _end(process)
        if output is not None and len(output) > MAX_SECRET_BYTES:
            return _Outcome(code="too_large", detail=f"printed more than {MAX_SECRET_BYTES // 1024} KiB")
        if status is None:
            return _Outcome(code="timeout", detail=f"did not end within {self._timeout:g} s")
        if status != 0:
            ended = f"exit status {status}" if status > 0 else f"signal {-status}"
            detail = f"failed with {ended} (what it said is not shown; run it by hand to see)"
            return _Outcome(code="exit", detail=detail, exit_code=status)
        try:
            return _Outcome(output=Secret(output.decode() if output else ""))
        except UnicodeDecodeError:
            return _Outcome(code="malformed", detail="printed something that is not text in UTF-8")

    def _output(self, process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
        """What it printed, at most one byte over the limit; None when the time ran out first."""
        assert process.stdout is not None  # for the type checker: it was asked for
        output = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while len(output) <= MAX_SECRET_BYTES:
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    return None
                if not selector.select(left):
                    continue
                piece = os.read(process.stdout.fileno(), MAX_SECRET_BYTES + 1 - len(output))
                if not piece:
                    break
                output += piece
        return output

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.label})"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command and what it has started, if it still runs."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # its own session, so its own group
        except ProcessLookupError:
            pass
