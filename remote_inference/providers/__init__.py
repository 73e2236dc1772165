"""The providers: one wire format each, without I/O. Which there are says `config.provider_table`."""

from __future__ import annotations

from .base import AnswerHead, AnswerReader, HttpRequest, Provider, ProviderCall
from .feed import AnswerFeed
from .loading import provider_named

__all__ = [
    "AnswerFeed",
    "AnswerHead",
    "AnswerReader",
    "HttpRequest",
    "Provider",
    "ProviderCall",
    "provider_named",
]
