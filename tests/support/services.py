"""What a test does when a service that it needs is missing: it never passes by not running in CI."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing_service(reason: str) -> NoReturn:
    """Fail in CI, where every test has to run; skip on a developer's machine."""
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
