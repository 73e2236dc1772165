"""Answers as servers send them, each with its right reading and its source; the official client over the same bytes.

What a case is made of, and how to add one, says `remote_inference.testing.recordings`.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path

import pytest
from official_client import verdict

from remote_inference.config import Deployment
from remote_inference.providers import provider_named
from remote_inference.testing.recordings import Reading, Recording, read_answer

DIRECTORY = Path(__file__).parents[1] / "recordings" / "openai"
RECORDINGS = [
    pytest.param(Recording.load(path), id=path.relative_to(DIRECTORY).with_suffix("").as_posix())
    for path in sorted(DIRECTORY.rglob("*.json"))
]
ALL = [parameter.values[0] for parameter in RECORDINGS]
DEPLOYMENT = Deployment(name="d", model="m", provider="openai", endpoint="http://127.0.0.1:1/v1")


def read(recording: Recording) -> Reading:
    deployment = dataclasses.replace(DEPLOYMENT, options=recording.options)
    return read_answer(provider_named("openai"), deployment, recording)


@pytest.mark.parametrize("recording", RECORDINGS)
def test_it_is_read_as_it_should(recording: Recording) -> None:
    assert read(recording).matches(recording.expect) == []


@pytest.mark.parametrize("recording", RECORDINGS)
def test_it_says_where_it_was_seen_and_how_it_was_made(recording: Recording) -> None:
    assert recording.about
    assert re.match(r"https://\S+$", recording.source)
    assert "no server sent" in recording.made
    assert recording.expect


@pytest.mark.parametrize("recording", [r for r in RECORDINGS if r.values[0].status == 200])
def test_the_official_client_makes_of_it_what_is_noted(recording: Recording) -> None:
    assert verdict(recording, read(recording)) == recording.official


def test_the_official_client_agrees_wherever_it_can_read() -> None:
    """Where it differs, it says in what; each of those is a kind of fault that is mended here."""
    found = Counter(recording.official.partition(" ")[0] for recording in ALL if recording.official)
    assert found["same"] >= 40


def test_there_are_at_least_a_hundred_from_public_reports() -> None:
    reports = [recording for recording in ALL if "public report" in recording.made]
    assert len(reports) >= 100
    assert len({recording.source for recording in reports}) >= 80
