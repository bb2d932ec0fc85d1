"""Amounts of budgets: from what people say, as "$5" or "200k tokens", to messages, and back to words."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from kapell.errors import InvalidRequest

if TYPE_CHECKING:
    from google.type.money_pb2 import Money

    from kapell.v1.budget_pb2 import BudgetAmount, TaskEstimate

_NANO = 10**9
_FACTORS = {"": 1, "k": 1_000, "m": 1_000_000}
_LENGTHS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_FORM = re.compile(r"(?P<dollar>\$)?\s*(?P<number>\d[\d,_]*(?:\.\d+)?)\s*(?P<unit>[a-z ]*)", re.IGNORECASE)
_HELP = 'write for example "$5", "0.25 usd", "200k tokens", "20 attempts" or "90m"'


def budget_amount(said: str | BudgetAmount) -> BudgetAmount:
    """The message for "$5", "5 usd", "200k tokens", "20 attempts" (or "tasks"), "90m". Raises InvalidRequest."""
    from google.protobuf.duration_pb2 import Duration

    from kapell.v1.budget_pb2 import BudgetAmount

    if not isinstance(said, str):
        return said
    match = _FORM.fullmatch(said.strip())
    if match is None:
        raise _unreadable(said)
    try:
        number = Decimal(match["number"].replace(",", "").replace("_", ""))
    except InvalidOperation:
        raise _unreadable(said) from None
    unit = match["unit"].strip().lower()
    if match["dollar"] or unit in ("usd", "dollars"):
        if match["dollar"] and unit:
            raise _unreadable(said)
        return BudgetAmount(cost=_money(number))
    counted = re.fullmatch(r"(k|m)?\s*(tokens?|attempts?|tasks?)", unit)
    if counted is not None:
        whole = number * _FACTORS[counted[1] or ""]
        if whole != int(whole):
            raise _unreadable(said)
        return BudgetAmount(tokens=int(whole)) if counted[2].startswith("tok") else BudgetAmount(tasks=int(whole))
    if unit in _LENGTHS:
        nanos = int(number * Decimal(str(_LENGTHS[unit])) * _NANO)
        return BudgetAmount(wall_time=Duration(seconds=nanos // _NANO, nanos=nanos % _NANO))
    raise _unreadable(said)


def task_estimate(said: str | TaskEstimate) -> TaskEstimate:
    """The message for "$0.20", or several amounts as "$0.20, 50k tokens, 10m". Raises InvalidRequest."""
    from kapell.v1.budget_pb2 import TaskEstimate

    if not isinstance(said, str):
        return said
    estimate = TaskEstimate()
    for part in said.split(", "):
        amount = budget_amount(part)
        match amount.WhichOneof("amount"):
            case "cost":
                estimate.cost.CopyFrom(amount.cost)
            case "tokens":
                estimate.tokens = amount.tokens
            case "wall_time":
                estimate.wall_time.CopyFrom(amount.wall_time)
            case _:
                raise InvalidRequest(
                    f"{part!r} cannot be estimated - an attempt is always one - leave it out", reason="ARGUMENT_INVALID"
                )
    return estimate


def amount_text(amount: BudgetAmount) -> str:
    """As "$4.20", "1,200 tokens", "3 attempts" or "1h 30m"; "-" for one that is not set."""
    match amount.WhichOneof("amount"):
        case "cost":
            return money_text(amount.cost)
        case "tokens":
            return f"{amount.tokens:,} token" + "s" * (amount.tokens != 1)
        case "tasks":
            return f"{amount.tasks:,} attempt" + "s" * (amount.tasks != 1)
        case "wall_time":
            return _length_text(amount.wall_time.seconds, amount.wall_time.nanos)
        case _:
            return "-"


def money_text(money: Money) -> str:
    """As "$4.20"; at least two decimals, and as many as there are."""
    cents = f"{money.nanos:09d}".rstrip("0").ljust(2, "0")
    return f"${money.units:,}.{cents}"


def _length_text(seconds: int, nanos: int) -> str:
    """As "1h 30m", "90s" or "0.5s"."""
    if seconds < 120 or nanos:
        return f"{seconds + nanos / _NANO:g}s"
    minutes, rest = divmod(seconds, 60)
    if rest:
        return f"{minutes}m {rest}s"
    hours, minutes = divmod(minutes, 60)
    return " ".join(part for part in (f"{hours}h" if hours else "", f"{minutes}m" if minutes else "") if part)


def amount_number(amount: BudgetAmount) -> float:
    """The amount as a number, to compare those of one kind."""
    match amount.WhichOneof("amount"):
        case "cost":
            return float(amount.cost.units + amount.cost.nanos / _NANO)
        case "tokens":
            return float(amount.tokens)
        case "tasks":
            return float(amount.tasks)
        case _:
            return amount.wall_time.seconds + amount.wall_time.nanos / _NANO


def _money(number: Decimal) -> Money:
    from google.type.money_pb2 import Money

    nanos = int((number * _NANO).to_integral_value())
    return Money(currency_code="USD", units=nanos // _NANO, nanos=nanos % _NANO)


def _unreadable(said: str) -> InvalidRequest:
    return InvalidRequest(f"{said!r} is not an amount - {_HELP}", reason="ARGUMENT_INVALID")
