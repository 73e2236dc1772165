"""What the processes of one case are told, passed as JSON in the environment: the broker and the configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from celery import Celery

from remote_inference import Inference

__all__ = ["VARIABLE", "Arrangement"]

VARIABLE = "BENCHMARK_CLUSTER"


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """One case's broker, and its configuration as the library reads it."""

    broker: str
    config: Mapping[str, Any]

    @property
    def deployments(self) -> list[str]:
        """Their names."""
        return [deployment["name"] for deployment in self.config["deployment"]]

    def inference(self) -> Inference:
        """The library on a Celery app of its own."""
        app = Celery("cluster", broker=self.broker, set_as_current=False)
        return Inference(app, self.config)

    def environment(self) -> dict[str, str]:
        """The environment of a process that is to read this."""
        return {**os.environ, VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> Arrangement:
        """What the starter of this process set.

        Raises:
            RuntimeError: The process was not started by the benchmarks.
        """
        text = os.environ.get(VARIABLE)
        if text is None:
            raise RuntimeError(f"{VARIABLE} is not set: this module is run by `python -m benchmarks.cluster`")
        return cls(**json.loads(text))
