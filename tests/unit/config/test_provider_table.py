"""The one table of providers: built in, registered, and found in installed packages."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remote_inference import register_provider
from remote_inference.config import Deployment, provider_table
from remote_inference.config.provider_table import BUILT_IN, provider_entry
from remote_inference.errors import ConfigurationError
from remote_inference.providers import Provider, ProviderCall, provider_named
from remote_inference.providers.openai import OpenAIProvider
from remote_inference.types import InferenceRequest


class Mine(OpenAIProvider):
    """A provider of somebody's own."""

    name = "mine"
    default_endpoint = "https://mine.example/v1"
    key_variable = "MINE_KEY"


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_table, "_registered", {})


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes an installed package with entry points of our group, and a module of its own."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(package: str, code: str, **points: str) -> None:
        (tmp_path / f"{package}.py").write_text(code)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {target}\n" for name, target in points.items()]
        (info / "entry_points.txt").write_text("[remote_inference.providers]\n" + "".join(lines))

    yield make
    for module in tmp_path.glob("*.py"):
        sys.modules.pop(module.stem, None)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_row_of_the_table_leads_to_a_provider_that_accepts_its_own_options(name: str) -> None:
    entry = BUILT_IN[name]
    provider = provider_named(name)
    assert isinstance(provider, Provider)
    endpoint = {} if entry.endpoint or name == "loopback" else {"endpoint": "http://127.0.0.1:1"}
    provider.check(Deployment(name="d", model="m", provider=name, options=entry.options, **endpoint))


def test_a_registered_provider_is_used_by_its_name_with_what_its_class_says() -> None:
    register_provider("mine", Mine)
    deployment = Deployment(name="d", provider="mine")
    assert deployment.endpoint == "https://mine.example/v1"
    assert deployment.api_key is not None
    assert deployment.api_key.label == "env:MINE_KEY"
    assert isinstance(provider_named("mine"), Mine)


def test_a_provider_registered_by_its_path_is_loaded_by_workers_only() -> None:
    register_provider("far", "no_such_module:Far", endpoint="https://far.example", key_variable="FAR_KEY")
    assert Deployment(name="d", provider="far").endpoint == "https://far.example"
    with pytest.raises(ConfigurationError, match=r"cannot be loaded from no_such_module:Far: ModuleNotFound"):
        provider_named("far")


def test_without_an_endpoint_of_its_own_the_deployment_has_to_name_one() -> None:
    register_provider("bare", OpenAIProvider)
    with pytest.raises(ConfigurationError, match='endpoint: is missing: the provider "bare" has none'):
        Deployment(name="d", provider="bare")
    assert Deployment(name="d", provider="bare", endpoint="http://127.0.0.1:1").api_key is None


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_built_in_provider_cannot_be_replaced(name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be replaced"):
        register_provider(name, Mine)


def test_a_name_is_registered_once_but_the_same_may_be_said_again() -> None:
    register_provider("mine", Mine)
    register_provider("mine", Mine)
    with pytest.raises(ConfigurationError, match="registered already"):
        register_provider("mine", OpenAIProvider)


@pytest.mark.parametrize("name", ["", "Mine", "my provider", "a/b"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="a name has lower-case letters"):
        register_provider(name, Mine)


def test_what_is_no_provider_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r'must be a class, or "package\.module:Class"'):
        register_provider("mine", "no colon")
    register_provider("mine", dict, endpoint="http://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match=r"is no remote_inference\.providers\.Provider"):
        provider_named("mine")


PACKAGE = """
from remote_inference.providers.openai import OpenAIProvider
from remote_inference.types import InferenceRequest
class P(OpenAIProvider):
    default_endpoint = "http://127.0.0.1:1"
"""


def test_an_entry_point_is_found_and_only_the_configured_name_is_loaded(
    install: Callable[..., None],
) -> None:
    install("ri_good", PACKAGE, theirs="ri_good:P")
    install("ri_bad", "raise RuntimeError('imported')", other="ri_bad:P")
    deployment = Deployment(name="d", provider="theirs")
    assert deployment.endpoint == "http://127.0.0.1:1"
    assert type(provider_named("theirs")).__name__ == "P"
    assert "ri_bad" not in sys.modules


def test_an_entry_point_replaces_neither_a_built_in_nor_a_registered_one(
    install: Callable[..., None],
) -> None:
    install("ri_thief", "raise RuntimeError('imported')", openai="ri_thief:P", mine="ri_thief:P")
    register_provider("mine", Mine)
    assert provider_entry("openai") is BUILT_IN["openai"]
    assert isinstance(provider_named("mine"), Mine)
    assert "ri_thief" not in sys.modules


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('secret text')", "cannot be loaded: RuntimeError"),
        ("x = 1", "cannot be loaded: AttributeError"),
        ("P = 3", "must be a class"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_a_fault_of_the_deployment(
    install: Callable[..., None], code: str, reason: str
) -> None:
    install("ri_broken", code, broken="ri_broken:P")
    with pytest.raises(ConfigurationError, match=f'provider: the entry point "broken" {reason}'):
        Deployment(name="d", provider="broken")


def test_two_packages_that_claim_one_name_are_a_fault(install: Callable[..., None]) -> None:
    install("ri_one", PACKAGE, twice="ri_one:P")
    install("ri_two", PACKAGE, twice="ri_two:P")
    with pytest.raises(ConfigurationError, match="more than one package"):
        Deployment(name="d", provider="twice")


def test_a_name_that_nobody_knows_is_told_with_what_there_is() -> None:
    register_provider("mine", Mine)
    with pytest.raises(ConfigurationError, match='did you mean "mine"'):
        Deployment(name="d", provider="mien")


# presets


PRESETS = sorted(BUILT_IN.keys() - {"loopback"})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_needs_a_model_and_nothing_else(name: str) -> None:
    entry, deployment = BUILT_IN[name], Deployment(name="d", model="m", provider=name)
    assert deployment.endpoint == entry.endpoint
    assert (deployment.api_key.label if deployment.api_key else None) == (
        f"env:{entry.key_variable}" if entry.key_variable else None
    )
    elsewhere = Deployment(name="d", model="m", provider=name, endpoint="http://127.0.0.1:1/v1")
    assert elsewhere.api_key is None, "a key does not go to another endpoint than it is for"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_in_the_documentation_as_it_is(name: str) -> None:
    page = (Path(__file__).parents[3] / "docs" / "howto" / "providers.md").read_text()
    entry = BUILT_IN[name]
    key = f" `{entry.key_variable}` " if entry.key_variable else " "
    assert f"| `{name}` | `{entry.endpoint}` |{key}|" in page


def _call(provider: str, **options: object) -> ProviderCall:
    deployment = Deployment(name="d", model="m", provider=provider, options=options)
    return ProviderCall(
        request=InferenceRequest.parse("d", "why?", seed=7, max_tokens=5), deployment=deployment
    )


def test_a_presets_own_way_holds_unless_the_deployment_says_otherwise() -> None:
    body = json.loads(provider_named("mistral").request(_call("mistral")).body)
    assert "stream_options" not in body
    assert (body.get("seed"), body["random_seed"]) == (None, 7)
    asked = json.loads(provider_named("mistral").request(_call("mistral", include_usage=True)).body)
    assert asked["stream_options"] == {"include_usage": True}
    plain = json.loads(provider_named("openai").request(_call("openai")).body)
    assert (plain["seed"], plain["stream_options"]) == (7, {"include_usage": True})


def test_groqs_limit_of_requests_is_of_a_day() -> None:
    headers = {
        "x-ratelimit-limit-requests": "14400",
        "x-ratelimit-remaining-requests": "14370",
        "x-ratelimit-limit-tokens": "18000",
        "x-ratelimit-remaining-tokens": "17997",
    }
    for name, window in (("groq", 86_400.0), ("openai", None)):
        report = provider_named(name).head(_call(name), headers, now=0.0).quota
        assert report is not None
        assert {quota.dimension: quota.window for quota in report.quotas} == {
            "requests": window,
            "tokens": None,
        }


def test_litellm_tells_its_own_limits_and_those_of_the_provider_behind_it() -> None:
    headers = {
        "x-litellm-call-id": "c-1",
        "x-litellm-response-cost": "0.002",
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "90",
        "llm_provider-x-ratelimit-limit-requests": "50",
        "llm_provider-x-ratelimit-remaining-requests": "3",
    }
    head = provider_named("litellm").head(_call("litellm"), headers, now=0.0)
    assert (head.call_id, head.cost_usd) == ("c-1", 0.002)
    assert head.quota is not None
    assert sorted(quota.remaining or 0 for quota in head.quota.quotas) == [3, 90]
    assert head.quota.remaining() == {"requests": 3}


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"done_is_finish": 1}, "options.done_is_finish"),
        ({"finish_reasons": {"x": "tired"}}, "options.finish_reasons"),
        ({"finish_reasons": ["x"]}, "options.finish_reasons"),
        ({"rename_fields": {"model": "name"}}, "options.rename_fields"),
        ({"rename_fields": {"seed": ""}}, "options.rename_fields"),
    ],
)
def test_a_wrong_option_is_named_by_its_path(options: dict[str, object], path: str) -> None:
    deployment = Deployment(name="d", model="m", provider="vllm", options=options)
    with pytest.raises(ConfigurationError) as caught:
        provider_named("vllm").check(deployment)
    assert [fault.partition(": ")[0] for fault in caught.value.faults] == [path]


def test_what_is_installed_is_looked_for_once(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("once_package", "class Once:\n    pass\n", once="once_package:Once")
    found = provider_table.provider_entry("once")
    assert found is not None
    assert provider_table.provider_entry("nobody") is None

    def scan(**_: object) -> None:
        raise AssertionError("looked for again")

    monkeypatch.setattr("importlib.metadata.entry_points", scan)
    assert provider_table.provider_entry("once") is found
    assert provider_table.provider_entry("nobody") is None
