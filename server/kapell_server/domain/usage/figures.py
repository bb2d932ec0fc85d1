"""The algebra of usage: counts of tokens, money as whole nano-dollars, and sums of both.

A total is the sum of whole numbers, so it is exact in whatever order it is summed. Money of the API
has nanos as well, so nothing is lost on the way in or out.
"""

from __future__ import annotations

import operator
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import NamedTuple

from google.type.money_pb2 import Money
from kapell.v1.usage_pb2 import TokenCounts, UsageTotals

NANO = 1_000_000_000
"""Nano-dollars of a dollar."""
MOST_TOKENS = 10**12
MOST_COST = 1_000_000 * NANO
"""What one record may cost at most."""
MOST_SUM = 2**63 - 1
"""What a sum may be: its column holds no more, and nor does a count of a message."""


class Figures(NamedTuple):
    """Tokens by kind. The input is the sum of the first four; reasoning is a part of the output."""

    uncached: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    output: int = 0
    reasoning: int = 0

    @property
    def input(self) -> int:
        """All input, cached or not."""
        return self.uncached + self.cache_read + self.cache_write_5m + self.cache_write_1h

    @classmethod
    def of(cls, tokens: TokenCounts) -> Figures:
        """The counts of a message."""
        return cls(
            tokens.uncached_input_tokens,
            tokens.cache_read_tokens,
            tokens.cache_write_5m_tokens,
            tokens.cache_write_1h_tokens,
            tokens.output_tokens,
            tokens.reasoning_tokens,
        )

    def write_to(self, tokens: TokenCounts) -> None:
        """Sets the counts of a message, with the input's sum."""
        tokens.uncached_input_tokens = self.uncached
        tokens.cache_read_tokens = self.cache_read
        tokens.cache_write_5m_tokens = self.cache_write_5m
        tokens.cache_write_1h_tokens = self.cache_write_1h
        tokens.output_tokens = self.output
        tokens.reasoning_tokens = self.reasoning
        tokens.input_tokens = self.input

    def joined(self, other: Figures) -> Figures:
        """The larger of each count."""
        return Figures(*map(max, self, other))

    def beyond(self, other: Figures) -> Figures:
        """How much larger each count is; 0 where it is not."""
        return Figures(*(max(0, mine - theirs) for mine, theirs in zip(self, other, strict=True)))

    def covers(self, other: Figures) -> bool:
        """Whether no count of the other is larger."""
        return all(mine >= theirs for mine, theirs in zip(self, other, strict=True))


FIELDS = (
    "uncached_input_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
)
"""The names of the counts, as messages have them, in the order of Figures."""


class Sums(NamedTuple):
    """Sums of records that count: in the order of the columns that hold them."""

    records: int = 0
    uncached: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    output: int = 0
    reasoning: int = 0
    cost: int = 0
    unpriced: int = 0
    estimated: int = 0

    def plus(self, other: Sums) -> Sums:
        """Both together."""
        return Sums._make(map(operator.add, self, other))

    def minus(self, other: Sums) -> Sums:
        """Without the other."""
        return Sums._make(map(operator.sub, self, other))

    def figures(self) -> Figures:
        """The tokens alone."""
        return Figures._make(self[1:7])

    @property
    def tokens(self) -> int:
        """Input and output: no other sum of tokens is larger."""
        return sum(self[1:6])

    def message(self) -> UsageTotals:
        """As the API has it."""
        totals = UsageTotals()
        self.write_to(totals)
        return totals

    def write_to(self, totals: UsageTotals) -> None:
        """Fills a message in place, a third of the work of making one to be copied: answers have thousands."""
        totals.records = self.records
        totals.unpriced_records = self.unpriced
        totals.estimated_records = self.estimated
        self.figures().write_to(totals.tokens)
        _put(totals.cost, self.cost)

    @classmethod
    def of(cls, totals: UsageTotals) -> Sums:
        """The sums of a message."""
        figures = Figures.of(totals.tokens)
        return cls(totals.records, *figures, nanos(totals.cost), totals.unpriced_records, totals.estimated_records)


def money(cost: int) -> Money:
    """Nano-dollars as a message."""
    amount = Money()
    _put(amount, cost)
    return amount


def _put(amount: Money, cost: int) -> None:
    units, rest = divmod(abs(cost), NANO)
    amount.currency_code = "USD"
    amount.units = units if cost >= 0 else -units
    amount.nanos = rest if cost >= 0 else -rest


def nanos(amount: Money) -> int:
    """A message as nano-dollars."""
    return int(amount.units * NANO + amount.nanos)


def nanos_of_number(dollars: float | str) -> int:
    """Dollars as a payload has them, in nano-dollars: the shortest decimal number that means the same, rounded once.

    Raises ValueError.
    """
    try:
        amount = Decimal(str(dollars)) * NANO
        whole = int(amount.to_integral_value(ROUND_HALF_EVEN))
    except (InvalidOperation, OverflowError) as error:
        raise ValueError(f"{dollars!r} is not an amount of money") from error
    if not 0 <= whole <= MOST_COST:
        raise ValueError(f"a cost of {dollars} dollars is not between 0 and 1,000,000")
    return whole


def rounded(numerator: int, denominator: int) -> int:
    """The quotient, rounded to the nearest whole number; half of one to the even one."""
    quotient, rest = divmod(numerator, denominator)
    return quotient + (2 * rest > denominator or (2 * rest == denominator and quotient % 2 == 1))
