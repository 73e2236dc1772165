"""Cancelling, wherever the request is and whoever asks: upstream socket closed, caller told, slot free."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from local_process import wait_until
from market import APP, CLOSED_WITHIN, QUICK, EventLog, Market, children, open_market

from remote_inference import Cancelled, InferenceHandle
from remote_inference.testing.behaviours import Reply, rate_limited
from remote_inference.testing.connection import ReceivedRequest
from remote_inference.testing.faults import Silent, Stall

POOLS = ["threads", "gevent", "prefork"]
LIMIT = 30.0
DRIPPING = Reply(tokens=5000, token_delay=0.02)


def by_handle(market: Market, handle: InferenceHandle) -> None:
    handle.cancel()


def by_revoke(market: Market, handle: InferenceHandle) -> None:
    market.app.control.revoke(handle.request_id)


def by_terminate(market: Market, handle: InferenceHandle) -> None:
    """What Flower's button "Terminate" does."""
    market.app.control.revoke(handle.request_id, terminate=True)


Canceller = Callable[[Market, InferenceHandle], None]
CANCELLERS = [by_handle, by_revoke, by_terminate]


class Waiter:
    """Waits for a handle's end in a thread of its own, to know when it was told."""

    def __init__(self, handle: InferenceHandle) -> None:
        self._handle = handle
        self._error: BaseException | None = None
        self.told = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._handle.result()
        except BaseException as exc:
            self._error = exc
        self.told = time.monotonic()

    def cancelled(self) -> Cancelled:
        """How it was told."""
        self._thread.join(LIMIT)
        assert isinstance(self._error, Cancelled), repr(self._error)
        return self._error


def running(market: Market, number: int, tokens: int) -> ReceivedRequest:
    """The provider's request of that number, when it has sent that many tokens."""
    wait_until(
        lambda: len(market.server.requests) > number and market.server.requests[number].tokens_sent >= tokens,
        f"request {number} to be answered",
        LIMIT,
    )
    return market.server.requests[number]


@pytest.mark.parametrize("cancel", CANCELLERS)
@pytest.mark.parametrize("pool", POOLS)
def test_a_running_request_is_cut_off_upstream_and_its_slot_is_free(
    start_workers, fresh_broker_url: str, pool: str, cancel: Canceller
):
    with open_market(fresh_broker_url) as market, EventLog(market.app) as events:
        args = ("-Q", market.queues, QUICK, "-c", "1", "-E")
        [node] = start_workers(1, *args, app=APP, env=market.environment, pool=pool)
        processes = children(node.pid)
        for behaviour, tokens in (
            (DRIPPING, 5),
            (Stall(after=3), 3),
            (Silent("headers"), 0),
            (Silent("body"), 0),
        ):
            number = market.server.count
            market.server.script(behaviour)
            handle = market.inference.submit("a", "count")
            request = running(market, number, tokens)
            if tokens:
                next(iter(handle))
            waiter = Waiter(handle)

            asked = time.monotonic()
            cancel(market, handle)
            error = waiter.cancelled()
            market.server.wait_for(lambda s, r=request: r.client_closed_at is not None)

            assert request.client_closed_at - asked < CLOSED_WITHIN, behaviour
            assert waiter.told - asked < CLOSED_WITHIN, behaviour
            assert error.usage is not None, behaviour
            assert error.usage.get("completion_tokens", 0) >= (1 if tokens else 0), behaviour
            events.wait_for("task-revoked", handle.request_id)
            assert market.inference.submit("a", "the slot is free").result(LIMIT).text, behaviour
        assert children(node.pid) == processes
        assert market.inference.status()["a"].cancelled == 4
        assert market.inference.status()["a"].in_flight == 0


@pytest.mark.parametrize("pool", POOLS)
def test_a_revoked_task_with_a_result_is_revoked(
    start_workers, fresh_broker_url: str, redis_url: str, pool: str
):
    with open_market(fresh_broker_url, result_backend=redis_url) as market:
        start_workers(1, "-Q", market.queues, QUICK, "-c", "1", app=APP, env=market.environment, pool=pool)
        market.server.script(DRIPPING)
        kwargs = {"deployment": "a", "messages": "count"}
        result = market.inference.infer.apply_async(kwargs=kwargs, ignore_result=False)
        request = running(market, 0, 5)

        asked = time.monotonic()
        result.revoke(terminate=True)
        market.server.wait_for(lambda s: request.client_closed_at is not None)

        assert request.client_closed_at - asked < CLOSED_WITHIN
        wait_until(lambda: result.state == "REVOKED", "the state", LIMIT)
        assert market.inference.infer.apply_async(kwargs=kwargs, ignore_result=False).get(timeout=LIMIT)
        assert result.state == "REVOKED"


@pytest.mark.parametrize(
    ("pool", "cancel"),
    [(pool, by_handle) for pool in POOLS] + [("threads", by_revoke), ("prefork", by_terminate)],
)
def test_a_waiting_request_is_told_at_once_and_never_sent(
    start_workers, fresh_broker_url: str, pool: str, cancel: Canceller
):
    deployments = {"name": "a"}, {"name": "gated"}
    with open_market(fresh_broker_url, *deployments) as market, EventLog(market.app) as events:
        args = ("-Q", market.queues, QUICK, "-c", "1", "-E")
        start_workers(1, *args, app=APP, env=market.environment, pool=pool)
        market.server.on("gated", rate_limited(2), times=1)
        gated = [market.inference.submit("gated", f"gated {number}") for number in range(3)]
        wait_until(
            lambda: any(w["gates"] for w in market.inference.workers(timeout=0.2).values()), "the gate", LIMIT
        )
        market.server.on("a", DRIPPING, times=1)
        busy = market.inference.submit("a", "busy")
        next(iter(busy))
        queued = [market.inference.submit("a", f"queued {number}") for number in range(2)]
        waiters = [Waiter(queued[0]), Waiter(gated[1])]

        asked = time.monotonic()
        cancel(market, queued[0])
        cancel(market, gated[1])
        for waiter in waiters:
            assert waiter.cancelled().usage is None
            assert waiter.told - asked < CLOSED_WITHIN

        busy.cancel()
        assert queued[1].result(LIMIT).text
        assert gated[0].result(LIMIT).text
        assert gated[2].result(LIMIT).text
        assert "queued 0" not in market.arrivals("a")
        assert "gated 1" not in market.arrivals("gated")
        for handle in (queued[0], gated[1]):
            events.wait_for("task-revoked", handle.request_id)


@pytest.mark.parametrize("pool", POOLS)
def test_what_was_cancelled_with_no_worker_there_is_not_sent_by_a_later_one(
    start_workers, fresh_broker_url: str, pool: str
):
    with open_market(fresh_broker_url) as market:
        first, second, third = [market.inference.submit("a", f"prompt {number}") for number in range(3)]
        asked = time.monotonic()
        first.cancel()
        third.cancel()
        for handle in (first, third):
            with pytest.raises(Cancelled):
                handle.result(LIMIT)
        assert time.monotonic() - asked < CLOSED_WITHIN

        start_workers(1, "-Q", market.queues, QUICK, "-c", "2", app=APP, env=market.environment, pool=pool)

        assert second.result(LIMIT).text
        assert market.inference.submit("a", "the last").result(LIMIT).text
        assert market.arrivals("a") == ["prompt 1", "the last"]


def test_a_cancel_outlives_the_broker_and_every_worker(start_workers, private_broker):
    url = private_broker.container.url
    with open_market(url) as market:
        handles = [market.inference.submit("a", f"prompt {number}") for number in range(2)]
        handles[0].cancel()
        with pytest.raises(Cancelled):
            handles[0].result(LIMIT)
        market.inference.status(timeout=0.1)  # an answer to what was sent after it: the broker has the cancel

        private_broker.restart()
        start_workers(
            1, "-Q", market.queues, QUICK, "-c", "1", app=APP, env=market.environment, broker_url=url
        )

        market.server.wait_for(lambda s: s.requests, LIMIT)
        assert market.inference.submit("a", "the last").result(LIMIT).text
        assert market.arrivals("a") == ["prompt 1", "the last"]
