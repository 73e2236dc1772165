"""When which request came and what it was charged: columns that grow, for benchmarks that look at every second.

A request may say what it is to cost, because a benchmark knows what its prompts are worth and a counter of characters
does not: its text begins with words like ``input=120 output=40 mark=c7`` (`directions`).
"""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

from remote_inference.testing.behaviours import Behaviour, Reply
from remote_inference.testing.connection import ReceivedRequest
from remote_inference.testing.script import Scripted
from remote_inference.testing.wire import prompt_text

__all__ = ["SOURCE_HEADER", "Arrivals", "directed", "directions"]

SOURCE_HEADER = "x-source"
"""A request header that says who sent it; a deployment can set it."""


class Arrivals:
    """Every request that was charged or refused, and every token that was streamed. Times are `time.monotonic()`."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self._at = array("d")
        self._status = array("H")
        self._input = array("L")
        self._source: list[str] = []
        self._mark: list[str] = []
        self._spent_at = array("d")
        self._spent = array("L")

    def came(self, request: ReceivedRequest, input_tokens: int, status: int) -> None:
        """A request came, and was answered with that status."""
        self._at.append(request.received_at)
        self._status.append(status)
        self._input.append(input_tokens)
        self._source.append(request.headers.get(SOURCE_HEADER, ""))
        self._mark.append(directions(request).get("mark", ""))

    def streamed(self, at: float, tokens: int) -> None:
        """Tokens of an answer were written."""
        self._spent_at.append(at)
        self._spent.append(tokens)

    def to_json(self) -> dict[str, list[Any]]:
        """The columns: ``at``, ``status``, ``input``, ``source``, ``mark`` by request; ``spent_at``, ``spent``."""
        return {
            "at": self._at.tolist(),
            "status": self._status.tolist(),
            "input": self._input.tolist(),
            "source": self._source,
            "mark": self._mark,
            "spent_at": self._spent_at.tolist(),
            "spent": self._spent.tolist(),
        }

    def __len__(self) -> int:
        return len(self._at)


def directions(request: ReceivedRequest) -> dict[str, str]:
    """What the first words of a request's text say, as far as they have the form ``name=value``."""
    found: dict[str, str] = {}
    for word in prompt_text(request.body).split(" ", 8)[:8]:
        name, sign, value = word.partition("=")
        if not sign:
            break
        found[name] = value
    return found


def directed(plain: Reply) -> Scripted:
    """Answers as ``plain`` does, with the number of tokens that the request asks for."""

    def answer(request: ReceivedRequest) -> Behaviour:
        output = directions(request).get("output")
        return plain if output is None else replace(plain, tokens=int(output))

    return answer
