"""The error tree: every error survives whatever it is sent through, and tells no secret."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re
from dataclasses import fields
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from remote_inference import errors
from remote_inference.errors import InferenceError, RequestError, error_from_wire, error_to_wire

CLASSES = [cls for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, InferenceError)]

_SAMPLES: dict[str, Any] = {
    "list[str]": ["a.b: is wrong", "c: is missing"],
    "str": "some_word",
    "int": 3,
    "float": 2.5,
    "float | None": 1.5,
    "bool": True,
    "dict[str, Any] | None": {"prompt_tokens": 5},
}


def sample(cls: type[InferenceError]) -> InferenceError:
    """One with every field set to something other than its default."""
    return cls(*(_SAMPLES[str(f.type)] for f in fields(cls)))


def same(one: BaseException, other: BaseException) -> bool:
    return type(one) is type(other) and one.args == other.args and vars(one) == vars(other)


def minimal(cls: type[InferenceError]) -> InferenceError:
    needed = [f for f in fields(cls) if f.default is f.default_factory]  # both MISSING
    return cls(*(_SAMPLES[str(f.type)] for f in needed))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("make", [sample, minimal])
class TestEveryError:
    def test_its_fields_are_its_args(self, cls, make):
        error = make(cls)
        assert error.args == tuple(getattr(error, f.name) for f in fields(cls))

    def test_is_rebuilt_from_its_args(self, cls, make):
        error = make(cls)
        assert same(cls(*error.args), error)

    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_survives_pickle(self, cls, make, protocol):
        error = make(cls)
        assert same(pickle.loads(pickle.dumps(error, protocol)), error)

    def test_survives_copying(self, cls, make):
        error = make(cls)
        assert same(copy.copy(error), error)
        assert same(copy.deepcopy(error), error)

    def test_survives_our_wire_format(self, cls, make):
        error = make(cls)
        assert same(error_from_wire(json.loads(json.dumps(error_to_wire(error)))), error)

    def test_survives_a_result_backend(self, cls, make):
        app = Celery("t", backend="cache+memory://", set_as_current=False)
        error = make(cls)
        stored = json.loads(json.dumps(app.backend.prepare_exception(error, "json")))
        assert same(app.backend.exception_to_python(stored), error)

    def test_says_something_in_one_piece(self, cls, make):
        error = make(cls)
        assert str(error).strip()
        assert type(error).__name__ in repr(error)


def test_every_class_is_public_and_in_the_package():
    import remote_inference

    names = {cls.__name__ for cls in CLASSES}
    assert names == {name for name in errors.__all__ if name[0].isupper()}
    assert names <= set(remote_inference.__all__)
    for name in names:
        assert getattr(remote_inference, name) is getattr(errors, name)


def test_the_tree_in_the_docstring_is_the_tree():
    drawn: dict[str, str] = {"InferenceError": ""}
    path: list[str] = ["InferenceError"]
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ([│ ]*)[├└]── (\w+)", line):
            depth = len(found.group(1)) // 4 + 1
            path[depth:] = [found.group(2)]
            drawn[found.group(2)] = path[depth - 1]
    defined = {cls.__name__: cls.__base__.__name__ for cls in CLASSES if cls is not InferenceError}
    assert drawn == {"InferenceError": "", **defined}


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if issubclass(cls, RequestError)])
def test_a_request_error_tells_where_it_happened(cls):
    error = cls().at("gpt", "id-1", 2)
    assert (error.deployment, error.request_id, error.attempt) == ("gpt", "id-1", 2)
    assert same(cls(*error.args), error)
    assert "gpt, id-1, attempt 2" in str(error)


def test_the_usage_of_a_cancelled_request_is_not_in_its_text():
    error = errors.Cancelled("caller", usage={"prompt_tokens": 123456})
    assert "123456" not in str(error) + repr(error)


class TestFromElsewhere:
    def test_an_unknown_class_becomes_a_request_error_of_that_name(self):
        error = error_from_wire({"error": "OfVersionTwo", "args": [1, 2]})
        assert type(error) is RequestError
        assert error.code == "OfVersionTwo"

    def test_fields_of_a_newer_version_are_left_out(self):
        wire = error_to_wire(errors.Forbidden("no", "gpt", "id", 1))
        wire["args"].append("a field that is not known")
        assert same(error_from_wire(wire), errors.Forbidden("no", "gpt", "id", 1))

    def test_fields_that_an_older_version_lacks_get_their_defaults(self):
        assert same(error_from_wire({"error": "RateLimited", "args": ["slow"]}), errors.RateLimited("slow"))

    @given(
        st.fixed_dictionaries(
            {},
            optional={
                "error": st.sampled_from([cls.__name__ for cls in CLASSES]) | st.integers() | st.none(),
                "args": st.lists(st.none() | st.integers() | st.text(max_size=3) | st.lists(st.none()))
                | st.none()
                | st.text(),
            },
        )
    )
    def test_whatever_comes_an_error_is_made_and_can_be_shown(self, wire):
        error = error_from_wire(wire)
        assert isinstance(error, InferenceError)
        assert isinstance(str(error) + repr(error), str)
