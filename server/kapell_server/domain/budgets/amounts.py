"""Amounts as integers: billionths of a dollar, as the ledger has them, tokens, attempts, milliseconds.

All rules reckon in them; messages are made of them only to be shown. A part of a millisecond counts as one.
"""

from __future__ import annotations

from typing import Literal

from google.type.money_pb2 import Money
from kapell.v1.budget_pb2 import BudgetAmount, TaskEstimate

Measure = Literal["cost", "tokens", "tasks", "wall_time"]

NANO = 1_000_000_000
"""Units of cost in a dollar."""
MOST_SUM = 2**63 - 1
"""What a sum may be: its column holds no more."""
_MS = 1_000_000
"""Nanoseconds in a millisecond."""


def measure_of(amount: BudgetAmount) -> Measure:
    """What an amount is of. It is set, as validation has seen to."""
    measure = amount.WhichOneof("amount")
    assert measure is not None, "an amount says what it is of"
    return measure


def units_of(amount: BudgetAmount) -> int:
    """An amount in the units of its measure."""
    match measure_of(amount):
        case "cost":
            return nanos(amount.cost)
        case "tokens":
            return amount.tokens
        case "tasks":
            return amount.tasks
        case "wall_time":
            return milliseconds(amount.wall_time.seconds * 1_000_000_000 + amount.wall_time.nanos)


def nanos(money: Money) -> int:
    """Billionths of a dollar."""
    found: int = money.units * NANO + money.nanos
    return found


def milliseconds(ns: int) -> int:
    """Milliseconds, rounded up."""
    return -(-ns // _MS)


def most_of_callers(measure: Measure) -> int:
    """What callers may make spent or reserved of one budget, or extend it by: far from what cannot be summed.

    The rest is for what tasks use, which is never refused. Of time the bound is what a Duration can be shown as.
    """
    return 10**14 if measure == "wall_time" else MOST_SUM // 2


def set_amount(target: BudgetAmount, measure: Measure, units: int) -> None:
    """Sets `target` to so many units, which are not negative."""
    match measure:
        case "cost":
            target.cost.currency_code = "USD"
            target.cost.units, target.cost.nanos = divmod(units, NANO)
        case "tokens":
            target.tokens = units
        case "tasks":
            target.tasks = units
        case "wall_time":
            seconds, rest = divmod(units, 1000)
            target.wall_time.seconds, target.wall_time.nanos = seconds, rest * _MS


def amount(measure: Measure, units: int) -> BudgetAmount:
    """So many units, as a message."""
    made = BudgetAmount()
    set_amount(made, measure, units)
    return made


def declared(estimate: TaskEstimate, measure: Measure) -> int | None:
    """What a client has said that a task will use at most; None where it has said nothing."""
    match measure:
        case "cost":
            return nanos(estimate.cost) if estimate.HasField("cost") else None
        case "tokens":
            return estimate.tokens if estimate.HasField("tokens") else None
        case "tasks":
            return 1
        case "wall_time":
            found = estimate.wall_time
            return milliseconds(found.seconds * 1_000_000_000 + found.nanos) if estimate.HasField("wall_time") else None


def words(measure: Measure, units: int) -> str:
    """As "$4.20", "1,200 tokens", "3 attempts" or "90 s"."""
    match measure:
        case "cost":
            whole, rest = divmod(units, NANO)
            cents = f"{rest:09d}".rstrip("0").ljust(2, "0")
            return f"${whole:,}.{cents}"
        case "tokens":
            return f"{units:,} token" + "s" * (units != 1)
        case "tasks":
            return f"{units:,} attempt" + "s" * (units != 1)
        case "wall_time":
            return f"{units / 1000:,g} s"
