"""The policies of a deployment: limits, retries, breaker, timeouts, prices."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ..types import TokenUsage
from ..value import Value
from .checks import DAY, Checker, did_you_mean

__all__ = ["BreakerPolicy", "CapacityPolicy", "Price", "RateLimits", "RetryPolicy", "Timeouts"]

RETRY_KINDS = ("rate_limited", "server_error", "timeout", "network")
JITTERS = ("none", "full", "equal")
_MOST = 10**12
_BY_THE_MINUTE = (
    "requests_per_minute",
    "tokens_per_minute",
    "input_tokens_per_minute",
    "output_tokens_per_minute",
)
_SHORTEST_BURST = 0.001  # seconds; far less than the way to the provider varies by


class CapacityPolicy(str, Enum):
    """What a submit does when the queue has no room."""

    QUEUE = "queue"
    """Wait for room, at most ``admission_timeout``."""
    REJECT = "reject"
    """Fail at once with `Backpressure`."""
    FALLBACK = "fallback"
    """Go to the next deployment of ``fallback``."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RateLimits(Value):
    """What the provider allows the key in any 60 seconds, counted over all workers of the cluster.

    None: no limit. ``rate_limits = "auto"`` in a deployment stands for ``{ learn = true }``.

    Attributes:
        requests_per_minute: requests.
        tokens_per_minute: prompt and answer together.
        input_tokens_per_minute: tokens of prompts, where the provider counts them apart.
        output_tokens_per_minute: tokens of answers, likewise.
        concurrent_requests: in flight at a time, over all deployments that share the key.
        burst: seconds' worth of the limits that may go at once after a quiet time; 60 is the whole minute.
        strict: count exactly, in Redis, where the workers otherwise tell each other what they sent.
        learn: find the limits out, from the provider's headers and its 429s. Limits that are named are then
            the most that is ever used.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    burst: float = 1.0
    strict: bool = False
    learn: bool = False

    def __post_init__(self) -> None:
        check = Checker(self)
        check.whole("requests_per_minute", 1, _MOST, optional=True)
        together = check.whole("tokens_per_minute", 1, _MOST, optional=True) and self.tokens_per_minute
        for name in ("input_tokens_per_minute", "output_tokens_per_minute"):
            if (
                check.whole(name, 1, _MOST, optional=True)
                and together
                and (getattr(self, name) or 0) > together
            ):
                check.fault(name, f"is above tokens_per_minute ({together}), and can never be reached")
        check.whole("concurrent_requests", 1, 1_000_000, optional=True)
        self._check_modes(check)
        check.done()

    @property
    def by_the_minute(self) -> bool:
        """Whether there is, or may come to be, a limit of what is sent in a minute."""
        return self.learn or any(getattr(self, name) is not None for name in _BY_THE_MINUTE)

    def _check_modes(self, check: Checker) -> None:
        learns = check.flag("learn") and self.learn
        if check.flag("strict") and self.strict:
            if learns:
                check.fault(
                    "strict", "needs limits that are given, and learn finds them out; leave out one of them"
                )
            elif not self.by_the_minute and self.concurrent_requests is None:
                check.fault("strict", "is true, but there is no limit to be strict about")
        if check.number("burst", _SHORTEST_BURST, 60.0) and self.burst != 1.0 and not self.by_the_minute:
            check.fault("burst", "is given, but there is no limit by the minute that it could belong to")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RetryPolicy(Value):
    """How often, and when, a failed attempt is made again. Durations are seconds (or a timedelta).

    Attributes:
        max_retries: attempts after the first; 0 turns retries off.
        initial_backoff: the wait before the first retry.
        max_backoff: no wait is longer, unless the provider asks for it.
        backoff_multiplier: what the wait is multiplied with from one retry to the next.
        jitter: ``equal`` (half of the wait is random), ``full`` (all of it) or ``none``. From "Exponential
            Backoff And Jitter", AWS Architecture Blog, 2015.
        respect_retry_after: wait for as long as the provider says, where it does.
        retry_on: the kinds of failure that are tried again: ``rate_limited``, ``server_error`` (an answer
            that breaks its own format too), ``timeout``, ``network``.
    """

    max_retries: int = 3
    initial_backoff: float = 1.0
    max_backoff: float = 60.0
    backoff_multiplier: float = 2.0
    jitter: str = "equal"
    respect_retry_after: bool = True
    retry_on: tuple[str, ...] = RETRY_KINDS

    def __post_init__(self) -> None:
        check = Checker(self)
        check.whole("max_retries", 0, 1000)
        first = check.seconds("initial_backoff")
        if check.seconds("max_backoff") and first and self.max_backoff < self.initial_backoff:
            check.fault("max_backoff", f"is below initial_backoff ({self.initial_backoff:g})")
        check.number("backoff_multiplier", 1.0, 1000.0)
        check.choice("jitter", JITTERS)
        check.flag("respect_retry_after")
        if check.words("retry_on"):
            for index, kind in enumerate(self.retry_on):
                if kind not in RETRY_KINDS:
                    reason = f"must be one of {', '.join(RETRY_KINDS)}{did_you_mean(kind, RETRY_KINDS)}"
                    check.fault(f"retry_on[{index}]", reason)
        check.done()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BreakerPolicy(Value):
    """When an endpoint that fails is left alone, and for how long. Durations are seconds (or a timedelta).

    Attributes:
        failure_threshold: failures in a row, within ``failure_window``, that open the circuit.
        failure_window: older failures do not count.
        open_duration: for how long it opens; doubled for each probe that fails.
        max_open_duration: no longer than this.
        half_open_max_probes: calls let through at a time to see whether the endpoint is back.
    """

    failure_threshold: int = 10
    failure_window: float = 60.0
    open_duration: float = 30.0
    max_open_duration: float = 300.0
    half_open_max_probes: int = 1

    def __post_init__(self) -> None:
        check = Checker(self)
        check.whole("failure_threshold", 1, 1_000_000)
        check.seconds("failure_window")
        first = check.seconds("open_duration")
        if check.seconds("max_open_duration") and first and self.max_open_duration < self.open_duration:
            check.fault("max_open_duration", f"is below open_duration ({self.open_duration:g})")
        check.whole("half_open_max_probes", 1, 1000)
        check.done()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Timeouts(Value):
    """Seconds (or a timedelta) that a call may wait.

    Attributes:
        connect: for the connection, TLS included.
        first_byte: for the first data of the answer.
        read: between data; reasoning models pause.
    """

    connect: float = 5.0
    first_byte: float = 60.0
    read: float = 60.0

    def __post_init__(self) -> None:
        check = Checker(self)
        for name in ("connect", "first_byte", "read"):
            check.seconds(name, DAY)
        check.done()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Price(Value):
    """US dollars a million tokens, as providers print them.

    Attributes:
        input_usd_per_million: of the prompt.
        output_usd_per_million: of the answer, reasoning included.
        cached_input_usd_per_million: of the cached part of the prompt; None: as the rest.
    """

    input_usd_per_million: float = field(metadata={"placeholder": 0.0})
    output_usd_per_million: float = field(metadata={"placeholder": 0.0})
    cached_input_usd_per_million: float | None = None

    def __post_init__(self) -> None:
        check = Checker(self)
        check.number("input_usd_per_million", 0.0, 1e9)
        check.number("output_usd_per_million", 0.0, 1e9)
        check.number("cached_input_usd_per_million", 0.0, 1e9, optional=True)
        check.done()

    def cost(self, usage: TokenUsage) -> float:
        """US dollars for that usage."""
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        cached_price = self.cached_input_usd_per_million
        if cached_price is None:
            cached_price = self.input_usd_per_million
        dollars = (usage.prompt_tokens - cached) * self.input_usd_per_million + cached * cached_price
        return (dollars + usage.completion_tokens * self.output_usd_per_million) / 1_000_000
