"""A key that a function of the user's gives: a vault's client, a cloud's token endpoint."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import reduce
from typing import Any

from ..clock import Clock
from .base import Credential, CredentialError, usable
from .ref import CredentialRef
from .secret import Secret

__all__ = ["FunctionCredentials"]


class FunctionCredentials:
    """Calls a function at each fetch; one that is named by a string is imported at the first.

    The name comes from configuration, never from a message. What the function raises is told by its class
    alone: the text may quote the key.
    """

    def __init__(self, ref: CredentialRef, clock: Clock) -> None:
        self.label = ref.label
        self._target: str | Callable[[], Any] = ref.from_callable or ""
        self._lifetime = ref.lifetime
        self._clock = clock

    def fetch(self) -> Credential:
        """Call the function.

        Raises:
            CredentialError: ``import``, ``raised``, ``type``, ``expired``, ``empty``, ``too_large`` or
                ``malformed``.
        """
        started = self._clock.time()
        function, fault = self._function()
        if function is None:
            raise CredentialError(self.label, "import", fault)
        credential, code, fault = _call(function)
        if credential is None:  # raised here: a traceback must reach no frame that has held the value
            raise CredentialError(self.label, code, fault)
        secret = None if credential.secret is None else usable(credential.secret, self.label)
        expires = credential.expires_at
        if expires is None and self._lifetime is not None:
            expires = started + self._lifetime
        if expires is not None and expires <= self._clock.time():
            raise CredentialError(self.label, "expired", "gave a credential that has expired already")
        return Credential(secret=secret, expires_at=expires)

    def _function(self) -> tuple[Callable[[], Any] | None, str]:
        if not isinstance(self._target, str):
            return self._target, ""
        module, _, path = self._target.partition(":")
        try:
            function = reduce(getattr, path.split("."), importlib.import_module(module))
        except Exception as exc:  # an import runs the user's code
            return None, f"cannot be imported ({type(exc).__name__})"
        if not callable(function):
            return None, "is not a function"
        self._target = function
        return function, ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.label})"


def _call(function: Callable[[], Any]) -> tuple[Credential | None, str, str]:
    try:
        value = function()
    except Exception as exc:
        return None, "raised", f"raised {type(exc).__name__} (its text is not shown: it may quote the key)"
    if isinstance(value, str):
        value = Secret(value)
    if isinstance(value, Secret):
        value = Credential(secret=value)
    if isinstance(value, Credential):
        return value, "", ""
    if inspect.iscoroutine(value):
        value.close()  # or Python warns that it was never awaited
        return None, "type", "is an async function; it must be a plain one"
    return None, "type", f"must give a str, a Secret or a Credential, not {type(value).__name__}"
