"""What a provider's sentence about an error means, where no code says it.

Only whether a wording matches goes any further: the sentence itself may quote the prompt or the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files

from ..policy.classify import Meaning

__all__ = ["meaning_of", "wait_in"]

_MOST = 4000  # characters that are looked at


@lru_cache(maxsize=1)
def _wordings() -> Mapping[str, re.Pattern[str]]:
    """The patterns of ``error_wordings.txt``, one for each meaning; read when the first error comes."""
    lines: dict[str, list[str]] = {}
    section: list[str] = []
    for line in files(__package__).joinpath("error_wordings.txt").read_text("utf-8").splitlines():
        if line.startswith("[") and line.endswith("]") and line[1:-1].isidentifier():
            section = lines.setdefault(line[1:-1], [])
        elif line and not line.startswith("#"):
            section.append(line)
    return {name: re.compile("|".join(found), re.IGNORECASE | re.DOTALL) for name, found in lines.items()}


_WAIT = re.compile(
    r"(?:try|retry)(?:ing)?(?: your request| this request)?(?: again)? (?:in|after) (?:about |approximately )?"
    r"(\d[\d.]*\s*(?:ms|milliseconds?|s|sec(?:ond)?s?|m|min(?:ute)?s?|h|hours?)(?:\s*\d[\d.]*\s*(?:ms|s|m))*)",
    re.IGNORECASE,
)


def meaning_of(sentence: str, status: int) -> Meaning | None:
    """What an error's sentence says; None where it says nothing that the status does not.

    Args:
        sentence: of the provider.
        status: of the answer, 200 inside a stream. It rules out what cannot be.
    """
    text, known = sentence[:_MOST], _wordings()

    def says(what: str) -> bool:
        return known[what].search(text) is not None

    if status not in (401, 402, 403, 404, 429) and not says("per_time") and not says("no_prompt"):
        # Where a server has failed, or within an answer, other limits than the prompt's are more likely.
        if says("context_length" if 400 <= status < 500 else "context_length_strict"):
            return "context_length"
    if status == 498 and re.search(r"\b(token|key)s?\b", text, re.IGNORECASE):
        return "credential"  # Esri's status; Groq's means something else
    if (status in (400, 402, 403, 412, 429) or status < 400) and says("quota") and not says("per_time"):
        return "quota"
    if status < 500 and status not in (402, 404, 413, 422, 429):
        if says("filtered"):
            return "filtered"
        if says("credential"):
            return "credential"
        if says("rate"):
            return "rate"
    return None


def wait_in(sentence: str) -> str:
    """The wait that a sentence names ("Please try again in 6ms"), empty where it names none."""
    found = _WAIT.search(sentence[:_MOST])
    return found[1] if found else ""
