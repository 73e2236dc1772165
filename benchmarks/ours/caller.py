"""Side (a) in the caller: submit, and read the handle."""

from __future__ import annotations

from benchmarks.caller import Watch
from benchmarks.ours.app import DEPLOYMENT, inference
from benchmarks.setting import Setting

__all__ = ["OursAsker", "make"]


class OursAsker:
    """All threads share the process's two connections."""

    def ask(self, watch: Watch) -> None:
        """One request to its last token."""
        watch.submitted()
        for chunk in inference.submit(DEPLOYMENT, "Go on."):
            count = chunk.text_delta.count(" ")
            if count:
                watch.token(count)

    def submit(self, count: int) -> None:
        """All at once, with gathered confirms."""
        handles = inference.submit_many(DEPLOYMENT, ["Go on."] * count)
        failed = sum(handle.done for handle in handles)
        if failed:
            raise RuntimeError(f"{failed} of {count} were not taken")

    def discard(self) -> None:
        """Empty the queue."""
        with inference.app.connection_for_write() as connection:
            connection.default_channel.queue_purge(f"inference.{DEPLOYMENT}")


def make(setting: Setting) -> OursAsker:
    """The asker, for `benchmarks.caller`."""
    return OursAsker()
