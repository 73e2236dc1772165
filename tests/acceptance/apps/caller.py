"""A caller in a process of its own: submits one request, prints its id when it has read a chunk, and reads on.

Its arguments are `on_disconnect` and the milliseconds after which the broker forgets its reply queues.
"""

from __future__ import annotations

import sys

from apps.shop import inference

from remote_inference.messaging import queues

if __name__ == "__main__":
    queues.REPLY_EXPIRES_MS = int(sys.argv[2])
    handle = inference.submit("chat", "hello", on_disconnect=sys.argv[1])
    for number, _ in enumerate(handle):
        if not number:
            print(handle.request_id, flush=True)
