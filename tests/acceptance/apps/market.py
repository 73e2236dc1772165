"""An app with the deployments of `MARKET_CONFIG` and the Celery settings of `MARKET_SETTINGS`, both JSON.

What its hooks are told is printed, and so ends up in the worker's log, from the pool's children too.
"""

from __future__ import annotations

import json
import os

from celery import Celery

from remote_inference import Inference

app = Celery("market")
app.conf.update(json.loads(os.environ.get("MARKET_SETTINGS", "{}")))
inference = Inference(
    app,
    config=json.loads(os.environ["MARKET_CONFIG"]),
    hooks=[lambda event: print(f"event {event!r}", flush=True)],
)
