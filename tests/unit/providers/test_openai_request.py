"""The body that is sent: OpenAI's names, the order of the extras, and what extras may not do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from remote_inference.config import Deployment
from remote_inference.errors import BadRequest, ConfigurationError
from remote_inference.providers import ProviderCall
from remote_inference.providers.openai import OpenAIProvider
from remote_inference.providers.openai_request import chat_body
from remote_inference.types import InferenceRequest


def deployment(model: str = "gpt-4o", options: dict[str, Any] | None = None, **settings: Any) -> Deployment:
    settings.setdefault("endpoint", "http://127.0.0.1:1/v1")
    made = Deployment(name="d", model=model, provider="openai", **settings)
    object.__setattr__(made, "options", options or {})
    return made


def body(made: Deployment | None = None, *, stream: bool = True, **options: Any) -> dict[str, Any]:
    request = InferenceRequest.parse("d", options.pop("messages", "hi"), **options)
    parsed: dict[str, Any] = json.loads(
        chat_body(ProviderCall(request=request, deployment=made or deployment(), stream=stream))
    )
    return parsed


def test_messages_of_every_role_and_images_go_out_as_they_are() -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "d"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what is it?"},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ]
    assert body(messages=messages)["messages"] == messages


def test_parameters_go_out_under_openais_names() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    sent = body(
        temperature=0.5, seed=7, stop="END", tools=tools, tool_choice="auto", response_format={"type": "json_object"},
        max_tokens=9, reasoning_effort="low",
    )  # fmt: skip
    assert sent["temperature"] == 0.5
    assert sent["seed"] == 7
    assert sent["stop"] == ["END"]
    assert sent["tools"] == tools
    assert sent["tool_choice"] == "auto"
    assert sent["response_format"] == {"type": "json_object"}
    assert sent["max_tokens"] == 9
    assert sent["reasoning_effort"] == "low"
    assert "n" not in sent


def test_a_stream_asks_for_its_usage() -> None:
    assert body()["stream_options"] == {"include_usage": True}
    assert body()["stream"] is True
    whole = body(stream=False)
    assert "stream" not in whole
    assert "stream_options" not in whole
    assert "stream_options" not in body(deployment(options={"include_usage": False}))


def test_the_requests_extras_come_over_the_deployments() -> None:
    made = deployment(extra_body={"top_k": 1, "min_p": 2})
    sent = body(made, extra_body={"top_k": 3, "stream_options": {"x": 1}})
    assert (sent["top_k"], sent["min_p"]) == (3, 2)
    assert sent["stream_options"] == {"include_usage": True, "x": 1}


@pytest.mark.parametrize("extra", [{"model": "x"}, {"messages": []}, {"stream": False}, {"n": 2}])
def test_extras_cannot_take_over_what_the_library_sets(extra: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as caught:
        body(extra_body=extra)
    assert caught.value.param == next(iter(extra))


@pytest.mark.parametrize(
    ("endpoint", "model", "field"),
    [
        ("https://api.openai.com/v1", "gpt-4o", "max_tokens"),
        ("https://api.openai.com/v1", "o1-mini", "max_completion_tokens"),
        ("https://api.openai.com/v1", "o3", "max_completion_tokens"),
        ("https://api.openai.com/v1", "gpt-5-mini", "max_completion_tokens"),
        ("https://api.openai.com/v1", "ft:gpt-5:me", "max_completion_tokens"),
        ("https://eu.api.openai.com/v1", "gpt-5", "max_completion_tokens"),
        ("https://x.openai.azure.com/openai/v1", "o4-mini", "max_completion_tokens"),
        ("http://127.0.0.1:1/v1", "gpt-5", "max_tokens"),
        ("https://api.openai.com.evil.example/v1", "o1", "max_tokens"),
    ],
)
def test_the_bound_on_the_answer_has_the_name_that_the_model_takes(
    endpoint: str, model: str, field: str
) -> None:
    sent = body(deployment(model, endpoint=endpoint), max_tokens=5)
    assert sent[field] == 5
    assert len({"max_tokens", "max_completion_tokens"} & sent.keys()) == 1


def test_the_name_of_the_bound_can_be_chosen() -> None:
    made = deployment(options={"max_tokens_field": "max_completion_tokens"})
    assert body(made, max_tokens=5)["max_completion_tokens"] == 5


def test_a_bound_among_the_extras_replaces_ours() -> None:
    sent = body(max_tokens=5, extra_body={"max_completion_tokens": 7})
    assert "max_tokens" not in sent
    assert sent["max_completion_tokens"] == 7


def test_text_that_utf8_cannot_say_is_escaped() -> None:
    assert body(messages="half \ud83d a pair")["messages"][0]["content"] == "half \ud83d a pair"


def test_text_goes_out_as_utf8() -> None:
    request = InferenceRequest.parse("d", "grüß 🙂")
    assert "grüß 🙂".encode() in chat_body(ProviderCall(request=request, deployment=deployment()))


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"max_token_field": "x"}, "options.max_token_field"),
        ({"max_tokens_field": "x"}, "options.max_tokens_field"),
        ({"include_usage": "x"}, "options.include_usage"),
        ({"auth_header": "a b"}, "options.auth_header"),
        ({"auth_header": 1}, "options.auth_header"),
    ],
)
def test_a_wrong_option_is_named_by_its_path(options: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        OpenAIProvider().check(deployment(options=options))
    assert [line.partition(": ")[0] for line in caught.value.faults] == [path]
