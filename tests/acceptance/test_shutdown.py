"""A deploy in the middle of the work: streams that run are finished, what waits is another worker's, at once."""

from __future__ import annotations

import time

import pytest
from local_process import wait_until
from shop_nodes import DEPLOYMENT, LIMIT, Held, Shop, begin, settled, text_of

from remote_inference.testing.behaviours import Reply, Status

TEXT = "".join(Reply().pieces)


@pytest.mark.parametrize("pool", ["threads", "gevent", "prefork"])
def test_a_warm_shutdown_finishes_its_streams_and_leaves_what_waits_to_another(shop: Shop, pool: str):
    release = shop.directory / "release"
    held = Held(Reply(), release)
    [old] = shop.workers(1, slots=2, pool=pool)
    caller = shop.caller()
    shop.provider.script(held, held)
    running = [caller.submit(DEPLOYMENT, f"running {number}") for number in range(2)]
    loops = [begin(handle) for handle in running]
    shop.provider.wait_for(lambda provider: provider.in_flight == 2, LIMIT)
    waiting = [caller.submit(DEPLOYMENT, f"waiting {number}") for number in range(6)]

    old.kill("SIGTERM")
    old.wait_for_log("Warm shutdown")
    shop.workers(1, slots=2, pool=pool)

    assert [handle.result(LIMIT).text for handle in waiting] == [TEXT] * 6
    assert not any(handle.done for handle in running)
    release.touch()
    assert [text_of([first, *loop]) for loop, first in loops] == [TEXT] * 2  # a restart would raise
    assert old.wait_for_exit() == 0
    settled(caller, completed=6, queued=0)
    assert shop.provider.count == 8
    assert shop.provider.closed_early == 0


@pytest.mark.parametrize("pool", ["threads", "gevent", "prefork"])
def test_a_request_in_its_backoff_is_left_to_another_worker(shop: Shop, pool: str):
    shop.options["retry"] = {"initial_backoff": 45.0, "jitter": "none"}
    [old] = shop.workers(1, pool=pool)
    caller = shop.caller()
    shop.provider.script(Status(500))
    handle = caller.submit(DEPLOYMENT, "again")
    shop.provider.wait_for(lambda provider: provider.count == 1, LIMIT)
    wait_until(lambda: caller.status()[DEPLOYMENT].in_flight == 1, "the backoff")

    began = time.monotonic()
    old.kill("SIGTERM")
    assert old.wait_for_exit() == 0
    shop.workers(1, pool=pool)

    assert handle.result(LIMIT).text == TEXT
    assert time.monotonic() - began < 40
    assert shop.provider.count == 2


@pytest.mark.parametrize("pool", ["threads", "gevent", "prefork"])
def test_a_rolling_deploy_under_load_loses_and_doubles_nothing(shop: Shop, pool: str):
    shop.provider.default = Reply(token_delay=0.05)
    [old] = shop.workers(1, slots=4, pool=pool)
    caller = shop.caller()
    handles = caller.submit_many(DEPLOYMENT, [f"number {number}" for number in range(60)])
    wait_until(lambda: sum(handle.done for handle in handles) > 8, "the work to be under way")
    shop.workers(1, slots=4, pool=pool)

    old.kill("SIGTERM")

    assert [handle.result(LIMIT).text for handle in handles] == [TEXT] * 60
    assert old.wait_for_exit() == 0
    settled(caller, queued=0, failed=0, cancelled=0)
    assert shop.provider.count == 60


@pytest.mark.parametrize("pool", ["threads", "gevent", "prefork"])
def test_a_worker_that_ends_takes_nothing_more_into_its_free_slots(shop: Shop, pool: str):
    release = shop.directory / "release"
    [old] = shop.workers(1, slots=4, pool=pool)
    caller = shop.caller()
    shop.provider.script(Held(Reply(), release))
    running = caller.submit(DEPLOYMENT, "running")
    shop.provider.wait_for(lambda provider: provider.in_flight == 1, LIMIT)

    old.kill("SIGTERM")
    old.wait_for_log("Warm shutdown")
    shop.workers(1, slots=4, pool=pool)
    later = [caller.submit(DEPLOYMENT, f"later {number}") for number in range(16)]

    assert [handle.result(LIMIT).text for handle in later] == [TEXT] * 16
    assert not running.done
    release.touch()
    assert running.result(LIMIT).text == TEXT
    assert old.wait_for_exit() == 0
    settled(caller, completed=16, queued=0)
    assert shop.provider.count == 17
