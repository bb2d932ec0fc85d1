"""What clients may do to prices, and what they may ask of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from google.type.money_pb2 import Money
from kapell.v1.error_pb2 import (
    ERROR_REASON_PAGE_TOKEN_INVALID,
    ERROR_REASON_PRICE_LIMIT,
    ERROR_REASON_PRICE_NOT_FOUND,
    ERROR_REASON_REQUEST_INVALID,
)
from kapell.v1.price_pb2 import (
    PRICE_ORIGIN_SET,
    DeletePriceRequest,
    DeletePriceResponse,
    GetPriceRequest,
    GetPriceResponse,
    ListPricesRequest,
    ListPricesResponse,
    Price,
    SetPriceRequest,
    TokenRates,
)
from kapell.v1.watch_pb2 import EVENT_KIND_PRICE_DELETED, EVENT_KIND_PRICE_SET

from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.state import State
from kapell_server.domain.tasks.task import check_etag
from kapell_server.domain.times import stamp, timestamp_ns
from kapell_server.domain.usage.figures import MOST_COST, nanos

MOST_PRICES = 2_000
"""Prices that may be set; all are in memory."""
_DEFAULT_PAGE = 50
_OUTPUT_ONLY = ("price_id", "valid_until_time", "origin", "update_time", "etag", "revision")


def set_price(state: State, request: SetPriceRequest) -> Price:
    """Sets a price from a time on; the one that was set for the same time is replaced."""
    price = copied(request.price)
    _check(price)
    known = _same(state, price)
    check_etag(request.etag, known.etag if known is not None else "")
    if known is None and state.standing.count(Price) >= MOST_PRICES:
        raise KapellError(
            ERROR_REASON_PRICE_LIMIT,
            f"{MOST_PRICES} prices are set, which is the limit. Delete those that are needed no more.",
            metadata={"limit": str(MOST_PRICES)},
        )
    for name in _OUTPUT_ONLY:
        price.ClearField(name)  # type: ignore[arg-type]
    price.price_id = state.new_id("price")
    price.origin = PRICE_ORIGIN_SET
    stamp(price.update_time, state.now_ns)
    if known is not None:
        state.standing.put(copied(known), EVENT_KIND_PRICE_DELETED, (), deleted=True)
    state.standing.put(price, EVENT_KIND_PRICE_SET, ("rates",))
    state.usage.prices.touch()
    return price


def _same(state: State, price: Price) -> Price | None:
    """The price that was set for the same provider, model and time."""
    from_ns = timestamp_ns(price.valid_from_time)
    wanted = price.provider, price.model, from_ns
    for known in state.standing.all(Price):
        if (known.provider, known.model, timestamp_ns(known.valid_from_time)) == wanted:
            return known
    return None


def _check(price: Price) -> None:
    amounts = [("rates", price.rates)]
    amounts += [(f"long_context[{index}].rates", tier.rates) for index, tier in enumerate(price.long_context)]
    found = [(f"{path}.{name}", amount) for path, rates in amounts for name, amount in _said(rates)]
    found += [(f'units["{name}"]', amount) for name, amount in price.units.items()]
    if price.HasField("per_request"):
        found.append(("per_request", price.per_request))
    wrong = [
        (path, "must be US dollars from 0 to 1,000,000, with whole nanos")
        for path, amount in found
        if amount.currency_code not in ("", "USD")
        or not 0 <= amount.nanos < 10**9
        or not 0 <= nanos(amount) <= MOST_COST
    ]
    if wrong:
        raise KapellError(
            ERROR_REASON_REQUEST_INVALID,
            f"The price is invalid: {wrong[0][0]} {wrong[0][1]}. Correct it and send it again.",
            violations=tuple(wrong),
        )


def _said(rates: TokenRates) -> Iterator[tuple[str, Money]]:
    for field, amount in rates.ListFields():
        yield field.name, amount


def delete_price(state: State, request: DeletePriceRequest) -> DeletePriceResponse:
    """Forgets a price that was set."""
    known = state.standing.find(Price, request.price_id)
    if known is None:
        raise KapellError(
            ERROR_REASON_PRICE_NOT_FOUND,
            f"No price was set as {request.price_id}. Those that came with Kapell stay; set another one instead.",
            metadata={"price_id": request.price_id},
        )
    gone = state.standing.put(copied(known), EVENT_KIND_PRICE_DELETED, (), deleted=True)
    state.usage.prices.touch()
    return DeletePriceResponse(revision=gone.revision)


def get_price(state: State, request: GetPriceRequest) -> GetPriceResponse:
    """The price that counts for a model at a time."""
    prices = state.usage.prices
    at_ns = timestamp_ns(request.at_time) if request.HasField("at_time") else state.now_ns
    found = prices.find(request.provider.lower(), request.model, at_ns)
    if found is None:
        raise price_not_found(request.model)
    return GetPriceResponse(price=found.price, revision=state.revision)


def price_not_found(model: str) -> KapellError:
    """No price is known for the model."""
    return KapellError(
        ERROR_REASON_PRICE_NOT_FOUND,
        f"No price is known for {model}, so its usage is unpriced. Set one, or name its provider.",
        metadata={"model": model},
    )


def list_prices(state: State, request: ListPricesRequest) -> ListPricesResponse:
    """A page of prices. A token is the mark of the last price before it, so changes in between do no harm."""
    prices = state.usage.prices
    found = [price for price in prices.all() if _matches(state, price, request)]
    start = 0
    if request.page_token:
        marks = [_mark(price) for price in found]
        if request.page_token not in marks:
            raise KapellError(
                ERROR_REASON_PAGE_TOKEN_INVALID,
                "page_token cannot be used: it is damaged, belongs to another filter, or its price is gone. "
                "Start again without a page_token.",
                violations=(("page_token", "is of no price of this list"),),
            )
        start = marks.index(request.page_token) + 1
    end = start + (request.page_size or _DEFAULT_PAGE)
    response = ListPricesResponse(prices=found[start:end], revision=state.revision, shipped_date=prices.shipped_date)
    if end < len(found):
        response.next_page_token = _mark(found[end - 1])
    return response


def _matches(state: State, price: Price, request: ListPricesRequest) -> bool:
    if request.provider and price.provider != request.provider.lower():
        return False
    if request.model.lower() not in price.model:
        return False
    past = price.HasField("valid_until_time") and timestamp_ns(price.valid_until_time) <= state.now_ns
    return request.include_past or not past


def _mark(price: Price) -> str:
    return hashlib.blake2b(price.price_id.encode(), digest_size=12).hexdigest()
