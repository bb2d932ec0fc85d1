"""What the ledger records is settled by budgets, in the same change; models without a price fire an alert."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1.alert_pb2 import ALERT_KIND_UNPRICED_MODEL

from kapell_server.domain.budgets.budgets import Settlement
from kapell_server.domain.budgets.scopes import Features

if TYPE_CHECKING:
    from kapell_server.domain.state import State
    from kapell_server.domain.usage.entry import Entry


def settle(state: State, entry: Entry, previous: Entry | None) -> None:
    """Spends what a record says; of a new version of it, the difference. As `UsageShelf.settlers` asks for."""
    record, sums = entry.record, entry.sums
    if previous is not None:
        sums = sums.minus(previous.sums)
    figures = sums.figures()
    features = Features(
        agent_type=record.agent_type,
        template_id=record.template_id,
        tree=record.root_task_id or record.task_id,
        labels=dict(record.labels),
    )
    state.budgets.settle(
        Settlement(
            cost=sums.cost,
            tokens=figures.input + figures.output,
            task_id=record.task_id,
            attempt=record.attempt,
            agent_id=record.agent_id,
            features=features,
        )
    )
    if record.unpriced and record.model:
        text = f"Usage of {record.model} was recorded, which has no price: its cost is not known, and no budget has it."
        state.alerts.fire(ALERT_KIND_UNPRICED_MODEL, record.model, text)
    elif record.HasField("cost"):
        state.alerts.resolve(ALERT_KIND_UNPRICED_MODEL, record.model)
