"""Names of queues: a deployment's queue can be told from all others of ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_inference.config import Deployment
from remote_inference.errors import ConfigurationError
from remote_inference.messaging import names
from remote_inference.messaging.names import chunk_queue, deployment_of, inference_queue, is_inference_queue

CLIENT = "0123456789abcdef"
OURS = [
    names.CONTROL_QUEUE,
    names.DEAD_LETTER_QUEUE,
    names.CANCELLED_QUEUE,
    f"{names.CANCELLED_QUEUE}.reader",
    f"{names.BUS_EXCHANGE}.{CLIENT}",
    f"{names.GOSSIP_EXCHANGE}.{CLIENT}",
    names.reply_queue(CLIENT),
    chunk_queue(CLIENT),
    names.probe_queue(CLIENT, 0),
    names.ledger_queue(CLIENT),
    names.marks_queue("01234567-89ab-cdef-0123-456789abcdef"),
]


@pytest.mark.parametrize("queue", OURS)
def test_no_queue_of_the_librarys_own_is_an_inference_queue(queue):
    assert not is_inference_queue(queue)


@pytest.mark.parametrize("queue", OURS)
def test_no_deployment_can_take_the_name_of_one(queue):
    with pytest.raises(ConfigurationError, match="name: is taken"):
        Deployment(name=deployment_of(queue), provider="loopback")


@pytest.mark.parametrize("queue", ["celery", "", "inference.", "inference", "inferences.gpt"])
def test_queues_of_others_are_none(queue):
    assert not is_inference_queue(queue)


@given(
    st.sampled_from(
        [
            "",
            "control",
            "cancelled",
            "bus",
            "gossip",
            "reply",
            "marks",
            "probe",
            "ledger",
            "dead-letter",
            "gpt",
        ]
    ),
    st.text("ab-_.1", max_size=5),
)
def test_every_name_that_a_deployment_can_have_makes_an_inference_queue(beginning, end):
    try:
        deployment = Deployment(name=beginning + end, provider="loopback")
    except ConfigurationError:
        return
    assert deployment.queue == inference_queue(deployment.name)
    assert is_inference_queue(deployment.queue)
    assert deployment_of(deployment.queue) == deployment.name
