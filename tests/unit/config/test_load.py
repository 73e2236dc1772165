"""A configuration is read whole or refused whole, with every fault by its path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_inference.config import CapacityPolicy, Deployment, InferenceConfig, as_mapping, load_config
from remote_inference.credentials import CredentialRef, CredentialWarning, Secret
from remote_inference.errors import ConfigurationError

EXAMPLE = """
[[deployment]]
name = "gpt-4o"
model = "gpt-4o"
provider = "openai"
endpoint = "https://api.openai.com/v1"
api_key = { from_env = "OPENAI_API_KEY" }
max_concurrent = 50
queue_capacity = 1024
on_capacity_exhausted = "queue"
fallback = ["local"]
[deployment.rate_limits]
requests_per_minute = 10_000
tokens_per_minute = 10_000_000
concurrent_requests = 50
[deployment.retry]
max_retries = 3
initial_backoff = 1.0
max_backoff = 60.0
backoff_multiplier = 2.0
jitter = "equal"
respect_retry_after = true
retry_on = ["rate_limited", "server_error", "timeout", "network"]
[deployment.circuit_breaker]
failure_threshold = 10
failure_window = 60.0
open_duration = 30.0
max_open_duration = 300.0
half_open_max_probes = 1
[deployment.timeouts]
connect = 5.0
first_byte = 60.0
read = 60.0
[deployment.price]
input_usd_per_million = 2.5
output_usd_per_million = 10

[[deployment]]
name = "local"
endpoint = "http://localhost:8080/v1"
"""


def faults_of(source) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_config(source)
    return caught.value.faults


def paths(faults: list[str]) -> list[str]:
    return [fault.partition(": ")[0] for fault in faults]


def tables(*deployments) -> dict[str, object]:
    return {"deployment": list(deployments)}


def named(name: str, **fields) -> dict[str, object]:
    return {"name": name, "endpoint": "https://llm.example/v1", **fields}


@pytest.fixture
def file(tmp_path):
    def write(text: str | bytes) -> str:
        path = tmp_path / "inference.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


class TestSources:
    def test_the_example_of_the_documentation(self, file) -> None:
        config = load_config(file(EXAMPLE))
        assert list(config.deployments) == ["gpt-4o", "local"]
        gpt = config.deployments["gpt-4o"]
        assert gpt.fallback == ("local",)
        assert gpt.on_capacity_exhausted is CapacityPolicy.QUEUE
        assert gpt.rate_limits.tokens_per_minute == 10_000_000
        assert gpt.price is not None
        assert gpt.price.output_usd_per_million == 10.0

    def test_a_path_object_a_mapping_deployments_and_a_configuration(self, tmp_path) -> None:
        deployment = Deployment(name="gpt-4o")
        (tmp_path / "c.toml").write_text('[[deployment]]\nname = "gpt-4o"\n')
        expected = InferenceConfig(deployments={"gpt-4o": deployment})
        for source in (
            tmp_path / "c.toml",
            {"deployment": [{"name": "gpt-4o"}]},
            {"deployment": (deployment,)},
            [deployment],
            ({"name": "gpt-4o"},),
        ):
            assert load_config(source) == expected
        assert load_config(expected) is expected

    def test_celery_settings_hold_a_mapping_or_a_path(self, file) -> None:
        celery = pytest.importorskip("celery")
        app = celery.Celery("t", set_as_current=False)
        for value in (tables(named("a")), file('[[deployment]]\nname = "a"\nendpoint = "https://x"\n')):
            app.conf.inference = value
            assert list(load_config(app.conf.inference).deployments) == ["a"]

    @pytest.mark.parametrize(
        "source", [None, 5, b"inference.toml", {"deployment": 5}, {"deployment": "gpt-4o"}]
    )
    def test_what_is_no_configuration_is_refused(self, source) -> None:
        assert paths(faults_of(source)) == ["deployment"]

    @pytest.mark.parametrize("source", [{}, [], {"deployment": []}])
    def test_none_at_all_is_refused(self, source) -> None:
        assert faults_of(source) == ["deployment: is missing; at least one is needed"]

    def test_one_table_in_place_of_a_list_says_how_to_write_it(self, file) -> None:
        [fault] = faults_of(file('[deployment]\nname = "gpt-4o"\n'))
        assert "[[deployment]]" in fault

    def test_an_unknown_top_level_key_is_named_with_the_nearest(self) -> None:
        faults = faults_of({"deployments": [named("a")]})
        assert faults[0] == 'deployments: is not known; did you mean "deployment"?'


class TestFiles:
    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("\n\nname = \n", "line 3"),
            ('[[deployment]]\napi_key = "sk-marked\n', "line 2"),
            ('[[deployment]]\nname = "a"\nname = "b"\n', "line 3"),
            ("[[deployment]]\nx = sk-marked\n", "line 2"),
            (b"[[deployment]]\n# \xff\n", "line 2"),
        ],
    )
    def test_a_syntax_error_tells_file_and_line_and_no_value(self, file, text, line) -> None:
        path = file(text)
        [fault] = faults_of(path)
        assert fault.startswith(f"{path}: ")
        assert line in fault
        assert "marked" not in fault

    def test_a_file_that_cannot_be_read_is_a_fault(self, tmp_path) -> None:
        for path in (tmp_path / "none.toml", tmp_path):
            [fault] = faults_of(path)
            assert fault.startswith(f"{path}: cannot be read: ")

    def test_a_byte_order_mark_is_no_fault(self, file) -> None:
        text = '[[deployment]]\nname = "a"\nendpoint = "https://x"\n'
        assert load_config(file(b"\xef\xbb\xbf" + text.encode())) == load_config(file(text))

    def test_endless_nesting_is_a_fault(self, file) -> None:
        assert len(faults_of(file("x = " + "[" * 100_000))) == 1

    @pytest.mark.parametrize(
        "text",
        [
            '[[deployment]]\nname = "a"\napi_key = "sk-marked"\nqueue_capacity = 0\n',
            '[[deployment]]\nname = "a"\napi_key = { literal = "sk-marked", from_env = "A" }\n',
            '[[deployment]]\nname = "a"\napi_key = "sk-marked"\nx = \n',
        ],
    )
    def test_no_frame_of_a_failure_holds_a_literal_key(self, file, text) -> None:
        path = file(text)
        with pytest.raises(ConfigurationError) as caught:
            load_config(path)
        assert caught.value.__context__ is None
        frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)][1:]
        assert frames
        assert not any("marked" in repr(frame.f_locals) for frame in frames)


REDIS = {"redis": {"url": {"from_env": "REDIS_URL"}}}


class TestFaultsBetweenDeployments:
    def test_a_name_can_be_had_once(self) -> None:
        assert faults_of(tables(named("a"), named("b"), named("a"))) == [
            'deployment[2].name: "a" is the name of deployment[0]'
        ]

    def test_a_fallback_must_be_there(self) -> None:
        [fault] = faults_of(tables(named("gpt-large", fallback=["gpt-smal"]), named("gpt-small")))
        assert fault.startswith(
            'deployment[0].fallback[0]: no deployment is named "gpt-smal"; did you mean "gpt-small"'
        )

    def test_a_fallback_may_be_wrong_itself_without_being_unknown(self) -> None:
        faults = faults_of(tables(named("a", fallback=["b"]), named("b", queue_capacity=0)))
        assert paths(faults) == ["deployment[1].queue_capacity"]

    @pytest.mark.parametrize(
        ("fallbacks", "circles"),
        [
            ({"a": "b", "b": "a"}, [(0, "a -> b -> a")]),
            ({"a": "b", "b": "c", "c": "b"}, [(1, "b -> c -> b")]),
            ({"a": "b", "b": "c", "c": "a"}, [(0, "a -> b -> c -> a")]),
            ({"a": "b", "b": "a", "c": "d", "d": "c"}, [(0, "a -> b -> a"), (2, "c -> d -> c")]),
            ({"a": "bc", "b": "c", "c": "a"}, [(0, "a -> b -> c -> a")]),
            ({"a": "bcd", "b": "cd", "c": "d", "d": ""}, []),
        ],
    )
    def test_fallbacks_must_not_go_in_a_circle(self, fallbacks, circles) -> None:
        source = tables(*(named(name, fallback=list(to)) for name, to in fallbacks.items()))
        if not circles:
            load_config(source)
            return
        expected = [f"deployment[{index}].fallback: goes in a circle: {way}" for index, way in circles]
        assert faults_of(source) == expected

    def test_a_long_chain_of_fallbacks_is_no_circle(self) -> None:
        chain = [named(f"d{n}", fallback=[f"d{n + 1}"]) for n in range(1100)]
        assert len(load_config(tables(*chain, named("d1100"))).deployments) == 1101

    def test_one_key_has_one_limit(self) -> None:
        first = named("a", model="m", rate_limits={"requests_per_minute": 10, "tokens_per_minute": 5})
        second = named("b", model="m", rate_limits={"requests_per_minute": 20})
        [fault] = faults_of(tables(first, second))
        assert fault.startswith(
            "deployment[1].rate_limits.requests_per_minute: is 20, but 10 in deployment[0]"
        )
        load_config(tables(first, {**second, "model": "other"}))
        load_config(tables(first, {**second, "api_key": {"from_env": "OTHER"}}))
        load_config(tables(first, {**second, "rate_limits": {"requests_per_minute": 10}}))

    @pytest.mark.parametrize(
        ("field", "mine", "theirs"), [("burst", "5.0", "1.0"), ("strict", "true", "false")]
    )
    def test_one_key_is_counted_in_one_way(self, field, mine, theirs) -> None:
        first = named("a", model="m", rate_limits={"requests_per_minute": 10})
        limits = {"requests_per_minute": 10, field: json.loads(mine)}
        [fault] = faults_of(REDIS | tables(first, named("b", model="m", rate_limits=limits)))
        assert fault.startswith(
            f"deployment[1].rate_limits.{field}: is {mine}, but {theirs} in deployment[0]"
        )

    def test_limits_of_one_key_are_learned_for_all_its_deployments_or_for_none(self) -> None:
        first = named("a", model="m", rate_limits="auto")
        [fault] = faults_of(tables(first, named("b", model="m", rate_limits={"requests_per_minute": 10})))
        assert fault.startswith("deployment[1].rate_limits.learn: is false, but true in deployment[0]")
        load_config(
            tables(first, named("b", model="m", rate_limits={"requests_per_minute": 10, "learn": True}))
        )

    def test_a_deployment_without_limits_goes_by_those_of_its_key(self) -> None:
        plain = named("a", model="m")
        for limits in ("auto", {"tokens_per_minute": 10, "strict": True, "burst": 60}):
            for order in (1, -1):
                load_config(REDIS | tables(*[plain, named("b", model="m", rate_limits=limits)][::order]))

    def test_a_configuration_made_by_hand_is_checked_too(self) -> None:
        deployment = Deployment(name="gpt-4o", fallback=("other",))
        for deployments in ({"gpt-4o": deployment}, {"other": deployment}, {}):
            with pytest.raises(ConfigurationError):
                InferenceConfig(deployments=deployments)


@pytest.mark.parametrize(
    ("fields", "path", "hint"),
    [
        ({"rate_limits": {"stric": False}}, "rate_limits.stric", 'did you mean "strict"'),
        ({"budget": {"max_spend_per_hour_usd": 1.0}}, "budget", "keeps no budgets"),
        ({"api_key": {"adc": True, "from_env": "A"}}, "api_key.adc", "from_command"),
        ({"retry": {"max_retrys": 3}}, "retry.max_retrys", 'did you mean "max_retries"'),
        ({"zzz": 3}, "zzz", "known are name, model"),
        ({5: 3}, "5", "known are name, model"),
    ],
)
def test_what_is_not_known_is_refused_with_a_hint(fields, path, hint) -> None:
    [fault] = faults_of(tables({**named("a"), **fields}))
    assert fault.startswith(f"deployment[0].{path}: is not known")
    assert hint in fault


def test_a_literal_key_in_a_file_draws_a_warning(file) -> None:
    with pytest.warns(CredentialWarning, match="deployment gpt-4o") as caught:
        config = load_config(file('[[deployment]]\nname = "gpt-4o"\napi_key = "sk-marked"\n'))
    assert len(caught) == 1
    assert "marked" not in f"{config} {as_mapping(config)} {caught[0].message}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load_config(as_mapping(config)) == config
    with pytest.raises(TypeError):
        json.dumps(as_mapping(config))


def test_importing_and_reading_settings_loads_nothing_heavy() -> None:
    code = (
        # what Celery has loaded anyway does not count
        "import sys; from celery import Celery; Celery; before = set(sys.modules); "
        "from remote_inference.config import load_config; "
        "load_config({'deployment': [{'name': 'gpt-4o'}]}); "
        "print(sorted({'tomllib', 'tomli', 'hashlib', 'hmac', 'difflib', 'requests', 'asyncio'} "
        "& (sys.modules.keys() - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert done.stdout.strip() == "[]"


# Properties

names = st.from_regex(r"[a-z][a-z0-9._-]{0,8}", fullmatch=True).filter(
    lambda name: name != "control" and not name.startswith(("reply.", "dead-letter", "control."))
)
words = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
durations = st.floats(0.001, 3600, allow_nan=False) | st.integers(1, 3600)
counts = st.integers(1, 10**6)
values = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


def table(**optional):
    return st.fixed_dictionaries({}, optional=optional)


def ordered(low: str, high: str):
    """Puts the two durations in order."""

    def sort(given: dict[str, object]) -> dict[str, object]:
        if low in given and high in given:
            given[low], given[high] = sorted((given[low], given[high]))
        else:
            given.pop(low, None)
            given.pop(high, None)
        return given

    return sort


keys = st.one_of(
    st.fixed_dictionaries({"from_env": st.from_regex(r"[A-Z_]{1,10}", fullmatch=True)}),
    st.fixed_dictionaries({"from_file": words}, optional={"lifetime": durations}),
    st.fixed_dictionaries(
        {"from_command": st.lists(words, min_size=1, max_size=3)},
        optional={"timeout": durations, "lifetime": durations},
    ),
    st.fixed_dictionaries({"from_callable": st.just("shop.vault:key")}),
)
ceilings = st.fixed_dictionaries({"requests_per_minute": counts}, optional={"tokens_per_minute": counts})
limits = st.one_of(
    st.just({}),
    st.just("auto"),
    table(learn=st.just(True), requests_per_minute=counts, concurrent_requests=st.just(10**6)),
    st.tuples(ceilings, table(strict=st.just(False), burst=st.floats(0.001, 60))).map(
        lambda pair: {**pair[0], **pair[1]}
    ),
)
bodies = st.fixed_dictionaries(
    {"endpoint": st.sampled_from(["https://llm.example/v1", "https://10.0.0.1:8443", "https://[::1]/"])},
    optional={
        "model": words,
        "provider": st.just("openai"),
        "api_key": keys,
        "max_concurrent": counts,
        "queue_capacity": counts,
        "on_capacity_exhausted": st.sampled_from(["queue", "reject"]),
        "admission_timeout": durations,
        "max_request_bytes": st.integers(1024, 2**27),
        "rate_limits": limits,
        "retry": table(
            max_retries=st.integers(0, 10),
            initial_backoff=durations,
            max_backoff=durations,
            backoff_multiplier=st.floats(1, 10),
            jitter=st.sampled_from(["none", "full", "equal"]),
            respect_retry_after=st.booleans(),
            retry_on=st.lists(
                st.sampled_from(["rate_limited", "server_error", "timeout", "network"]), unique=True
            ),
        ).map(ordered("initial_backoff", "max_backoff")),
        "circuit_breaker": table(
            failure_threshold=counts,
            failure_window=durations,
            open_duration=durations,
            max_open_duration=durations,
            half_open_max_probes=st.integers(1, 100),
        ).map(ordered("open_duration", "max_open_duration")),
        "timeouts": table(connect=durations, first_byte=durations, read=durations),
        "price": st.fixed_dictionaries(
            {"input_usd_per_million": st.floats(0, 100), "output_usd_per_million": st.integers(0, 100)},
            optional={"cached_input_usd_per_million": st.floats(0, 100)},
        ),
        "headers": st.dictionaries(st.sampled_from(["X-Team", "OpenAI-Project", "X-B"]), words, max_size=2),
        "extra_body": st.dictionaries(words.map("x_{}".format), values, max_size=2),
        "ca_file": words,
        "stream": st.booleans(),
        "idempotent": st.booleans(),
    },
)


@st.composite
def configurations(draw) -> dict[str, list[dict[str, object]]]:
    chosen = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    deployments = []
    for index, name in enumerate(chosen):
        body = draw(bodies)
        later = chosen[index + 1 :]
        if later:
            body["fallback"] = draw(st.lists(st.sampled_from(later), unique=True))
        body["model"] = (
            f"{body.get('model', '')}{index}"  # or two could share a key and contradict each other
        )
        deployments.append({"name": name, **body})
    return {"deployment": deployments}


def as_toml(value: object) -> str:
    """TOML's inline form. JSON's strings, numbers and words are TOML's too."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value)


@given(configurations())
@settings(deadline=None, max_examples=60)
def test_a_right_configuration_round_trips(tmp_path_factory, source) -> None:
    config = load_config(source)
    assert [d.name for d in config.deployments.values()] == [table["name"] for table in source["deployment"]]
    plain = as_mapping(config)
    assert load_config(plain) == config
    path = tmp_path_factory.mktemp("config") / "inference.toml"
    for tables_ in (source, plain):
        path.write_text(f"deployment = {as_toml(tables_['deployment'])}\n")
        assert load_config(path) == config


WRONG = {
    "model": [5, "\n"],
    "provider": ["nobody", 5],
    "endpoint": ["x", 5, "https://a:b@c"],
    "api_key": [5, [], True],
    "api_key.from_env": ["", 5],
    "max_concurrent": [0, -1, 1.5, "1", True],
    "queue_capacity": [0, -1, None, "1", 2**60],
    "on_capacity_exhausted": ["no", 5, None],
    "admission_timeout": [0, -1, "5", float("nan"), None, True],
    "fallback": ["x", 5, [5], None],
    "fallback_on_context_length": [1, None],
    "max_request_bytes": [0, 2**40],
    "rate_limits": [5, "always", []],
    "rate_limits.requests_per_minute": [0, -1, 1.0],
    "rate_limits.concurrent_requests": [0],
    "rate_limits.burst": [0, -1, 60.5, float("nan"), "1", True],
    "rate_limits.strict": [1, "yes"],
    "rate_limits.learn": [0, "yes"],
    "retry": [5, None],
    "retry.max_retries": [-1, 0.5, None],
    "retry.jitter": ["sometimes", None],
    "retry.backoff_multiplier": [0, float("inf")],
    "circuit_breaker.failure_threshold": [0],
    "circuit_breaker.failure_window": [-1.0],
    "timeouts.connect": [0],
    "timeouts.read": [float("inf"), "1s"],
    "price": [1.0],
    "price.input_usd_per_million": [-1.0, "free"],
    "headers": [5, []],
    "headers.Authorization": ["Bearer x"],
    "extra_body": [5],
    "extra_body.model": ["other"],
    "ca_file": [5, ""],
    "stream": [1, None],
    "idempotent": [0, "yes"],
    "options": [5, []],
    "unknown": [1],
    "retry.unknown": [1],
}


@st.composite
def broken(draw) -> tuple[dict[str, list[dict[str, object]]], set[str]]:
    """A right configuration with some fields broken, and the paths of those."""
    source = draw(configurations())
    places = draw(
        st.lists(
            st.tuples(st.integers(0, len(source["deployment"]) - 1), st.sampled_from(sorted(WRONG))),
            min_size=1,
            max_size=6,
            unique_by=lambda place: (place[0], place[1].partition(".")[0]),
        )
    )
    expected = set()
    for index, path in places:
        deployment, value = source["deployment"][index], draw(st.sampled_from(WRONG[path]))
        outer, _, inner = path.partition(".")
        if inner == "from_env":
            deployment["api_key"] = {"from_env": value}
        elif inner:
            if deployment.get(outer) == "auto":
                deployment[outer] = {"learn": True}
            deployment[outer] = {**deployment.get(outer, {}), inner: value}
        else:
            deployment[outer] = value
        if path == "price.input_usd_per_million":
            deployment["price"].setdefault("output_usd_per_million", 1.0)
        expected.add(f"deployment[{index}].{path}")
    return source, expected


@given(broken())
@settings(deadline=None, max_examples=200)
def test_each_broken_field_is_named_and_nothing_else_is(given_) -> None:
    source, expected = given_
    assert set(paths(faults_of(source))) == expected


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.text(max_size=5)
                | st.sampled_from(
                    ["deployment", "name", "api_key", "retry", "endpoint", "fallback", "headers"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ).filter(lambda value: not isinstance(value, str))
)
@settings(deadline=None, max_examples=200)
@pytest.mark.filterwarnings("ignore::remote_inference.credentials.CredentialWarning")
def test_whatever_is_given_the_answer_is_a_configuration_or_its_faults(source) -> None:
    try:
        found = list(load_config(source).deployments)
    except ConfigurationError as exc:
        found = [fault for fault in exc.faults if ": " in fault]
    assert found


def test_keys_of_all_kinds_are_read(file) -> None:
    config = load_config(
        file("""
deployment = [
  { name = "a", endpoint = "https://x", api_key = { from_file = "/run/key", lifetime = 60 } },
  { name = "b", endpoint = "https://x", api_key = { from_command = ["pass", "k"], timeout = 2 } },
  { name = "c", endpoint = "https://x", api_key = { from_callable = "shop.vault:key" } },
  { name = "d", endpoint = "https://x" },
]
""")
    )
    assert [d.api_key for d in config.deployments.values()] == [
        CredentialRef(from_file="/run/key", lifetime=60.0),
        CredentialRef(from_command=("pass", "k"), timeout=2.0),
        CredentialRef(from_callable="shop.vault:key"),
        None,
    ]


def test_a_function_in_python_is_a_source() -> None:
    def fetch() -> Secret:
        return Secret("k")

    config = load_config([Deployment(name="gpt-4o", api_key=fetch)])  # type: ignore[arg-type]
    assert config.deployments["gpt-4o"].api_key == CredentialRef(from_callable=fetch)
