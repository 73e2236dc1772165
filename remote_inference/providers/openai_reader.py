"""OpenAI's answers as chunks: one object of a stream at a time, or one whole completion.

Rules: https://platform.openai.com/docs/api-reference/chat/streaming. What is read besides is what servers that say they
speak it were seen to send; ``tests/recordings/openai`` has a case of each, with where it was seen.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

from ..credentials import Secret
from ..errors import ContentFiltered, InvalidResponse, StreamTruncated
from ..types import FinishReason, TokenChunk, TokenUsage, ToolCallDelta
from .base import AnswerReader
from .error_body import error_in, error_of_object
from .finish_reasons import End, read_finish_reason
from .openai_parts import has_output, reasoning_of, refusal_of, text_of
from .surrogates import HalfCharacters
from .tool_calls import ToolCalls
from .usage import UsageCount

__all__ = ["ChatReader"]

# Without the two searches for white space that json.loads makes around each object.
_raw_decode = json.JSONDecoder(strict=False).raw_decode  # a raw tab in a string is one

_MOST_OTHERS = 10_000
_USAGES = ("usage", "usageMetadata", "usage_metadata", "token_usage")
_PLACES = ("message", "delta", "text", "content")
_PLAIN = frozenset({"content", "role"})
# What keeps a connection awake, where a comment would do.
_NOTHING = frozenset(
    {"", "ping", "pong", "[ping]", "heartbeat", "keep-alive", "keepalive", "null", "{}", "[]", '""', "ok"}
)
_DONE = frozenset({"[done]", "done", '"[done]"', "'[done]'", "<done>", "[done]."})
_ENDING = frozenset({"message", "done", "end"})  # kinds of events whose word that it is done is the answer's
# Around the answer, in gateways and in servers' own formats.
_WRAPPERS = ("data", "result", "response", "output", "body", "completion", "chunk")


class ChatReader(AnswerReader):
    """Reads one answer; see `AnswerReader`.

    Args:
        secret: the credential, which no error may repeat.
        prompt_estimate: tokens, for servers that tell a total alone.
        done_is_finish: an answer that ends with ``[DONE]`` and no finish reason is whole.
        finish_reasons: the server's own words, by what they mean in OpenAI's; ``error`` is a failure.
    """

    def __init__(
        self,
        secret: Secret | None,
        *,
        prompt_estimate: int = 0,
        done_is_finish: bool = False,
        finish_reasons: Mapping[str, str] | None = None,
    ) -> None:
        self._secret = secret
        self._prompt_estimate = prompt_estimate
        self._done_is_finish = done_is_finish
        self._own_words = finish_reasons
        self._end: End | None = None
        self._answered = False  # text, a refusal or a call has come
        self._reasoned = False
        self._closed = False  # a finish has come, and no output since
        self._begun = False  # an object has come
        self._late = False  # output has followed a finish: this server's finishes prove nothing
        self._beside = False  # the last finish stood beside output, as it may do in every chunk
        self._by_message = False  # the output came as messages, which may be of all so far
        self._messages: dict[Hashable, str] = {}  # all that they said, by the field
        self._answer_id = ""
        self._others: list[dict[str, Any]] = []  # choices under other numbers, until ours says something
        self._count = UsageCount()
        self._halves = HalfCharacters()
        self._calls = ToolCalls(self._halves)

    def event(self, kind: str, data: str) -> TokenChunk | None:
        """See `AnswerReader.event`."""
        try:
            event, end = _raw_decode(data)
            if end != len(data):
                event = _read(data)
        except (ValueError, RecursionError):
            event = _read(data)
        if event.__class__ is not dict:
            # Outside the handler: json's error holds the text.
            return self._no_object(kind, data, event)
        try:
            [choice] = event["choices"]
            delta = choice["delta"]
        except (KeyError, IndexError, TypeError, ValueError):
            choice = delta = None
        if delta.__class__ is not dict or choice.get("index") or kind == "error" or event.get("error"):
            return self._odd(kind, event)
        content = delta.get("content")
        finish = choice.get("finish_reason")
        if (
            finish is None
            and content.__class__ is str
            and delta.keys() <= _PLAIN
            and not event.get("usage")
            and "error" not in choice
        ):
            # nearly all of them
            if not content:
                return self._elsewhere(event, choice, delta)
            if not content.isascii() or self._halves.held:
                return self._said(TokenChunk(self._halves.join("text", content)))
            if self._end is not None:
                self._follows()
            self._answered = True
            return TokenChunk(content)
        return self._elsewhere(event, choice, delta)

    def _elsewhere(self, event: dict[str, Any], choice: dict[str, Any], delta: Any) -> TokenChunk | None:
        """A choice whose output is in its delta, or, where that has none, in one of the other places."""
        if has_output(delta):
            return self._choice(event, choice, delta)
        if has_output(choice.get("message")):
            return self._message_in_stream(event, choice)
        return self._choice(event, choice, choice if has_output(choice) else delta)

    def _choice(self, event: dict[str, Any], choice: dict[str, Any], holder: Any) -> TokenChunk | None:
        """A piece of our choice, with all that may stand beside it. ``holder`` has the output."""
        error = choice.get("error") or (isinstance(holder, dict) and holder.get("error"))
        if error:
            self._take_usages(event, choice)
            raise error_of_object(200, error, secret=self._secret)
        said = self._output(event, holder) if holder else None
        self._take_usages(event, choice)
        finish = choice.get("finish_reason", choice.get("finishReason", choice.get("stop_reason")))
        if finish:
            self._take_finish(finish, beside=said is not None)
        elif said is None:
            self._nothing_said()
        return said if said is not None and said.has_output else None

    def _odd(self, kind: str, event: dict[str, Any]) -> TokenChunk | None:
        """An event without a delta for us: the output elsewhere, the usage, an error, nothing at all."""
        choices = event.get("choices")
        if choices is None:
            inner = next((event[name] for name in _WRAPPERS if _is_answer(event.get(name))), None)
            if inner is not None:
                return self._odd(kind, inner)
        error = error_in(event, guess=kind == "message", first=not (self._begun or self._spoke))
        self._begun = True
        if error is None and kind == "error":
            error = event
        if error is not None:
            self._take_usages(event, {})
            raise error_of_object(200, error, secret=self._secret)
        if choices is not None and not isinstance(choices, list):
            raise InvalidResponse("no_choices")
        choices = choices and [choice for choice in choices if choice is not None]
        if choices and not all(isinstance(choice, dict) for choice in choices):
            raise InvalidResponse("no_choices")
        ours = [choice for choice in choices or () if _is_ours(choice)]
        if not ours:  # another's, or none: the usage, filter results, a vendor's own event
            told = self._take_usages(event, {})
            if told or choices == []:
                self._nothing_said()
            if choices and not self._spoke and len(self._others) < _MOST_OTHERS:
                self._others.append(choices[0])
            return None
        if any(choice.get("delta") and not isinstance(choice["delta"], (dict, str)) for choice in ours):
            raise InvalidResponse("no_delta")
        if len(ours) == 1:
            return self._elsewhere(event, ours[0], ours[0].get("delta"))
        chunk = _together([self._elsewhere(event, choice, choice.get("delta")) for choice in ours])
        return chunk if chunk.has_output else None

    def _message_in_stream(self, event: dict[str, Any], choice: dict[str, Any]) -> TokenChunk | None:
        """A ``message`` where a ``delta`` should be: a piece, or all so far, or all again at the end."""
        message = choice["message"]
        if isinstance(message, str):
            message = {"content": message}
        if self._answered and not self._by_message:
            return self._choice(event, choice, None)
        content = message.get("content")
        if not content:
            content = message.get("text")
        ended = bool(choice.get("finish_reason"))
        holder = {"content": self._news("text", text_of(content), repeats=ended)}
        if self._by_message or not self._reasoned:
            holder["reasoning_content"] = self._news("reasoning", reasoning_of(message, content))
        holder["refusal"] = self._news("refusal", refusal_of(message, content))
        holder["tool_calls"] = self._news_of_calls(message.get("tool_calls"))
        if message.get("function_call"):
            holder["tool_calls"] += self._news_of_calls([{"index": 0, "function": message["function_call"]}])
        self._by_message = True
        return self._choice(event, choice, holder)

    def _news(self, field: Hashable, text: str, *, repeats: bool = True) -> str:
        """What a message's field says that those before it did not, where it says all so far; else all of it."""
        before = self._messages.get(field, "")
        if before and text.startswith(before) and (len(text) > len(before) or repeats):
            self._messages[field] = text
            return text[len(before) :]
        self._messages[field] = before + text
        return text

    def _news_of_calls(self, calls: Any) -> Any:
        """Likewise of the calls in a message: the pieces that are new."""
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            return calls or []
        pieces = []
        for position, call in enumerate(calls):
            function = call.get("function")
            arguments = function.get("arguments") if isinstance(function, dict) else None
            if not isinstance(function, dict) or not isinstance(arguments, (str, type(None))):
                pieces.append(call)
                continue
            field = ("call", call.get("id") or position, function.get("name"))
            known = field in self._messages
            new = self._news(field, arguments or "")
            if not known or new:
                # its own number, where it has none, so that the pieces of several stay apart
                number = {} if len(calls) == 1 or "index" in call else {"index": position}
                pieces.append({**call, **number, "function": {**function, "arguments": new}})
        return pieces

    def body(self, data: bytes) -> TokenChunk | None:
        """See `AnswerReader.body`."""
        event = _parsed(data)
        if isinstance(event, list) and len(event) == 1:
            [event] = event
        if not isinstance(event, dict):
            raise InvalidResponse("not_json")
        if event.get("choices") is None:
            event = next((event[name] for name in _WRAPPERS if _is_answer(event.get(name))), event)
        error = error_in(event)
        if error is not None:
            self._take_usages(event, {})
            raise error_of_object(200, error, secret=self._secret)
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise InvalidResponse("no_choices")
        choice = next((c for c in choices if isinstance(c, dict) and _is_ours(c)), choices[0])
        places = (choice.get("message"), choice.get("delta"), choice)
        message = next((place for place in places if has_output(place)), None)
        if message is None and not any(isinstance(choice.get(n), (dict, str)) for n in _PLACES):
            if not choice.get("error"):
                raise InvalidResponse("no_message")
        self.done = True
        return self._choice(event, choice, message)

    def end(self) -> TokenChunk:
        """See `AnswerReader.end`.

        Raises:
            StreamTruncated: no finish reason has come, or it came before the answer, of which the end is missing.
            ContentFiltered: the filter cut the answer.
            ServerError: the server named a failure as the finish reason.
            InvalidResponse: it named a reason that nobody knows.
        """
        other = self._only_other() if self._others and not self._spoke and self._end is None else TokenChunk()
        end = self._end
        if end is None:
            if not (self._done_is_finish and self.done and self._spoke):
                raise StreamTruncated("no_finish_reason")
            end = FinishReason.TOOL_CALLS if len(self._calls) else FinishReason.STOP
        if not isinstance(end, FinishReason):
            raise end()
        if end is FinishReason.CONTENT_FILTER:
            raise ContentFiltered("content_filter")
        if not self._closed and not self.done:
            raise StreamTruncated("finish_came_early")  # and nothing says that what followed is all
        rest = dict.fromkeys(self._halves.rest(), "\N{REPLACEMENT CHARACTER}")
        return TokenChunk(
            other.text_delta + rest.get("text", ""),
            other.reasoning_delta + rest.get("reasoning", ""),
            other.refusal_delta + rest.get("refusal", ""),
            (
                *other.tool_calls,
                *_rest_of_calls(rest),
                *self._calls.rest(self._answer_id, cut_short=end is FinishReason.LENGTH),
            ),
            finish_reason=end,
            usage=self.usage,
        )

    def _only_other(self) -> TokenChunk:
        """What was said under a number that is not ours, where nothing was said under ours."""
        number = self._others[0].get("index")
        ours = [choice for choice in self._others if choice.get("index") == number]
        self._others = []
        return _together(self._choice({}, choice, choice.get("delta") or choice) for choice in ours)

    # -- the output

    def _output(self, event: dict[str, Any], holder: Any) -> TokenChunk | None:
        if isinstance(holder, str):
            holder = {"content": holder}
        join = self._halves.join
        content = holder.get("content")
        if not content:
            content = holder.get("text")
        text = join("text", text_of(content))
        reasoning = join("reasoning", reasoning_of(holder, content))
        refusal = join("refusal", refusal_of(holder, content))
        calls = holder.get("tool_calls")
        function = holder.get("function_call")
        pieces: tuple[ToolCallDelta, ...] = ()
        if calls or function:
            pieces = self._calls.take(calls or [{"index": 0, "function": function}])
            answer_id = event.get("id")
            if isinstance(answer_id, str) and answer_id and not self._answer_id:
                self._answer_id = hashlib.blake2b(
                    answer_id.encode(errors="replace"), digest_size=4
                ).hexdigest()
        if text or reasoning or refusal or calls or function:
            return self._said(TokenChunk(text, reasoning, refusal, pieces))
        if self._halves.held:
            return self._said(TokenChunk())  # half a character
        return None

    @property
    def _spoke(self) -> bool:
        return self._answered or self._reasoned

    def _said(self, chunk: TokenChunk) -> TokenChunk:
        """Something was said, of which half a character may be held back: the chunk may be empty."""
        if chunk.text_delta or chunk.refusal_delta or chunk.tool_calls or not chunk.has_output:
            self._answered = True
        else:
            self._reasoned = True
        if self._end is not None:
            self._follows()
        return chunk

    def _follows(self) -> None:
        """Output has followed a finish, which had come too early. So may the next: only the stream's end counts."""
        self._late = True
        self.complete = self._closed = False

    def _nothing_said(self) -> None:
        """Our choice goes on without output: a finish that stood beside the output was the last one's."""
        if self._beside:
            self._beside = False
            self.complete = self._is_sure()

    def _is_sure(self) -> bool:
        """Whether a finish is the answer's end, should the connection break now. Reasoning is not the answer."""
        if not isinstance(self._end, FinishReason):
            return True  # a failure stays one
        cut_short = self._reasoned and self._end is FinishReason.LENGTH
        return not self._late and (self._answered or cut_short)

    def _take_finish(self, reason: Any, *, beside: bool) -> None:
        """A finish. ``beside``: in one chunk with output, as some servers send the last one, and others every one."""
        if not isinstance(reason, str):
            raise InvalidResponse("finish_reason")
        own = self._own_words.get(reason) if self._own_words else None
        end = read_finish_reason(own or reason)
        if end is None:
            return
        if self._end is None or isinstance(self._end, FinishReason):  # a failure stays one
            self._end = end
        # Before anything was said, the end is a word that came too early.
        self._closed = (
            self._spoke or self._count.completion_tokens > 0 or not isinstance(self._end, FinishReason)
        )
        self._beside = beside and isinstance(self._end, FinishReason)
        self.complete = not self._beside and self._is_sure()

    # -- the usage

    def _take_usages(self, event: dict[str, Any], choice: dict[str, Any]) -> bool:
        """From wherever one stands: beside the choices, in ours (Moonshot), in a vendor's own object (Groq).

        Returns:
            Whether there was any.
        """
        count, told = self._count, False
        for name in _USAGES:
            for place in (event, choice):
                if place.get(name):
                    count.add(place[name])
                    told = True
        own = event.get("x_groq")
        if isinstance(own, dict) and own.get("usage"):
            count.add(own["usage"])
            told = True
        if event.get("timings"):
            count.add_timings(event["timings"])
        # Without output, an answer is whole where its tokens are told after its end; beside an early one they may grow.
        if told and self._end is not None and not self._spoke and count.completion_tokens:
            self.complete = self._closed = True
        return told

    @property
    def usage(self) -> TokenUsage | None:  # type: ignore[override]  # the base's is a plain attribute
        """What was told of it; zeros beside an answer are nothing told."""
        return self._count.usage(self._prompt_estimate)

    # -- what is no object

    def _no_object(self, kind: str, data: str, value: Any) -> TokenChunk | None:
        text = data.strip()
        plain = text.lower()
        if plain.startswith("[done]") or (plain in _DONE and kind in _ENDING):
            self.done = True
            return None
        if kind == "error":
            raise error_of_object(200, text if value is _UNREADABLE else value, secret=self._secret)
        if plain in _NOTHING or plain.startswith(":"):  # a comment within an event
            return None
        if value is _UNREADABLE:
            for prefix in ("data:", "data: data:"):  # by gateways that frame what was framed
                if text.startswith(prefix):
                    return self.event(kind, text[len(prefix) :].strip())
            if re.match(r"error(?![a-z])", plain):
                raise error_of_object(200, text, secret=self._secret)
            if kind != "message" or not (set("{[") & set(text) or text.startswith("<")):
                return None  # a vendor's own, or words that keep the connection awake
            objects = _objects(text)
            if objects:
                return self._several(kind, objects)
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return self._several(kind, value)
        elif kind != "message" or not isinstance(value, list):
            return None
        raise InvalidResponse("not_json")

    def _several(self, kind: str, objects: list[Any]) -> TokenChunk | None:
        """Objects in a list, or whose events were not kept apart by a blank line."""
        chunk = _together([self.event(kind, json.dumps(item)) for item in objects])
        return chunk if chunk.has_output else None


_UNREADABLE = object()


def _objects(text: str) -> list[Any]:
    """The objects of a text that has nothing else, one after the other; none where it has."""
    found: list[Any] = []
    place = 0
    while place < len(text):
        try:
            value, place = _raw_decode(text, place)
        except (ValueError, RecursionError):
            return []
        if not isinstance(value, dict):
            return []
        found.append(value)
        while text[place : place + 1].isspace():
            place += 1
    return found


def _read(data: str) -> Any:
    try:
        return json.loads(data, strict=False)
    except (ValueError, RecursionError):
        return _UNREADABLE


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data, strict=False)
    except (ValueError, RecursionError):
        return None


def _together(pieces: Iterable[TokenChunk | None]) -> TokenChunk:
    chunks = [chunk for chunk in pieces if chunk is not None]
    return TokenChunk(
        "".join(chunk.text_delta for chunk in chunks),
        "".join(chunk.reasoning_delta for chunk in chunks),
        "".join(chunk.refusal_delta for chunk in chunks),
        tuple(delta for chunk in chunks for delta in chunk.tool_calls),
    )


def _is_answer(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("choices"), list)


def _is_ours(choice: dict[str, Any]) -> bool:
    """Whether it is the one choice that was asked for."""
    return choice.get("index") in (None, 0, "0", "", False)


def _rest_of_calls(rest: Mapping[Hashable, str]) -> Iterator[ToolCallDelta]:
    for key, text in rest.items():
        if isinstance(key, tuple):
            yield ToolCallDelta(index=key[1], arguments=text)
