"""Approvals of the kind BUDGET: asked for, taken back, found. When they are asked for is in `for_budgets`.

What follows when one is decided, expires or is withdrawn is in `outcome.WHEN_DECIDED`, after a restart too:
nothing of it is kept in memory only. At most one is PENDING for a budget and task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1.approval_pb2 import APPROVAL_KIND_BUDGET, Approval, ApprovalContent
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_PENDING, ApprovalPolicy
from kapell.v1.task_pb2 import Task
from kapell.v1.watch_pb2 import EVENT_KIND_APPROVAL_REQUIRED, Actor

from kapell_server.domain.approvals import policy
from kapell_server.domain.approvals.content import content_hash, signature_of
from kapell_server.domain.approvals.risk import assess
from kapell_server.domain.approvals.start import supersede, withdraw
from kapell_server.domain.times import stamp

if TYPE_CHECKING:
    from kapell_server.domain.state import State


def request_budget_approval(
    state: State,
    *,
    budget_id: str,
    title: str,
    content: ApprovalContent,
    asker: Actor,
    task: Task | None = None,
    said: ApprovalPolicy | None = None,
) -> Approval:
    """Asks whether more may be spent than `budget_id` allows; the one that waits where it shows the same.

    `asker` may not decide (A3). The task itself is not touched: holding it back is for the gate of budgets.
    """
    task_id = task.task_id if task is not None else ""
    shown_hash = content_hash(APPROVAL_KIND_BUDGET, title, (), content)
    waiting = open_of(state, budget_id, task_id)
    if waiting is not None and waiting.content_hash == shown_hash:
        return waiting
    approval = Approval(
        approval_id=state.new_id("approval"),
        kind=APPROVAL_KIND_BUDGET,
        state=APPROVAL_STATE_PENDING,
        title=title,
        task_id=task_id,
        budget_id=budget_id,
        requested_by=asker,
        content_hash=shown_hash,
    )
    if waiting is not None:
        supersede(state, waiting, approval, "the budget has asked for something else since")
    if task is not None:
        approval.root_task_id = task.root_task_id or task_id
        approval.task_name = task.display_name
        approval.agent_type = task.agent_type
        approval.template_id = task.template_id
        approval.retry = task.retries
    approval.risk.CopyFrom(assess(title, content))
    policy.fill(approval, said or ApprovalPolicy(), state.now_ns)
    approval.signature = signature_of(approval, content)
    stamp(approval.create_time, state.tick_ns())
    return state.approvals.put(approval, EVENT_KIND_APPROVAL_REQUIRED, content=content)


def withdraw_budget_approval(state: State, budget_id: str, why: str, task_id: str = "") -> None:
    """Ends what a budget has asked for, about new work or a task. Nobody is called for it."""
    waiting = open_of(state, budget_id, task_id)
    if waiting is not None:
        withdraw(state, waiting, why)


def withdraw_budget_approvals(state: State, budget_id: str, why: str) -> None:
    """Ends all that a budget has asked for. Nobody is called for it."""
    for approval in [one for one in state.approvals.pending() if one.budget_id == budget_id]:
        withdraw(state, approval, why)


def open_of(state: State, budget_id: str, task_id: str = "") -> Approval | None:
    """The approval a budget waits for: about new work, or about a task."""
    for approval in state.approvals.of_task(task_id):
        if approval.kind == APPROVAL_KIND_BUDGET and approval.budget_id == budget_id:
            return approval
    return None
