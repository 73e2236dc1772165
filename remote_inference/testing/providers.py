"""The contract of a provider, as tests that a provider of your own can be put under. No network, no pytest needed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from ..config import Deployment
from ..credentials import Secret
from ..errors import (
    BadRequest,
    ConfigurationError,
    Forbidden,
    RateLimited,
    RequestError,
    ServerError,
    Unauthorized,
)
from ..providers import AnswerFeed, Provider, ProviderCall
from ..types import InferenceRequest
from .recordings import NOW, Reading, Recording, read_answer

__all__ = ["ProviderContract"]

_KEY = Secret("marked-key-0123456789")
_PROMPT = "marked prompt"
_REFUSALS: Sequence[tuple[int, type[RequestError]]] = (
    (400, BadRequest),
    (401, Unauthorized),
    (403, Forbidden),
    (404, BadRequest),
    (429, RateLimited),
    (500, ServerError),
    (503, ServerError),
    (529, ServerError),
)
_BODIES = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"<html>marked-key-0123456789</html>",
    b"\xff\xfe",
    b'{"error": "marked prompt"}',
)


_PIECE = 16  # bytes: the pieces that a recording is cut into
_CUTS = 150  # places at which a long recording is cut off, besides the ends of its lines


class ProviderContract:
    """What every provider does alike. Subclass it in a test module, and pytest runs it::

        class TestMine(ProviderContract):
            provider = MyProvider()
            deployment = Deployment(name="d", model="m", provider="mine", endpoint="http://localhost:1")
            recordings = Recording.load_all(Path(__file__).parent / "recordings")

    Attributes:
        provider: under test.
        deployment: a right one, of this provider.
        recordings: answers, each with its right reading. At least one must be a whole answer that streamed.
        takes_key: whether the key goes along with requests.
    """

    provider: Provider
    deployment: Deployment
    recordings: Sequence[Recording]
    takes_key: bool = True

    # -- the request

    def test_a_right_deployment_has_no_fault(self) -> None:
        """`Provider.check` accepts it."""
        self.provider.check(self.deployment)

    def test_an_option_that_nobody_knows_is_refused_by_its_path(self) -> None:
        """`Provider.check` names it."""
        odd = dataclasses.replace(self.deployment, options={**self.deployment.options, "no_such_option": 1})
        faults: list[str] = []
        try:
            self.provider.check(odd)
        except ConfigurationError as error:
            faults = error.faults
        assert any(fault.startswith("options.no_such_option: ") for fault in faults), faults

    def test_the_request_can_be_sent(self) -> None:
        """Its path is one, its headers are printable ASCII, its body is JSON."""
        for call in self._calls():
            asked = self.provider.request(call)
            assert asked.path == "" or asked.path.startswith("/"), asked.path
            assert asked.path.isascii()
            assert asked.path.isprintable()
            assert " " not in asked.path
            for name, value in asked.headers.items():
                assert name.isascii()
                assert value.isascii(), name
                assert value.isprintable(), name
            if asked.body:
                json.loads(asked.body)

    def test_the_same_call_makes_the_same_request(self) -> None:
        """A provider has no state and reads no clock."""
        for call in self._calls():
            first, second = self.provider.request(call), self.provider.request(call)
            assert (first, first.body, first.headers) == (second, second.body, second.headers)

    def test_the_key_goes_into_a_header_and_the_prompt_into_the_body_and_nowhere_else(self) -> None:
        """Paths and bodies are logged by servers on the way; so are headers, but for the known ones."""
        for call in self._calls():
            asked = self.provider.request(call)
            key = _KEY.reveal()
            assert key not in asked.path
            assert key.encode() not in asked.body
            assert any(key in value for value in asked.headers.values()) == self.takes_key
            assert _PROMPT not in asked.path
            assert not any(_PROMPT in value for value in asked.headers.values())
            assert key not in repr(asked)
            assert _PROMPT not in repr(asked)
            assert key not in repr(self.provider)

    def _calls(self) -> Iterator[ProviderCall]:
        for stream in (True, False):
            yield ProviderCall(
                request=InferenceRequest.parse(self.deployment.name, _PROMPT, max_tokens=5),
                deployment=self.deployment,
                credential=_KEY if self.takes_key else None,
                stream=stream,
            )

    # -- the answer

    def test_every_recording_is_read_as_it_should(self) -> None:
        """In one piece."""
        assert self.recordings
        wrong = {r.name: lines for r in self.recordings if (lines := self._read(r).matches(r.expect))}
        assert wrong == {}, wrong

    def test_bytes_split_anywhere_give_the_same_chunks(self) -> None:
        """Byte by byte, and in pieces of which one ends at every place."""
        for recording in self.recordings:
            whole, body = self._read(recording), recording.body
            assert self._read(recording, [body[i : i + 1] for i in range(len(body))]) == whole, recording.name
            for start in range(1, _PIECE + 1):
                places = [0, *range(start, len(body), _PIECE), len(body)]
                cut = self._read(recording, [body[a:b] for a, b in pairwise(places)])
                assert cut == whole, f"{recording.name}, cut at {start} and every {_PIECE} bytes"

    def test_a_stream_that_is_cut_off_is_no_answer(self) -> None:
        """However much of it came: without its end it is an error, unless the rest said nothing."""
        for recording in self.recordings:
            whole = self._read(recording)
            if whole.error or not recording.stream or recording.ends_early:
                continue
            body = recording.body
            ends = {place for place in range(len(body)) if body[place - 1 : place] == b"\n"}
            for place in sorted(ends | set(range(0, len(body), max(1, len(body) // _CUTS)))):
                cut = self._read(recording, [recording.body[:place]])
                assert cut.error or _output(cut) == _output(whole), f"{recording.name}, cut off at {place}"

    def test_an_answer_that_says_it_is_complete_is(self) -> None:
        """A connection that breaks, or is silent, after that loses nothing; see `AnswerReader.complete`."""
        for recording in self.recordings:
            whole = self._read(recording)
            if whole.error or not recording.stream:
                continue
            reader = self.provider.reader(self._call_for(recording))
            feed = AnswerFeed(reader)
            events = 0
            for place in range(len(recording.body)):
                for _ in feed.feed(recording.body[place : place + 1]):
                    pass
                if reader.done:
                    break
                if reader.complete and feed.events != events:
                    events = feed.events
                    cut = self._read(recording, [recording.body[: place + 1]])
                    assert _output(cut) == _output(whole), f"{recording.name}, complete at {place}"

    def test_one_recording_at_least_is_a_whole_stream(self) -> None:
        """Else the others prove little."""
        assert any(self._read(r).finish_reason is not None for r in self.recordings if r.stream)

    def test_every_chunk_can_be_encoded(self) -> None:
        """Half of a surrogate pair could not be sent on."""
        for recording in self.recordings:
            reading = self._read(recording)
            repr((reading.text, reading.reasoning, reading.refusal, reading.tool_calls)).encode()
            for part in (reading.text, reading.reasoning, reading.refusal):
                part.encode()
            for call in reading.tool_calls:
                "".join(call).encode()

    def test_two_answers_know_nothing_of_each_other(self) -> None:
        """Each has a reader of its own."""
        for recording in self.recordings:
            assert self._read(recording) == self._read(recording), recording.name

    def _asked(self, recording: Recording) -> Deployment:
        options = {**self.deployment.options, **recording.options}
        return dataclasses.replace(self.deployment, options=options) if recording.options else self.deployment

    def _call_for(self, recording: Recording) -> ProviderCall:
        return ProviderCall(
            request=InferenceRequest.parse(self.deployment.name, _PROMPT),
            deployment=self._asked(recording),
            credential=_KEY if self.takes_key else None,
            stream=recording.stream,
        )

    def _read(self, recording: Recording, pieces: Sequence[bytes] | None = None) -> Reading:
        key = _KEY if self.takes_key else None
        return read_answer(self.provider, self._asked(recording), recording, pieces, key=key)

    # -- an answer that is none

    def test_a_refusal_is_typed_by_its_status_whatever_the_body(self) -> None:
        """Also where the body cannot be read."""
        for status, kind in _REFUSALS:
            for body in _BODIES:
                error = self._error(status, body)
                assert isinstance(error, kind), (status, body, error)
                assert (error.deployment, error.request_id, error.attempt) == ("", "", 0)

    def test_every_status_and_body_gives_an_error_that_quotes_nothing(self) -> None:
        """A provider's free text may hold the prompt or the key."""
        for status in (*range(300, 600), 999):
            for body in _BODIES:
                said = repr(self._error(status, body).args)
                assert _KEY.reveal() not in said
                assert _PROMPT not in said

    def test_retry_after_is_told(self) -> None:
        """In seconds, here; the forms are many."""
        error = self._error(429, b"{}", {"Retry-After": "7"})
        assert isinstance(error, RateLimited)
        assert error.retry_after == 7.0

    def test_headers_that_say_nothing_are_no_fault(self) -> None:
        """`Provider.head` never raises."""
        call = next(self._calls())
        for headers in ({}, {"x-ratelimit-limit-requests": "many"}, {"Retry-After": "soon"}):
            self.provider.head(call, headers, now=NOW)

    def _error(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> RequestError:
        error: Any = self.provider.error(next(self._calls()), status, headers or {}, body, now=NOW)
        assert isinstance(error, RequestError), error
        return error


def _output(reading: Reading) -> tuple[Any, ...]:
    return (reading.text, reading.reasoning, reading.refusal, reading.tool_calls)
