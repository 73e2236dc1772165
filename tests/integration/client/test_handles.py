"""A handle, read in every way: loops, threads, asyncio, after a fork, with gaps, late, never."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shops import SmallShop, eventually

from remote_inference import DeadlineExceeded, InferenceHandle
from remote_inference.messaging import queues
from remote_inference.messaging.names import chunk_queue, reply_queue
from remote_inference.testing.behaviours import Reply
from remote_inference.testing.server import ProviderServer

OpenShop = Callable[..., SmallShop]
WORDS = [f"w{i} " for i in range(12)]
SLOW = {"options": {"tokens": WORDS, "delay": 0.03}}
TEXT = "".join(WORDS)
ROOT = Path(__file__).parents[3]


@pytest.fixture
def shop(open_shop: OpenShop) -> SmallShop:
    shop = open_shop({"slow": SLOW, "idle": {}, "echo": {"options": {"echo": True}}})
    shop.work("slow", "echo")
    return shop


def read(handle: InferenceHandle) -> str:
    return "".join(chunk.text_delta for chunk in handle)


def test_text_comes_in_pieces_and_is_whole_however_it_is_read(shop: SmallShop) -> None:
    handle = shop.inference.submit("slow", "x")
    pieces = [chunk.text_delta for chunk in handle if chunk.text_delta]
    assert len(pieces) > 2
    assert "".join(pieces) == TEXT == handle.text == handle.result(0).text
    assert read(handle) == TEXT  # from the first one on, again
    last = list(handle)[-1]
    assert last.finish_reason == "stop"
    assert last.usage is not None
    assert handle.done


def test_several_threads_and_tasks_read_one_handle(shop: SmallShop) -> None:
    handle = shop.inference.submit("slow", "x")
    got: list[str] = []
    threads = [threading.Thread(target=lambda: got.append(read(handle))) for _ in range(4)]
    for thread in threads:
        thread.start()

    async def tasks() -> list[str]:
        async def one() -> str:
            return "".join([chunk.text_delta async for chunk in handle])

        async def whole() -> str:
            return (await handle).text

        return list(await asyncio.gather(one(), one(), whole(), whole()))

    assert asyncio.run(tasks()) == [TEXT] * 4
    for thread in threads:
        thread.join(20)
    assert got == [TEXT] * 4


def test_asyncio_goes_on_while_it_waits(shop: SmallShop) -> None:
    async def main() -> tuple[str, int]:
        handle = await shop.inference.asubmit("slow", "x")
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while not handle.done:
                ticks += 1
                await asyncio.sleep(0.01)

        _, completion = await asyncio.gather(tick(), handle.aresult(20))
        with pytest.raises(TimeoutError):
            await (await shop.inference.asubmit("idle", "x")).aresult(0.1)
        return completion.text, ticks

    text, ticks = asyncio.run(main())
    assert text == TEXT
    assert ticks > 5


def test_a_timeout_of_the_caller_leaves_the_request_alone(shop: SmallShop) -> None:
    handle = shop.inference.submit("slow", "x")
    with pytest.raises(TimeoutError):
        handle.result(0.01)
    assert handle.result(20).text == TEXT


def test_two_hundred_handles_share_the_connection_for_replies(open_rabbit_shop: OpenShop) -> None:
    shop = open_rabbit_shop({"a": {"options": {"echo": True, "first_delay": 0.02}}})
    shop.work(concurrency=16)
    before = {thread.ident for thread in threading.enumerate()}
    handles: list[InferenceHandle] = []

    def submit(start: int) -> None:
        handles.extend(shop.inference.submit("a", f"p{i}") for i in range(start, start + 20))

    threads = [threading.Thread(target=submit, args=(start,)) for start in range(0, 200, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(handle.result(60).text for handle in handles) == sorted(f"p{i}" for i in range(200))
    names = [thread.name for thread in threading.enumerate() if thread.ident not in before]
    assert names.count("inference-replies") == 1
    client = shop.inference.submitter._identity.token
    consumers = [
        shop.raw(lambda channel, queue=queue: channel.queue_declare(queue, passive=True).consumer_count)
        for queue in (reply_queue(client), chunk_queue(client))
    ]
    assert consumers == [1, 1]


def test_a_handle_that_is_dropped_is_forgotten(shop: SmallShop) -> None:
    handle = shop.inference.submit("slow", "x")
    next(iter(handle))
    reference = weakref.ref(handle)
    del handle
    gc.collect()
    assert reference() is None
    assert not shop.inference.submitter._desk._handles
    assert shop.inference.submit("echo", "and on").result(20).text == "and on"


def test_chunks_that_are_lost_are_repaired_from_the_outcome(open_shop: OpenShop) -> None:
    shop = open_shop({"slow": {"options": {"tokens": [f"w{i} " for i in range(40)], "delay": 0.03}}})
    shop.work()
    handle = shop.inference.submit("slow", "x")
    loop = iter(handle)
    text = next(loop).text_delta
    desk = shop.inference.submitter._desk
    feed, lost = desk._on_message, threading.Event()

    def lossy(body: Any) -> None:
        if lost.is_set() or b'"s":' not in (body.encode() if isinstance(body, str) else bytes(body)):
            feed(body)
        else:
            lost.set()  # one message of chunks is dropped, as a full chunk queue would

    desk._subscriber._on_message = lossy
    for chunk in loop:
        text += chunk.text_delta
    assert lost.is_set()
    assert text == handle.text == "".join(f"w{i} " for i in range(40))


def test_a_deadline_that_passes_while_it_waits(shop: SmallShop) -> None:
    handle = shop.inference.submit("idle", "x", deadline=0.3)
    with pytest.raises(DeadlineExceeded) as caught:
        handle.result(20)
    assert caught.value.code == "waiting"
    with pytest.raises(DeadlineExceeded):
        read(handle)


def test_a_deadline_that_passes_while_it_runs_closes_the_connection(open_shop: OpenShop) -> None:
    with ProviderServer() as server:
        shop = open_shop({"a": {"provider": "openai", "endpoint": server.url, "model": "m"}})
        shop.work()
        server.on("m", Reply("never", first_token_delay=120))
        begun = time.monotonic()
        # more than the second for which a process that has just started listens to the others
        handle = shop.inference.submit("a", "x", deadline=2.5)
        with pytest.raises(DeadlineExceeded) as caught:
            handle.result(20)
        assert caught.value.code == "running"
        assert 2.4 <= time.monotonic() - begun < 7
        eventually(lambda: server.closed_early == 1)


def test_a_forked_process_has_connections_of_its_own(open_rabbit_shop: OpenShop) -> None:
    shop = open_rabbit_shop({"echo": {"options": {"echo": True}}})
    script = f"""
        import os, sys, gc
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests/support")!r}]
        from shops import SmallShop
        shop = SmallShop({shop.url!r}, {{"echo": {{"options": {{"echo": True}}}}}})
        before = shop.inference.submit("echo", "before")
        pid = os.fork()
        if pid == 0:
            own = shop.inference.submit("echo", "child")
            assert own.result(30).text == "child"
            assert own.request_id[:16] != before.request_id[:16]
            gc.collect()
            sys.exit(0)
        handle = shop.inference.submit("echo", "parent")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert handle.result(30).text == "parent"
        assert before.result(30).text == "before"
        assert shop.inference.submit("echo", "after").result(30).text == "after"
        assert shop.inference.publisher.connections == 1
        print("well")
    """
    shop.work()
    assert run(script) == "well"


def test_a_monkeypatched_gevent_process_submits_and_reads(open_rabbit_shop: OpenShop) -> None:
    shop = open_rabbit_shop({"slow": SLOW})
    shop.work()
    script = f"""
        from gevent import monkey
        monkey.patch_all()
        import sys, gevent
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests/support")!r}]
        from shops import SmallShop
        shop = SmallShop({shop.url!r}, {{"slow": {{}}}})
        def one(number):
            return "".join(chunk.text_delta for chunk in shop.inference.submit("slow", "x"))
        jobs = [gevent.spawn(one, number) for number in range(8)]
        gevent.joinall(jobs, timeout=40, raise_error=True)
        assert {{job.value for job in jobs}} == {{{TEXT!r}}}, [job.value for job in jobs]
        print("well")
    """
    assert run(script) == "well"


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_a_reader_that_stands_still_is_bounded_in_the_broker(
    open_rabbit_shop: OpenShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = open_rabbit_shop({"fast": {"options": {"tokens": ["x" * 2000] * 3000, "delay": 0.001}}})
    shop.work()
    script = f"""
        import sys
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests/support")!r}]
        from remote_inference.messaging import queues
        queues.CHUNK_QUEUE_LENGTH = 10
        from shops import SmallShop
        shop = SmallShop({shop.url!r}, {{"fast": {{}}}})
        handle = shop.inference.submit("fast", "x")
        print(shop.inference.submitter._identity.token, flush=True)
        sys.stdin.readline()
        print(len(handle.result(60).text), flush=True)
        print(sum(len(chunk.text_delta) for chunk in handle), flush=True)
    """
    reader = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert reader.stdout is not None
        client = reader.stdout.readline().strip()
        os.kill(reader.pid, 19)  # SIGSTOP
        deepest = 0

        def finished() -> bool:
            nonlocal deepest
            deepest = max(deepest, shop.ready(chunk_queue(client)))
            return shop.inference.status(timeout=0.2)["fast"].in_flight == 0

        eventually(finished, within=60)  # the worker does not wait for it
        assert deepest <= 10
        os.kill(reader.pid, 18)  # SIGCONT
        out, _ = reader.communicate("go\n", timeout=60)
        assert out.split() == ["6000000", "6000000"]
    finally:
        reader.kill()
        reader.wait()
    assert queues.CHUNK_QUEUE_LENGTH > 10
