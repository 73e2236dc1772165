"""Credentials: what holds one, where it comes from, and how it is fetched anew."""

from __future__ import annotations

from .base import Credential, CredentialError, CredentialProvider, CredentialWarning
from .ref import CredentialRef
from .registry import provider_for
from .secret import Secret

__all__ = [
    "Credential",
    "CredentialError",
    "CredentialProvider",
    "CredentialRef",
    "CredentialWarning",
    "Secret",
    "provider_for",
]
