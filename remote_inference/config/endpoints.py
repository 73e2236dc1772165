"""Which provider a model belongs to, and what an endpoint may look like."""

from __future__ import annotations

import re

__all__ = ["endpoint_fault", "infer_provider", "is_in_the_clear"]


# OpenAI's names, fine-tuned ones included (ft:gpt-4o:...). gpt-oss has open weights, and others serve it.
# These are compiled (and kept, by re) when they are first used: this module is imported by every web process.
_OPENAI = r"(ft:)?(gpt-(?!oss)|chatgpt|o[1-9][0-9]?(-|$))"
_LOOPBACK = r"loopback://[A-Za-z0-9._-]{1,100}"
_HTTP = (
    r"https?://"
    r"(?P<host>[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])"
    r"(:(?P<port>[0-9]{1,5}))?"
    r"(/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?"
)


def infer_provider(model: str) -> str | None:
    """The provider that a model's name tells, or None where it tells nothing."""
    return "openai" if re.match(_OPENAI, model, re.IGNORECASE) else None


def endpoint_fault(endpoint: object, provider: str | None) -> str | None:
    """What is wrong with an endpoint, or None. The text never quotes it: it might hold a password."""
    if not isinstance(endpoint, str):
        return "must be a URL"
    if provider == "loopback":
        right = re.fullmatch(_LOOPBACK, endpoint)
        return None if right else "must be left out, or loopback://NAME: the loopback provider has no network"
    scheme, found, rest = endpoint.partition("://")
    if not found or scheme not in ("http", "https"):
        return "must be a URL that begins with http:// or https://"
    if "@" in re.split(r"[/?#\\]", rest, maxsplit=1)[0]:
        return "must not hold a user or password; the key goes into api_key"
    if "?" in rest or "#" in rest:
        return "must not have a query or a fragment; the key goes into api_key, other fields into extra_body"
    match = re.fullmatch(_HTTP, endpoint)
    if match is None:
        return "must be a URL like https://host:port/path, in ASCII"
    if match["port"] and not 1 <= int(match["port"]) <= 65_535:
        return "must have a port from 1 to 65535"
    return None


def is_in_the_clear(endpoint: str) -> bool:
    """Whether what is sent to this (right) endpoint can be read on a network: http to another machine."""
    match = re.fullmatch(_HTTP, endpoint)
    if match is None or not endpoint.startswith("http://"):
        return False
    host = match["host"].lower()
    loopback = host in ("localhost", "[::1]") or host.endswith(".localhost")
    return not loopback and not re.fullmatch(r"127(\.[0-9]{1,3}){3}", host)
