"""What usage costs: the price that counts for a model at a time, and the reckoning.

Pure but for its index, which is made anew when a price was set. A price that was set comes before one
that was shipped, whenever each of them begins. Rates are nano-dollars a million tokens; a cost is
reckoned as a fraction and rounded once, to a whole nano-dollar.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from kapell.v1.price_pb2 import PRICE_ORIGIN_SET, Price, TokenRates

from kapell_server.domain.times import timestamp_ns
from kapell_server.domain.usage.figures import MOST_COST, Figures, nanos, rounded

if TYPE_CHECKING:
    from kapell_server.domain.state import State

_MILLION = 1_000_000
_PERCENT = 100
_DATED = re.compile(r"[-@](\d{8}|\d{4}-\d{2}-\d{2}|latest|\d{3})$")
"""What providers add to a model's name to say which day's it is."""
STANDARD_TIERS = frozenset({"", "standard", "default", "auto", "on_demand"})


class Rates(NamedTuple):
    """Nano-dollars a million tokens, by kind; `guessed` tells which of the five nobody has said.

    The kinds are the first five of Figures: reasoning is paid as output.
    """

    by_kind: tuple[int, int, int, int, int]
    guessed: tuple[bool, bool, bool, bool, bool]


class KnownPrice(NamedTuple):
    """A price made ready to reckon with. `long_context` has the highest limit first."""

    price: Price
    from_ns: int
    rates: Rates
    long_context: tuple[tuple[int, Rates], ...]
    per_request: int
    units: Mapping[str, int]


class Cost(NamedTuple):
    """What something costs: None where no price is known for all of it."""

    nanos: int | None
    price_id: str = ""
    guessed: bool = False
    why: str = ""
    """Why it is unpriced."""


class PriceBook:
    """The prices that were shipped, and those of State that were set."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._shipped: tuple[Price, ...] = ()
        self.shipped_date = ""
        """When the shipped prices were last looked after."""
        self._index: dict[tuple[str, str], list[KnownPrice]] | None = None
        self._providers: dict[str, set[str]] = {}

    def ship(self, prices: Sequence[Price]) -> None:
        """Takes over the prices that came with this version of Kapell."""
        self._shipped = tuple(prices)
        self.shipped_date = max((price.source_date for price in prices), default="")
        self._index = None

    def touch(self) -> None:
        """A price was set or forgotten."""
        self._index = None
        self._state.on_rollback(self._forget_index)

    def _forget_index(self) -> None:
        self._index = None

    def all(self) -> list[Price]:
        """Every price, by provider, model and time; each told when the next one of its origin begins."""
        found: list[Price] = []
        for price in (*self._shipped, *self._state.standing.all(Price)):
            copy = Price()
            copy.CopyFrom(price)
            found.append(copy)
        found.sort(key=lambda price: (price.provider, price.model, price.origin, timestamp_ns(price.valid_from_time)))
        for price, following in itertools.pairwise(found):
            if _line(price) == _line(following):
                price.valid_until_time.CopyFrom(following.valid_from_time)
        return found

    def provider_of(self, model: str) -> str:
        """Who sells the model, where only one does; else empty."""
        self._indexed()
        for name in names_of(model):
            sellers = self._providers.get(name)
            if sellers is not None:
                return next(iter(sellers)) if len(sellers) == 1 else ""
        return ""

    def find(self, provider: str, model: str, at_ns: int) -> KnownPrice | None:
        """The price that counts for a call at the time."""
        index = self._indexed()
        provider = provider or self.provider_of(model)
        for name in names_of(model):
            versions = index.get((provider, name))
            if versions is not None:
                return _at(versions, at_ns)
        return None

    def cost(
        self, provider: str, model: str, at_ns: int, figures: Figures, units: Mapping[str, int], tier: str
    ) -> Cost:
        """What one call costs."""
        found = self.find(provider, model, at_ns)
        if found is None:
            return Cost(None, why=f"no price is known for {model or 'a call without a model'}")
        return reckon(found, figures, units, tier)

    def _indexed(self) -> dict[tuple[str, str], list[KnownPrice]]:
        """Prices by provider and name, for each the latest first, those that were set before the others."""
        if self._index is None:
            index: dict[tuple[str, str], list[KnownPrice]] = {}
            self._providers = {}
            known = [_known(price) for price in (*self._shipped, *self._state.standing.all(Price))]
            known.sort(key=lambda one: (one.price.origin == PRICE_ORIGIN_SET, one.from_ns), reverse=True)
            for one in known:
                for name in (one.price.model, *one.price.aliases):
                    index.setdefault((one.price.provider, name), []).append(one)
                    self._providers.setdefault(name, set()).add(one.price.provider)
            self._index = index
        return self._index


def names_of(model: str) -> Iterable[str]:
    """The names a model may be listed under: as it is, then without its date."""
    name = model.lower().removeprefix("models/")
    yield name
    undated = _DATED.sub("", name)
    if undated != name:
        yield undated


def _at(versions: Sequence[KnownPrice], at_ns: int) -> KnownPrice | None:
    for one in versions:
        if one.from_ns <= at_ns:
            return one
    return None


def _line(price: Price) -> tuple[str, str, int]:
    return price.provider, price.model, price.origin


def _known(price: Price) -> KnownPrice:
    tiers = ((tier.above_input_tokens, _rates(tier.rates)) for tier in price.long_context)
    return KnownPrice(
        price=price,
        from_ns=timestamp_ns(price.valid_from_time),
        rates=_rates(price.rates),
        long_context=tuple(sorted(tiers, reverse=True)),
        per_request=nanos(price.per_request),
        units={name: nanos(amount) for name, amount in price.units.items()},
    )


def _rates(rates: TokenRates) -> Rates:
    base = nanos(rates.input)
    read = nanos(rates.cache_read) if rates.HasField("cache_read") else base
    short = nanos(rates.cache_write_5m) if rates.HasField("cache_write_5m") else base
    long = nanos(rates.cache_write_1h) if rates.HasField("cache_write_1h") else short
    names = ("cache_read", "cache_write_5m", "cache_write_1h")
    guessed = tuple(not rates.HasField(name) for name in names)  # type: ignore[arg-type]
    return Rates((base, read, short, long, nanos(rates.output)), (False, *guessed, False))  # type: ignore[arg-type]


def reckon(known: KnownPrice, figures: Figures, units: Mapping[str, int], tier: str) -> Cost:
    """What one call costs by a price."""
    price = known.price
    percent = _PERCENT
    if tier not in STANDARD_TIERS:
        if tier not in price.service_tier_percent:
            return Cost(None, price.price_id, why=f"no price is known for {price.model} in the tier {tier}")
        percent = price.service_tier_percent[tier]
    rates = known.rates
    for limit, others in known.long_context:
        if figures.input > limit:
            rates = others
            break
    total = sum(map(operator.mul, figures, rates.by_kind)) * percent
    other = known.per_request
    for name, count in units.items():
        if count and name not in known.units:
            return Cost(None, price.price_id, why=f"no price is known for {name} of {price.model}")
        other += count * known.units.get(name, 0)
    cost = rounded(total + other * _MILLION * _PERCENT, _MILLION * _PERCENT)
    if cost > MOST_COST:
        return Cost(None, price.price_id, why="it would cost more than 1,000,000 dollars")
    guessed = any(map(operator.and_, map(bool, figures), rates.guessed))
    return Cost(cost, price.price_id, guessed)
