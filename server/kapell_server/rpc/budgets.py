"""BudgetService and AlertService: changes and exact figures are the engine's, lists are read past it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1 import alert_pb2, budget_pb2

from kapell_server.domain.access import Caller

if TYPE_CHECKING:
    from kapell_server.engine.engine import Engine
    from kapell_server.store.reads import Reads


class BudgetServicer:
    """The methods of BudgetService."""

    def __init__(self, engine: Engine, reads: Reads) -> None:
        self._engine = engine
        self._reads = reads
        self.CreateBudget = engine.submit
        self.GetBudget = engine.submit
        self.UpdateBudget = engine.submit
        self.DeleteBudget = engine.submit
        self.ResumeBudget = engine.submit
        self.ReserveBudget = engine.submit
        self.SettleReservation = engine.submit
        self.ReleaseReservation = engine.submit

    async def ListBudgets(
        self, request: budget_pb2.ListBudgetsRequest, caller: Caller
    ) -> budget_pb2.ListBudgetsResponse:
        answer = await self._reads.standing.list_budgets(request)
        for budget in answer.budgets:
            self._engine.fill_in_budget(budget)
        return answer


class AlertServicer:
    """The methods of AlertService."""

    def __init__(self, engine: Engine, reads: Reads) -> None:
        self._reads = reads
        self.AcknowledgeAlert = engine.submit

    async def ListAlerts(self, request: alert_pb2.ListAlertsRequest, caller: Caller) -> alert_pb2.ListAlertsResponse:
        return await self._reads.standing.list_alerts(request)
