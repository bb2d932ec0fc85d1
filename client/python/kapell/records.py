"""Records of usage from Python's own values: for workers (`ctx.usage`) and for `client.usage.record`."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any, TypeAlias, TypedDict

from google.type.money_pb2 import Money

from kapell.errors import InvalidRequest
from kapell.messages import Instant, Seconds, duration, struct, timestamp
from kapell.v1.usage_pb2 import (
    USAGE_BASIS_ESTIMATED,
    USAGE_BASIS_UNSPECIFIED,
    RawUsageFormat,
    TokenCounts,
    UsageRecord,
)

NANO = 10**9
Dollars: TypeAlias = Decimal | int | float | str | Money
"""An amount in US dollars; a float means the shortest decimal number that prints the same."""


class UsageFields(TypedDict, total=False):
    """What `usage_record` takes, but for task and agent."""

    model: str
    provider: str
    input_tokens: int
    cache_read_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    output_tokens: int
    reasoning_tokens: int
    units: Mapping[str, int]
    cost: Dollars
    record_id: str
    event_time: Instant
    took: Seconds
    labels: Mapping[str, str]
    service_tier: str
    source: str
    series: str
    estimated: bool


def usage_record(
    *,
    model: str = "",
    provider: str = "",
    input_tokens: int = 0,
    cache_read_tokens: int = 0,
    cache_write_5m_tokens: int = 0,
    cache_write_1h_tokens: int = 0,
    output_tokens: int = 0,
    reasoning_tokens: int = 0,
    units: Mapping[str, int] | None = None,
    cost: Dollars | None = None,
    record_id: str = "",
    task_id: str = "",
    agent_id: str = "",
    event_time: Instant | None = None,
    took: Seconds | None = None,
    labels: Mapping[str, str] | None = None,
    service_tier: str = "",
    source: str = "",
    series: str = "",
    estimated: bool = False,
) -> UsageRecord:
    """One use of a model, for the ledger.

    `input_tokens` is all input, of which what was read from and written to caches is a part, and
    `reasoning_tokens` are a part of `output_tokens`. `record_id` is the provider's id of the response, so
    that it counts once however often it is recorded; left out, a fresh one makes this call count once.
    `cost` in dollars is what the provider says it cost; without it the price table decides. With `series`
    the figures are running totals; `estimated` says that they are a guess. Raises InvalidRequest where the
    parts are more than the whole.
    """
    uncached = input_tokens - cache_read_tokens - cache_write_5m_tokens - cache_write_1h_tokens
    if uncached < 0:
        raise InvalidRequest(
            f"the cached tokens are more than the input_tokens, {input_tokens} - "
            "input_tokens is all input, what was read from and written to caches included",
            reason="ARGUMENT_INVALID",
        )
    return UsageRecord(
        record_id=record_id or ("" if series else f"use_{secrets.token_hex(12)}"),
        task_id=task_id,
        agent_id=agent_id,
        provider=provider,
        model=model,
        tokens=TokenCounts(
            uncached_input_tokens=uncached,
            cache_read_tokens=cache_read_tokens,
            cache_write_5m_tokens=cache_write_5m_tokens,
            cache_write_1h_tokens=cache_write_1h_tokens,
            output_tokens=output_tokens,
            reasoning_tokens=reasoning_tokens,
        ),
        units=units or {},
        cost=None if cost is None else dollars(cost),
        event_time=timestamp(event_time),
        duration=duration(took),
        labels=labels or {},
        service_tier=service_tier,
        source=source,
        series=series,
        basis=USAGE_BASIS_ESTIMATED if estimated else USAGE_BASIS_UNSPECIFIED,
    )


def raw_usage_record(
    payload: Mapping[str, Any],
    *,
    format: RawUsageFormat.ValueType = RawUsageFormat.RAW_USAGE_FORMAT_UNSPECIFIED,
    keep_raw: bool = False,
    **fields: Any,
) -> UsageRecord:
    """A provider's response as it came, for the server to read; other fields of the record by keyword.

    It knows the responses of Anthropic, OpenAI (chat and responses) and Gemini, attributes of
    OpenTelemetry and usage_update of ACP. What is not about usage (texts, choices) is left out of what is sent.
    """
    return UsageRecord(raw=struct(_lean(payload)), raw_format=format, keep_raw=keep_raw, **fields)


_TEXTS = frozenset({"content", "choices", "candidates", "output", "result", "instructions", "tools", "text", "input"})


def _lean(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The payload without what models and people have written, which is large and is nobody's usage."""
    lean: dict[str, Any] = {}
    for name, value in payload.items():
        if name in _TEXTS:
            continue
        lean[name] = _lean_value(value)
    return lean


def _lean_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _lean(value)
    return [_lean_value(one) for one in value] if isinstance(value, list) else value


def dollars(amount: Dollars) -> Money:
    """An amount of US dollars as a message, rounded to a billionth. Raises InvalidRequest for what is none."""
    if isinstance(amount, Money):
        return amount
    try:
        nanos = int((Decimal(str(amount)) * NANO).to_integral_value(ROUND_HALF_EVEN))
    except (InvalidOperation, OverflowError, ValueError) as error:
        raise InvalidRequest(f"{amount!r} is not an amount of dollars", reason="ARGUMENT_INVALID") from error
    units, rest = divmod(abs(nanos), NANO)
    sign = -1 if nanos < 0 else 1
    return Money(currency_code="USD", units=sign * units, nanos=sign * rest)


def decimal(amount: Money) -> Decimal:
    """A message as an exact decimal number of dollars."""
    return Decimal(amount.units) + Decimal(amount.nanos).scaleb(-9)
