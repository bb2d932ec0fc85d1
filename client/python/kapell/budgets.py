"""The face for budgets: how much tasks may cost, and what happens at the limit. Thin; the server decides everything.

Amounts are said in words (see `kapell.amounts`), scopes and windows as messages or in words:

    await client.budgets.create("$5", scope="label:team=search", window="daily", time_zone="Europe/Berlin")
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from google.protobuf.field_mask_pb2 import FieldMask

from kapell.amounts import budget_amount
from kapell.connection import Connection
from kapell.errors import InvalidRequest
from kapell.messages import Seconds, by_word, duration, new_request_id
from kapell.v1 import budget_pb2 as pb
from kapell.v1.budget_pb2_grpc import BudgetServiceStub

if TYPE_CHECKING:
    from kapell.v1.budget_pb2_grpc import BudgetServiceAsyncStub

Amount = str | pb.BudgetAmount
_SCOPES = {"type": "agent_type", "agent": "agent_id", "template": "template_id", "tree": "root_task_id"}
_UNITS = {"daily": pb.CALENDAR_UNIT_DAY, "weekly": pb.CALENDAR_UNIT_WEEK, "monthly": pb.CALENDAR_UNIT_MONTH}
ACTIONS = {
    "notify": pb.BUDGET_ACTION_NOTIFY,
    "approval": pb.BUDGET_ACTION_REQUIRE_APPROVAL,
    "stop": pb.BUDGET_ACTION_STOP_ADMISSION,
    "cancel": pb.BUDGET_ACTION_CANCEL,
}
"""The words for what happens at a threshold."""


class BudgetFields(TypedDict, total=False):
    """What may be said of a budget and changed later. In an update None goes back to the default."""

    display_name: str | None
    thresholds: Mapping[int, str] | None
    """What happens at which percent: "notify", "approval", "stop" or "cancel"."""
    default_estimate: Amount | None
    """What is reserved for a task of which nothing is known."""
    description: str | None


def budget_scope(said: str | pb.BudgetScope) -> pb.BudgetScope:
    """Whose work: "all", "named", "type:review", "agent:ID", "template:ID", "tree:TASK_ID", "label:team=search"."""
    if not isinstance(said, str):
        return said
    kind, colon, value = said.partition(":")
    if said == "all":
        return pb.BudgetScope(all=True)
    if said == "named":
        return pb.BudgetScope()
    field = _SCOPES.get(kind, "label" if kind == "label" else "")
    if not field or not colon or not value:
        raise InvalidRequest(
            f"{said!r} is no scope - it is all, named, or type:, agent:, template:, tree: or label: and a name",
            reason="ARGUMENT_INVALID",
        )
    return pb.BudgetScope(**{field: value})  # type: ignore[arg-type]


def budget_window(said: str | Seconds | pb.BudgetWindow, time_zone: str = "") -> pb.BudgetWindow:
    """Over which time: "daily", "weekly", "monthly" in a zone; "lifetime"; or a length, which rolls."""
    if isinstance(said, pb.BudgetWindow):
        return said
    if said == "lifetime":
        return pb.BudgetWindow()
    if isinstance(said, str):
        unit = by_word(said, {**_UNITS, "lifetime": 0}, "a window")
        return pb.BudgetWindow(calendar=pb.CalendarWindow(unit=unit, time_zone=time_zone))  # type: ignore[arg-type]
    return pb.BudgetWindow(rolling=duration(said))


class Budgets:
    """`client.budgets`. A `request_id` makes a write repeatable by hand; left out, each call gets its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> BudgetServiceAsyncStub:
        return self._connection.stub(BudgetServiceStub)

    async def create(
        self,
        limit: Amount,
        *,
        budget_id: str = "",
        scope: str | pb.BudgetScope = "all",
        window: str | Seconds | pb.BudgetWindow = "lifetime",
        time_zone: str = "",
        request_id: str = "",
        **fields: Unpack[BudgetFields],
    ) -> pb.Budget:
        """Creates a budget, of which nothing is spent yet."""
        spec = _spec(fields)
        spec.limit.CopyFrom(budget_amount(limit))
        spec.scope.CopyFrom(budget_scope(scope))
        spec.window.CopyFrom(budget_window(window, time_zone))
        request = pb.CreateBudgetRequest(budget_id=budget_id, spec=spec, request_id=request_id or new_request_id())
        return (await self._connection.call(self._stub.CreateBudget, request)).budget

    async def get(self, budget_id: str) -> pb.Budget:
        """Reads a budget with what is spent and reserved right now."""
        request = pb.GetBudgetRequest(budget_id=budget_id)
        return (await self._connection.call(self._stub.GetBudget, request)).budget

    async def list(self, *, page_size: int = 0, page_token: str = "") -> pb.ListBudgetsResponse:
        """One page of budgets, newest first, with what is spent and reserved right now."""
        request = pb.ListBudgetsRequest(page_size=page_size, page_token=page_token)
        return await self._connection.call(self._stub.ListBudgets, request)

    async def iterate(self, *, page_size: int = 200) -> AsyncIterator[pb.Budget]:
        """All budgets, page by page."""
        page_token = ""
        while True:
            page = await self.list(page_size=page_size, page_token=page_token)
            for budget in page.budgets:
                yield budget
            page_token = page.next_page_token
            if not page_token:
                return

    async def update(
        self,
        budget_id: str,
        *,
        limit: Amount | None = None,
        etag: str = "",
        request_id: str = "",
        **fields: Unpack[BudgetFields],
    ) -> pb.Budget:
        """Sets what is given, and nothing else. Tasks that wait for the budget try again at once."""
        paths = [*fields, *(["limit"] if limit is not None else [])]
        if not paths:
            raise InvalidRequest("nothing to change - say what to set", reason="ARGUMENT_INVALID")
        spec = _spec(fields)
        if limit is not None:
            spec.limit.CopyFrom(budget_amount(limit))
        request = pb.UpdateBudgetRequest(
            budget_id=budget_id,
            spec=spec,
            update_mask=FieldMask(paths=paths),
            etag=etag,
            request_id=request_id or new_request_id(),
        )
        return (await self._connection.call(self._stub.UpdateBudget, request)).budget

    async def delete(self, budget_id: str, *, request_id: str = "") -> pb.DeleteBudgetResponse:
        """Deletes a budget; tasks that wait for it are free of it."""
        request = pb.DeleteBudgetRequest(budget_id=budget_id, request_id=request_id or new_request_id())
        return await self._connection.call(self._stub.DeleteBudget, request)

    async def resume(
        self, budget_id: str, *, extend_by: Amount | None = None, reason: str = "", request_id: str = ""
    ) -> pb.Budget:
        """Lets work go on that the budget holds back; at its limit by one more of it, unless `extend_by` says."""
        request = pb.ResumeBudgetRequest(
            budget_id=budget_id,
            extend_by=None if extend_by is None else budget_amount(extend_by),
            reason=reason,
            request_id=request_id or new_request_id(),
        )
        return (await self._connection.call(self._stub.ResumeBudget, request)).budget

    async def reserve(
        self, budget_id: str, amount: Amount, *, ttl: Seconds | None = None, reason: str = "", request_id: str = ""
    ) -> pb.Reservation:
        """Reserves an amount for work that is no task; five minutes unless `ttl` says. Raises BUDGET_EXCEEDED."""
        request = pb.ReserveBudgetRequest(
            budget_id=budget_id,
            amount=budget_amount(amount),
            ttl=duration(ttl),
            reason=reason,
            request_id=request_id or new_request_id(),
        )
        return (await self._connection.call(self._stub.ReserveBudget, request)).reservation

    async def settle(self, reservation_id: str, amount: Amount, *, request_id: str = "") -> pb.Budget:
        """Says what the work of a reservation has used; the rest is released."""
        request = pb.SettleReservationRequest(
            reservation_id=reservation_id, amount=budget_amount(amount), request_id=request_id or new_request_id()
        )
        return (await self._connection.call(self._stub.SettleReservation, request)).budget

    async def release(self, reservation_id: str, *, request_id: str = "") -> pb.Budget:
        """Releases a reservation of which nothing was used."""
        request = pb.ReleaseReservationRequest(reservation_id=reservation_id, request_id=request_id or new_request_id())
        return (await self._connection.call(self._stub.ReleaseReservation, request)).budget


def _spec(fields: BudgetFields) -> pb.BudgetSpec:
    """The message for what is said; what is None is left unset."""
    said: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    if "default_estimate" in said:
        said["default_estimate"] = budget_amount(said["default_estimate"])
    if "thresholds" in said:
        said["thresholds"] = [
            pb.BudgetThreshold(percent=percent, action=by_word(action, ACTIONS, "an action"))
            for percent, action in said["thresholds"].items()
        ]
    return pb.BudgetSpec(**said)
