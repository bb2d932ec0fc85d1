"""What the server holds besides tasks and agents, for `kapell status`: approvals, alerts, budgets, spend, locks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kapell.cli.budget_views import budget_state
from kapell.cli.output import as_data

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.alert_pb2 import Alert
    from kapell.v1.approval_pb2 import Approval
    from kapell.v1.budget_pb2 import Budget
    from kapell.v1.lock_pb2 import Lock
    from kapell.v1.usage_pb2 import UsageTotals

_MOST_APPROVALS = 100
_MOST_LOCKS = 100
_STOPPED = ("stopped", "asks")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """All of it at one moment. `approvals` are the first of the inbox, of `approvals_pending` in all."""

    approvals: list[Approval] = field(default_factory=list)
    approvals_pending: int = 0
    alerts: list[Alert] = field(default_factory=list)
    budgets: list[Budget] = field(default_factory=list)
    spend: UsageTotals | None = None
    locks: list[Lock] = field(default_factory=list)
    more_locks: bool = False
    """Whether there are more locks than these."""
    lock_waiters: int = 0

    def as_data(self) -> dict[str, Any]:
        """For `-o json`, messages in proto JSON form."""
        return {
            "approvals": [as_data(approval) for approval in self.approvals],
            "alerts": [as_data(alert) for alert in self.alerts],
            "budgets": [as_data(budget) for budget in self.budgets],
            "spend": {} if self.spend is None else as_data(self.spend),
            "locks": [as_data(lock) for lock in self.locks],
            "lockWaiters": self.lock_waiters,
        }

    @property
    def stopped_budgets(self) -> list[Budget]:
        """Those that hold work back, without those about which an approval asks already."""
        asked = {approval.budget_id for approval in self.approvals}
        return [one for one in self.budgets if budget_state(one).text in _STOPPED and one.budget_id not in asked]

    @property
    def other_alerts(self) -> list[Alert]:
        """Those that fire about something else than what is told anyway: such a budget, or an approval."""
        told = {one.budget_id for one in self.budgets if budget_state(one).text in _STOPPED}
        told |= {approval.approval_id for approval in self.approvals}
        return [alert for alert in self.alerts if alert.subject not in told]


async def look(client: Client) -> Standing:
    """Reads all of it."""
    import asyncio

    approvals, alerts, budgets, usage, locks = await asyncio.gather(
        client.approvals.list(page_size=_MOST_APPROVALS),
        client.alerts.list(states=["firing"], page_size=100),
        client.budgets.list(page_size=100),
        client.usage.query(),
        client.locks.list(page_size=_MOST_LOCKS),
    )
    return Standing(
        approvals=list(approvals.approvals),
        approvals_pending=approvals.total,
        alerts=list(alerts.alerts),
        budgets=list(budgets.budgets),
        spend=usage.total,
        locks=list(locks.locks),
        more_locks=bool(locks.next_page_token),
        lock_waiters=locks.waiter_count,
    )
