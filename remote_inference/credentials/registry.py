"""From a reference to the source that it names."""

from __future__ import annotations

from ..clock import Clock
from .base import CredentialProvider
from .command import CommandCredentials
from .file import FileCredentials
from .function import FunctionCredentials
from .plain import EnvCredentials, LiteralCredentials, NoCredentials
from .ref import CredentialRef

__all__ = ["provider_for"]


def provider_for(ref: CredentialRef | None, *, clock: Clock) -> CredentialProvider:
    """The source that ``ref`` names (None: no key is wanted). Nothing is read before the first fetch."""
    if ref is None:
        return NoCredentials()
    if ref.kind == "env":
        return EnvCredentials(ref)
    if ref.kind == "file":
        return FileCredentials(ref, clock)
    if ref.kind == "command":
        return CommandCredentials(ref, clock)
    if ref.kind == "callable":
        return FunctionCredentials(ref, clock)
    return LiteralCredentials(ref)
