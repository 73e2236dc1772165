"""`CredentialRef`: where a credential comes from. Configuration holds this, never the value."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ..errors import ConfigurationError
from ..value import Value
from .base import fault_in
from .secret import Secret

__all__ = ["CredentialRef"]

SOURCES = ("from_env", "from_file", "from_command", "from_callable", "literal")
_TARGET = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
_LABEL_KEY = b"remote_inference credential label"  # fixed: all processes of a cluster must agree on labels


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CredentialRef(Value):
    """Names one source of a credential.

    Attributes:
        from_env: name of an environment variable. A process does not see its environment change: to rotate a
            key without a restart, use another source.
        from_file: path of a file that holds the key and nothing else; read anew at each fetch.
        from_command: program and arguments (no shell); the key is what it prints.
        from_callable: a function without arguments, or ``"package.module:function"``, imported at the first
            fetch; gives a string, a `Secret` or a `Credential`.
        literal: the key itself, as a `Secret` (a string is wrapped). To try things out; it draws a warning.
        timeout: seconds that ``from_command`` may take (10 when left out).
        lifetime: seconds for which what a file, command or callable gave is good; then it is fetched anew
            before use. None: until the provider refuses it.

    Raises:
        ConfigurationError: with every fault. No fault shows a value.
    """

    from_env: str | None = None
    from_file: str | None = None
    from_command: tuple[str, ...] | None = None
    from_callable: str | Callable[[], Any] | None = None
    literal: Secret | None = None
    timeout: float | None = None
    lifetime: float | None = None

    def __post_init__(self) -> None:
        given: dict[str, Any] = {
            name: getattr(self, name) for name in SOURCES if getattr(self, name) is not None
        }
        if isinstance(given.get("from_file"), os.PathLike):
            given["from_file"] = os.fspath(given["from_file"])
        if isinstance(given.get("from_command"), list):
            given["from_command"] = tuple(given["from_command"])
        if isinstance(given.get("literal"), str):
            given["literal"] = Secret(given["literal"])
        for name, value in given.items():
            object.__setattr__(self, name, value)
        faults = [*_source_faults(given), *self._seconds_faults(given)]
        if faults:
            raise ConfigurationError(faults)

    @property
    def kind(self) -> str:
        """``env``, ``file``, ``command``, ``callable`` or ``literal``."""
        return next(name for name in SOURCES if getattr(self, name) is not None).removeprefix("from_")

    @property
    def label(self) -> str:
        """The name of this source in events, errors and limit keys: one in all processes, never the value.

        Arguments of a command may hold a secret, so that they go in as eight hex digits of a hash.
        """
        if self.from_env is not None:
            return f"env:{self.from_env}"
        if self.from_file is not None:
            return f"file:{self.from_file}"
        if self.from_command is not None:
            program = os.path.basename(self.from_command[0])
            return f"command:{program}#{_digest(chr(0).join(self.from_command))}"
        if self.literal is not None:
            return f"literal:{_digest(self.literal.reveal())}"
        if isinstance(self.from_callable, str):
            return f"callable:{self.from_callable}"
        target = self.from_callable
        name = getattr(target, "__qualname__", None) or type(target).__qualname__
        return f"callable:{getattr(target, '__module__', None) or type(target).__module__}:{name}"

    def __repr__(self) -> str:
        return f"CredentialRef({self.label})"

    def _seconds_faults(self, given: dict[str, Any]) -> list[str]:
        faults = []
        for name, allowed in (
            ("timeout", {"from_command"}),
            ("lifetime", {"from_file", "from_command", "from_callable"}),
        ):
            value: Any = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, timedelta):
                value = value.total_seconds()
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not 0 < value <= 30 * 86_400:
                faults.append(f"{name}: must be seconds, above 0 and at most 30 days")
            elif not given.keys() & allowed:
                faults.append(f"{name}: has a use only with {', '.join(sorted(allowed))}")
            else:
                object.__setattr__(self, name, float(value))
        return faults


def _source_faults(given: dict[str, Any]) -> list[str]:
    if not given:
        return [f"from_env: is missing; give one of {', '.join(SOURCES)}"]
    first, *others = given
    faults = [f"{name}: is one source too many beside {first}; give one" for name in others]
    for name, value in given.items():
        if fault := _CHECKS[name](value):
            faults.append(f"{name}: {fault}")
    return faults


def _env_fault(value: Any) -> str | None:
    return None if _is_text(value) and "=" not in value else "must be the name of an environment variable"


def _file_fault(value: Any) -> str | None:
    return None if _is_text(value) else "must be the path of a file"


def _command_fault(value: Any) -> str | None:
    if not isinstance(value, tuple) or not value:
        return 'must be a list of program and arguments: ["pass", "show", "key"]'
    if not all(isinstance(part, str) and "\0" not in part for part in value) or not value[0]:
        return "must hold strings, the first of them the program"
    return None


def _callable_fault(value: Any) -> str | None:
    if callable(value) or (isinstance(value, str) and re.fullmatch(_TARGET, value)):
        return None
    return 'must be a function, or "package.module:function"'


def _literal_fault(value: Any) -> str | None:
    if not isinstance(value, Secret):
        return "must be a string"
    fault = fault_in(value)
    return fault and fault[1]


_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "from_env": _env_fault,
    "from_file": _file_fault,
    "from_command": _command_fault,
    "from_callable": _callable_fault,
    "literal": _literal_fault,
}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _digest(text: str) -> str:
    import hashlib  # 1 ms of import that a process which only submits does not need

    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=_LABEL_KEY, digest_size=4).hexdigest()
