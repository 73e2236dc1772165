"""A thousand slow streams at once in one gevent worker, over TLS: memory, and how late tokens come."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import trustme

from benchmarks.plan import Plan
from benchmarks.setting import Setting
from benchmarks.streams import Say, SideType, running
from remote_inference.testing.process import ProviderProcess

__all__ = ["Crowd", "crowd"]


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """One side's crowd.

    Attributes:
        worker_rss_mib: The most resident memory of the worker.
        worst_lateness: Seconds: the latest token of all streams, against its stream's own pace.
        together: The most streams that the provider had open at once.
        server_lateness: Seconds the provider itself was late at worst: below it, lateness means nothing.
        failed: Streams that did not get all their tokens.
    """

    worker_rss_mib: float
    worst_lateness: float
    together: int
    server_lateness: float
    requests: int
    failed: int
    errors: list[str]

    def to_json(self) -> dict[str, object]:
        """A dict of JSON values."""
        return asdict(self)


def crowd(types: Sequence[SideType], plan: Plan, setting: Setting, say: Say) -> dict[str, Crowd]:
    """One side after the other, each with a provider of its own."""
    measured: dict[str, Crowd] = {}
    with tempfile.TemporaryDirectory() as folder:
        authority = trustme.CA()
        ca_file, pem = str(Path(folder, "ca.pem")), str(Path(folder, "server.pem"))
        authority.cert_pem.write_to_path(ca_file)
        authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(pem)
        arguments = ("--tokens", str(plan.crowd_tokens), "--rate", str(plan.crowd_rate), "--certfile", pem)
        for make in types:
            with ProviderProcess(*arguments) as provider:
                here = setting.but(
                    url=provider.url,
                    tokens=plan.crowd_tokens,
                    rate=plan.crowd_rate,
                    pool="gevent",
                    slots=plan.crowd,
                    ca_file=ca_file,
                )
                with running([make], here) as (side,):
                    say(f"{plan.crowd} streams at once: {side.name}")
                    result = side.run(plan.crowd, plan.crowd, plan.crowd / plan.crowd_ramp)
                    stats = provider.stats
                measured[side.name] = Crowd(
                    worker_rss_mib=result.worker_rss / 2**20,
                    worst_lateness=max((timing.lateness for timing in result.timings), default=0.0),
                    together=stats["max_in_flight"],
                    server_lateness=stats["max_lateness"],
                    requests=plan.crowd,
                    failed=len(result.errors),
                    errors=list(result.errors[:3]),
                )
    return measured
