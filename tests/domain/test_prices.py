"""Prices: which one counts, what a call costs, and what is not known."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money
from kapell.v1.price_pb2 import (
    PRICE_ORIGIN_SET,
    DeletePriceRequest,
    GetPriceRequest,
    ListPricesRequest,
    LongContextRates,
    Price,
    SetPriceRequest,
    TokenRates,
)
from kapell_server.domain.usage import price as price_rules
from kapell_server.domain.usage.figures import Figures, money, nanos, nanos_of_number, rounded
from kapell_server.shipped_prices import shipped_prices

from tests.domain.world import World

DAY = 86_400


def rates(input: int, output: int, **others: int) -> TokenRates:
    """Nano-dollars a million tokens."""
    return TokenRates(input=money(input), output=money(output), **{name: money(one) for name, one in others.items()})


def put(world: World, model: str = "m", *, since: int = 0, **fields: Any) -> Price:
    price = Price(provider="acme", model=model, **{"rates": rates(10**9, 2 * 10**9), **fields})
    if since:
        price.valid_from_time.FromSeconds(since)
    found: Price = world.do(SetPriceRequest(price=price))
    return found


def cost(world: World, figures: Figures, *, at: int = 0, model: str = "m", tier: str = "", **units: int) -> int | None:
    found = world.state.usage.prices.cost("acme", model, (at or world.now_ns // 10**9) * 10**9, figures, units, tier)
    return found.nanos


def test_a_cost_is_rounded_once_to_the_nearest_nano_and_half_of_one_to_the_even_one() -> None:
    world = World()
    put(world, rates=rates(500_000, 1))

    assert cost(world, Figures(uncached=1)) == 0  # half a nano
    assert cost(world, Figures(uncached=3)) == 2  # one and a half
    assert cost(world, Figures(uncached=1, output=1)) == 1  # half a nano and a millionth of one
    assert [rounded(number, 2) for number in range(6)] == [0, 0, 1, 2, 2, 2]


def test_the_price_of_the_time_of_use_counts_and_a_set_one_before_a_shipped_one() -> None:
    world = World()
    put(world, rates=rates(10**9, 0))
    put(world, rates=rates(3 * 10**9, 0), since=1_700_000_000)

    at = [cost(world, Figures(uncached=1_000_000), at=at) for at in (1_699_999_999, 1_700_000_000)]
    world.do(SetPriceRequest(price=Price(provider="openai", model="gpt-5", rates=rates(7, 7))))
    shipped = world.do(GetPriceRequest(model="gpt-5-2025-08-07")).price

    assert at == [10**9, 3 * 10**9]
    assert shipped.origin == PRICE_ORIGIN_SET


def test_a_cut_price_counts_from_its_day_on() -> None:
    world = World()
    day = int(datetime.datetime(2026, 7, 30, tzinfo=datetime.UTC).timestamp())

    found = [
        world.do(GetPriceRequest(model="gpt-5.6-luna", at_time=Timestamp(seconds=at))).price for at in (day - 1, day)
    ]

    assert [nanos(price.rates.input) for price in found] == [10**9, 2 * 10**8]


def test_long_inputs_tiers_requests_and_units_have_their_prices() -> None:
    world = World()
    put(
        world,
        long_context=[LongContextRates(above_input_tokens=100, rates=rates(10 * 10**9, 20 * 10**9))],
        per_request=money(5),
        units={"searches": money(1000)},
        service_tier_percent={"batch": 50},
    )

    assert cost(world, Figures(uncached=100, output=1)) == 100 * 1000 + 2000 + 5
    assert cost(world, Figures(uncached=50, cache_read=51, output=1)) == 101 * 10_000 + 20_000 + 5
    assert cost(world, Figures(output=2), tier="batch") == 2000 + 5
    assert cost(world, Figures(output=1), searches=3) == 2000 + 5 + 3000
    assert cost(world, Figures(output=1), tier="turbo") is None
    assert cost(world, Figures(output=1), images=1) is None
    assert cost(world, Figures(output=1), images=0) == 2005


def test_a_set_price_is_replaced_deleted_and_listed() -> None:
    world = World()
    first = put(world)
    second = put(world, rates=rates(5, 5))
    later = put(world, since=1_900_000_000)

    listed = world.do(ListPricesRequest(provider="acme", include_past=True)).prices
    world.do(DeletePriceRequest(price_id=later.price_id))
    with world.refuses("PRICE_NOT_FOUND"):
        world.do(DeletePriceRequest(price_id=first.price_id))

    assert first.price_id != second.price_id
    assert [price.price_id for price in listed] == [second.price_id, later.price_id]
    assert listed[0].valid_until_time == later.valid_from_time
    assert world.events.count("price.set") == 3


def test_pages_of_prices_go_on_whatever_is_set_in_between() -> None:
    world = World()
    for number in range(5):
        put(world, f"m{number}")

    seen: list[str] = []
    request = ListPricesRequest(provider="acme", page_size=2)
    while True:
        page = world.do(request)
        seen += [price.model for price in page.prices]
        put(world, "m0a")
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token

    assert seen == ["m0", "m1", "m2", "m3", "m4"]
    with world.refuses("PAGE_TOKEN_INVALID"):
        world.do(ListPricesRequest(page_token="nothing"))


def test_one_price_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    monkeypatch.setattr(price_rules, "MOST_PRICES", 2)
    put(world, "a")
    put(world, "b")

    with world.refuses("PRICE_LIMIT"):
        put(world, "c")
    put(world, "b")


def test_the_shipped_prices_are_whole() -> None:
    prices = shipped_prices()

    assert len({price.price_id for price in prices}) == len(prices)
    names = [(p.provider, name, p.valid_from_time.seconds) for p in prices for name in (p.model, *p.aliases)]
    assert len(set(names)) == len(names), "a name stands for two prices"
    for price in prices:
        assert nanos(price.rates.input) > 0
        assert nanos(price.rates.output) >= nanos(price.rates.input)
        assert nanos(price.rates.cache_read) <= nanos(price.rates.input)
        assert price.source.startswith("https://")
        assert datetime.date.fromisoformat(price.source_date) <= datetime.date(2100, 1, 1)


def test_money_keeps_every_nano() -> None:
    for amount in (0, 1, 999_999_999, 10**9, 12_345_678_901, -1, -(10**9) - 5):
        assert nanos(money(amount)) == amount
    assert money(-1) == Money(currency_code="USD", nanos=-1)
    assert nanos_of_number(0.1) == 100_000_000
    assert nanos_of_number("0.0000000015") == 2
    for wrong in ("x", -1, float("inf"), float("nan"), 1_000_001):
        with pytest.raises(ValueError, match=r".+"):
            nanos_of_number(wrong)
