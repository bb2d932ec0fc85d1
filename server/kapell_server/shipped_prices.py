"""The prices that come with Kapell: data files in `prices/`, one a provider.

A file has the provider, the page where it publishes its prices, and the prices: dollars a million tokens as decimal
text, `as_of` the day the figure is as of, `from` the day they begin to count (the beginning where it is left out),
`long_context` other rates for long inputs, `tiers` percents by tier of service, `units` dollars for one of
something else. Read when a price is first asked for; nothing of it is in the database, so a newer Kapell
brings newer prices, while what was recorded keeps its cost. They were put together from public lists, some of
them second hand: the page has the last word, and a price that is set comes before them.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kapell.v1.price_pb2 import PRICE_ORIGIN_SHIPPED, Price, TokenRates

from kapell_server.domain.times import SECOND, stamp
from kapell_server.domain.usage.figures import money, nanos_of_number

DIRECTORY = Path(__file__).parent / "prices"
_RATES = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")


def shipped_prices() -> list[Price]:
    """All of them. Raises ValueError or KeyError for a file that cannot be read."""
    found: list[Price] = []
    for file in sorted(DIRECTORY.glob("*.json")):
        document = json.loads(file.read_bytes())
        found += [_price(document["provider"], document["source"], said) for said in document["prices"]]
    return found


def _price(provider: str, source: str, said: Mapping[str, Any]) -> Price:
    begin = said.get("from", "")
    price = Price(
        price_id=f"shipped/{provider}/{said['model']}@{begin or said['as_of']}",
        provider=provider,
        model=said["model"],
        aliases=said.get("aliases", ()),
        rates=_rates(said),
        service_tier_percent=said.get("tiers", {}),
        source=source,
        source_date=said["as_of"],
        origin=PRICE_ORIGIN_SHIPPED,
    )
    if begin:
        day = datetime.datetime.fromisoformat(begin).replace(tzinfo=datetime.UTC)
        stamp(price.valid_from_time, int(day.timestamp()) * SECOND)
    for tier in said.get("long_context", ()):
        price.long_context.add(above_input_tokens=tier["above"], rates=_rates(tier))
    for name, dollars in said.get("units", {}).items():
        price.units[name].CopyFrom(money(nanos_of_number(dollars)))
    return price


def _rates(said: Mapping[str, Any]) -> TokenRates:
    return TokenRates(**{name: money(nanos_of_number(said[name])) for name in _RATES if name in said})
