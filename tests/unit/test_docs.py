"""The documentation mentions all that there is, and its configurations and code can be read."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from types import ModuleType

import click
import docs_pages
import pytest
from celery.worker.control import Panel

import remote_inference
from remote_inference import errors, events
from remote_inference.cli.main import COMMANDS, cli
from remote_inference.cluster.crdt import CrdtMap
from remote_inference.cluster.limits.demand import PeerDemand
from remote_inference.cluster.limits.ledger import Ledger, digest_of
from remote_inference.cluster.membership.message import decode, encode
from remote_inference.config import (
    BreakerPolicy,
    Deployment,
    GossipSettings,
    Price,
    RateLimits,
    RedisSettings,
    RetryPolicy,
    Timeouts,
    load_config,
)
from remote_inference.credentials import CredentialRef
from remote_inference.errors import InferenceError
from remote_inference.events import Event
from remote_inference.messaging import names
from remote_inference.messaging.delivery_marks import Mark
from remote_inference.messaging.wire import Command, decode_replies
from remote_inference.providers import provider_named
from remote_inference.types import InferenceRequest
from remote_inference.worker.control import install_commands

DOCS = docs_pages.ROOT / "docs"
TABLES = (
    Deployment,
    CredentialRef,
    RateLimits,
    RedisSettings,
    GossipSettings,
    RetryPolicy,
    BreakerPolicy,
    Timeouts,
    Price,
)


def page(name: str) -> str:
    return (DOCS / name).read_text()


def all_blocks(language: str) -> list[object]:
    return [
        pytest.param(block, id=f"{path.relative_to(docs_pages.ROOT).as_posix()}:{block.line}")
        for path in docs_pages.PAGES
        for block in docs_pages.blocks(path)
        if block.language == language
    ]


def config_fields() -> ModuleType:
    spec = importlib.util.spec_from_file_location("config_fields", DOCS / "_ext" / "config_fields.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_of_the_configuration_is_in_the_reference() -> None:
    text = page("reference/configuration.md")

    missing = [
        cls.__name__ for cls in TABLES if f"{{config-table}} {cls.__module__.rsplit('.', 1)[0]}" not in text
    ]
    named = [cls.__name__ for cls in TABLES if f".{cls.__name__}\n" not in text]

    assert (missing, named) == ([], [])


def test_no_table_of_the_configuration_is_forgotten_here() -> None:
    nested = {
        type(getattr(Deployment(name="gpt-4o"), field.name))
        for field in dataclasses.fields(Deployment)
        if dataclasses.is_dataclass(getattr(Deployment(name="gpt-4o"), field.name))
    }

    assert nested <= set(TABLES)


@pytest.mark.parametrize("cls", TABLES, ids=lambda cls: cls.__name__)
def test_every_field_of_the_configuration_is_described_with_its_default(cls: type) -> None:
    rows = config_fields().rows(cls)

    assert [row.name for row in rows] == [field.name for field in dataclasses.fields(cls)]
    assert all(len(row.text) > 5 for row in rows)


def test_a_field_without_a_description_stops_the_build() -> None:
    @dataclasses.dataclass
    class Table:
        """A table.

        Attributes:
            known: described.
        """

        known: int = 1
        forgotten: int = 2

    with pytest.raises(LookupError, match="forgotten"):
        config_fields().rows(Table)


@pytest.mark.parametrize("name", ["loopback", "openai"])
def test_every_option_of_a_provider_is_in_the_reference(name: str) -> None:
    text = page("reference/configuration.md")
    deployment = Deployment(name="gpt-4o", provider=name, options={"no_such": 1})
    with pytest.raises(errors.ConfigurationError) as refused:
        provider_named(name).check(deployment)

    options = refused.value.faults[0].partition("they are ")[2].split(", ")

    assert len(options) >= 3
    assert [option for option in options if f"| `{option}` |" not in text] == []


def test_every_control_command_is_documented() -> None:
    before = set(Panel.meta)
    install_commands()

    ours = {
        name
        for name, info in Panel.meta.items()
        if name not in before or name in ("rebuild_session", "inference_status")
    }

    assert ours >= {"rebuild_session", "inference_status"}
    assert [name for name in ours if f" {name}" not in page("howto/events.md")] == []


def test_every_command_and_option_of_the_command_line_is_documented() -> None:
    text = page("howto/command-line.md")
    context = click.Context(cli)
    missing = []
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        if f"\n## `{name}`\n" not in text:
            missing.append(name)
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                missing += [
                    f"{name} {option}"
                    for option in (*parameter.opts, *parameter.secondary_opts)
                    if option not in text
                ]

    assert missing == []


def test_every_event_is_documented() -> None:
    names = [name for name in events.__all__ if name not in ("Event", "Hook", "Hooks")]

    assert all(issubclass(getattr(events, name), Event) for name in names)
    assert [name for name in names if f"| `{name}` |" not in page("howto/events.md")] == []


def test_every_error_is_documented() -> None:
    names = {
        name
        for name in errors.__all__
        if isinstance(getattr(errors, name), type)
        and issubclass(getattr(errors, name), InferenceError)
        and name not in ("InferenceError", "RequestError")
    }

    assert [name for name in sorted(names) if f"| `{name}` |" not in page("errors.md")] == []


def test_every_reason_of_backpressure_is_documented() -> None:
    text = page("howto/priorities.md")
    reasons = ("queue_full", "class_full", "broker_blocked", "broker_down", "no_queue")

    assert all(reason in (errors.Backpressure.__doc__ or "") for reason in reasons)
    assert [reason for reason in reasons if f"| `{reason}` |" not in text] == []


def test_every_public_name_is_in_the_reference() -> None:
    reference = "".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    whole = {f"remote_inference.types.{name}" for name in ("answer", "metrics", "request")}
    whole |= {"remote_inference.errors", "remote_inference.events"}

    missing = [
        name
        for name in remote_inference.__all__
        if getattr(getattr(remote_inference, name), "__module__", "") not in whole
        and f" {name}\n" not in reference
    ]

    assert all(f".. automodule:: {module}\n" in reference for module in whole)
    assert missing == []


@pytest.mark.parametrize("block", all_blocks("toml"))
def test_every_configuration_in_the_documentation_can_be_loaded(block: docs_pages.Block) -> None:
    code = block.code if "[[deployment]]" in block.code else f'[[deployment]]\nname = "gpt-4o"\n{block.code}'
    tables = _loads(code)

    assert load_config(tables).deployments


@pytest.mark.parametrize("block", all_blocks("python"))
def test_every_python_example_compiles(block: docs_pages.Block) -> None:
    compile(block.code, "page", "exec")


@pytest.mark.parametrize("block", all_blocks("json"))
def test_every_json_example_is_json(block: docs_pages.Block) -> None:
    json.loads(block.code)


def test_the_examples_of_the_wire_are_what_is_on_the_wire() -> None:
    read = {"request": 0, "order": 0, "reply": 0, "gossip": 0, "ledger": 0, "mark": 0}
    for block in docs_pages.blocks(DOCS / "wire.md"):
        if block.language != "json":
            continue
        example = json.loads(block.code)
        if "messages" in example:
            assert InferenceRequest.parse(**example).to_wire() == example
            read["request"] += 1
        elif "kind" in example:
            assert json.loads(Command.decode(block.code).encode()) == example
            read["order"] += 1
        elif "k" in example:
            head, entries, _ = decode(encode({k: v for k, v in example.items() if k != "e"}, example["e"]))
            assert head["i"] == example["i"]
            state = CrdtMap()
            assert state.merge(entries) == [tuple(entry[1]) for entry in example["e"]]
            [demand] = [entry.value for path, entry in state.entries.items() if path[0] == "demand"]  # type: ignore[attr-defined]
            assert [PeerDemand(value).held for value in demand.values()] == [285]
            read["gossip"] += 1
        elif "books" in example:
            ledger = Ledger.decode(digest_of(block.code.encode()) + block.code.encode())
            assert json.loads(ledger.encode()[16:]) == example
            read["ledger"] += 1
        elif "run" in example:
            assert json.loads(Mark.decode(block.code).encode()) == example
            read["mark"] += 1
        else:
            replies = [json.loads(reply.encode()) for reply in decode_replies(block.code)]
            assert replies == (example if isinstance(example, list) else [example])
            read["reply"] += 1

    assert read == {"request": 1, "order": 1, "reply": 3, "gossip": 1, "ledger": 1, "mark": 1}


def test_every_name_in_the_broker_is_on_the_page_of_the_wire() -> None:
    text = page("wire.md")
    fixed = {getattr(names, name) for name in names.__all__ if isinstance(getattr(names, name), str)}
    made = {
        names.inference_queue("<deployment>"),
        names.reply_queue("<client>"),
        names.chunk_queue("<client>"),
        names.marks_queue("<request id>"),
    }

    assert [name for name in sorted(fixed | made) if f"`{name}`" not in text] == []


def _loads(code: str) -> dict[str, object]:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    return tomllib.loads(code)
