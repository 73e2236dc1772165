"""The head of an answer: its status line and headers, as ``http.client`` reads them, with two differences.

Every interim answer is read over, not 100 alone: servers and proxies send 102 and 103 (RFC 9110, section 15.2; RFC
8297). And an answer may have more than a hundred headers, which gateways were seen to send.
"""

from __future__ import annotations

import email.parser
import http.client
from typing import Any

__all__ = ["HeadReader"]

_MOST_HEADERS = 1000
_MOST_BYTES = 512 * 1024
_LONGEST_LINE = 65_536
_MOST_INTERIM = 32
_SWITCHING = 101  # a final answer: what follows is another protocol


class HeadReader(http.client.HTTPResponse):
    """An answer whose head is read so."""

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(_MOST_INTERIM):
            version, status, reason = super()._read_status()  # type: ignore[misc]  # not in typeshed
            if not 100 <= status < 200 or status == _SWITCHING:
                return version, status, reason
            _header_lines(self.fp)
        raise http.client.BadStatusLine("interim answers without end")

    def begin(self) -> None:
        """Read the head; see ``http.client.HTTPResponse.begin``, whose other rules these are."""
        if self.headers is not None:
            return
        version, status, reason = self._read_status()
        self.code = self.status = status
        self.reason = reason.strip()
        if version in ("HTTP/1.0", "HTTP/0.9"):
            self.version = 10
        elif version.startswith("HTTP/1."):
            self.version = 11
        else:
            raise http.client.UnknownProtocol(version)
        text = b"".join(_header_lines(self.fp)).decode("iso-8859-1")
        self.headers = self.msg = email.parser.Parser(_class=http.client.HTTPMessage).parsestr(text)
        self.chunked = self.headers.get("transfer-encoding", "").strip().lower() == "chunked"
        self.chunk_left = None
        self.length = None if self.chunked else _length(self.headers.get("content-length", ""))
        if status in (204, 304) or 100 <= status < 200 or self._method == "HEAD":
            self.length = 0
        closes = self._check_close()
        self.will_close = closes or (not self.chunked and self.length is None)


def _header_lines(fp: Any) -> list[bytes]:
    lines: list[bytes] = []
    size = 0
    while True:
        line = fp.readline(_LONGEST_LINE + 1)
        size += len(line)
        if len(line) > _LONGEST_LINE or size > _MOST_BYTES:
            raise http.client.LineTooLong("header line")
        lines.append(line)
        if len(lines) > _MOST_HEADERS:
            raise http.client.HTTPException(f"more than {_MOST_HEADERS} headers")
        if line in (b"\r\n", b"\n", b""):
            return lines


def _length(text: str) -> int | None:
    try:
        length = int(text)
    except ValueError:
        return None
    return length if length >= 0 else None
