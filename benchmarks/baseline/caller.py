"""Side (b) in the caller: subscribe, start the task, read tokens until the end."""

from __future__ import annotations

import json
import uuid

from benchmarks.baseline.app import app, complete, redis_client
from benchmarks.caller import Watch
from benchmarks.setting import Setting

__all__ = ["BaselineAsker", "make"]

_MESSAGES = [{"role": "user", "content": "Go on."}]
_TIMEOUT = 30.0  # seconds without a token, after which a caller gives up


class BaselineAsker:
    """One Redis connection pool for all threads; each request takes a connection for its subscription."""

    def __init__(self) -> None:
        self._redis = redis_client()

    def ask(self, watch: Watch) -> None:
        """One request to its last token."""
        channel = f"tokens:{uuid.uuid4()}"
        watch.submitted()
        with self._redis.pubsub() as pubsub:
            pubsub.subscribe(channel)
            pubsub.get_message(
                timeout=_TIMEOUT
            )  # the subscription stands: no token is published into the void
            complete.apply_async((channel, "bench", _MESSAGES))
            while True:
                message = pubsub.get_message(timeout=_TIMEOUT)
                if message is None:
                    raise TimeoutError("no token from the worker")
                event = json.loads(message["data"])
                if "token" in event:
                    watch.token()
                elif "done" in event:
                    return
                else:
                    raise RuntimeError(f"the task failed: {event['error']}")

    def submit(self, count: int) -> None:
        """A loop of `apply_async`, each confirmed."""
        for number in range(count):
            complete.apply_async((f"tokens:{number}", "bench", _MESSAGES))

    def discard(self) -> None:
        """Empty the queue."""
        with app.connection_for_write() as connection:
            connection.default_channel.queue_purge(app.conf.task_default_queue)


def make(setting: Setting) -> BaselineAsker:
    """The asker, for `benchmarks.caller`."""
    return BaselineAsker()
