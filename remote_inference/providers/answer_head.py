"""What gateways and providers put into the headers of their answers, besides the answer: limits, an id, a cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from ..policy.quota import QuotaReport, parse_quota

__all__ = ["answer_head"]

# The gateway's own id first: it stands in the gateway's log, and leads to the provider's.
_CALL_IDS = ("x-litellm-call-id", "x-request-id", "request-id", "apim-request-id")
_COST = "x-litellm-response-cost"
_ID = re.compile(r"[A-Za-z0-9_.:/=+-]{1,128}", re.ASCII)


def answer_head(
    headers: Mapping[str, str], now: float, windows: Mapping[str, float]
) -> tuple[QuotaReport | None, str, float | None]:
    """The limits, the call's id (or an empty string) and its cost in US dollars.

    Args:
        headers: in any case.
        now: seconds since the epoch.
        windows: see `ProviderEntry.windows`.
    """
    found = {name.lower(): value for name, value in headers.items()}
    ids = (found.get(name, "").strip() for name in _CALL_IDS)
    call_id = next((value for value in ids if _ID.fullmatch(value)), "")
    return parse_quota(found, now, windows), call_id, _dollars(found.get(_COST, ""))


def _dollars(text: str) -> float | None:
    try:
        cost = float(text)
    except ValueError:
        return None
    return cost if math.isfinite(cost) and cost > 0 else None
