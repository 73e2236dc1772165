"""What a source of credentials is, what it gives, and how it fails."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from ..errors import InferenceError
from ..value import Value
from .secret import Secret

__all__ = ["Credential", "CredentialError", "CredentialProvider", "CredentialWarning", "fault_in", "usable"]

MAX_SECRET_BYTES = 64 * 1024
"""Longer than any header that a server takes (nginx and Apache stop at 8 KiB): a wrong file, not a key."""


class CredentialWarning(UserWarning):
    """A credential lies more open than it has to: in the configuration, on the wire, or on the disk."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Credential(Value):
    """What a source gave.

    Attributes:
        secret: None where the endpoint wants no key.
        expires_at: seconds since the epoch after which it is to be fetched anew; None: good until refused.
    """

    secret: Secret | None
    expires_at: float | None = None

    def __post_init__(self) -> None:
        if self.secret is not None and not isinstance(self.secret, Secret):
            raise TypeError(f"secret must be a Secret, not {type(self.secret).__name__}")
        expires = self.expires_at
        if expires is not None:
            given: object = expires  # a callable of the user's may have put anything in
            if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given):
                raise TypeError("expires_at must be seconds since the epoch")


@dataclass(eq=False, repr=False)
class CredentialError(InferenceError):
    """A source gave no usable credential. Nothing in it shows the value, or what a command or callable said.

    Attributes:
        source: the reference's label, e.g. ``env:OPENAI_API_KEY``.
        code: ``missing``, ``unreadable``, ``not_a_file``, ``too_large``, ``empty``, ``malformed``,
            ``not_found``, ``exit``, ``timeout``, ``import``, ``raised``, ``type`` or ``expired``.
        detail: a sentence for people.
        exit_code: of a command that failed (negative: the signal that ended it).
    """

    source: str
    code: str
    detail: str = ""
    exit_code: int | None = None

    def __str__(self) -> str:
        return f"{self.source}: {self.detail or self.code}"


class CredentialProvider(Protocol):
    """A source of one credential."""

    def fetch(self) -> Credential:
        """Read the source anew. May block (a command: up to its time limit). Called from any thread.

        Raises:
            CredentialError: the source gave nothing that can be used.
        """
        ...


def fault_in(secret: Secret) -> tuple[str, str] | None:
    """The code and the sentence of what keeps this from being sent in a header, or None.

    Checked here because ``http.client`` quotes the whole value in its error when a header is malformed
    (RFC 9110 allows visible ASCII; a line break would end the header).
    """
    value = secret.reveal()
    if not value.strip():
        return "empty", "is empty"
    if len(value) > MAX_SECRET_BYTES:
        return "too_large", f"is longer than {MAX_SECRET_BYTES // 1024} KiB"
    if "\n" in value or "\r" in value:
        return "malformed", "has more than one line"
    if value != value.strip(" \t"):
        return "malformed", "begins or ends with a space"
    if not all(" " <= character <= "~" for character in value):
        return "malformed", "has characters that a header cannot carry (only printable ASCII can)"
    return None


def usable(secret: Secret, source: str) -> Secret:
    """The secret without the line end that editors and ``echo`` leave.

    Raises:
        CredentialError: it cannot be a credential.
    """
    trimmed = Secret(secret.reveal().rstrip("\r\n"))
    fault = fault_in(trimmed)
    if fault is not None:
        raise CredentialError(source, *fault)
    return trimmed
