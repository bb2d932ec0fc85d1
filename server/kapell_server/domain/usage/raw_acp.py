"""The Agent Client Protocol's usage_update: what a session has cost so far. It has no tokens of calls.

The cost is a running total of the session, so the session is its series. `used` and `size` are how full
the context is, not what was used up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kapell_server.domain.usage.figures import nanos_of_number
from kapell_server.domain.usage.reading import RawUsage, RawUsageError, part, text


def is_meant(payload: Mapping[str, Any]) -> bool:
    """Whether the payload is a usage_update."""
    return _update(payload).get("sessionUpdate") == "usage_update"


def _update(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    params = part(payload, "params") or payload
    return part(params, "update") or params


def read(payload: Mapping[str, Any]) -> list[RawUsage]:
    """The session's cost so far. Raises RawUsageError."""
    session = text(part(payload, "params") or payload, "sessionId", most=140)
    cost = part(_update(payload), "cost")
    amount = cost.get("amount")
    if not isinstance(amount, (int, float)) or isinstance(amount, bool):
        raise RawUsageError("it tells no cost")
    if cost.get("currency", "USD") != "USD":
        raise RawUsageError(f"its cost is in {str(cost.get('currency'))[:10]!r}; the ledger is in USD")
    try:
        total = nanos_of_number(amount)
    except ValueError as error:
        raise RawUsageError(str(error)) from error
    return [RawUsage(source="acp usage_update", series=f"acp:{session}" if session else "*", cost=total)]
