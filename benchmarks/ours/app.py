"""The Celery app of side (a), as the quickstart has it."""

from __future__ import annotations

from celery import Celery

from benchmarks.setting import Setting
from remote_inference import Inference

__all__ = ["DEPLOYMENT", "app", "inference"]

_setting = Setting.from_environment()

DEPLOYMENT = f"bench-{_setting.run}"

app = Celery("ours", broker=_setting.broker)
inference = Inference(
    app,
    {
        "deployment": [
            {
                "name": DEPLOYMENT,
                "model": "bench",
                "provider": "openai",
                "endpoint": _setting.url or "http://127.0.0.1:9/v1",
                "queue_capacity": 5000,
                **({"ca_file": _setting.ca_file} if _setting.ca_file else {}),
            }
        ]
    },
)
