"""A transport without a network: it plays the script that the loopback provider puts into its requests.

What it sends is a stream of events like any server's, so that a deployment of the loopback provider goes the same way
through the engine as all others. Its waits pass on the clock, and end with the call.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from ..cancel import CancelToken
from ..clock import Clock
from ..errors import DeadlineExceeded, NetworkError, RequestError, Timeout

__all__ = ["FAULTS", "LoopbackClient"]

FAULTS: Mapping[str, Callable[[], RequestError] | None] = {
    "timeout": lambda: Timeout("first_byte"),
    "stall": lambda: Timeout("read"),
    "network": lambda: NetworkError("reset"),
    "invalid": None,  # what breaks the format is sent as any other data
    "truncated": None,
}
"""What a fault of that name raises in the transport."""


class LoopbackClient:
    """Answers each call by the script in its body, whose ``faults`` are used up from the front.

    Args:
        clock: of the script's delays.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._calls: dict[str, int] = {}

    @property
    def calls(self) -> Mapping[str, int]:
        """Calls so far, by deployment."""
        with self._lock:
            return dict(self._calls)

    def send(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "POST",
        token: CancelToken,
        deadline: float | None = None,
        stream: bool = True,
        repeatable: bool = True,
    ) -> LoopbackResponse:
        """See `Client.send`."""
        script = json.loads(body)
        with self._lock:
            number = self._calls.get(script["deployment"], 0)
            self._calls[script["deployment"]] = number + 1
        faults = script["faults"]
        response = LoopbackResponse(
            script, faults[number] if number < len(faults) else None, self._clock, token, deadline
        )
        response.begin()
        return response

    def retire(self) -> None:
        """There is nothing to close."""

    def __repr__(self) -> str:
        return f"<LoopbackClient {sum(self.calls.values())} calls>"


class LoopbackResponse:
    """The answer of one call; see `Response`."""

    def __init__(
        self,
        script: Mapping[str, Any],
        fault: Mapping[str, Any] | None,
        clock: Clock,
        token: CancelToken,
        deadline: float | None,
    ) -> None:
        self.status = 200
        self.headers: Mapping[str, str] = {}
        self._script = script
        self._fault = fault or {}
        self._cut = self._fault.get("cut_after", 0 if self._fault else None)
        self._clock = clock
        self._token = token
        self._deadline = deadline

    def begin(self) -> None:
        """Until the head of the answer is here."""
        self._token.check()
        if self._cut == 0 and "status" in self._fault:
            self._wait(self._script["first_delay"])
            self.status = self._fault["status"]
            if "retry_after" in self._fault:
                self.headers = {"Retry-After": str(self._fault["retry_after"])}

    def chunks(self) -> Iterator[bytes]:
        """See `Response.chunks`."""
        script, tokens = self._script, self._script["tokens"]
        for index, text in enumerate(tokens if self._cut is None else tokens[: self._cut]):
            self._wait(script["delay"] if index else script["first_delay"])
            yield _event({"text": text})
        if self._cut is None:
            yield _event({"finish_reason": script["finish_reason"], "usage": script["usage"]})
            return
        if self._cut == 0 or not tokens:
            self._wait(script["first_delay"])
        if "status" in self._fault:
            yield _event({"error": self._error()})
            return
        kind = self._fault.get("error", "truncated")
        if kind == "invalid":
            yield b"data: not json\n\n"
        make = FAULTS[kind]
        if make is not None:
            raise make()

    def read_error(self) -> bytes:
        """See `Response.read_error`."""
        return json.dumps({"error": self._error()}).encode()

    def _error(self) -> dict[str, Any]:
        return {
            name: self._fault[name]
            for name in ("code", "param", "retry_after", "status", "type")
            if name in self._fault
        }

    def progress(self, limit: float | None = None) -> None:
        """There is no clock of gaps: the script says how long they are."""

    def _wait(self, seconds: float) -> None:
        self._token.check()
        now = self._clock.monotonic()
        left = math.inf if self._deadline is None else self._deadline - now
        if left <= 0:
            raise DeadlineExceeded("running")
        if seconds > 0:
            self._clock.wait(self._token.event, min(seconds, left))
            self._token.check()
            if left <= seconds:
                raise DeadlineExceeded("running")

    def __enter__(self) -> LoopbackResponse:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """There is nothing to close."""

    def __repr__(self) -> str:
        return f"<LoopbackResponse {self.status}>"


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()
