"""A Secret shows itself to nobody."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle
import pprint
import string
import traceback

import pytest

from remote_inference.credentials import Credential, CredentialRef, Secret

MARK = "sk-marked-5f1c"


def test_only_reveal_gives_the_value() -> None:
    assert Secret(MARK).reveal() == MARK


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        ascii,
        format,
        pprint.pformat,
        lambda s: f"{s}",
        lambda s: f"{s!r}",
        lambda s: f"{s:.3}",
        lambda s: f"{s:>80}",
        lambda s: "%s %r" % (s, s),  # noqa: UP031  # the old way is one of the ways
        lambda s: "{0} {0!a}".format(s),  # noqa: UP032
        lambda s: string.Template("$s").substitute(s=s),
        lambda s: repr([s, {"key": s}]),
        lambda s: repr(Credential(secret=s)),
        lambda s: repr(CredentialRef(literal=s)),
        lambda s: repr(dataclasses.asdict(Credential(secret=s))),
        lambda s: str(dir(s)),
    ],
)
def test_no_way_to_print_it_shows_the_value(show) -> None:
    shown = show(Secret(MARK))
    assert MARK not in shown
    assert MARK[:3] not in shown


def test_logging_shows_stars(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("t").warning("key %s", Secret(MARK))
    assert caplog.messages == ["key **"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_is_refused_at_every_protocol(protocol: int) -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Secret(MARK), protocol)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps({"nested": CredentialRef(literal=Secret(MARK))}, protocol)


def test_json_is_refused() -> None:
    with pytest.raises(TypeError):
        json.dumps({"key": Secret(MARK)})
    with pytest.raises(TypeError):
        pytest.importorskip("kombu.utils.json").dumps({"key": Secret(MARK)})


@pytest.mark.parametrize(
    "reach", [vars, len, iter, bytes, lambda s: s + "", lambda s: s[0], lambda s: s.__getstate__()]
)
def test_it_is_no_string_and_has_no_dict(reach) -> None:
    with pytest.raises(TypeError):
        reach(Secret(MARK))


def test_copies_are_the_object_itself() -> None:
    secret = Secret(MARK)
    assert copy.copy(secret) is secret
    assert copy.deepcopy([secret])[0] is secret
    assert dataclasses.asdict(Credential(secret=secret))["secret"] is secret


def test_equality_is_by_value_and_only_among_secrets() -> None:
    assert Secret(MARK) == Secret(MARK)
    assert hash(Secret(MARK)) == hash(Secret(MARK))
    assert Secret(MARK) != Secret(MARK + "x")
    assert Secret(MARK) != MARK
    assert Secret("\udcff") != Secret("é")


def test_it_cannot_be_changed() -> None:
    secret = Secret(MARK)
    for name in ("value", "_Secret__value"):
        with pytest.raises(AttributeError):
            setattr(secret, name, "other")
    with pytest.raises(AttributeError):
        del secret._Secret__value
    assert secret.reveal() == MARK


def test_a_value_that_is_no_string_is_refused_unseen() -> None:
    with pytest.raises(TypeError) as caught:
        Secret(b"sk-marked-bytes")  # type: ignore[arg-type]
    assert "marked" not in str(caught.value)


def test_a_traceback_with_locals_does_not_show_it() -> None:
    def fail() -> None:
        key = Secret(MARK)
        raise RuntimeError(repr(key))

    try:
        fail()
    except RuntimeError as exc:
        shown = "".join(traceback.TracebackException.from_exception(exc, capture_locals=True).format())
    assert "key = Secret('**')" in shown
    assert MARK not in shown
