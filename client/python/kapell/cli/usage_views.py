"""How sums, records and prices are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from kapell.cli.money import cost_of, count, rate
from kapell.cli.output import View
from kapell.cli.table import Cell, Column, Line

if TYPE_CHECKING:
    from google.type.money_pb2 import Money

    from kapell.v1.price_pb2 import Price
    from kapell.v1.usage_pb2 import UsageRow, UsageTotals

_FORMATS = {"minute": "%Y-%m-%d %H:%M", "hour": "%Y-%m-%d %H:%M %Z", "month": "%Y-%m"}
_NONE = "-"
_ID = 32
"""Ids made in one second differ at their ends alone, so other columns are left out before they are cut."""


def sums_view(by: Sequence[str], bucket: str, zone: str, *, exact: bool) -> View:
    """Rows of sums: when, of what, how many tokens, and the cost with what is missing in it; `exact` for programs."""
    number = str if exact else count
    where = ZoneInfo(zone) if zone else UTC
    columns = []
    if bucket:
        columns.append(Column(bucket.upper(), lambda row: _when(row, bucket, where)))
    for place, name in enumerate(by):
        column = Column(_title(name), _value(place), flexible=True)
        columns.append(replace(column, keep=_ID) if name in ("agent", "task", "root_task") else column)
    columns += [
        Column("INPUT", lambda row: number(row.usage.tokens.input_tokens), right=True),
        Column("CACHED", lambda row: number(row.usage.tokens.cache_read_tokens), right=True, spare=True),
        Column("OUTPUT", lambda row: number(row.usage.tokens.output_tokens), right=True),
        Column("RECORDS", lambda row: number(row.usage.records), right=True, spare=True),
        Column("COST", lambda row: _cost(row.usage, exact), right=True),
        Column("UNCACHED", lambda row: number(row.usage.tokens.uncached_input_tokens), right=True, wide=True),
        Column("WRITTEN", lambda row: number(_written(row.usage)), right=True, wide=True),
        Column("REASONING", lambda row: number(row.usage.tokens.reasoning_tokens), right=True, wide=True),
    ]
    return View(columns=tuple(columns), id=lambda row: "/".join(row.group))


def _title(name: str) -> str:
    return name.removeprefix("label:").upper().replace("_", " ")


def _value(place: int) -> Any:
    return lambda row: row.group[place] or _NONE


def _when(row: UsageRow, bucket: str, zone: Any) -> str:
    return datetime.fromtimestamp(row.bucket_time.seconds, zone).strftime(_FORMATS.get(bucket, "%Y-%m-%d"))


def _written(usage: UsageTotals) -> int:
    return usage.tokens.cache_write_5m_tokens + usage.tokens.cache_write_1h_tokens


def _cost(usage: UsageTotals, exact: bool) -> Cell:
    return Cell(cost_of(usage, on_pipe=exact), "yellow" if usage.unpriced_records else "plain")


def _rate(price: Price, name: str) -> str:
    return next((rate(amount) for field, amount in price.rates.ListFields() if field.name == name), _NONE)


def _since(price: Price) -> str:
    begin = price.valid_from_time
    return datetime.fromtimestamp(begin.seconds, UTC).strftime("%Y-%m-%d") if begin.seconds else _NONE


def _origin(price: Price) -> Cell:
    return Cell("set here", "green") if price.origin == 2 else Cell(f"shipped, as of {price.source_date}")


def _amounts(amounts: Sequence[tuple[str, Money]]) -> str:
    return "\n".join(f"{name} {rate(amount)}" for name, amount in amounts)


def _long(price: Price) -> str:
    return "\n".join(
        f"above {count(tier.above_input_tokens)} tokens: {rate(tier.rates.input)} in, {rate(tier.rates.output)} out"
        for tier in price.long_context
    )


def _price_card(price: Price) -> list[Line]:
    return [
        Line("Price", price.price_id),
        Line("Model", f"{price.provider} {price.model}"),
        Line("Also", " ".join(price.aliases)),
        Line("Input", f"{_rate(price, 'input')} a million tokens"),
        Line("Output", f"{_rate(price, 'output')} a million tokens"),
        Line("Cache read", _rate(price, "cache_read")),
        Line("Written, 5 min", _rate(price, "cache_write_5m")),
        Line("Written, 1 hour", _rate(price, "cache_write_1h")),
        Line("Long input", _long(price)),
        Line("Each request", rate(price.per_request) if price.HasField("per_request") else ""),
        Line("Units", _amounts(sorted(price.units.items()))),
        Line("Tiers", " ".join(f"{name}={part}%" for name, part in sorted(price.service_tier_percent.items()))),
        Line("Since", _since(price)),
        Line("Origin", _origin(price)),
        Line("Source", price.source),
    ]


PRICES = View(
    columns=(
        Column("PROVIDER", lambda price: price.provider),
        Column("MODEL", lambda price: price.model, flexible=True, keep=27),
        Column("INPUT", lambda price: _rate(price, "input"), right=True),
        Column("CACHE READ", lambda price: _rate(price, "cache_read"), right=True),
        Column("OUTPUT", lambda price: _rate(price, "output"), right=True),
        Column("SINCE", _since, spare=True),
        Column("ORIGIN", _origin, spare=True),
        Column("WRITE 5M", lambda price: _rate(price, "cache_write_5m"), right=True, wide=True),
        Column("WRITE 1H", lambda price: _rate(price, "cache_write_1h"), right=True, wide=True),
        Column("PRICE", lambda price: price.price_id, wide=True),
    ),
    id=lambda price: price.price_id,
    card=_price_card,
    brief=(
        Column("MODEL", lambda price: f"{price.provider}/{price.model}"),
        Column("RATES", lambda price: f"{_rate(price, 'input')} in, {_rate(price, 'output')} out a million tokens"),
        Column("SINCE", lambda price: f"since {_since(price)}" if price.valid_from_time.seconds else "from ever"),
    ),
)
"""Prices are dollars a million tokens."""
