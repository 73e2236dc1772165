"""Times in headers, in every form met, and what a refusal says of another attempt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.policy.retry_after import (
    MAX_RETRY_AFTER,
    parse_retry_after,
    parse_should_retry,
    told_wait,
)
from remote_inference.policy.times import seconds_until

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("1800000040", 40.0),
        ("1800000040.5", 40.5),
        ("1800000040000", 40.0),
        ("1800000040000000", 40.0),
        ("1799999000", 0.0),
        ("1m30s", 90.0),
        ("6m0s", 360.0),
        ("6ms", 0.006),
        ("1h2m3.5s", 3723.5),
        ("2d", 172_800.0),
        ("250us", 0.00025),
        ("250µs", 0.00025),
        ("30s", 30.0),
        ("30 seconds", 30.0),
        ("2 minutes", 120.0),
        ("1 min 5 sec", 65.0),
        ("PT30S", 30.0),
        ("PT1M30S", 90.0),
        ("P1DT1H", 90_000.0),
        ("2027-01-15T08:00:20Z", 20.0),
        ("2027-01-15T09:00:20.5+01:00", 20.5),
        ("Fri, 15 Jan 2027 08:00:20 GMT", 20.0),
        ("Friday, 15-Jan-27 08:00:20 GMT", 20.0),
        ("Fri Jan 15 08:00:20 2027", 20.0),
        ("", None),
        ("soon", None),
        ("s", None),
        ("PT", None),
        ("nan", None),
        ("1_000", None),
        ("1e3", None),
        ("5 5", None),
    ],
)
def test_a_time_is_read_in_every_form(text: str, seconds: float | None) -> None:
    assert seconds_until(text, NOW) == (None if seconds is None else pytest.approx(seconds))


@given(st.text(max_size=40))
def test_any_text_is_a_time_of_0_or_more_or_none(text: str) -> None:
    seconds = seconds_until(text, NOW)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-reset-requests": "1m30s"}, 90.0),
        ({"x-ratelimit-reset-tokens": "6ms"}, 0.006),
        ({"X-RateLimit-Reset": "1800000030"}, 30.0),
        ({"x-ratelimit-reset": "1800000030000"}, 30.0),
        ({"ratelimit-reset": "12"}, 12.0),
        ({"anthropic-ratelimit-tokens-reset": "2027-01-15T08:00:09Z"}, 9.0),
        (
            {
                "x-ratelimit-remaining-requests": "5",
                "x-ratelimit-reset-requests": "40s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "3s",
            },
            3.0,
        ),
        ({"x-ratelimit-reset-requests": "2s", "x-ratelimit-reset-tokens": "9s"}, 9.0),
        (
            {
                "x-ratelimit-remaining-requests": "5",
                "x-ratelimit-reset-requests": "4s",
                "x-ratelimit-remaining-tokens": "7",
                "x-ratelimit-reset-tokens": "3s",
            },
            3.0,
        ),
        ({"Retry-After": "4", "x-ratelimit-reset": "60"}, 4.0),
        ({"Retry-After": "?", "x-ratelimit-reset": "60"}, 60.0),
        ({"x-ratelimit-limit-requests": "60"}, None),
        ({"x-reset": "60"}, None),
    ],
)
def test_the_resets_stand_in_for_a_refusal_that_names_no_time(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert told_wait(headers, NOW, limited=True) == (None if seconds is None else pytest.approx(seconds))
    if "Retry-After" not in headers:
        assert told_wait(headers, NOW) is None, "they say nothing of another kind of failure"


def test_more_than_an_hour_counts_as_an_hour_and_what_was_told_is_kept() -> None:
    headers = {"Retry-After": "86400"}
    assert parse_retry_after(headers, NOW) == MAX_RETRY_AFTER == 3600.0
    assert told_wait(headers, NOW) == 86_400.0


@pytest.mark.parametrize(("value", "said"), [("true", True), ("False", False), ("maybe", None), ("", None)])
def test_the_servers_word_on_another_attempt(value: str, said: bool | None) -> None:
    assert parse_should_retry({"X-Should-Retry": value}) is said
    assert parse_should_retry({}) is None
