"""A key in a file, as Kubernetes, Docker and systemd give it; read anew at each fetch: it can rotate."""

from __future__ import annotations

import os
import stat
import warnings

from ..clock import Clock
from .base import MAX_SECRET_BYTES, Credential, CredentialError, CredentialWarning, usable
from .ref import CredentialRef
from .secret import Secret

__all__ = ["FileCredentials"]


class FileCredentials:
    """Reads a file; a line end after the key is left out, ``~`` is the user's home.

    Only a regular file is read (links are followed): a pipe could block for ever and gives its content once.
    A file that every user of the machine may read draws a `CredentialWarning`, once an object of this class.
    """

    def __init__(self, ref: CredentialRef, clock: Clock) -> None:
        self.label = ref.label
        self._path = os.path.expanduser(ref.from_file or "")
        self._lifetime = ref.lifetime
        self._clock = clock
        self._warned = False

    def fetch(self) -> Credential:
        """Read the file.

        Raises:
            CredentialError: ``missing``, ``unreadable``, ``not_a_file``, ``too_large``, ``empty`` or
                ``malformed``.
        """
        content, code, detail = self._read()
        if content is None:  # raised here: a traceback must reach no frame that has held the bytes
            raise CredentialError(self.label, code, detail)
        secret = usable(content, self.label)
        expires = None if self._lifetime is None else self._clock.time() + self._lifetime
        return Credential(secret=secret, expires_at=expires)

    def _read(self) -> tuple[Secret | None, str, str]:
        try:
            # O_NONBLOCK: opening a pipe that nobody writes to would wait.
            descriptor = os.open(self._path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            return None, "missing", "there is no such file"
        except OSError as exc:
            return None, "unreadable", f"cannot be opened: {exc.strerror}"
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                return None, "not_a_file", "is not a regular file"
            self._warn_if_open(mode)  # before the key is in a variable: a warning may be made an error
            content = _read_up_to(descriptor, MAX_SECRET_BYTES + 1)
        except OSError as exc:
            return None, "unreadable", f"cannot be read: {exc.strerror}"
        finally:
            os.close(descriptor)
        if len(content) > MAX_SECRET_BYTES:
            return None, "too_large", f"is larger than {MAX_SECRET_BYTES // 1024} KiB"
        try:
            return Secret(content.decode()), "", ""
        except UnicodeDecodeError:
            return None, "malformed", "is not text in UTF-8"

    def _warn_if_open(self, mode: int) -> None:
        if mode & stat.S_IROTH and os.name == "posix" and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.label} can be read by every user of this machine; chmod o-r would keep it to yours",
                CredentialWarning,
                stacklevel=4,
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.label})"


def _read_up_to(descriptor: int, limit: int) -> bytes:
    content = b""
    while len(content) < limit and (piece := os.read(descriptor, limit - len(content))):
        content += piece
    return content
