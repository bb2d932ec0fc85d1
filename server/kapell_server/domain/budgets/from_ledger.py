"""What the ledger records is settled by budgets, in the same change; models without a price fire an alert."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1.alert_pb2 import ALERT_KIND_UNPRICED_MODEL
from kapell.v1.usage_pb2 import USAGE_BASIS_REPORTED, UsageRecord

from kapell_server.domain.budgets.budgets import Settlement
from kapell_server.domain.budgets.scopes import Features

if TYPE_CHECKING:
    from kapell_server.domain.state import State
    from kapell_server.domain.usage.entry import Entry
    from kapell_server.domain.usage.figures import Sums


def settle(state: State, entry: Entry, previous: Entry | None) -> None:
    """Spends what a record says; of a new version of it, the difference. As `UsageShelf.settlers` asks for."""
    if previous is None:
        state.budgets.settle(_settlement(entry.record, entry.sums))
    elif _whose(previous.record) == _whose(entry.record):
        state.budgets.settle(_settlement(entry.record, entry.sums.minus(previous.sums)))
    else:
        before = _settlement(previous.record, previous.sums)
        state.budgets.settle(_settlement(entry.record, entry.sums), before)
    _tell_of_price(state, entry.record)


def _whose(record: UsageRecord) -> tuple[object, ...]:
    """What decides which budgets a record is spent of."""
    place = (record.task_id, record.agent_id, record.agent_type, record.template_id, record.root_task_id)
    return (*place, dict(record.labels))


def _settlement(record: UsageRecord, sums: Sums) -> Settlement:
    figures = sums.figures()
    features = Features(
        agent_type=record.agent_type,
        template_id=record.template_id,
        tree=record.root_task_id or record.task_id,
        labels=dict(record.labels),
    )
    return Settlement(
        cost=sums.cost,
        tokens=figures.input + figures.output,
        task_id=record.task_id,
        attempt=record.attempt,
        agent_id=record.agent_id,
        features=features,
    )


def _tell_of_price(state: State, record: UsageRecord) -> None:
    """Whether its model has a price. A cost that was reported says nothing of that."""
    if record.unpriced and record.model:
        text = f"Usage of {record.model} was recorded, which has no price: its cost is not known, and no budget has it."
        state.alerts.fire(ALERT_KIND_UNPRICED_MODEL, record.model, text)
    elif record.HasField("cost") and record.cost_basis != USAGE_BASIS_REPORTED:
        state.alerts.resolve(ALERT_KIND_UNPRICED_MODEL, record.model)
