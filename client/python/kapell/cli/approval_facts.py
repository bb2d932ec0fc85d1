"""All that is decided about in one approval: what the server has of it, of its task, and of the budgets that apply."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.approval_pb2 import Approval, ApprovalPrecedent
    from kapell.v1.budget_pb2 import Budget
    from kapell.v1.task_pb2 import Task


@dataclass(frozen=True, kw_only=True)
class Facts:
    """An approval with its content, and what stands beside it; what could not be read is None."""

    approval: Approval
    precedent: ApprovalPrecedent
    blocks: int | None = None
    task: Task | None = None
    budgets: list[Budget] = field(default_factory=list)


async def facts_of(client: Client, approval_id: str) -> Facts:
    """Reads them. Only the approval itself must be readable."""
    import asyncio

    from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_PENDING

    found = await client.approvals.get_with_precedent(approval_id)
    approval = found.approval
    task, blocks, budgets = await asyncio.gather(
        _task(client, approval),
        _blocks(client, approval) if approval.state == APPROVAL_STATE_PENDING else _nothing(),
        _budgets(client),
    )
    return Facts(
        approval=approval,
        precedent=found.precedent,
        blocks=blocks,
        task=task,
        budgets=[one for one in budgets if _applies(one, approval, task)],
    )


async def _nothing() -> None:
    return None


async def _task(client: Client, approval: Approval) -> Task | None:
    from kapell.errors import KapellError

    try:
        return await client.tasks.get(approval.task_id) if approval.task_id else None
    except KapellError:
        return None


async def _blocks(client: Client, approval: Approval) -> int | None:
    from kapell.errors import KapellError

    try:
        page = await client.approvals.list(approval_ids=[approval.approval_id], page_size=1)
    except KapellError:
        return None
    return page.approvals[0].blocks if page.approvals else None


async def _budgets(client: Client) -> list[Budget]:
    from kapell.errors import KapellError

    try:
        return list((await client.budgets.list(page_size=1000)).budgets)
    except KapellError:
        return []


def _applies(budget: Budget, approval: Approval, task: Task | None) -> bool:
    """Whether what is asked for draws from a budget, as the server reckons it."""
    if budget.budget_id == approval.budget_id or (task is not None and budget.budget_id == task.budget_id):
        return True
    scope = budget.spec.scope
    match scope.WhichOneof("scope"):
        case "all":
            return bool(approval.task_id)
        case "agent_type":
            return bool(scope.agent_type == approval.agent_type)
        case "agent_id":
            return bool(scope.agent_id == approval.agent_id)
        case "template_id":
            return bool(scope.template_id == approval.template_id)
        case "root_task_id":
            return scope.root_task_id in (approval.root_task_id, approval.task_id)
        case "label" if task is not None:
            name, equals, value = scope.label.partition("=")
            return name in task.labels and (not equals or task.labels[name] == value)
    return False
