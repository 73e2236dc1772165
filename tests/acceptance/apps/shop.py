"""An application with the deployments of `SHOP_CONFIG`, whose processes can be made to die under a request.

`SHOP_CELERY` is JSON of Celery settings. `SHOP_POISON` is a file of request ids, one a line: the process that begins
one of them dies of SIGKILL, a moment later, so that others have begun too. `SHOP_POISON_AFTER` is another: there the
process dies when the task has succeeded and its result is stored, but its message is not acknowledged yet.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import task_success

from remote_inference import Inference
from remote_inference.events import AttemptStarted


def _die_if_listed(variable: str, request_id: str) -> None:
    path = os.environ.get(variable)
    if path and request_id in Path(path).read_text().split():
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)


def _on_event(event: object) -> None:
    if isinstance(event, AttemptStarted):
        _die_if_listed("SHOP_POISON", event.request_id)


app = Celery("shop")
app.conf.update(broker_connection_retry_on_startup=True)
app.conf.update(json.loads(os.environ.get("SHOP_CELERY", "{}")))
inference = Inference(app, config=json.loads(os.environ["SHOP_CONFIG"]), hooks=[_on_event])


@task_success.connect
def _on_success(sender: Any = None, **_: Any) -> None:
    _die_if_listed("SHOP_POISON_AFTER", str(sender.request.id))
