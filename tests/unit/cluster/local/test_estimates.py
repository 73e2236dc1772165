"""Estimates come near to what requests really cost, soon, and are not led astray."""

from __future__ import annotations

import json
import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.cluster import Cost, LimitKey, TokenEstimates

KEY = LimitKey("openai", "env:KEY", "m")
OTHER = LimitKey("openai", "env:KEY", "n")
RAW = Cost(100, 512)


def finished(estimates: TokenEstimates, count: int, raw: Cost, actual: Cost, key: LimitKey = KEY) -> None:
    for _ in range(count):
        estimates.learn(key, raw, actual)


def test_nothing_is_known_at_first_and_more_is_reserved_than_estimated() -> None:
    assert TokenEstimates().cost(KEY, RAW) == Cost(200, 1024)


def test_an_answer_is_never_longer_than_it_may_be() -> None:
    estimates = TokenEstimates()
    assert estimates.cost(KEY, RAW, most=512) == Cost(200, 512)
    finished(estimates, 50, RAW, Cost(100, 4000))
    assert estimates.cost(KEY, RAW, most=600).output_tokens == 600
    assert estimates.cost(KEY, RAW).output_tokens > 3000


def test_the_count_of_requests_stays() -> None:
    assert TokenEstimates().cost(KEY, Cost(1, 1, requests=3)).requests == 3


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_a_few_requests_are_enough(ratio) -> None:
    estimates = TokenEstimates()
    finished(estimates, 4, RAW, Cost(int(100 * ratio), int(512 * ratio)))
    cost = estimates.cost(KEY, RAW)
    assert 100 * ratio * 0.8 <= cost.input_tokens <= 100 * (ratio + 0.2)
    finished(estimates, 60, RAW, Cost(int(100 * ratio), int(512 * ratio)))
    cost = estimates.cost(KEY, RAW)
    assert cost.input_tokens == pytest.approx(100 * ratio, rel=0.03, abs=2)
    assert cost.output_tokens == pytest.approx(512 * ratio, rel=0.03, abs=2)


@pytest.mark.parametrize("off", [0.5, 2.0])
def test_over_many_requests_what_is_reserved_adds_up_to_what_is_used(off) -> None:
    rng = random.Random(3)
    estimates = TokenEstimates()
    reserved = used = 0
    for number in range(2000):
        size = int(100 * 50 ** rng.random())  # spread 1:50
        raw, actual = Cost(size, 512), Cost(int(size * off * rng.uniform(0.8, 1.2)), rng.randrange(50, 400))
        if number >= 100:
            reserved += estimates.cost(KEY, raw).tokens
            used += actual.tokens
        estimates.learn(KEY, raw, actual)
    assert reserved == pytest.approx(used, rel=0.05)


def test_each_key_has_its_own_model() -> None:
    estimates = TokenEstimates()
    finished(estimates, 50, RAW, Cost(300, 512))
    assert estimates.cost(OTHER, RAW) == Cost(200, 1024)
    assert estimates.keys() == [KEY]


def test_long_and_short_answers_are_told_apart() -> None:
    estimates = TokenEstimates()
    for _ in range(100):
        estimates.learn(KEY, Cost(10, 4096), Cost(10, 200))
        estimates.learn(KEY, Cost(10, 16), Cost(10, 16))
    assert estimates.cost(KEY, Cost(10, 4096)).output_tokens == pytest.approx(200, rel=0.1)
    assert estimates.cost(KEY, Cost(10, 16), most=16).output_tokens == 16


def test_a_change_of_the_model_is_followed() -> None:
    estimates = TokenEstimates()
    finished(estimates, 1000, RAW, Cost(100, 100))
    finished(estimates, 300, RAW, Cost(200, 100))
    assert estimates.cost(KEY, RAW).input_tokens == pytest.approx(200, rel=0.1)


def test_a_single_absurd_figure_does_not_matter() -> None:
    estimates = TokenEstimates()
    finished(estimates, 100, RAW, Cost(100, 100))
    estimates.learn(KEY, RAW, Cost(10**12, 10**12))
    cost = estimates.cost(KEY, RAW)
    assert cost.input_tokens <= 120
    assert cost.output_tokens <= 200


def test_what_says_nothing_is_not_learned_from() -> None:
    estimates = TokenEstimates()
    finished(estimates, 10, Cost(0, 0), Cost(5, 5))
    finished(estimates, 10, RAW, Cost(-5, -5))
    assert estimates.cost(KEY, RAW) == Cost(200, 1024)


def test_others_know_it_too() -> None:
    one, two, three = TokenEstimates(), TokenEstimates(), TokenEstimates()
    finished(one, 100, RAW, Cost(50, 100))
    finished(two, 100, RAW, Cost(150, 100))
    told = [json.loads(json.dumps(each.to_wire(KEY))) for each in (one, two)]
    for _ in range(3):  # told again is not told twice
        three.merged(KEY, told)
    assert three.cost(KEY, RAW).input_tokens == pytest.approx(100, abs=3)
    assert three.to_wire(KEY) == {}, "each tells only what it found itself"
    assert three.keys() == []
    three.merged(KEY, told[:1])
    assert three.cost(KEY, RAW).input_tokens == pytest.approx(50, abs=3)
    one.merged(KEY, told[1:])
    assert one.cost(KEY, RAW).input_tokens == pytest.approx(100, abs=3)


def test_the_ratios_are_shown() -> None:
    estimates = TokenEstimates()
    assert estimates.ratios(KEY) == {}
    finished(estimates, 500, RAW, Cost(50, 128))
    shown = estimates.ratios(KEY)
    assert shown == {"input": pytest.approx(0.5, abs=0.01), "output<1024": pytest.approx(0.25, abs=0.01)}
    assert repr(estimates) == "TokenEstimates(1 keys)"


def test_threads_may_use_it_together() -> None:
    estimates = TokenEstimates()

    def work() -> None:
        for _ in range(300):
            estimates.learn(KEY, RAW, Cost(100, 100))
            estimates.cost(KEY, RAW)
            estimates.to_wire(KEY)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert estimates.cost(KEY, RAW).input_tokens == pytest.approx(101, abs=2)


tokens = st.integers(-10, 2**40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("0123456789x", max_size=4), inner),
    max_leaves=8,
)


@given(st.lists(st.tuples(tokens, tokens, tokens, tokens), max_size=20), st.lists(json_values, max_size=4))
def test_whatever_was_seen_and_told_an_estimate_is_corrected_within_bounds(seen, told) -> None:
    estimates = TokenEstimates()
    for raw_in, raw_out, real_in, real_out in seen:
        estimates.learn(KEY, Cost(raw_in, raw_out), Cost(real_in, real_out))
    estimates.merged(KEY, told)
    cost = estimates.cost(KEY, Cost(8000, 6400))
    assert 1000 <= cost.input_tokens <= 64_000
    assert 100 <= cost.output_tokens <= 51_200


@given(json_values)
def test_what_others_tell_is_checked(told) -> None:
    estimates = TokenEstimates()
    estimates.merged(
        KEY, [told, {"0": [10, 1000, 500]}, {"0": [1, "x", 5]}, {"99": [1, 1, 8]}, {"0": [True] * 3}]
    )
    assert estimates.cost(KEY, RAW).input_tokens <= 800
