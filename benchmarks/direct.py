"""The reference: the caller asks the provider itself, with requests."""

from __future__ import annotations

import threading

import requests

from benchmarks.caller import Watch
from benchmarks.setting import Setting
from benchmarks.sides import ProcessSide

__all__ = ["Direct", "DirectAsker", "make"]


class DirectAsker:
    """A session a thread; tokens are counted by their spaces, without parsing."""

    def __init__(self, setting: Setting) -> None:
        self._url = setting.url + "/chat/completions"
        self._verify = setting.ca_file or True
        self._local = threading.local()

    def ask(self, watch: Watch) -> None:
        """Post and read the chunks as they come."""
        session = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            session.trust_env = False
        body = {"model": "bench", "messages": [{"role": "user", "content": "Go on."}], "stream": True}
        watch.submitted()
        with session.post(self._url, json=body, stream=True, verify=self._verify, timeout=60) as response:
            response.raise_for_status()
            for piece in response.raw.read_chunked():
                count = piece.count(b'"content":"t')
                if count:
                    watch.token(count)

    def submit(self, count: int) -> None:
        """There is no broker to submit to."""
        raise NotImplementedError("calling the provider directly submits nothing")

    def discard(self) -> None:
        """There is nothing."""


def make(setting: Setting) -> DirectAsker:
    """The asker, for `benchmarks.caller`."""
    return DirectAsker(setting)


class Direct(ProcessSide):
    """No worker, only callers."""

    name = "direct"
    caller = "benchmarks.direct:make"
