"""Which tool call a piece of one belongs to.

OpenAI's format numbers the calls of an answer, and every piece carries the number of its call. Servers were seen to
give every call the number 0, no number at all, a number to the head of a call and another to its tail, an id with every
piece, with the first only, late, or never, and the name likewise. What tells calls apart is put together here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from ..errors import InvalidResponse
from ..types import ToolCallDelta
from .surrogates import HalfCharacters, without_halves

__all__ = ["ToolCalls"]

_MOST = 1024  # numbers above are no numbers of calls


@dataclass
class _Call:
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    named_again: bool = False  # after its arguments were whole: the next arguments are another call's
    next_id: str = ""  # told after its arguments were whole: another call's
    told_name: bool = False
    empty: bool = False  # its arguments are "{}", which may stand for those to come, and were not told
    free: bool = False  # its input is text of any kind
    ids_changed: bool = False  # pieces under other ids were taken for its own

    def has_arguments(self) -> bool:
        """Whether any have come, be they those that stand for others."""
        return any(self.pieces)

    def is_whole(self) -> bool:
        """Whether its arguments are an object to the end: nothing can follow them."""
        text = "".join(self.pieces).strip()
        if self.free or not text.endswith(("}", "]")):
            return False
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return False
        return True

    def is_broken_off(self) -> bool:
        """Whether its arguments have begun, and have to go on."""
        return bool("".join(self.pieces).strip()) and not self.is_whole()

    def is_glued(self) -> bool:
        """Whether its arguments must be those of two calls: two documents, or broken ones under several ids."""
        text = "".join(self.pieces).strip()
        if self.free or not text.startswith(("{", "[")) or self.is_whole():
            return False
        try:
            json.JSONDecoder(strict=False).raw_decode(text)
        except (ValueError, RecursionError):
            return self.ids_changed
        return not self.is_whole()


class ToolCalls:
    """The calls of one answer so far.

    Args:
        halves: of the answer, for arguments that are split within a character.
    """

    def __init__(self, halves: HalfCharacters) -> None:
        self._halves = halves
        self._calls: list[_Call] = []
        self._by_index: dict[int, int] = {}
        self._by_id: dict[str, int] = {}
        self._batch: list[int] = []  # the calls of the last list with more than one in it

    def __len__(self) -> int:
        return len(self._calls)

    def take(self, pieces: Any) -> tuple[ToolCallDelta, ...]:
        """The pieces of one event, each with the number of its call: from 0, without gaps.

        Raises:
            InvalidResponse: they are none.
        """
        if isinstance(pieces, dict) and pieces.keys() & {"custom", "function", "id", "name"}:
            pieces = [pieces]  # without the list around it
        if isinstance(pieces, list):
            pieces = [piece for piece in pieces if piece is not None]
        if not isinstance(pieces, list) or not all(isinstance(piece, dict) for piece in pieces):
            raise InvalidResponse("tool_calls")
        deltas = []
        touched: list[int] = []
        indices = [_index(piece.get("index")) for piece in pieces]
        if len(set(indices)) < len(indices) and len(self._by_index) < 2:
            indices = [None] * len(indices)  # numbers that repeat within one list are none
        for position, (piece, index) in enumerate(zip(pieces, indices, strict=True)):
            call_id, name, arguments = _parts(piece)
            last = self._calls[-1] if self._calls else None
            count = len(self._calls)
            number = self._place(index, call_id, name, arguments, position, touched, len(pieces))
            if number == count and last is not None:
                if last.named_again or (not name and last.is_whole()):
                    name, last.named_again = name or last.name, False
                if last.next_id and not call_id:
                    call_id = last.next_id
                    self._by_id[call_id] = number
                last.next_id = ""
            touched.append(number)
            self._calls[number].free |= "custom" in piece
            function = piece.get("function")
            begun = isinstance(function, dict) and function.get("arguments") is not None
            delta = self._delta(number, call_id, name, arguments, begun=begun)
            if delta.id or delta.name or delta.arguments:
                deltas.append(delta)
        if len(touched) > 1:
            self._batch = touched
        return tuple(deltas)

    def rest(self, answer_id: str, *, cut_short: bool = False) -> tuple[ToolCallDelta, ...]:
        """The answer is over: what was held back, and an id for each call that was given none.

        The result of a call refers to it by its id.

        Args:
            answer_id: makes the ids differ from those of the conversation's other answers.
            cut_short: the answer was, and its last arguments may have been.

        Raises:
            InvalidResponse: what was put together as one call's arguments is not one's.
        """
        deltas = []
        for number, call in enumerate(self._calls):
            if not cut_short and call.is_glued():
                raise InvalidResponse("tool_calls")
            new_id = ""
            if not call.id:
                new_id = call.id = self._free_id(f"call_{number}{'_' if answer_id else ''}{answer_id}")
            name = "" if call.told_name else call.name
            call.told_name = True
            if new_id or name or call.empty:
                arguments = "".join(call.pieces) if call.empty else ""
                deltas.append(ToolCallDelta(index=number, id=new_id, name=name, arguments=arguments))
        return tuple(deltas)

    def _place(
        self,
        index: int | None,
        call_id: str,
        name: str,
        arguments: str,
        position: int,
        touched: list[int],
        count: int,
    ) -> int:
        """The number of the call that a piece belongs to; it may be a new one."""
        by_id = self._by_id.get(call_id) if call_id else None
        by_index = None if index is None else self._by_index.get(index)
        active = len(self._calls) - 1 if self._calls else None
        number = active
        if by_id is not None:
            number = by_id
            if by_index == by_id and number not in touched:
                return self._after_whole(number, index, call_id, name, arguments)
        elif by_index is not None:
            number = by_index
        elif index is not None and (call_id or name):
            return self._new(index, call_id)
        elif index is None and not call_id and not name and count > 1 and position < len(self._batch):
            return self._batch[position]
        if number is None or self._begins_another(
            self._calls[number], call_id, name, arguments, number in touched
        ):
            return self._new(index, call_id)
        if index is not None:
            self._by_index.setdefault(index, number)
        call = self._calls[number]
        if call_id and call.id and call_id != call.id:
            if call.is_whole() and not name and not arguments.strip():
                call.next_id = call_id  # the head of another, which has yet to say more
                return number
            call.ids_changed = True
        if call_id:
            self._by_id.setdefault(call_id, number)
        return self._after_whole(number, index, call_id, name, arguments)

    def _after_whole(self, number: int, index: int | None, call_id: str, name: str, arguments: str) -> int:
        """The same number, unless the call's arguments are whole and these are another call's."""
        call = self._calls[number]
        if not arguments.lstrip().startswith(("{", "[")) or not call.is_whole() or call.named_again:
            return self._new(index, call_id) if call.named_again and arguments.strip() else number
        other = name and call.name and name != call.name
        if not other and (call.empty or _same(arguments, call.pieces)):
            return number  # those that stood for these, or all of it again
        return self._new(index, call_id)

    @staticmethod
    def _begins_another(call: _Call, call_id: str, name: str, arguments: str, touched: bool) -> bool:
        """Whether a piece that could go on with a call is the beginning of another one.

        The id decides, where the call has one: a new id is a new call, unless the arguments so far are broken off and
        the piece does not name another function (some servers make up an id for every piece). Without ids, a name
        decides: another one, or the same again after whole arguments.
        """
        if touched:  # two in one list are two calls
            return bool(name or (call_id and call_id != call.id))
        if call_id and call.id and call_id != call.id:
            if name and name != call.name and call.name:
                return True
            if call.is_broken_off():
                return bool(name) and not _may_follow("".join(call.pieces), arguments)
            return bool(name) or (call.is_whole() and bool(arguments))
        if not name or not call.name:
            return call.named_again and bool(arguments.strip())
        if name != call.name:
            # a name in pieces, or one that grows
            if call.has_arguments() or not (call.id or (name.startswith(call.name) and not call.told_name)):
                return True
            if call.told_name:
                raise InvalidResponse("tool_calls")  # it cannot be taken back
            return False
        if not call.is_whole() or (call_id and call_id == call.id):
            return False
        # The same name again: of the same call, or the head of another, which its arguments will tell.
        call.named_again = not arguments.strip()
        return not call.named_again

    def _new(self, index: int | None, call_id: str) -> int:
        number = len(self._calls)
        if number >= _MOST:
            raise InvalidResponse("tool_calls")
        self._calls.append(_Call())
        if index is not None:
            self._by_index[index] = number
        if call_id:
            self._by_id[call_id] = number
        return number

    def _delta(self, number: int, call_id: str, name: str, arguments: str, *, begun: bool) -> ToolCallDelta:
        """What of a piece is told now. ``begun``: it has arguments, if empty ones; until then the name may grow."""
        call = self._calls[number]
        told_id = told_name = ""
        if call_id and not call.id:
            # two calls of one id could not be told apart by their results
            told_id = call.id = (
                call_id
                if self._by_id.get(call_id) == number and self._is_free(call_id)
                else self._free_id(call_id)
            )
        if name and not call.told_name and name != call.name and not (call.name and call.has_arguments()):
            call.name = name if name.startswith(call.name) else call.name + name
        if arguments.strip() and call.is_whole():
            if call.empty:
                call.pieces.clear()
            elif _same(arguments, call.pieces):
                arguments = ""
        if arguments:
            call.empty = arguments.strip() == "{}" and not call.has_arguments()
            call.pieces.append(arguments)
            arguments = "" if call.empty else self._halves.join(("call", number), arguments)
        if call.name and not call.told_name and (begun or call.has_arguments()):
            call.told_name, told_name = True, call.name
        return ToolCallDelta(index=number, id=told_id, name=told_name, arguments=arguments)

    def _is_free(self, call_id: str) -> bool:
        return all(call.id != call_id for call in self._calls)

    def _free_id(self, wanted: str) -> str:
        number, found = 1, wanted
        while not self._is_free(found):
            number += 1
            found = f"{wanted}_{number}"
        return found


def _same(arguments: str, pieces: list[str]) -> bool:
    """Whether arguments are those of the pieces again."""
    try:
        return bool(json.loads(arguments) == json.loads("".join(pieces)))
    except (ValueError, RecursionError):
        return False


def _may_follow(text: str, piece: str) -> bool:
    """Whether a piece can go on with JSON that is broken off: an object begins only where a value may."""
    if not piece.lstrip().startswith("{"):
        return True
    outside = re.sub(r'"(?:[^"\\]|\\.)*"', "_", text, flags=re.DOTALL)
    return '"' in outside or outside.rstrip()[-1:] in ("", ":", "[", ",")


def _index(value: Any) -> int | None:
    """A call's number, also as a float or in a string."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 10:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST else None


def _parts(call: dict[str, Any]) -> tuple[str, str, str]:
    """Id, name and arguments of a piece, all of them text, empty where they are not there.

    Raises:
        InvalidResponse: they are something else.
    """
    function = call.get("function", call.get("custom"))
    if function is None:
        function = call if "name" in call or "arguments" in call else {}  # without the layer between
    if not isinstance(function, dict):
        raise InvalidResponse("tool_calls")
    call_id, name = call.get("id", call.get("tool_call_id")), function.get("name")
    arguments = function.get("arguments", function.get("input", function.get("parameters")))
    if isinstance(call_id, (int, float)) and not isinstance(call_id, bool):
        call_id = str(call_id)
    if isinstance(arguments, (dict, list)):  # already parsed, by servers that mean well
        arguments = json.dumps(arguments, ensure_ascii=False)
    call_id, name, arguments = call_id or "", name or "", arguments or ""
    if not (isinstance(call_id, str) and isinstance(name, str) and isinstance(arguments, str)):
        raise InvalidResponse("tool_calls")
    return without_halves(call_id), without_halves(name), arguments
