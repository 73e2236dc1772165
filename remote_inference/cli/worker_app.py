"""The Celery app of the command line's worker: ``celery -A remote_inference.cli.worker_app:app …`` (Flower's too).

Its configuration is what ``$REMOTE_INFERENCE_CONFIG`` and ``$CELERY_BROKER_URL`` name. The app is made when it is
asked for: importing this does nothing.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from celery import Celery

from .options import BROKER_VARIABLE, CONFIG_VARIABLE, DEFAULT_BROKER, DEFAULT_CONFIG, Settings
from .setup import make_inference

__all__ = ["make_app"]


@functools.cache
def make_app() -> Celery:
    """The app, the same each time.

    Raises:
        ConfigurationError: with every fault.
    """
    settings = Settings(
        config_path=os.environ.get(CONFIG_VARIABLE, DEFAULT_CONFIG),
        broker=os.environ.get(BROKER_VARIABLE, DEFAULT_BROKER),
    )
    app = make_inference(settings.config(), settings.broker).app
    app.set_default()  # a pool's threads look for it
    return app


def __getattr__(name: str) -> Any:
    if name == "app":
        return make_app()
    raise AttributeError(name)
