"""What each answer means, and what each error leads to."""

from __future__ import annotations

from datetime import datetime, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference import errors
from remote_inference.policy.classify import error_for_status, traits
from remote_inference.policy.retry_after import MAX_RETRY_AFTER, parse_retry_after

NOW = 1_700_000_000.0


def http_date(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(NOW + seconds, timezone.utc), usegmt=True)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry-After": "20"}, 20.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"RETRY-AFTER": "0"}, 0.0),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": "1e3"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "1_0"}, None),
        ({"Retry-After": "20s"}, 20.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "9" * 400}, MAX_RETRY_AFTER),
        ({"Retry-After": http_date(30)}, 30.0),
        ({"Retry-After": http_date(-30)}, 0.0),
        ({"Retry-After": "Tue, 14 Nov 2023 22:13:50 -0000"}, 30.0),
        ({"Retry-After": "Tuesday, 14-Nov-23 22:13:50 GMT"}, 30.0),
        ({"Retry-After": "Tue Nov 14 22:13:50 2023"}, 30.0),
        ({"Retry-After": "Tue, 14 Nov 9999 22:13:50 GMT"}, MAX_RETRY_AFTER),
        ({"Retry-After": "Tue, 99 Nov 2023 22:13:50 GMT"}, None),
        ({"retry-after-ms": "250"}, 0.25),
        ({"Retry-After-Ms": "250.5", "Retry-After": "1"}, 0.2505),
        ({"x-ms-retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "?", "retry-after": "2"}, 2.0),
        ({"retry-after-ms": "?", "x-ms-retry-after-ms": "40"}, 0.04),
        ({"Content-Type": "text/html"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_every_form_and_nothing_else(
    headers: dict[str, str], expected: float | None
) -> None:
    assert parse_retry_after(headers, NOW) == (None if expected is None else pytest.approx(expected))


@given(st.text(), st.sampled_from(["retry-after", "retry-after-ms", "x-ms-retry-after-ms"]))
def test_any_retry_after_is_none_or_a_bounded_number(value: str, name: str) -> None:
    seconds = parse_retry_after({name: value}, NOW)
    assert seconds is None or 0.0 <= seconds <= MAX_RETRY_AFTER


@pytest.mark.parametrize(
    ("status", "code", "error_type", "expected"),
    [
        (400, None, "invalid_request_error", errors.BadRequest("invalid_request_error", status=400)),
        (
            400,
            "context_length_exceeded",
            None,
            errors.ContextLengthExceeded("context_length_exceeded", status=400),
        ),
        (400, 400, "exceed_context_size_error", errors.ContextLengthExceeded("400", status=400)),
        (400, "content_policy_violation", None, errors.ContentFiltered("content_policy_violation")),
        (400, "content_filter", None, errors.ContentFiltered("content_filter")),
        (401, "invalid_api_key", None, errors.Unauthorized("invalid_api_key")),
        (401, None, None, errors.Unauthorized("")),
        (400, "invalid_api_key", None, errors.Unauthorized("invalid_api_key")),
        (402, None, None, errors.RateLimited("payment_required", quota=True)),
        (403, "unsupported_country", None, errors.Forbidden("unsupported_country")),
        (404, "model_not_found", None, errors.BadRequest("model_not_found", status=404)),
        (405, None, None, errors.BadRequest("", status=405)),
        (408, None, None, errors.Timeout("server")),
        (409, None, None, errors.ServerError("", status=409, retry_after=7.0)),
        (413, None, None, errors.BadRequest("", status=413)),
        (422, None, None, errors.BadRequest("", status=422)),
        (425, None, None, errors.ServerError("", status=425, retry_after=7.0)),
        (429, "rate_limit_exceeded", None, errors.RateLimited("rate_limit_exceeded", retry_after=7.0)),
        (
            429,
            "insufficient_quota",
            None,
            errors.RateLimited("insufficient_quota", retry_after=7.0, quota=True),
        ),
        (
            429,
            None,
            "insufficient_quota",
            errors.RateLimited("insufficient_quota", retry_after=7.0, quota=True),
        ),
        (500, "server_error", None, errors.ServerError("server_error", status=500, retry_after=7.0)),
        (
            503,
            "insufficient_quota",
            None,
            errors.ServerError("insufficient_quota", status=503, retry_after=7.0),
        ),
        (529, None, "overloaded_error", errors.ServerError("overloaded_error", status=529, retry_after=7.0)),
        (302, None, None, errors.BadRequest("redirect", status=302)),
        # An error object inside a stream that began with 200.
        (200, None, "overloaded_error", errors.ServerError("overloaded_error", retry_after=7.0)),
        (200, "server_error", None, errors.ServerError("server_error", retry_after=7.0)),
        (200, None, None, errors.ServerError("error_in_stream", retry_after=7.0)),
        (200, "rate_limit_exceeded", None, errors.RateLimited("rate_limit_exceeded", retry_after=7.0)),
        (200, 429, None, errors.RateLimited("429", retry_after=7.0)),
        (200, "502", None, errors.ServerError("502", status=502, retry_after=7.0)),
        (200, 400, "BadRequestError", errors.BadRequest("400", status=400)),
        (200, None, "invalid_request_error", errors.BadRequest("invalid_request_error", status=400)),
        (200, "content_filter", None, errors.ContentFiltered("content_filter")),
        (200, None, "authentication_error", errors.Unauthorized("authentication_error")),
        (200, None, "permission_error", errors.Forbidden("permission_error")),
        (
            0,
            "context_length_exceeded",
            None,
            errors.ContextLengthExceeded("context_length_exceeded", status=400),
        ),
    ],
)
def test_status_and_code_give_the_error_of_the_table(
    status: int, code: str | int | None, error_type: str | None, expected: errors.RequestError
) -> None:
    retry_after = 7.0 if getattr(expected, "retry_after", None) else None
    error = error_for_status(status, code, None, error_type, retry_after)
    assert type(error) is type(expected)
    assert error.args == expected.args


def test_free_text_never_gets_into_an_error() -> None:
    for text in ("Your prompt 'the marked secret' is too long", "x" * 65, "the\nsecret", "geheimß"):
        error = error_for_status(400, text, text + text, text)
        assert error.args == errors.BadRequest(status=400).args


def test_the_parameter_at_fault_is_named() -> None:
    error = error_for_status(400, "invalid_type", "messages[0].content", None)
    assert isinstance(error, errors.BadRequest)
    assert error.param == "messages[0].content"


@given(
    st.integers(0, 999),
    st.none() | st.text() | st.integers(),
    st.none() | st.text(),
    st.none() | st.text(),
    st.none() | st.floats(0, 100),
)
def test_every_answer_gives_an_error(
    status: int, code: str | int | None, param: str | None, error_type: str | None, retry_after: float | None
) -> None:
    error = error_for_status(status, code, param, error_type, retry_after)
    assert isinstance(error, errors.RequestError)
    assert status < 500 or isinstance(error, errors.ServerError)


@pytest.mark.parametrize(
    ("error", "retry_kind", "outcome"),
    [
        (errors.RateLimited(retry_after=3.0), "rate_limited", "neutral"),
        (errors.RateLimited(), "rate_limited", "neutral"),
        (errors.RateLimited(quota=True), None, "neutral"),
        (errors.ServerError(status=500), "server_error", "failure"),
        (errors.ServerError(status=529), "server_error", "failure"),
        (errors.ServerError("overloaded_error"), "server_error", "failure"),
        (errors.ServerError(status=409), "server_error", "neutral"),
        (errors.ServerError(status=425), "server_error", "neutral"),
        (errors.Timeout("connect"), "timeout", "failure"),
        (errors.Timeout("first_byte"), "timeout", "failure"),
        (errors.Timeout("read"), "timeout", "failure"),
        (errors.Timeout("server"), "timeout", "neutral"),
        (errors.NetworkError("reset"), "network", "failure"),
        (errors.InvalidResponse("not_json"), "server_error", "failure"),
        (errors.StreamTruncated(), "server_error", "failure"),
        (errors.Unauthorized(), None, "neutral"),
        (errors.Forbidden(), None, "neutral"),
        (errors.BadRequest(), None, "neutral"),
        (errors.ContextLengthExceeded(), None, "neutral"),
        (errors.ContentFiltered(), None, "neutral"),
        (errors.CircuitOpen(), None, "neutral"),
        (errors.LimitReached(), None, "neutral"),
        (errors.Cancelled(), None, "neutral"),
        (errors.DeadlineExceeded(), None, "neutral"),
        (errors.WorkerLost(), None, "neutral"),
        (errors.RequestError("from a newer version"), None, "neutral"),
    ],
)
def test_every_error_has_its_traits(error: errors.RequestError, retry_kind: str | None, outcome: str) -> None:
    found = traits(error)
    assert (found.retry_kind, found.outcome) == (retry_kind, outcome)


def test_no_error_is_a_success() -> None:
    assert traits(None).outcome == "success"


def test_the_table_of_traits_names_every_request_error() -> None:
    tested = {type(case[0]) for case in test_every_error_has_its_traits.pytestmark[0].args[1]}  # type: ignore[attr-defined]
    known = {
        cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.RequestError)
    }
    assert tested == known
