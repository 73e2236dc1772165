"""The values that travel: a request, its chunks, its completion, and their versioned JSON.

Requests and answers have OpenAI's shapes, because that is what users have; each provider translates at its edge.
No ``repr`` here shows a prompt or an answer.
"""

from __future__ import annotations

from .answer import Completion, FinishReason, Timings, TokenChunk, TokenUsage, ToolCall, ToolCallDelta
from .metrics import EngineMetrics
from .request import SAMPLING_FIELDS, InferenceRequest, Message, Priority, SamplingParams, summary
from .wire import WIRE_VERSION

__all__ = [
    "Completion",
    "EngineMetrics",
    "FinishReason",
    "InferenceRequest",
    "Message",
    "Priority",
    "SAMPLING_FIELDS",
    "SamplingParams",
    "Timings",
    "TokenChunk",
    "TokenUsage",
    "ToolCall",
    "ToolCallDelta",
    "WIRE_VERSION",
    "summary",
]
