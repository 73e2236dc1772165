"""The broker goes away, for everybody or for one worker: nothing that was accepted is lost, nothing is told twice."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from kombu.utils.url import parse_url
from local_process import wait_until
from pytest_celery import RabbitMQTestBroker
from shop_nodes import DEPLOYMENT, LIMIT, Shop, begin, messages_in, settled, text_of
from tcp_proxy import TCPProxy

from remote_inference import Backpressure, Inference, InferenceHandle, StreamRestarted, SubmitUncertain
from remote_inference.testing.behaviours import Reply
from remote_inference.testing.faults import Stall

TEXT = "".join(Reply().pieces)
ADMISSION = 2.0
HEARTBEAT = 2


class Load:
    """Threads that submit all the time, and what came of it."""

    def __init__(self, caller: Inference, threads: int) -> None:
        self.accepted: list[InferenceHandle] = []
        self.refused: list[Exception] = []
        self.slowest = 0.0
        self._caller = caller
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(LIMIT)
            assert not thread.is_alive(), "a submit hangs"

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            began = time.monotonic()
            try:
                self.accepted.append(self._caller.submit(DEPLOYMENT, "under load", on_restart="announce"))
            except (Backpressure, SubmitUncertain) as exc:
                self.refused.append(exc)
            self.slowest = max(self.slowest, time.monotonic() - began)


@pytest.mark.parametrize("pool", ["threads", "gevent", "prefork"])
def test_a_broker_restart_under_load_loses_nothing_that_was_accepted(
    shop: Shop, private_broker: RabbitMQTestBroker, pool: str
):
    shop.broker_url = private_broker.container.url
    shop.options = {"admission_timeout": ADMISSION}
    shop.provider.default = Reply(token_delay=0.02)
    workers = shop.workers(2, slots=4, pool=pool)
    caller = shop.caller()
    process = private_broker.container.process

    with Load(caller, threads=3) as load:
        wait_until(lambda: any(handle.done for handle in load.accepted), "the first answers")
        before = shop.provider.count
        shop.provider.default = Stall(after=3)
        wait_until(lambda: shop.provider.count >= before + 8, "a stream to hang in every slot")
        shop.provider.default = Reply(token_delay=0.02)
        process.kill()
        wait_until(lambda: len(load.refused) >= 3, "a refusal in every thread")
        before = len(load.accepted)
        process.start()
        wait_until(lambda: len(load.accepted) > before + 20, "submits to be taken again")

    assert load.slowest < ADMISSION + 1.5
    assert {handle.result(LIMIT).text for handle in load.accepted} == {TEXT}
    for handle in load.accepted:
        assert text_of(list(handle)) == TEXT
    assert all(node.container.process.process.poll() is None for node in workers)
    settled(caller, queued=0, failed=0)
    assert messages_in(shop.broker_url, "inference.dead-letter") == []


@pytest.mark.parametrize(
    ("pool", "cut"),
    [
        ("threads", "drop"),
        ("threads", "freeze"),
        ("gevent", "freeze"),
        ("prefork", "freeze"),
    ],
)
def test_a_worker_cut_from_the_broker_cancels_and_the_others_stream_wins(
    shop: Shop, tmp_path: Path, pool: str, cut: str
):
    broker = parse_url(shop.broker_url)
    proxy = TCPProxy(tmp_path, broker["hostname"], broker["port"])
    proxy.start()
    shop.celery = {"broker_heartbeat": HEARTBEAT}
    shop.options = {"timeouts": {"read": 300.0}}  # it is not the silence of the provider that ends the call
    through_proxy = shop.broker_url.replace(f":{broker['port']}/", f":{proxy.port}/")
    [lonely] = shop.workers(1, slots=2, pool=pool, broker_url=through_proxy)
    caller = shop.caller()
    shop.provider.script(Stall(after=3), Stall(after=3))
    raising = caller.submit(DEPLOYMENT, "one")
    announcing = caller.submit(DEPLOYMENT, "two", on_restart="announce")
    loop, _ = begin(raising)
    announced, first = begin(announcing)
    shop.provider.wait_for(lambda provider: provider.in_flight == 2, LIMIT)
    shop.workers(1, slots=2, pool=pool)

    getattr(proxy, cut)()

    shop.provider.wait_for(lambda provider: all(r.client_closed_at for r in provider.requests[:2]), LIMIT)
    with pytest.raises(StreamRestarted):
        list(loop)
    chunks = [first, *announced]
    assert [chunk.restarted for chunk in chunks].count(True) == 1
    assert text_of(chunks) == text_of(list(raising)) == TEXT
    restarts = lonely.log.count("Connected to")
    proxy.thaw() if cut == "freeze" else proxy.start()
    wait_until(lambda: lonely.log.count("Connected to") > restarts, "the worker to come back")
    wait_until(lambda: len(caller.workers(timeout=0.5)) == 2, "it to answer")
    later = [caller.submit(DEPLOYMENT, "later") for _ in range(8)]
    assert {handle.result(LIMIT).text for handle in later} == {TEXT}
    assert text_of(list(raising)) == text_of(list(announcing))
    settled(caller, completed=10, cancelled=2, queued=0)
    assert shop.provider.count == 12
    proxy.drop()


def test_being_cut_off_again_and_again_is_not_taken_for_deadly(shop: Shop, tmp_path: Path):
    broker = parse_url(shop.broker_url)
    proxy = TCPProxy(tmp_path, broker["hostname"], broker["port"])
    proxy.start()
    shop.workers(1, broker_url=shop.broker_url.replace(f":{broker['port']}/", f":{proxy.port}/"))
    caller = shop.caller()
    cuts = 4
    shop.provider.script(*[Stall(after=3)] * cuts)
    handle = caller.submit(DEPLOYMENT, "long")
    for run in range(1, cuts + 1):
        shop.provider.wait_for(lambda p, run=run: p.count == run and p.in_flight == 1, LIMIT)
        proxy.drop()
        shop.provider.wait_for(lambda p: p.in_flight == 0, LIMIT)
        proxy.start()

    assert handle.result(LIMIT).text == TEXT
    settled(caller, completed=1, cancelled=cuts, queued=0)
    assert messages_in(shop.broker_url, "inference.dead-letter") == []
    proxy.drop()
