"""What a request says of its own cost, and what is kept of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from remote_inference.testing.arrivals import Arrivals, directions
from remote_inference.testing.connection import ReceivedRequest


def request(text: Any, source: str = "") -> ReceivedRequest:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
    return ReceivedRequest(1, 1, "POST", "/v1/chat/completions", {"x-source": source}, body, 12.5)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("input=120 output=40 and then", {"input": "120", "output": "40"}),
        ("mark=a=b", {"mark": "a=b"}),
        ("no input=120", {}),
        ("", {}),
        ("a=1 " * 20, {"a": "1"}),
    ],
)
def test_only_the_first_words_are_directions(text: str, found: dict[str, str]) -> None:
    assert directions(request(text)) == found


def test_what_came_is_kept_in_columns_that_are_json_until_it_is_cleared() -> None:
    arrivals = Arrivals()
    arrivals.came(request("mark=x ", source="worker"), 7, 200)
    arrivals.came(request("Hello"), 2, 429)
    arrivals.streamed(13.0, 5)
    assert len(arrivals) == 2
    assert json.loads(json.dumps(arrivals.to_json())) == {
        "at": [12.5, 12.5],
        "status": [200, 429],
        "input": [7, 2],
        "source": ["worker", ""],
        "mark": ["x", ""],
        "spent_at": [13.0],
        "spent": [5],
    }
    arrivals.clear()
    assert len(arrivals) == 0
    assert arrivals.to_json()["spent"] == []
