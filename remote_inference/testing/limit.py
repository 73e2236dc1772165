"""An exact rate limit on the provider's side: a sliding window that counts what it refuses."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["ExactLimit"]


@dataclass
class _Window:
    """What one key spent: (when, how much) of requests and of tokens, with their sums."""

    requests: deque[tuple[float, int]] = field(default_factory=deque)
    tokens: deque[tuple[float, int]] = field(default_factory=deque)
    request_sum: int = 0
    token_sum: int = 0

    def forget(self, before: float) -> None:
        """Drop what happened at or before that time."""
        while self.requests and self.requests[0][0] <= before:
            self.request_sum -= self.requests.popleft()[1]
        while self.tokens and self.tokens[0][0] <= before:
            self.token_sum -= self.tokens.popleft()[1]


class ExactLimit:
    """Requests and tokens in any `window` seconds, for each key (credential and model) on its own.

    Input tokens are charged when a request arrives, output tokens as they stream, so that a stream that began
    under the limit may pass it; the next request is then refused. A refused request costs nothing.

    Args:
        requests_per_minute: None: no such limit. Counted in `window` seconds, whatever its length.
        tokens_per_minute: Input and output together; None: no such limit.
        window: Seconds.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        window: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self.window = window
        self.admitted = 0
        self.refused = 0
        self._clock = clock
        self._windows: defaultdict[tuple[str, str], _Window] = defaultdict(_Window)

    def admit(self, key: tuple[str, str], input_tokens: int) -> bool:
        """Charge one request with its input tokens, or refuse it and charge nothing."""
        now = self._clock()
        spent = self._windows[key]
        spent.forget(now - self.window)
        over_requests = self.requests_per_minute is not None and spent.request_sum >= self.requests_per_minute
        over_tokens = (
            self.tokens_per_minute is not None and spent.token_sum + input_tokens > self.tokens_per_minute
        )
        if over_requests or over_tokens:
            self.refused += 1
            return False
        self.admitted += 1
        spent.requests.append((now, 1))
        spent.request_sum += 1
        self._charge(spent, now, input_tokens)
        return True

    def spend(self, key: tuple[str, str], tokens: int) -> None:
        """Charge output tokens of a request that was admitted."""
        self._charge(self._windows[key], self._clock(), tokens)

    def _charge(self, spent: _Window, now: float, tokens: int) -> None:
        if self.tokens_per_minute is not None and tokens:
            spent.tokens.append((now, tokens))
            spent.token_sum += tokens

    def headers(self, key: tuple[str, str]) -> dict[str, str]:
        """OpenAI's `x-ratelimit-*` headers for the key as it stands."""
        now = self._clock()
        spent = self._windows[key]
        spent.forget(now - self.window)
        made: dict[str, str] = {}
        for name, limit, used, events in (
            ("requests", self.requests_per_minute, spent.request_sum, spent.requests),
            ("tokens", self.tokens_per_minute, spent.token_sum, spent.tokens),
        ):
            if limit is None:
                continue
            made[f"x-ratelimit-limit-{name}"] = str(limit)
            made[f"x-ratelimit-remaining-{name}"] = str(max(0, limit - used))
            reset = events[0][0] + self.window - now if events else 0.0
            made[f"x-ratelimit-reset-{name}"] = f"{max(0.0, reset):.3f}s"
        return made

    def retry_after(self, key: tuple[str, str]) -> float:
        """Seconds until the oldest spending of the fuller window is forgotten."""
        spent = self._windows[key]
        now = self._clock()
        full_requests = self.requests_per_minute is not None and spent.request_sum >= self.requests_per_minute
        events = spent.requests if full_requests else spent.tokens
        return max(0.0, events[0][0] + self.window - now) if events else 0.0
