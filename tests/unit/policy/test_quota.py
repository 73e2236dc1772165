"""What providers say of their limits, in whatever form, and what nobody can say."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from remote_inference.policy.quota import DIMENSIONS, Quota, QuotaReport, parse_quota

NOW = 1_760_000_000.0
MOMENT = datetime.fromtimestamp(NOW, timezone.utc)


def read(**headers: str) -> QuotaReport | None:
    return parse_quota({name.replace("_", "-"): value for name, value in headers.items()}, NOW)


def only(**headers: str) -> Quota:
    report = read(**headers)
    assert report is not None
    [quota] = report.quotas
    return quota


def test_openai() -> None:
    report = read(
        x_ratelimit_limit_requests="5000",
        x_ratelimit_remaining_requests="4999",
        x_ratelimit_reset_requests="12ms",
        x_ratelimit_limit_tokens="800,000",
        x_ratelimit_remaining_tokens="799970",
        x_ratelimit_reset_tokens="2ms",
        content_type="application/json",
    )
    assert report is not None
    assert set(report.quotas) == {
        Quota("requests", 5000, 4999, 0.012),
        Quota("tokens", 800_000, 799_970, 0.002),
    }
    assert report.per_minute() == {"requests": 5000.0, "tokens": 800_000.0}
    assert report.remaining() == {"requests": 4999, "tokens": 799_970}
    assert report.pause is None


def test_openai_projects_have_limits_of_their_own_and_the_least_holds() -> None:
    report = read(
        x_ratelimit_limit_tokens="100000",
        x_ratelimit_remaining_tokens="90000",
        x_ratelimit_limit_project_tokens="50000",
        x_ratelimit_remaining_project_tokens="95000",
    )
    assert report is not None
    assert report.per_minute() == {"tokens": 50_000.0}
    assert report.remaining() == {"tokens": 50_000}, "more than all cannot be left"


def test_anthropic() -> None:
    report = read(
        anthropic_ratelimit_requests_limit="4000",
        anthropic_ratelimit_requests_remaining="3999",
        anthropic_ratelimit_requests_reset=(MOMENT + timedelta(seconds=3)).isoformat(),
        anthropic_ratelimit_input_tokens_limit="400000",
        anthropic_ratelimit_input_tokens_remaining="399000",
        anthropic_ratelimit_input_tokens_reset=(MOMENT + timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        anthropic_ratelimit_output_tokens_limit="80000",
        anthropic_ratelimit_output_tokens_remaining="80000",
    )
    assert report is not None
    assert set(report.quotas) == {
        Quota("requests", 4000, 3999, 3.0),
        Quota("input_tokens", 400_000, 399_000, 1.0),
        Quota("output_tokens", 80_000, 80_000),
    }


def test_azure_says_minus_one_for_what_it_does_not_know() -> None:
    headers = {"limit": "-1", "remaining": "-1", "reset": "0"}
    assert parse_quota({f"x-ratelimit-{part}-tokens": value for part, value in headers.items()}, NOW) is None


def test_azure_says_less_than_nothing_when_it_is_overdrawn() -> None:
    report = read(x_ratelimit_remaining_tokens="-27689", x_ratelimit_reset_tokens="64")
    assert report is not None
    assert report.quotas == (Quota("tokens", None, 0, 64.0),)
    assert report.pause == 1.0


def test_azure_says_what_time_its_limit_is_of() -> None:
    quota = only(
        x_ratelimit_limit_requests="10",
        x_ratelimit_renewalperiod_requests="10",
        x_rate_limit_reset_requests="7",
    )
    assert quota == Quota("requests", 10, None, 7.0, window=10.0)
    assert quota.per_minute == 60.0


def test_groq_says_requests_and_means_those_of_a_day() -> None:
    report = read(
        x_ratelimit_limit_requests="1000",
        x_ratelimit_remaining_requests="998",
        x_ratelimit_reset_requests="2m52.8s",
        x_ratelimit_limit_tokens="8000",
        x_ratelimit_remaining_tokens="7927",
        x_ratelimit_reset_tokens="547ms",
    )
    assert report is not None
    assert report.per_minute() == {"tokens": 8000.0}
    assert report.remaining() == {"requests": 998, "tokens": 7927}


@pytest.mark.parametrize(
    ("limit", "remaining", "reset", "window"),
    [
        ("200", "199", "7m12s", 86_400.0),  # OpenAI's free tier
        ("14400", "14399", "6s", 86_400.0),  # Groq, the first request
        ("14400", "14370", "2m59.56s", 86_400.0),
        ("1000", "990", "36s", 3600.0),
        ("60", "59", "1s", None),
        ("60", "0", "60s", None),
        ("60", "30", "59s", None),  # a fixed minute
        ("60", "30", "90s", None),  # a clock that is wrong, or a debt
        ("60", "30", "121s", 3600.0),
        ("60", "60", "2h", 86_400.0),
        ("60", "60", "0s", None),
    ],
)
def test_a_longer_window_gives_itself_away_by_its_reset(limit, remaining, reset, window) -> None:
    quota = only(
        x_ratelimit_limit_requests=limit,
        x_ratelimit_remaining_requests=remaining,
        x_ratelimit_reset_requests=reset,
    )
    assert quota.window == window
    assert quota.lasts is (window is not None)


@given(
    st.integers(10, 10**6),
    st.integers(10, 10**5),
    st.sampled_from([60.0, 3600.0, 86_400.0]),
)
def test_a_bucket_that_fills_steadily_is_never_taken_for_one_of_a_shorter_time(limit, used, window) -> None:
    used = min(used, limit)
    quota = only(
        x_ratelimit_limit_tokens=str(limit),
        x_ratelimit_remaining_tokens=str(limit - used),
        x_ratelimit_reset_tokens=f"{used / limit * window:.3f}s",
    )
    exact = used / limit * window > 0.5  # below, a millisecond is too coarse
    assert not exact or (quota.window or 60.0) == window


@pytest.mark.parametrize(
    ("name", "dimension", "window"),
    [
        ("x-ratelimit-limit-requests-day", "requests", 86_400.0),  # Cerebras, SambaNova
        ("x-ratelimit-limit-tokens-minute", "tokens", 60.0),
        ("x-ratelimit-limit-req-minute", "requests", 60.0),  # Mistral
        ("x-ratelimitbysize-limit-minute", "tokens", 60.0),
        ("x-ratelimit-limit-tokens-per-day", "tokens", 86_400.0),  # DigitalOcean
        ("X-Ratelimit-Limit-Tokens-Prompt", "input_tokens", None),  # Fireworks
        ("x-ratelimit-limit-tokens-generated", "output_tokens", None),
        ("x-ratelimit-limit", "requests", None),
        ("x-tokenlimit-limit", "tokens", None),
        ("X-RateLimit-Limit-Second", "requests", 1.0),
        ("RateLimit-Limit", "requests", None),
    ],
)
def test_names_are_taken_apart(name, dimension, window) -> None:
    report = parse_quota({name: "100"}, NOW)
    assert report == QuotaReport((Quota(dimension, 100, None, None, window),))


@pytest.mark.parametrize(
    "name",
    [
        "x-ratelimit-limit-images",
        "x-ratelimit-limit-audio-seconds",
        "x-ratelimit-tokens-query-cost",
        "x-ratelimit-limit-requests-requests",
        "x-ratelimit-limit-input",
        "x-ratelimit-over-limit",
        "x-ratelimit",
        "x-ratelimit-",
        "anthropic-priority-input-tokens-limit",
        "content-limit",
        "x-my-ratelimit-limit",
        "x-ratelimit-limit-" + "tokens-" * 30,
    ],
)
def test_other_headers_are_passed_over(name) -> None:
    assert parse_quota({name: "100"}, NOW) is None


@pytest.mark.parametrize(
    ("value", "limit", "window"),
    [
        ("100, 100;w=10", 100, 10.0),
        ("100;w=3600", 100, 3600.0),
        ("100, 100;window=60, 10000;window=86400", 100, 60.0),
        ("1,000", 1000, None),
        ("1,000,000", 1_000_000, None),
        ("100.0", 100, None),
    ],
)
def test_a_limit_may_come_with_its_policy(value, limit, window) -> None:
    quota = only(ratelimit_limit=value)
    assert (quota.limit, quota.window) == (limit, window)


@pytest.mark.parametrize(
    "value", ["", "0", "-1", "-5", "abc", "nan", "inf", "1e9", "1_000", "9" * 40, "true", "٣", "100x", "0.5"]
)
def test_a_limit_that_cannot_be_is_passed_over(value) -> None:
    assert read(x_ratelimit_limit_requests=value) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("12ms", 0.012),
        ("1h2m3.5s", 3723.5),
        ("1d", 86_400.0),
        ("500us", 0.0005),
        ("0", 0.0),
        ("0s", 0.0),
        ("55", 55.0),
        ("1.5", 1.5),
        ("-4", 0.0),
        (str(int(NOW) + 30), 30.0),
        (str((int(NOW) + 30) * 1000), 30.0),
        (str(int(NOW) - 30), 0.0),
        ("2025-10-09T08:53:50Z", 30.0),
        ("2025-10-09T10:53:50.5+02:00", 30.5),
        ("2025-10-09T08:53:10Z", 0.0),
        ("Thu, 09 Oct 2025 08:53:50 GMT", 30.0),
        ("", None),
        ("soon", None),
        ("s", None),
        ("1s2h", None),
        ("2025-13-40T99:00:00Z", None),
        ("nan", None),
        ("9999h", 31 * 86_400.0),
    ],
)
def test_resets_come_in_many_forms(value, seconds) -> None:
    quota = only(x_ratelimit_remaining_tokens="5", x_ratelimit_reset_tokens=value)
    assert quota.reset == (None if seconds is None else pytest.approx(seconds))


def test_a_reset_alone_says_nothing() -> None:
    assert read(x_ratelimit_reset_tokens="5s") is None


def test_what_is_used_up_is_a_pause() -> None:
    def pause(remaining: str, reset: str, period: str = "") -> float | None:
        report = parse_quota(
            {
                f"x-ratelimit-remaining-requests{period}": remaining,
                f"x-ratelimit-reset-requests{period}": reset,
            },
            NOW,
        )
        assert report is not None
        return report.pause

    assert pause("0", "200ms") == 0.2
    assert pause("0", "45s") == 1.0, "most providers mean the time until all is back"
    assert pause("0", "45s", "-day") == 45.0
    assert pause("0", "7h") == 3600.0, "an hour at a time: the next answer says what is left"
    assert pause("1", "45s") is None
    assert pause("0", "0s") is None
    assert pause("0", "?") is None


def test_several_windows_of_one_thing_are_kept_apart() -> None:
    report = read(
        x_ratelimit_limit_requests_minute="30",
        x_ratelimit_remaining_requests_minute="29",
        x_ratelimit_limit_requests_day="900",
        x_ratelimit_remaining_requests_day="3",
    )
    assert report is not None
    assert report.per_minute() == {"requests": 30.0}
    assert report.remaining() == {"requests": 3}


names = st.builds(
    "-".join,
    st.lists(
        st.sampled_from(
            "x ratelimit rate limit remaining reset requests tokens input output anthropic day minute project "
            "renewalperiod per prompt req".split()
        ),
        min_size=1,
        max_size=7,
    ),
)
values = st.one_of(
    st.text(max_size=30),
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.builds("{}{}".format, st.integers(0, 10**7), st.sampled_from(["s", "m", "h", "ms", "m0s", "d", "s5"])),
    st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    st.builds("{}, {};w={}".format, st.integers(), st.integers(), st.integers()),
)


@given(st.dictionaries(st.text(max_size=40) | names, values, max_size=12), st.floats(0, 1e11))
@example({"x-ratelimit-remaining-tokens": "1", "x-ratelimit-reset-tokens": "0001-01-01T00:00:00+23:59"}, 0.0)
@example({"x-ratelimit-remaining-tokens": "1", "x-ratelimit-reset-tokens": "Thu, 01 Jan 0000 00:00:00"}, 0.0)
def test_no_header_is_too_strange_and_no_figure_comes_out_that_cannot_be(headers, now) -> None:
    report = parse_quota(headers, now)
    if report is None:
        return
    assert report.quotas
    for quota in report.quotas:
        assert quota.dimension in DIMENSIONS
        assert quota.limit is not None or quota.remaining is not None
        assert quota.limit is None or 1 <= quota.limit <= 10**12
        assert quota.remaining is None or 0 <= quota.remaining <= (quota.limit or 10**12)
        assert quota.reset is None or 0 <= quota.reset <= 31 * 86_400
        assert quota.window is None or 0 < quota.window <= 31 * 86_400
    assert all(0 < limit < math.inf for limit in report.per_minute().values())
    assert report.pause is None or 0 < report.pause <= 31 * 86_400
