"""Sources that this process has already: its environment, a literal, and no key at all."""

from __future__ import annotations

import os

from .base import Credential, CredentialError, usable
from .ref import CredentialRef
from .secret import Secret

__all__ = ["EnvCredentials", "LiteralCredentials", "NoCredentials"]


class EnvCredentials:
    """Reads an environment variable at each fetch.

    What somebody exports elsewhere later is not seen: a process has a copy of its own.
    """

    def __init__(self, ref: CredentialRef) -> None:
        self.label = ref.label
        self._name = ref.from_env or ""

    def fetch(self) -> Credential:
        """Read the variable.

        Raises:
            CredentialError: ``missing``, or the value cannot be a key.
        """
        if self._name not in os.environ:
            raise CredentialError(self.label, "missing", "is not set in the environment of this process")
        return Credential(secret=usable(Secret(os.environ[self._name]), self.label))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.label})"


class LiteralCredentials:
    """Gives the key that stands in the configuration."""

    def __init__(self, ref: CredentialRef) -> None:
        self.label = ref.label
        self._credential = Credential(secret=ref.literal)

    def fetch(self) -> Credential:
        """The key; never fails."""
        return self._credential

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.label})"


class NoCredentials:
    """For an endpoint that wants no key."""

    def fetch(self) -> Credential:
        """A credential without a secret; never fails."""
        return Credential(secret=None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
