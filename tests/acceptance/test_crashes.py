"""A worker dies under a request: the request is run again, its caller has one whole answer, and poison is set aside."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from amqp.exceptions import NotFound
from kombu import Connection
from local_nodes import ACCEPTANCE, REPOSITORY, WorkerNode
from local_process import LocalProcess, wait_until
from shop_nodes import DEPLOYMENT, LIMIT, Shop, begin, messages_in, settled, text_of

from remote_inference import Inference, InferenceHandle, StreamRestarted, WorkerLost
from remote_inference.messaging.names import marks_queue
from remote_inference.testing.behaviours import Reply, rate_limited
from remote_inference.testing.faults import Stall

TEXT = "".join(Reply().pieces)


def children(node: WorkerNode) -> list[int]:
    """The processes of a prefork pool."""
    return [int(pid) for pid in Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()]


def kill_children(node: WorkerNode) -> None:
    """Kill a prefork pool's processes, and spare the worker's main process."""
    for pid in children(node):
        os.kill(pid, signal.SIGKILL)


def supervised(node: WorkerNode, handles: Sequence[InferenceHandle]) -> int:
    """As a supervisor does, start it again when it has died, until the requests have ended; how often it died."""
    process = node.container.process
    deaths = 0

    def ended() -> bool:
        nonlocal deaths
        process.reload()
        if process.status == "exited":
            deaths += 1
            process.start()
        return all(handle.done for handle in handles)

    wait_until(ended, "all requests to end")
    return deaths


@pytest.mark.parametrize(
    ("pool", "kill"),
    [
        ("threads", WorkerNode.kill),
        ("gevent", WorkerNode.kill),
        ("prefork", WorkerNode.kill),
        ("prefork", kill_children),
    ],
    ids=["threads", "gevent", "prefork", "prefork-child"],
)
def test_a_stream_whose_worker_is_killed_is_completed_by_another(
    shop: Shop, pool: str, kill: Callable[[WorkerNode], None]
):
    [victim] = shop.workers(1, slots=3, pool=pool)
    caller = shop.caller()
    shop.provider.script(Stall(after=3), Stall(after=3), Stall(after=3))
    raising = caller.submit(DEPLOYMENT, "one")
    announcing = caller.submit(DEPLOYMENT, "two", on_restart="announce")
    waiting = caller.submit(DEPLOYMENT, "three")
    loop, _ = begin(raising)
    announced, first = begin(announcing)
    shop.provider.wait_for(lambda provider: provider.in_flight == 3, LIMIT)
    shop.workers(1, slots=3, pool=pool)

    kill(victim)

    with pytest.raises(StreamRestarted):
        list(loop)
    assert text_of(list(raising)) == TEXT
    chunks = [first, *announced]
    assert [chunk.restarted for chunk in chunks].count(True) == 1
    assert text_of(chunks) == TEXT
    assert [handle.result(LIMIT).text for handle in (raising, announcing, waiting)] == [TEXT] * 3
    assert shop.provider.count == 6
    settled(caller, completed=3, queued=0)


@pytest.mark.parametrize("pool", ["threads", "gevent", "prefork"])
def test_a_request_that_kills_its_worker_every_time_is_set_aside_and_the_others_go_on(shop: Shop, pool: str):
    caller = shop.caller()
    poison = caller.submit(DEPLOYMENT, "the killer")
    others = [caller.submit(DEPLOYMENT, f"number {number}") for number in range(5)]
    shop.poison.write_text(poison.request_id)
    [node] = shop.workers(1, pool=pool, wait=False)

    deaths = supervised(node, [poison, *others])

    with pytest.raises(WorkerLost) as lost:
        poison.result()
    assert lost.value.deaths == 4
    assert lost.value.request_id == poison.request_id
    assert deaths == (0 if pool == "prefork" else 5)  # the first is not counted: it left no mark
    assert [other.text for other in others] == [TEXT] * 5
    assert shop.provider.count == 5
    [(headers, body)] = messages_in(shop.broker_url, "inference.dead-letter")
    assert body[1]["messages"][0]["content"] == "the killer"
    assert headers["id"] == poison.request_id
    assert "4" in headers["inference_reason"]
    assert "killer" not in headers["inference_reason"]
    settled(caller, completed=5, queued=0)


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_requests_that_always_died_beside_the_killer_are_not_set_aside_with_it(shop: Shop, pool: str):
    shop.provider.default = Reply(token_delay=0.1)
    caller = shop.caller()
    poison = caller.submit(DEPLOYMENT, "the killer")
    innocent = [caller.submit(DEPLOYMENT, f"number {number}") for number in range(3)]
    shop.poison.write_text(poison.request_id)
    [node] = shop.workers(1, slots=4, pool=pool, wait=False)

    deaths = supervised(node, [poison, *innocent])

    assert deaths == 5
    with pytest.raises(WorkerLost):
        poison.result()
    assert [handle.text for handle in innocent] == [TEXT] * 3
    [(headers, _)] = messages_in(shop.broker_url, "inference.dead-letter")
    assert headers["id"] == poison.request_id


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_requests_that_had_not_begun_when_their_workers_were_killed_are_not_set_aside(shop: Shop, pool: str):
    asked, release = shop.directory / "asked", shop.directory / "release"
    script = f"echo >> {asked}; until [ -e {release} ] || ! kill -0 $PPID; do sleep 0.05; done; echo sk-late"
    shop.options["api_key"] = {
        "from_command": ["sh", "-c", script],
        "timeout": 60,
    }  # a vault that does not answer
    caller = shop.caller()
    handles = [caller.submit(DEPLOYMENT, f"number {number}") for number in range(6)]
    [node] = shop.workers(1, slots=4, pool=pool, wait=False)
    for kills in range(1, 6):
        wait_until(lambda: waiting_for(caller) == 2, "four requests to be delivered", LIMIT)
        wait_until(
            lambda so_far=kills: asked.exists() and len(asked.read_text()) >= so_far, "the vault", LIMIT
        )
        node.kill()
        node.wait_for_exit()
        node.container.process.start()
    release.touch()

    assert [handle.result(LIMIT).text for handle in handles] == [TEXT] * 6
    assert shop.provider.count == 6
    assert messages_in(shop.broker_url, "inference.dead-letter") == []
    settled(caller, completed=6, queued=0)
    wait_until(
        lambda: all(marks_of(shop, handle) is None for handle in handles), "no marks to be left", LIMIT
    )


def waiting_for(caller: Inference) -> int:
    """How many requests are in the queue and with no worker."""
    return caller.submitter.sender.waiting(caller.config.deployments[DEPLOYMENT], 5.0).waiting


def marks_of(shop: Shop, handle: InferenceHandle) -> int | None:
    """How many marks of calls that did not end the broker has; None: it has no queue of them."""
    with Connection(shop.broker_url) as connection:
        try:
            return int(connection.channel().queue_declare(marks_queue(handle.request_id), passive=True)[1])
        except NotFound:
            return None


def test_what_was_put_back_or_met_a_restart_is_not_taken_for_deadly(shop: Shop):
    [node] = shop.workers(1)
    caller = shop.caller()
    refusal = rate_limited("1.5")  # the key is paused for longer than a request is held: it goes back
    shop.provider.script(refusal, refusal, refusal, refusal)
    handle = caller.submit(DEPLOYMENT, "not now")
    shop.provider.wait_for(lambda provider: provider.count >= 2, LIMIT)
    settled(caller, queued=1)
    node.kill("SIGTERM")
    assert node.wait_for_exit() == 0
    node.container.process.start()
    node.container.wait_until_ready()

    assert handle.result(LIMIT).text == TEXT
    assert shop.provider.count == 5
    settled(caller, queued=0)


@pytest.mark.parametrize("on_disconnect", ["cancel", "finish"])
def test_when_the_caller_is_killed_its_request_is_cancelled_or_finished_as_it_asked(
    shop: Shop, on_disconnect: str
):
    shop.workers(1)
    operator = shop.caller()
    shop.provider.script(Reply(tokens=200 if on_disconnect == "cancel" else 60, token_delay=0.1))
    caller = LocalProcess(
        "caller",
        [sys.executable, "-m", "apps.caller", on_disconnect, "1000"],
        shop.directory,
        cwd=ACCEPTANCE,
        environment={
            "PYTHONPATH": str(REPOSITORY),
            "CELERY_BROKER_URL": shop.broker_url,
            **shop.environment,
        },
    )
    caller.start()
    wait_until(lambda: bool(caller.logs()), "the caller to read its first chunk")

    caller.remove()

    shop.provider.wait_for(lambda provider: provider.in_flight == 0, LIMIT)
    [request] = shop.provider.requests
    cancelled = on_disconnect == "cancel"
    assert (request.client_closed_at is not None) == cancelled
    assert (request.finished_at is not None) != cancelled
    settled(operator, cancelled=int(cancelled), completed=int(not cancelled), queued=0)


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_with_a_result_backend_a_finished_request_is_not_run_again(shop: Shop, redis_url: str, pool: str):
    caller = shop.caller(backend=redis_url)
    result = caller.infer.apply_async(
        kwargs={"deployment": DEPLOYMENT, "messages": "once"}, ignore_result=False
    )
    shop.poison_after.write_text(result.id)
    [node] = shop.workers(1, pool=pool, wait=False)
    shop.provider.wait_for(lambda provider: provider.count == 1, LIMIT)
    assert result.get(timeout=LIMIT)["text"] == TEXT
    if pool == "threads":  # in the prefork pool it is a child that dies
        node.wait_for_exit()
        [node] = shop.workers(1)

    node.container.wait_until_ready()
    settled(caller, queued=0)
    node.kill("SIGTERM")
    assert node.wait_for_exit() == 0
    assert waiting_for(caller) == 0  # acknowledged
    assert shop.provider.count == 1
    assert result.get(timeout=LIMIT)["text"] == TEXT
