"""The reference configuration of a worker, in Celery's terms: what the command line's worker runs with.

The names are Celery's own. ``Inference`` sees to what its requests need whatever the app's settings are (acknowledged
late, never more messages taken than there are slots); this is what is good for a worker on the whole. The pool is not
among it, because Celery could not tell a pool asked for by ``-P prefork`` from none asked for: start workers with
``-P threads``.
"""

from __future__ import annotations

accept_content = ["json"]
task_serializer = "json"
result_serializer = "json"
event_serializer = "json"

worker_concurrency = 8

# A request waits for the provider, not for the processor: what one worker has taken, no other can.
worker_prefetch_multiplier = 1
task_acks_late = True
task_reject_on_worker_lost = True
task_track_started = True

broker_connection_retry_on_startup = True
broker_pool_limit = 10

worker_hijack_root_logger = True
worker_redirect_stdouts = False
