"""A world with budgets: short words for what tests of them say again and again."""

from __future__ import annotations

from typing import Any

from google.type.money_pb2 import Money
from kapell.v1.alert_pb2 import ALERT_STATE_RESOLVED, Alert
from kapell.v1.budget_pb2 import (
    Budget,
    BudgetAmount,
    BudgetScope,
    BudgetSpec,
    BudgetStatus,
    BudgetThreshold,
    CreateBudgetRequest,
    GetBudgetRequest,
    ResumeBudgetRequest,
    TaskEstimate,
    UpdateBudgetRequest,
)
from kapell_server.domain.budgets.amounts import units_of
from kapell_server.domain.budgets.budgets import Settlement
from kapell_server.domain.state import State

from tests.domain.world import World

CENT = 10_000_000


def cents(number: int) -> BudgetAmount:
    """So much money."""
    return BudgetAmount(cost=Money(currency_code="USD", units=number // 100, nanos=number % 100 * 10_000_000))


def costing(number: int) -> TaskEstimate:
    """The estimate of a task that costs so many cents."""
    return TaskEstimate(cost=cents(number).cost)


def thresholds(**actions: int) -> list[BudgetThreshold]:
    """As at_80=BUDGET_ACTION_CANCEL."""
    return [
        BudgetThreshold(percent=int(name.removeprefix("at_")), action=action)  # type: ignore[arg-type]
        for name, action in actions.items()
    ]


class Usage:
    """A command of the tests: usage that a ledger would record."""

    def __init__(self, settlement: Settlement) -> None:
        self.settlement = settlement


def record(state: State, usage: Usage) -> None:
    state.budgets.settle(usage.settlement)


class Purse(World):
    """A world in which usage is recorded."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.deciders[Usage] = record

    def budget(self, limit: BudgetAmount, *, budget_id: str = "budget_b", **spec: Any) -> str:
        """A new budget's id; of everything unless its scope says otherwise."""
        spec.setdefault("scope", BudgetScope(all=True))
        made: Budget = self.do(CreateBudgetRequest(budget_id=budget_id, spec=BudgetSpec(limit=limit, **spec)))
        return made.budget_id

    def status(self, budget_id: str = "budget_b") -> BudgetStatus:
        """How the budget stands."""
        found: BudgetStatus = self.do(GetBudgetRequest(budget_id=budget_id)).budget.status
        return found

    def figures(self, budget_id: str = "budget_b") -> tuple[int, int]:
        """Spent and reserved: cents, or whatever it measures."""
        status = self.status(budget_id)
        size = CENT if status.spent.HasField("cost") else 1
        return units_of(status.spent) // size, units_of(status.reserved) // size

    def use(self, task_id: str = "", cost: int = 0, tokens: int = 0, **more: Any) -> None:
        """Usage of a task is recorded, in cents and tokens."""
        self.do(Usage(Settlement(task_id=task_id, cost=cost * CENT, tokens=tokens, **more)))

    def set_limit(self, limit: BudgetAmount, budget_id: str = "budget_b") -> Budget:
        request = UpdateBudgetRequest(budget_id=budget_id, spec=BudgetSpec(limit=limit))
        request.update_mask.paths.append("limit")
        found: Budget = self.do(request)
        return found

    def resume_budget(self, budget_id: str = "budget_b", **fields: Any) -> Budget:
        found: Budget = self.do(ResumeBudgetRequest(budget_id=budget_id, **fields))
        return found

    def alerts(self) -> list[Alert]:
        """Those that are not resolved."""
        return [one for one in self.state.standing.all(Alert) if one.state != ALERT_STATE_RESOLVED]

    def percents(self) -> list[int]:
        """Of the alerts about budgets."""
        return [alert.percent for alert in self.alerts() if alert.percent]
