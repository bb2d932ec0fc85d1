"""What budgets cost where tasks start: whole lifecycles under fifty budgets, and under none."""

from __future__ import annotations

from collections.abc import Sequence

from google.type.money_pb2 import Money
from kapell.v1.budget_pb2 import (
    CALENDAR_UNIT_DAY,
    BudgetAmount,
    BudgetScope,
    BudgetSpec,
    BudgetWindow,
    CalendarWindow,
    CreateBudgetRequest,
    TaskEstimate,
)

from tests.bench import messages
from tests.bench.load import RawClient
from tests.bench.place import kapell
from tests.bench.result import Row
from tests.bench.suite import Setting, benchmark
from tests.bench.working import lifecycles

BUDGETS = 50
APPLYING = 3
"""Of the fifty: all work, the type of the tasks, and their label. The others are of other types."""
CREATE = "/kapell.v1.BudgetService/CreateBudget"
_PLENTY = BudgetAmount(cost=Money(currency_code="USD", units=1_000_000_000))
_DAILY = BudgetWindow(calendar=CalendarWindow(unit=CALENDAR_UNIT_DAY, time_zone="Europe/Berlin"))
_ESTIMATE = TaskEstimate(cost=Money(currency_code="USD", nanos=10_000_000), tokens=1_000)


@benchmark("budgets")
async def lifecycles_under_budgets(setting: Setting) -> Sequence[Row]:
    """Whole lifecycles of labelled tasks with an estimate, on a server with fifty budgets and on one with none."""
    figures, floors = [], []
    for name in ("many", "none"):
        (setting.directory / name).mkdir()
    with kapell(setting.directory / "many") as many, kapell(setting.directory / "none") as none:
        agent_types = [f"work-{number}" for number in range(setting.repetitions)]
        await _set_up(many.address, many.token, agent_types)
        for agent_type in agent_types:
            spec = messages.spec(agent_type)
            spec.labels["team"] = "search"
            spec.estimate.CopyFrom(_ESTIMATE)
            floors.append(await lifecycles(none, setting.seconds * 2, spec))
            figures.append(await lifecycles(many, setting.seconds * 2, spec))
    return [
        Row(
            name=f"whole lifecycles under {BUDGETS} budgets, {APPLYING} of which apply",
            unit="/s",
            figures=figures,
            floors=floors,
            goal=0.9,
            higher_is_better=True,
            note="floor: the same tasks without budgets",
        )
    ]


async def _set_up(address: str, token: str, agent_types: Sequence[str]) -> None:
    """One budget of all, one of the label, one of each type that is measured; the rest of others."""
    scopes = [BudgetScope(all=True), BudgetScope(label="team=search")]
    scopes += [BudgetScope(agent_type=agent_type) for agent_type in agent_types]
    scopes += [BudgetScope(agent_type=f"other-{number}") for number in range(BUDGETS - len(scopes))]
    async with RawClient(address, token) as client:
        create = client.unary(CREATE)
        for scope in scopes:
            spec = BudgetSpec(scope=scope, limit=_PLENTY, window=_DAILY)
            await create(CreateBudgetRequest(spec=spec).SerializeToString())
