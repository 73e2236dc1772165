"""What reading a stream costs: from the bytes of an answer to chunks, beside the official client, without a network.

``python -m benchmarks.reading`` compares this checkout with the official client; ``--before DIRECTORY`` also with
another checkout of the package, in alternating pairs. Times are CPU, each the median of its rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from time import process_time

__all__ = ["main", "measure", "stream_of"]

ROOT = Path(__file__).parents[1]
EVENTS = 100
_READINGS = 200  # a round
_BASE = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "m"}


def stream_of(events: int = EVENTS) -> list[bytes]:
    """An answer's body as it arrives: a piece an event, tokens like a model's."""
    words = ["The", " sky", " is", " blue", " because", " of", " Rayleigh", " scattering", ",", " naïvely"]

    def event(delta: dict[str, object], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: " + json.dumps({**_BASE, "choices": [choice]}).encode() + b"\n\n"

    usage = {"prompt_tokens": 12, "completion_tokens": events, "total_tokens": events + 12}
    return [
        event({"role": "assistant", "content": ""}),
        *(event({"content": words[number % len(words)]}) for number in range(events)),
        event({}, "stop"),
        b"data: " + json.dumps({**_BASE, "choices": [], "usage": usage}).encode() + b"\n\n",
        b"data: [DONE]\n\n",
    ]


def _ours() -> Callable[[Sequence[bytes]], int]:
    """This package's reading; as it was before providers did no I/O, where that is what is imported."""
    try:
        from remote_inference.config import Deployment
        from remote_inference.providers import AnswerFeed, ProviderCall, provider_named
        from remote_inference.types import InferenceRequest
    except ImportError:
        return _before()
    deployment = Deployment(name="d", model="m", endpoint="http://127.0.0.1:1/v1")
    call = ProviderCall(request=InferenceRequest.parse("d", "why?"), deployment=deployment)
    provider = provider_named("openai")

    def read(pieces: Sequence[bytes]) -> int:
        reader = provider.reader(call)
        feed = AnswerFeed(reader)
        count = 0
        for piece in pieces:
            for _ in feed.feed(piece):
                count += 1
            if reader.done:
                break
        for _ in feed.end():
            count += 1
        return count

    return read


def _before() -> Callable[[Sequence[bytes]], int]:
    import importlib

    reading = importlib.import_module("remote_inference.providers.openai_answer")
    sse = importlib.import_module("remote_inference.transport.sse")

    def read(pieces: Sequence[bytes]) -> int:
        reader = reading.AnswerReader(None)
        count = 0
        for event in sse.decode_sse_stream(iter(pieces)):
            if event.data.startswith("[DONE]"):
                break
            if reader.chunk_of(event.data) is not None:
                count += 1
        reader.last()
        return count + 1

    return read


def _official() -> Callable[[Sequence[bytes]], int]:
    """The official client over the same bytes, with a transport that has them already."""
    import httpx2
    import openai

    class Bytes(httpx2.SyncByteStream):
        def __init__(self, pieces: Iterable[bytes]) -> None:
            self._pieces = pieces

        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter(self._pieces)

    current: list[Sequence[bytes]] = [()]

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(
            200, headers={"content-type": "text/event-stream"}, stream=Bytes(current[0]), request=request
        )

    client = openai.OpenAI(
        api_key="x",
        base_url="http://127.0.0.1:1/v1",
        http_client=httpx2.Client(transport=httpx2.MockTransport(answer)),
    )

    def read(pieces: Sequence[bytes]) -> int:
        current[0] = pieces
        with client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "why?"}], stream=True
        ) as stream:
            return sum(1 for chunk in stream if not chunk.choices or chunk.choices[0].delta.content)

    return read


# The package of the checkout, and these benchmarks whatever it has.
_CHILD = """
import sys
checkout, here, name, readings = sys.argv[1:]
sys.path[:1] = [checkout]
import remote_inference
assert remote_inference.__file__.startswith(checkout), remote_inference.__file__
sys.path[:1] = [here]
from benchmarks.reading import measure
print(measure(name, int(readings)))
"""

_READERS = {"ours": _ours, "official": _official}


def measure(name: str, readings: int) -> float:
    """Milliseconds of CPU a stream, in this process."""
    read, pieces = _READERS[name](), stream_of()
    assert read(pieces) >= EVENTS
    for _ in range(20):
        read(pieces)
    began = process_time()
    for _ in range(readings):
        read(pieces)
    return (process_time() - began) / readings * 1000


def _round(name: str, checkout: Path) -> float:
    """The same, in a process of its own that imports the package from a checkout."""
    readings = _READINGS if name == "ours" else _READINGS // 10
    out = subprocess.run(
        [sys.executable, "-c", _CHILD, str(checkout), str(ROOT), name, str(readings)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(out.stdout)


def main() -> int:
    """Print the table; 1 if a stream costs more than a tenth of the official client's CPU, or more than before."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading", description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    sides = {"ours": ("ours", ROOT), "official": ("official", ROOT)}
    if options.before:
        sides["before"] = ("ours", options.before.resolve())
    found: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side in list(sides) if number % 2 == 0 else list(reversed(list(sides))):
            found[side].append(_round(*sides[side]))
    medians = {side: statistics.median(times) for side, times in found.items()}
    for side, times in found.items():
        print(f"{side:9} {medians[side]:8.3f} ms a stream of {EVENTS} events (least {min(times):.3f})")
    ratio = medians["official"] / medians["ours"]
    print(f"official client / ours: {ratio:.1f}")
    missed = ratio < 10
    if "before" in found:
        pairs = [ours / before for ours, before in zip(found["ours"], found["before"], strict=True)]
        print(f"ours / before: {statistics.median(pairs):.3f} (median of {len(pairs)} alternating pairs)")
        missed = missed or statistics.median(pairs) > 1
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
