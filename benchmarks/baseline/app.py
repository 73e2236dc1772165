"""The Celery app and task of side (b), as one finds them in articles: nothing clever, nothing left out."""

from __future__ import annotations

import functools
import json
import ssl

import openai
import redis
from celery import Celery

from benchmarks.setting import Setting

__all__ = ["app", "complete", "redis_client"]

_setting = Setting.from_environment()

app = Celery("baseline", broker=_setting.broker)
app.conf.update(
    task_default_queue=f"benchmark-baseline-{_setting.run}",
    task_ignore_result=True,
    # So that a loop of apply_async is as safe as the other side's submitting.
    broker_transport_options={"confirm_publish": True},
)


@functools.cache
def _openai() -> openai.OpenAI:
    """One client a process, made where it is used: after the fork in a prefork pool."""
    http_client = None
    if _setting.ca_file:
        http_client = openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile=_setting.ca_file))
    return openai.OpenAI(
        base_url=_setting.url, api_key="sk-benchmark", max_retries=0, http_client=http_client
    )


@functools.cache
def redis_client() -> redis.Redis:
    """One pool a process, with room for every slot: by default redis-py stops at 100 connections."""
    return redis.Redis.from_url(_setting.redis, max_connections=2 * max(50, _setting.slots))


@app.task(name="baseline.complete")
def complete(channel: str, model: str, messages: list[dict[str, str]]) -> None:
    """Ask the provider and publish every token, then the end."""
    publish = redis_client().publish
    try:
        stream = _openai().chat.completions.create(model=model, messages=messages, stream=True)  # type: ignore[arg-type]
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                publish(channel, json.dumps({"token": chunk.choices[0].delta.content}))
        publish(channel, json.dumps({"done": True}))
    except openai.OpenAIError as exc:
        publish(channel, json.dumps({"error": type(exc).__name__}))
        raise
