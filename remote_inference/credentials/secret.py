"""`Secret`: a value that shows itself to nobody who does not ask for it by name."""

from __future__ import annotations

from typing import NoReturn, final

__all__ = ["Secret"]


@final
class Secret:
    """A credential in memory. Only `reveal` gives it; printing, formatting, pickling and JSON do not.

    It has no ``__dict__`` and no length; ``copy`` and ``dataclasses.asdict`` keep the object itself. An empty
    one is allowed (sources wrap what they read before they judge it).

    Raises:
        TypeError: the value is not a string. The message does not show it.
    """

    __slots__ = ("__value",)
    __value: str

    def __init__(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"a Secret holds a string, not {type(value).__name__}")
        object.__setattr__(self, "_Secret__value", value)

    def reveal(self) -> str:
        """The value. Call it where it is sent, and keep it in no variable that outlives that."""
        return self.__value

    def __repr__(self) -> str:
        return "Secret('**')"

    def __str__(self) -> str:
        return "**"

    def __format__(self, spec: str) -> str:
        return "**"  # whatever the width: padding would tell nothing, slicing would

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        import hmac  # 2 ms of import that a process which only submits does not need

        mine, theirs = (s.__value.encode("utf-8", "surrogatepass") for s in (self, other))
        return hmac.compare_digest(mine, theirs)

    def __hash__(self) -> int:
        return hash((Secret, self.__value))  # salted by the interpreter

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Secret cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Secret cannot be changed")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret is not pickled: send the reference to it (CredentialRef), not the value")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled: send the reference to it (CredentialRef), not the value")
