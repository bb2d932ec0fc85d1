"""Usage that a program's result tells of: taken into the ledger, where it has a form that is known.

A result that is a JSON object may have a list `kapell_usage`, each entry a provider's response, or an
object with `record_id`, `model` and the counts of TokenCounts (see the guide for programs). The result of
`claude -p --output-format json` is known by its `modelUsage`. All of it stays in the result as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from kapell.errors import InvalidRequest
from kapell.records import UsageFields
from kapell.runtimes.contract import Attempt
from kapell.v1.common_pb2 import LOG_STREAM_SYSTEM

MOST = 1_000
_FIELDS = UsageFields.__annotations__.keys() - {"event_time", "took"}
_COUNTS = {"input_tokens", "output_tokens", "cost"}


def report(result: object, attempt: Attempt) -> None:
    """Reports what the result tells of usage; what cannot be read is said in the log, and fails nothing."""
    if not isinstance(result, Mapping):
        return
    payloads: list[Any] = []
    listed = result.get("kapell_usage")
    if isinstance(listed, list):
        payloads += listed[:MOST]
    if isinstance(result.get("modelUsage"), Mapping):
        payloads.append(result)
    for number, payload in enumerate(payloads):
        if not isinstance(payload, Mapping):
            attempt.log(f"kapell_usage[{number}] is not an object and was left out", LOG_STREAM_SYSTEM)
            continue
        tell(payload, attempt, f"kapell_usage[{number}]")


def tell(payload: Mapping[str, Any], attempt: Attempt, name: str, *, record_id: str = "", series: str = "") -> None:
    """Reports one entry, in Kapell's own words or in a provider's. Where it cannot be read the log says so."""
    try:
        if _COUNTS & payload.keys():
            attempt.usage(**_fields(payload))
        else:
            attempt.usage_from(payload, record_id=record_id, series=series)
    except (InvalidRequest, TypeError, ValueError, OverflowError, RecursionError) as error:
        attempt.log(f"{name} was left out: {error}", LOG_STREAM_SYSTEM)


def _fields(payload: Mapping[str, Any]) -> UsageFields:
    """An entry in Kapell's own words. Raises ValueError for a word that is none of them."""
    unknown = payload.keys() - _FIELDS
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]!r} is not known; it may have {', '.join(sorted(_FIELDS))}")
    # JSON of other languages has 12.0 for 12.
    whole = {name: int(value) if name.endswith("_tokens") else value for name, value in payload.items()}
    return cast(UsageFields, whole)
