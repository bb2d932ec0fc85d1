"""When a budget asks whether more may be spent, and when it needs no answer any more.

It asks about new work, and about each attempt that it has paused. Called by the budgets as thresholds are crossed
and left; the answer goes back to them by `outcome`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.approval_pb2 import Approval, ApprovalContent
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_APPROVED
from kapell.v1.budget_pb2 import BUDGET_ACTION_REQUIRE_APPROVAL, BUDGET_STATE_AWAITING_APPROVAL, Budget
from kapell.v1.watch_pb2 import ACTOR_KIND_SYSTEM, Actor

from kapell_server.domain.approvals.budget import (
    open_of,
    request_budget_approval,
    withdraw_budget_approval,
    withdraw_budget_approvals,
)
from kapell_server.domain.budgets import edges, resuming
from kapell_server.domain.budgets.amounts import amount, words
from kapell_server.domain.times import stamp

if TYPE_CHECKING:
    from kapell.v1.task_pb2 import Task

    from kapell_server.domain.budgets.tally import Hold, Tally
    from kapell_server.domain.state import State

_ASKER = Actor(kind=ACTOR_KIND_SYSTEM, id="budgets")


def ask(state: State, budget: Budget, tally: Tally) -> None:
    """Asks whether new work may start again; a later question takes the place of an earlier one."""
    title, content = _question(budget, tally)
    request_budget_approval(state, budget_id=tally.budget_id, title=title, content=content, asker=_ASKER)


def look_again(state: State, tally: Tally) -> None:
    """The budget was changed, has room again, or was resumed: what was asked may be no question any more."""
    if open_of(state, tally.budget_id) is None:
        return
    if tally.state != BUDGET_STATE_AWAITING_APPROVAL:
        withdraw_budget_approval(state, tally.budget_id, "the budget lets new work start again")
        return
    budget = state.standing.find(Budget, tally.budget_id)
    assert budget is not None, "a tally is of a budget"
    ask(state, budget, tally)


def ask_about(state: State, task: Task, hold: Hold, more: int) -> Approval:
    """Asks whether the paused attempt of a task may use so much more."""
    tally = hold.tally
    title, content = _question_about(state.budgets.budget(tally), task, hold, more)
    return request_budget_approval(
        state, budget_id=tally.budget_id, title=title, content=content, asker=_ASKER, task=task
    )


def is_asked(state: State, budget_id: str, task_id: str) -> bool:
    """Whether the budget waits for an answer about a task."""
    return open_of(state, budget_id, task_id) is not None


def settled(state: State, budget_id: str, task_id: str, why: str) -> None:
    """What was asked about a task is no question any more."""
    withdraw_budget_approval(state, budget_id, why, task_id)


def forget(state: State, budget_id: str) -> None:
    """The budget is deleted."""
    withdraw_budget_approvals(state, budget_id, "the budget was deleted")


def decided(state: State, approval: Approval) -> None:
    """An approval of a budget was decided, or is over. Whatever is no yes leaves the budget as it is."""
    if approval.task_id:
        edges.answer(state, approval)
    else:
        resuming.answer(state, approval.budget_id, approved=approval.state == APPROVAL_STATE_APPROVED)


def _question(budget: Budget, tally: Tally) -> tuple[str, ApprovalContent]:
    """What people read, and all that a yes would do. The same for as long as the question is the same."""
    name, measure = budget.spec.display_name, tally.measure
    asking = [p for p in tally.crossed - tally.lifted if tally.actions.get(p) == BUDGET_ACTION_REQUIRE_APPROVAL]
    limit = words(measure, tally.limit + tally.extended)
    more = resuming.usual_extension(tally)
    content = ApprovalContent(reversible=True)
    grows = f"its limit of {limit} grows by {words(measure, more)}" if more else f"its limit stays at {limit}"
    until = f" until {_moment(tally.end_ns)}" if tally.end_ns else ""
    content.details = (
        f"Budget {name} has come to {max(asking, default=0)} % of {limit}, and holds new work back.\n"
        f"Approved: new work starts again, and {grows}{until}.\n"
        f"Refused: new work waits{until or ' until somebody resumes the budget or raises its limit'}."
    )
    if more and measure == "cost":
        content.estimated_cost.CopyFrom(amount(measure, more).cost)
    return f"Spend more than budget {name} allows", content


def _question_about(budget: Budget, task: Task, hold: Hold, more: int) -> tuple[str, ApprovalContent]:
    """As `_question`, about one attempt."""
    tally, measure, name = hold.tally, hold.tally.measure, budget.spec.display_name
    used = words(measure, max(hold.spent, hold.granted))
    until = f" until {_moment(tally.end_ns)}" if tally.end_ns else ""
    limit = words(measure, tally.limit + tally.extended)
    content = ApprovalContent(reversible=True)
    content.details = (
        f"Attempt {task.attempt} of {task.display_name} has used {used}, for which {words(measure, hold.granted)} were "
        f"reserved of budget {name}, and the budget has no room for more.\n"
        f"Approved: it may use {words(measure, more)} more; the limit of {limit} "
        f"grows for it by that, and by what it has used beyond the limit{until}.\n"
        f"Refused: it is stopped, and its task fails with BUDGET_EXCEEDED. Not answered in time: it is stopped, too."
    )
    if measure == "cost":
        content.estimated_cost.CopyFrom(amount(measure, more).cost)
    return f"Let {task.display_name} use more than budget {name} allows"[:300], content


def _moment(ns: int) -> str:
    """As "2026-11-01T00:00:00Z"."""
    found = Timestamp()
    stamp(found, ns)
    return found.ToJsonString()
