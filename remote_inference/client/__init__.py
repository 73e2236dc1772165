"""The caller's side: submitting requests and reading what comes back. Loads no engine and no provider."""

from __future__ import annotations

from .handle import InferenceHandle
from .submit import Submitter
from .task import InferTask, RebuildTask

__all__ = ["InferTask", "InferenceHandle", "RebuildTask", "Submitter"]
