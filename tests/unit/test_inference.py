"""`Inference`: where its settings come from, what it does not do before it is asked, and two in one process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from remote_inference import Deployment, Inference, Priority, credentials_changed
from remote_inference.config import load_config
from remote_inference.errors import Backpressure, ConfigurationError, InvalidRequest
from remote_inference.messaging.names import CONTROL_QUEUE, INFER_TASK, REBUILD_TASK
from remote_inference.types import InferenceRequest

NOBODY = "amqp://guest:guest@127.0.0.1:1//"  # nothing listens on port 1
LOOP = {"name": "loop", "provider": "loopback", "options": {"text": "hello there"}}
TOML = """
[[deployment]]
name = "loop"
provider = "loopback"
options = { text = "hello there" }
"""


@pytest.fixture
def make() -> Iterator[Callable[..., Inference]]:
    """Makes an app with an `Inference`, and closes it afterwards."""
    made: list[Inference] = []

    def inference(broker: str = NOBODY, **options: Any) -> Inference:
        conf = options.pop("conf", {})
        app = Celery("shop", broker=broker, set_as_current=False)
        app.conf.update(conf)
        made.append(Inference(app, **options))
        return made[-1]

    yield inference
    for one in made:
        one.close()


def in_process(name: str) -> str:
    """A broker of this process's own; ``name`` tells it from other tests'."""
    return f"embedded://test-inference-{name}"


class TestSources:
    def sources(self, tmp_path: Any) -> list[dict[str, Any]]:
        file = tmp_path / "inference.toml"
        file.write_text(TOML)
        config = {"deployment": [LOOP]}
        return [
            {"config": file},
            {"config": str(file)},
            {"config": config},
            {"config": load_config(config)},
            {"deployments": [Deployment(**LOOP)]},
            {"conf": {"inference": config}},
            {"conf": {"inference": str(file)}},
        ]

    def test_all_say_the_same(self, make, tmp_path):
        found = [make(**source).config for source in self.sources(tmp_path)]
        assert found == [found[0]] * 7
        assert list(found[0].deployments) == ["loop"]

    def test_the_apps_settings_may_come_later(self, make):
        inference = make()
        inference.app.conf.inference = {"deployment": [LOOP]}
        assert "loop" in inference.config.deployments

    def test_without_any_it_says_where_they_go_when_they_are_needed(self, make):
        inference = make()
        assert "not configured yet" in repr(inference)
        with pytest.raises(ConfigurationError, match=r"app\.conf\.inference"):
            inference.submit("loop", "hi")

    def test_two_at_once_are_refused(self, make):
        with pytest.raises(ConfigurationError, match="not both"):
            make(config={"deployment": [LOOP]}, deployments=[Deployment(**LOOP)])

    def test_every_fault_is_told_at_once(self, make):
        broken = [{**LOOP, "queue_capacity": 0}, {**LOOP, "name": "b", "max_concurrent": "x"}]
        with pytest.raises(ConfigurationError) as caught:
            make(config={"deployment": broken})
        assert [fault.partition(":")[0] for fault in caught.value.faults] == [
            "deployment[0].queue_capacity",
            "deployment[1].max_concurrent",
        ]


class TestLazy:
    def test_making_one_connects_to_nothing_and_starts_no_thread(self, make):
        before = threading.active_count()
        inference = make(config={"deployment": [LOOP]})
        assert threading.active_count() == before
        assert repr(inference) == "Inference('shop': loop)"

    def test_its_tasks_and_queues_are_the_apps(self, make):
        inference = make(config={"deployment": [LOOP]})
        assert inference.app.tasks[INFER_TASK] is inference.infer
        assert REBUILD_TASK in inference.app.tasks
        assert {"inference.loop", CONTROL_QUEUE} <= set(inference.app.amqp.queues)

    def test_closing_one_that_did_nothing_is_nothing(self, make):
        make(config={"deployment": [LOOP]}).close()

    @pytest.mark.parametrize(
        ("field", "call"),
        [
            ("deployment", lambda inference: inference.submit("other", "hi")),
            ("messages", lambda inference: inference.submit("loop")),
            ("temperature", lambda inference: inference.submit("loop", "hi", temperature=9)),
            ("priority", lambda inference: inference.submit("loop", "hi", priority="urgent")),
            ("deadline", lambda inference: inference.submit("loop", "hi", deadline=-1)),
            ("on_restart", lambda inference: inference.submit("loop", "hi", on_restart="ignore")),
            ("on_disconnect", lambda inference: inference.submit("loop", "hi", on_disconnect="ignore")),
            (
                "messages",
                lambda inference: inference.submit(InferenceRequest.parse("loop", "hi"), "hi"),
            ),
            ("requests[1].messages", lambda inference: inference.submit_many("loop", ["hi", ""])),
            ("deployment", lambda inference: inference.infer.delay("other", "hi")),
            ("deployment", lambda inference: inference.infer.apply_async(kwargs={"messages": "hi"})),
            ("args", lambda inference: inference.infer.delay("loop", "hi", 3)),
            ("deployment", lambda inference: inference.rebuild_session("other")),
        ],
    )
    def test_a_wrong_request_is_refused_without_a_broker(self, make, field, call):
        inference = make(config={"deployment": [LOOP]})
        with pytest.raises(InvalidRequest) as caught:
            call(inference)
        assert caught.value.field == field

    def test_a_broker_that_is_not_there_is_backpressure(self, make):
        inference = make(config={"deployment": [{**LOOP, "admission_timeout": 0.2}]})
        with pytest.raises(Backpressure) as caught:
            inference.submit("loop", "hi")
        assert (caught.value.deployment, caught.value.reason) == ("loop", "broker_down")


class TestWithoutAWorker:
    def test_a_request_waits_in_its_queue(self, make):
        inference = make(in_process("waits"), config={"deployment": [LOOP]})
        handle = inference.submit("loop", "hi", priority=Priority.HIGH)
        assert not handle.done
        assert handle.deployment == "loop"
        assert inference.status(timeout=0.05)["loop"].queued == 1
        assert inference.workers(timeout=0.05) == {}

    def test_many_wait_in_their_order_and_asyncio_goes_on_meanwhile(self, make):
        inference = make(in_process("many"), config={"deployment": [LOOP]})
        handles = inference.submit_many("loop", ["a", [{"role": "user", "content": "b"}]])
        handles.append(asyncio.run(inference.asubmit("loop", "c")))
        assert len({handle.request_id for handle in handles}) == 3
        assert inference.status(timeout=0.05)["loop"].queued == 3
        assert inference.submit_many("loop", []) == []

    def test_called_directly_it_runs_here(self, make):
        inference = make(config={"deployment": [LOOP]})
        assert inference.infer("loop", "hi").text == "hello there"
        assert (
            inference.infer.apply(kwargs={"deployment": "loop", "messages": "hi"}).get().text == "hello there"
        )

    def test_an_eager_app_runs_it_here_too(self, make):
        inference = make(config={"deployment": [LOOP]}, conf={"task_always_eager": True})
        assert inference.infer.delay("loop", "hi").get().text == "hello there"


class TestTwoInOneProcess:
    def test_each_has_its_own_deployments_broker_and_tasks(self, make):
        one = make(in_process("one"), config={"deployment": [LOOP]})
        two = make(in_process("two"), config={"deployment": [{**LOOP, "name": "other"}]})
        assert one.infer is not two.infer
        assert (one.infer.app, two.infer.app) == (one.app, two.app)
        one.submit("loop", "hi")
        two.submit("other", "hi")
        assert one.status(timeout=0.05)["loop"].queued == 1
        assert two.status(timeout=0.05)["other"].queued == 1
        with pytest.raises(InvalidRequest):
            two.submit("loop", "hi")

    def test_a_changed_credential_is_told_to_the_one_that_has_the_deployment(self, make, caplog):
        one = make(in_process("signal-one"), config={"deployment": [LOOP]})
        two = make(in_process("signal-two"), config={"deployment": [{**LOOP, "name": "other"}]})
        answers = credentials_changed.send(sender=None, deployment="loop")
        ours = [result for receiver, result in answers if receiver in (one._on_credentials_changed,)]
        assert not [result for _, result in answers if isinstance(result, Exception)]
        assert ours == [None]
        assert one._process is not None, "the order was sent"
        one.close()
        credentials_changed.send(sender=None, deployment="loop")
        assert one._process is None, "one that was closed hears nothing"
        assert two._process is None
        assert caplog.text == ""
