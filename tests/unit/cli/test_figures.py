"""What a batch counts."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cli.figures import Figures, Quantiles
from remote_inference.types import Completion, Priority, Timings, TokenUsage


def completion(tokens: int = 10, attempts: int = 1, cost: float | None = 0.5) -> Completion:
    return Completion(
        request_id="r",
        deployment="d",
        usage=TokenUsage(prompt_tokens=3, completion_tokens=tokens),
        attempts=attempts,
        cost_usd=cost,
        timings=Timings(queued=0.1, first_token=0.2, total=1.0),
    )


@given(
    st.lists(st.floats(min_value=1e-5, max_value=1e5), min_size=1, max_size=200),
    st.sampled_from([0.0, 0.5, 0.95, 1.0]),
)
def test_a_quantile_is_right_to_one_percent(values: list[float], share: float):
    quantiles = Quantiles()
    for value in values:
        quantiles.add(value)
    exact = sorted(values)[math.floor(share * (len(values) - 1))]
    assert math.isclose(quantiles.at(share) or 0.0, exact, rel_tol=0.0101)


def test_without_values_there_is_no_quantile():
    assert Quantiles().at(0.5) is None


def test_a_million_values_take_few_counters():
    quantiles = Quantiles()
    for index in range(100_000):
        quantiles.add(index / 1000)
    assert len(quantiles._bins) < 1200


def test_answers_and_errors_add_up():
    figures = Figures(5, started=0.0)
    figures.already, figures.bad, figures.outstanding = 1, 1, 3
    figures.answered(completion(attempts=3), Priority.HIGH, guessed=0)
    figures.answered(completion(cost=None), Priority.NORMAL, guessed=0)
    figures.ended(Priority.NORMAL, attempts=4)
    assert figures.done == 5
    assert figures.outstanding == 0
    assert figures.retried == 5
    assert figures.all.completed == 2
    assert figures.all.failed == 1
    assert figures.all.completion_tokens == 20
    assert figures.all.cost_usd == 0.5
    assert figures.parts[Priority.NORMAL].failed == 1


def test_tokens_a_second_are_those_of_late_and_guesses_are_put_right():
    figures = Figures(None, started=0.0)
    figures.outstanding = 1
    figures.streamed(30)
    assert figures.tokens_per_second(1.0) == 30.0
    figures.answered(completion(tokens=40), Priority.NORMAL, guessed=30)
    assert figures.tokens_per_second(2.0) == 20.0
    for second in range(3, 30):
        rate = figures.tokens_per_second(float(second))
    assert rate == 0.0


def test_the_time_left_is_told_from_the_pace_of_this_run():
    figures = Figures(100, started=10.0)
    assert figures.seconds_left(20.0) is None
    figures.already = 50
    figures.outstanding = 10
    for _ in range(10):
        figures.answered(completion(), Priority.NORMAL, guessed=0)
    assert figures.seconds_left(20.0) == 40.0
    figures.lines = None
    assert figures.seconds_left(20.0) is None
