"""Our providers under the contract that users put theirs under."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote_inference.config import Deployment
from remote_inference.config.provider_table import BUILT_IN
from remote_inference.providers import provider_named
from remote_inference.testing.providers import ProviderContract
from remote_inference.testing.recordings import Recording

RECORDINGS = Path(__file__).parents[1] / "recordings"


class TestOpenAI(ProviderContract):
    provider = provider_named("openai")
    deployment = Deployment(name="d", model="m", provider="openai", endpoint="http://127.0.0.1:1/v1")
    recordings = Recording.load_all(RECORDINGS / "openai")


class TestLoopback(ProviderContract):
    provider = provider_named("loopback")
    deployment = Deployment(name="d", provider="loopback")
    recordings = Recording.load_all(RECORDINGS / "loopback")
    takes_key = False


def test_every_provider_is_under_the_contract() -> None:
    under = {contract.provider.name for contract in (TestOpenAI, TestLoopback)}
    assert {provider_named(name).name for name in BUILT_IN} == under


class TestTheContractItself:
    """A contract that cannot fail promises nothing."""

    def test_a_wrong_reading_is_found(self) -> None:
        [good] = [r for r in TestLoopback.recordings if r.name == "answer"]

        class Wrong(ProviderContract):
            provider = TestLoopback.provider
            deployment = TestLoopback.deployment
            recordings = [Recording(name="wrong", body=good.body, expect={"text": "something else"})]
            takes_key = False

        with pytest.raises(AssertionError, match="something else"):
            Wrong().test_every_recording_is_read_as_it_should()

    def test_a_key_in_the_wrong_place_is_found(self) -> None:
        class Open(ProviderContract):
            provider = TestLoopback.provider
            deployment = TestLoopback.deployment
            recordings = TestLoopback.recordings
            takes_key = True  # but it sends none

        with pytest.raises(AssertionError):
            Open().test_the_key_goes_into_a_header_and_the_prompt_into_the_body_and_nowhere_else()
