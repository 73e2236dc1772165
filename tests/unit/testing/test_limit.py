"""The exact limit that the fake provider enforces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remote_inference.testing.limit import ExactLimit

KEY = ("sk-test", "gpt-4o")


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 40)), max_size=60))
def test_no_window_holds_more_than_the_limit_and_a_refusal_is_right(steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    limit = ExactLimit(requests_per_minute=5, tokens_per_minute=100, clock=clock)
    admitted: list[tuple[float, int]] = []
    for pause, tokens in steps:
        clock.now += pause
        inside = [spent for at, spent in admitted if at > clock.now - 60]
        fits = len(inside) < 5 and sum(inside) + tokens <= 100
        assert limit.admit(KEY, tokens) is fits
        if fits:
            admitted.append((clock.now, tokens))
    assert (limit.admitted, limit.refused) == (len(admitted), len(steps) - len(admitted))


def test_output_tokens_count_when_they_stream_and_are_forgotten_after_the_window() -> None:
    clock = Clock()
    limit = ExactLimit(tokens_per_minute=10, clock=clock)
    assert limit.admit(KEY, 4)
    clock.now = 30.0
    limit.spend(KEY, 6)
    assert not limit.admit(KEY, 1)
    assert limit.headers(KEY)["x-ratelimit-remaining-tokens"] == "0"
    assert limit.retry_after(KEY) == 30.0
    clock.now = 60.0
    assert limit.admit(KEY, 4)
    assert not limit.admit(KEY, 1)


def test_each_credential_and_model_has_the_limit_to_itself() -> None:
    limit = ExactLimit(requests_per_minute=1)
    assert limit.admit(("a", "m"), 1)
    assert limit.admit(("b", "m"), 1)
    assert limit.admit(("a", "n"), 1)
    assert not limit.admit(("a", "m"), 1)
