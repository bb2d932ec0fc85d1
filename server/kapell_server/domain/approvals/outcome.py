"""What follows when an approval has been decided or is over: the task goes on, or ends, and who waits is told.

What is not of a task has its own entry in `WHEN_DECIDED`. A function there is called in the decision's
transaction with the approval as it was put; what it raises refuses the decision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kapell.v1.approval_pb2 import (
    APPROVAL_KIND_BUDGET,
    APPROVAL_KIND_TASK_START,
    Approval,
    ApprovalDecision,
    ApprovalKind,
)
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_APPROVED, APPROVAL_STATE_EXPIRED, APPROVAL_STATE_PENDING
from kapell.v1.task_pb2 import TASK_STATE_AWAITING_APPROVAL, AttemptWait, Task, TaskFailure
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_UPDATED

from kapell_server.domain.approvals import for_budgets
from kapell_server.domain.copied import copied
from kapell_server.domain.transitions import TASK_FINAL, TASK_LEASED
from kapell_server.domain.workers import attempt

if TYPE_CHECKING:
    from kapell_server.domain.state import State

WhenDecided = Callable[["State", Approval], None]
WHEN_DECIDED: dict[ApprovalKind.ValueType, WhenDecided] = {APPROVAL_KIND_BUDGET: for_budgets.decided}
"""What other rooms do when an approval of their kind is decided, expired or withdrawn."""


def carry_out(state: State, approval: Approval, edited: Task | None = None) -> None:
    """Does what an approval's final state asks for. `edited` is the task as the decision has changed it."""
    if approval.kind in WHEN_DECIDED:
        WHEN_DECIDED[approval.kind](state, approval)
        return
    task = edited or state.find_task(approval.task_id)
    if task is None or task.state in TASK_FINAL:
        return
    if approval.kind == APPROVAL_KIND_TASK_START:
        _start(state, approval, task)
    elif approval.parked:
        _resume(state, approval, task)
    else:
        _go_on(state, approval, task)


def _start(state: State, approval: Approval, current: Task) -> None:
    if current.approval.approval_id != approval.approval_id:
        return
    if approval.state != APPROVAL_STATE_APPROVED:
        attempt.fail_waiting(state, current, _failure(approval))
        return
    task = copied(current)
    task.approval.approved_hash = approval.decisions[-1].edited_hash or approval.content_hash
    _wake(state, task)


def _resume(state: State, approval: Approval, current: Task) -> None:
    if current.parked.approval_id != approval.approval_id:
        return
    task = copied(current)
    task.parked.state = approval.state
    last = last_decision(approval)
    task.parked.option = last.option
    task.parked.comment = last.comment
    task.parked.edited = last.HasField("edited_input")
    task.parked.decider.CopyFrom(last.decider if approval.decisions else state.caller.actor())
    _wake(state, task)


def _wake(state: State, task: Task) -> None:
    """Lets a task go on that waits for nothing else. Its time may not have come."""
    if task.state == TASK_STATE_AWAITING_APPROVAL:
        attempt.wake(state, task)
    else:
        state.put_task(task, EVENT_KIND_TASK_UPDATED, ("approval", "parked"))


def _go_on(state: State, approval: Approval, task: Task) -> None:
    """The agent that has asked waits for this no more."""
    lease = state.leases.by_task.get(approval.task_id)
    if lease is None or task.state not in TASK_LEASED or lease.attempt != task.attempt:
        return
    if not any(other.attempt == task.attempt for other in state.approvals.of_task(task.task_id)):
        attempt.note_waiting(state, lease, task, AttemptWait())


def last_decision(approval: Approval) -> ApprovalDecision:
    """What was decided; an empty one where nobody has."""
    return approval.decisions[-1] if approval.decisions else ApprovalDecision()


def _failure(approval: Approval) -> TaskFailure:
    """Why a task may not start: data for whoever made it."""
    assert approval.state != APPROVAL_STATE_PENDING, "an approval that is decided has an outcome"
    last = last_decision(approval)
    who = f"rule {last.rule_id}" if last.rule_id else last.decider.id
    if approval.state == APPROVAL_STATE_EXPIRED:
        failure = TaskFailure(reason="APPROVAL_EXPIRED", message="nobody has approved its start in time")
    else:
        why = f": {last.comment}" if last.comment else ""
        failure = TaskFailure(reason="APPROVAL_REJECTED", message=f"its start was refused by {who}{why}"[:4000])
    failure.retryable = False
    failure.details.update({"approval_id": approval.approval_id, "decided_by": who, "comment": last.comment})
    return failure
