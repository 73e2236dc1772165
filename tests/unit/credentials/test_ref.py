"""A CredentialRef names one source, and its label names it without the value."""

from __future__ import annotations

import functools
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from remote_inference.credentials import CredentialRef, Secret
from remote_inference.errors import ConfigurationError


def fetch_key() -> str:
    return "sk-x"


@pytest.mark.parametrize(
    ("fields", "kind", "label"),
    [
        ({"from_env": "OPENAI_API_KEY"}, "env", "env:OPENAI_API_KEY"),
        ({"from_file": Path("/run/secrets/key")}, "file", "file:/run/secrets/key"),
        ({"from_callable": "shop.vault:client.key"}, "callable", "callable:shop.vault:client.key"),
        ({"from_callable": fetch_key}, "callable", f"callable:{__name__}:fetch_key"),
        ({"from_callable": functools.partial(fetch_key)}, "callable", "callable:functools:partial"),
    ],
)
def test_the_label_names_the_source(fields, kind, label) -> None:
    ref = CredentialRef(**fields)
    assert (ref.kind, ref.label) == (kind, label)
    assert label in repr(ref)


def test_labels_of_literals_and_commands_hide_them_and_tell_them_apart() -> None:
    refs = [CredentialRef(literal=Secret(f"sk-marked-{n}")) for n in "ab"]
    refs += [CredentialRef(from_command=("/usr/bin/vault", "--token", f"marked-{n}")) for n in "ab"]
    labels = [ref.label for ref in refs]
    assert len(set(labels)) == 4
    assert [label.partition(":")[0] for label in labels] == ["literal", "literal", "command", "command"]
    assert labels[2].startswith("command:vault#")
    assert not any(
        "marked" in label or "marked" in repr(ref) for label, ref in zip(labels, refs, strict=True)
    )


def test_a_label_is_the_same_in_another_process() -> None:
    code = "from remote_inference.credentials import *; print(CredentialRef(literal=Secret('sk-one')).label)"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert shown == CredentialRef(literal=Secret("sk-one")).label


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "from_env"),
        ({"from_env": "A", "from_file": "b"}, "from_file"),
        ({"from_env": ""}, "from_env"),
        ({"from_env": "A=B"}, "from_env"),
        ({"from_env": 1}, "from_env"),
        ({"from_file": ""}, "from_file"),
        ({"from_file": "a\0b"}, "from_file"),
        ({"from_command": "pass show key"}, "from_command"),
        ({"from_command": ()}, "from_command"),
        ({"from_command": ("", "x")}, "from_command"),
        ({"from_command": ("pass", 1)}, "from_command"),
        ({"from_callable": "os.system"}, "from_callable"),
        ({"from_callable": "os:system('x')"}, "from_callable"),
        ({"from_callable": 1}, "from_callable"),
        ({"literal": ""}, "literal"),
        ({"literal": "two\nlines"}, "literal"),
        ({"literal": "schlüssel"}, "literal"),
        ({"literal": 5}, "literal"),
        ({"from_command": ("a",), "timeout": 0}, "timeout"),
        ({"from_command": ("a",), "timeout": True}, "timeout"),
        ({"from_command": ("a",), "timeout": float("nan")}, "timeout"),
        ({"from_env": "A", "timeout": 1.0}, "timeout"),
        ({"from_env": "A", "lifetime": 1.0}, "lifetime"),
        ({"from_file": "a", "lifetime": -1.0}, "lifetime"),
    ],
)
def test_a_wrong_reference_is_refused_by_field(fields, path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        CredentialRef(**fields)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [path]


def test_all_faults_are_told_and_no_value_is() -> None:
    with pytest.raises(ConfigurationError) as caught:
        CredentialRef(literal="sk-marked\n\n", from_env="marked=x", timeout=-1.0)
    assert len(caught.value.faults) == 4
    assert "marked" not in str(caught.value)


def test_durations_may_be_timedeltas() -> None:
    ref = CredentialRef(from_command=["a"], timeout=timedelta(seconds=3), lifetime=timedelta(hours=1))
    assert (ref.from_command, ref.timeout, ref.lifetime) == (("a",), 3.0, 3600.0)
