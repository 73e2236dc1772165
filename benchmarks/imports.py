"""What importing the library adds to a web process that imports Celery anyway."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass

from benchmarks.measure import median
from benchmarks.plan import Plan
from benchmarks.sides import ROOT
from benchmarks.streams import Say

__all__ = ["Imports", "imports"]

_CELERY = "from celery import Celery"
_BOTH = "from celery import Celery; import remote_inference"
# What a process that only submits has no use for.
_UNWANTED = (
    "requests",
    "urllib3",
    "sseclient",
    "pybreaker",
    "remote_inference.engine",
    "remote_inference.providers",
)


@dataclass(frozen=True, kw_only=True)
class Imports:
    """Milliseconds, medians of whole processes (interpreter included in both).

    `added_ms` is the median of the differences between two that ran one after the other.
    """

    celery_ms: float
    both_ms: float
    added_ms: float
    unwanted: list[str]

    def to_json(self) -> dict[str, object]:
        """A dict of JSON values."""
        return asdict(self)


def imports(plan: Plan, say: Say) -> Imports:
    """Start both kinds of process in turn, and look at what the second one loaded."""
    say("import time")
    celery: list[float] = []
    both: list[float] = []
    with tempfile.TemporaryDirectory() as cache:
        # as an installed package has it: byte code, for both alike, whatever this process's environment says
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = cache
        _seconds(_BOTH, environment)  # the first writes the byte code
        for number in range(plan.imports):
            turns = ((_CELERY, celery), (_BOTH, both))
            for code, seconds in turns if number % 2 == 0 else reversed(turns):
                seconds.append(_seconds(code, environment))
    show = f"{_BOTH}; import sys; print(*(name for name in {_UNWANTED!r} if name in sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", show], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return Imports(
        celery_ms=median(celery) * 1000,
        both_ms=median(both) * 1000,
        added_ms=median([b - c for b, c in zip(both, celery, strict=True)]) * 1000,
        unwanted=loaded.stdout.split(),
    )


def _seconds(code: str, environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=environment)
    return time.perf_counter() - began
