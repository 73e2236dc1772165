"""The public surface: documented, and light for a web process."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import remote_inference

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    found.name
    for found in pkgutil.walk_packages(remote_inference.__path__, "remote_inference.")
    if not found.name.endswith("__main__")
    and ".contrib." not in found.name  # those need what an extra installs
    and not found.name.startswith(("remote_inference.contrib", "remote_inference.testing"))
)


def _defined(module: ModuleType) -> list[tuple[str, Any]]:
    return [
        (name, getattr(module, name))
        for name in getattr(module, "__all__", [])
        if getattr(getattr(module, name), "__module__", None) == module.__name__
        and (inspect.isclass(getattr(module, name)) or inspect.isfunction(getattr(module, name)))
    ]


def _undocumented(where: str, thing: Any) -> list[str]:
    own = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    missing = [] if (own or "").strip() else [where]
    if inspect.isclass(thing):
        for name, member in vars(thing).items():
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if name.startswith("_") or not inspect.isfunction(function):
                continue
            if not (function.__doc__ or "").strip() and not _documented_above(thing, name):
                missing.append(f"{where}.{name}")
    return missing


def _documented_above(cls: type, name: str) -> bool:
    """Where a method implements one of a base or of the protocol of the same room, it is documented there."""
    return any(getattr(vars(base).get(name), "__doc__", None) for base in cls.__mro__[1:])


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_for(name):
    assert (importlib.import_module(name).__doc__ or "").strip()


def test_every_public_class_function_and_method_of_the_package_is_documented():
    missing: list[str] = []
    for name in remote_inference.__all__:
        thing = getattr(remote_inference, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            missing += _undocumented(name, thing)
    assert missing == []


@pytest.mark.parametrize("name", MODULES)
def test_every_public_class_and_function_of_a_module_is_documented(name):
    module = importlib.import_module(name)
    assert [f"{name}.{n}" for n, thing in _defined(module) if not (thing.__doc__ or "").strip()] == []


def test_the_check_finds_what_is_missing():
    class Undocumented:
        def method(self) -> None: ...

    assert _undocumented("It", Undocumented) == ["It", "It.method"]


UNWANTED = ("requests", "urllib3", "pybreaker", "sseclient", "rich", "click", "redis")
NOT_FOR_THE_WEB = ("cli", "cluster", "contrib", "engine", "providers", "testing", "transport", "worker")

PLAIN = """
from celery import Celery
app = Celery("shop", broker="memory://")
"""
PLAIN_SEND = 'app.send_task("some.task", kwargs={"a": 1})\n'
OURS = """
from celery import Celery
from remote_inference import Inference
app = Celery("shop", broker="embedded://public-api")
inference = Inference(app, config={"deployment": [{"name": "gpt-4o"}]})
"""
OURS_SEND = """
handle = inference.submit("gpt-4o", "hello", deadline=30)
inference.submit_many("gpt-4o", ["a", "b"])
inference.infer.delay("gpt-4o", "hello")
handle.cancel()
inference.close()
"""


def _loaded(code: str) -> set[str]:
    """What a fresh process has loaded after it."""
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return set(json.loads(shown.stdout.splitlines()[-1]))


def _heavy(names: set[str]) -> list[str]:
    return sorted(
        name
        for name in names
        if name in UNWANTED
        or (name.startswith("remote_inference.") and name.split(".")[1] in NOT_FOR_THE_WEB)
    )


def test_importing_the_package_loads_nothing_that_only_a_worker_needs():
    assert _heavy(_loaded("import remote_inference") - _loaded(PLAIN)) == []


def test_neither_does_submitting():
    ours, celerys = _loaded(OURS + OURS_SEND), _loaded(PLAIN + PLAIN_SEND)
    assert _heavy(ours - celerys) == []


def test_the_check_sees_what_a_worker_loads():
    found = _heavy(_loaded("import remote_inference.worker.runtime"))
    assert {"requests", "pybreaker", "remote_inference.engine"} <= set(found)
