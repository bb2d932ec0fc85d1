"""Money and tokens as people read them, without a lie: unpriced is said, and so is an estimate.

`exact` is the whole amount; `shown` has two places from a dollar on and more below, and never
rounds something to nothing.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.type.money_pb2 import Money

    from kapell.v1.usage_pb2 import UsageTotals

_NANO = 1_000_000_000
_SMALLEST = 1_000
UNPRICED = "unpriced"


def nanos(amount: Money) -> int:
    """Whole nano-dollars."""
    return int(amount.units) * _NANO + int(amount.nanos)


def exact(amount: Money) -> str:
    """All digits, without zeros at the end: "0.0045"."""
    text = f"{Decimal(nanos(amount)).scaleb(-9):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def shown(amount: Money) -> str:
    """For a table: "$12.30", "$0.0045", "<$0.000001"."""
    value = nanos(amount)
    sign = "-" if value < 0 else ""
    value = abs(value)
    if value == 0:
        return "$0.00"
    if value < _SMALLEST:
        return f"<{sign}$0.000001"
    if value >= _NANO:
        return f"{sign}${Decimal(value).scaleb(-9):,.2f}"
    return sign + _trimmed(f"${Decimal(value).scaleb(-9):.{4 if value >= _NANO // 100 else 6}f}")


def rate(amount: Money) -> str:
    """A price, with all its digits: "$0.075"."""
    return _trimmed(f"${Decimal(nanos(amount)).scaleb(-9):,.9f}")


def _trimmed(text: str) -> str:
    """Without zeros at the end beyond the cents."""
    whole, _, fraction = text.partition(".")
    return f"{whole}.{fraction.rstrip('0'):0<2}"


def cost_of(usage: UsageTotals, *, on_pipe: bool = False) -> str:
    """The cost of totals: "$1.20", "~$1.20" with estimates in it, "$1.20 +3 unpriced", "unpriced"."""
    if usage.records and usage.unpriced_records == usage.records:
        return UNPRICED
    text = exact(usage.cost) if on_pipe else shown(usage.cost)
    if usage.estimated_records:
        text = f"~{text}"
    return f"{text} +{usage.unpriced_records} unpriced" if usage.unpriced_records else text


def count(number: int) -> str:
    """A count with thousands apart: "1,234,567"."""
    return f"{number:,}"
