"""Nothing runs before its approval (A1): the gate that every task passes as it becomes QUEUED.

Called by State.put_task for each task, so that no path to a queue can forget it: creation, a time or a
dependency that has come, a retry, an edit. A task whose start must be approved is put as
AWAITING_APPROVAL instead. What was approved is known by its hash: other content is asked for again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kapell.v1.approval_pb2 import (
    APPROVAL_KIND_BUDGET,
    APPROVAL_KIND_TASK_START,
    Approval,
    ApprovalContent,
    ApprovalDecision,
    ApprovalRule,
    StartContent,
)
from kapell.v1.approval_policy_pb2 import (
    APPROVAL_STATE_APPROVED,
    APPROVAL_STATE_CANCELLED,
    APPROVAL_STATE_PENDING,
    APPROVAL_STATE_REJECTED,
    APPROVAL_STATE_SUPERSEDED,
)
from kapell.v1.lock_pb2 import LockItem
from kapell.v1.task_pb2 import TASK_STATE_AWAITING_APPROVAL, TASK_STATE_CANCELLING, TASK_STATE_QUEUED, Task
from kapell.v1.watch_pb2 import (
    ACTOR_KIND_SYSTEM,
    EVENT_KIND_APPROVAL_CANCELLED,
    EVENT_KIND_APPROVAL_DECIDED,
    EVENT_KIND_APPROVAL_REQUIRED,
    EVENT_KIND_APPROVAL_SUPERSEDED,
    Actor,
)

from kapell_server.domain.approvals import demands, policy, rules
from kapell_server.domain.approvals.content import content_hash, signature_of
from kapell_server.domain.approvals.start_risk import assess_start, scripts_of
from kapell_server.domain.copied import copied
from kapell_server.domain.times import stamp
from kapell_server.domain.transitions import TASK_FINAL

if TYPE_CHECKING:
    from kapell_server.domain.state import State

_MAY_WAIT = frozenset({TASK_STATE_QUEUED, TASK_STATE_AWAITING_APPROVAL})


class Wish(NamedTuple):
    """An approval that a task needs, or gets by a rule, with the put at hand."""

    approval: Approval
    content: ApprovalContent
    rule: ApprovalRule | None
    """The rule that approves or refuses it at once."""


def hold(state: State, task: Task, previous: Task | None) -> Wish | None:
    """Makes a task that would become QUEUED wait, where its start is not approved; what is to be asked for.

    Alters `task`, which is about to be put, and nothing else.
    """
    if task.state not in _MAY_WAIT:
        return None
    if task.HasField("parked") and not task.parked.state:
        task.state = TASK_STATE_AWAITING_APPROVAL
        return None
    has_moved = previous is None or previous.state != task.state
    is_new = has_moved and (not task.HasField("start_time") or (previous is not None and previous.state in TASK_FINAL))
    if is_new and not task.approval.approval_id:
        rules.demand(state, task)
    if not task.HasField("approval"):
        return None
    is_same = previous is not None and not has_moved and _start_of(task) == _start_of(previous)
    if is_same and task.task_id not in state.pending.contents:
        return None
    shown = content_of(state, task)
    shown_hash = content_hash(APPROVAL_KIND_TASK_START, "", (), shown)
    if task.approval.approved_hash == shown_hash:
        _let_in(state, task)
        return None
    waiting = open_start(state, task)
    if waiting is not None and waiting.content_hash == shown_hash:
        _keep_out(task)
        return None
    approval = _approval(state, task, shown, shown_hash)
    rule = rules.deciding(state, approval, shown)
    task.approval.approval_id = approval.approval_id
    if rule is not None and rules.approves(rule):
        task.approval.approved_hash = shown_hash
        _let_in(state, task)
    else:
        _keep_out(task)
    return Wish(approval, shown, rule)


def _let_in(state: State, task: Task) -> None:
    if task.state == TASK_STATE_AWAITING_APPROVAL:
        task.state = TASK_STATE_QUEUED
        now = state.tick_ns()
        stamp(task.state_time, now)
        stamp(task.queue_time, now)


def _keep_out(task: Task) -> None:
    task.state = TASK_STATE_AWAITING_APPROVAL
    if not task.HasField("start_time"):
        task.ClearField("queue_time")


def content_of(state: State, task: Task) -> ApprovalContent:
    """What is shown of a task before it starts: all that its agent will be given, and all that it will take."""
    whole = Task.FromString(state.content(task.task_id))
    content = ApprovalContent(prompt=whole.prompt, template_id=task.template_id, start=_start_of(task))
    if whole.HasField("input"):
        content.input.CopyFrom(whole.input)
    if task.estimate.HasField("cost"):
        content.estimated_cost.CopyFrom(task.estimate.cost)
    return content


def _start_of(task: Task) -> StartContent:
    """What the start is about besides prompt and input. Fencing tokens of locks are not of it: they come and go."""
    return StartContent(
        agent_type=task.agent_type,
        template_version=task.template_version,
        locks=[LockItem(path=lock.path, mode=lock.mode) for lock in task.locks],
        secrets=task.secrets,
        budget_id=task.budget_id,
        estimate=task.estimate if task.HasField("estimate") else None,
    )


def start_hash(state: State, task: Task) -> str:
    """The hash of what the task would do as it is now."""
    return content_hash(APPROVAL_KIND_TASK_START, "", (), content_of(state, task))


def open_start(state: State, task: Task) -> Approval | None:
    """The approval of its start that a task waits for."""
    for approval in state.approvals.of_task(task.task_id):
        if approval.kind == APPROVAL_KIND_TASK_START:
            return approval
    return None


def _approval(state: State, task: Task, shown: ApprovalContent, shown_hash: str) -> Approval:
    approval = Approval(
        approval_id=state.new_id("approval"),
        kind=APPROVAL_KIND_TASK_START,
        state=APPROVAL_STATE_PENDING,
        title=f"Start {task.display_name}",
        task_id=task.task_id,
        root_task_id=task.root_task_id or task.task_id,
        task_name=task.display_name,
        agent_type=task.agent_type,
        template_id=task.template_id,
        requested_by=task.creator,
        content_hash=shown_hash,
        retry=task.retries,
    )
    scripts = scripts_of(state, task, shown)
    approval.risk.CopyFrom(assess_start(shown, scripts))
    policy.fill(approval, demands.combined(demands.demands_of(task.approval), task.creator), state.now_ns)
    command = next((script.text for script in scripts if script.is_certain), "")
    approval.signature = signature_of(approval, shown, command)
    stamp(approval.create_time, state.tick_ns())
    return approval


def ask(state: State, task: Task, wish: Wish) -> None:
    """Puts the approval that was found wanting, in the place of an earlier one; a rule may have decided it."""
    approval = wish.approval
    before = open_start(state, task)
    if before is not None:
        supersede(state, before, approval, "the task was changed")
    if wish.rule is None:
        state.approvals.put(approval, EVENT_KIND_APPROVAL_REQUIRED, content=wish.content)
        return
    decide_by_rule(state, approval, wish.rule)
    state.approvals.put(approval, EVENT_KIND_APPROVAL_DECIDED, content=wish.content)
    rules.note_use(state, wish.rule)
    if approval.state == APPROVAL_STATE_REJECTED:
        _carry_out(state, approval)


def _carry_out(state: State, approval: Approval) -> None:
    from kapell_server.domain.approvals import outcome

    outcome.carry_out(state, approval)


def decide_by_rule(state: State, approval: Approval, rule: ApprovalRule) -> None:
    """Writes the decision of a rule into an approval that is not put yet."""
    approves = rules.approves(rule)
    decision = ApprovalDecision(
        option="approve" if approves else "deny",
        approves=approves,
        comment=rule.spec.reason,
        decider=Actor(kind=ACTOR_KIND_SYSTEM, id="rule"),
        shown_hash=approval.content_hash,
        rule_id=rule.rule_id,
    )
    stamp(decision.decide_time, state.now_ns)
    approval.decisions.append(decision)
    approval.state = APPROVAL_STATE_APPROVED if approves else APPROVAL_STATE_REJECTED
    approval.state_reason = f"{'approved' if approves else 'refused'} by rule {rule.rule_id}"
    stamp(approval.end_time, state.now_ns)


def tidy(state: State, task: Task, deleted: bool) -> None:
    """A task that has ended, or is to end, needs no decision any more; one that is stopped, none about its budget."""
    is_stopped = task.state == TASK_STATE_CANCELLING and not deleted
    is_cancelled = is_stopped and not task.HasField("failure")
    if not deleted and task.state not in TASK_FINAL and not is_stopped:
        return
    why = "its task was deleted" if deleted else "its task is being cancelled" if is_stopped else "its task has ended"
    for approval in state.approvals.of_task(task.task_id):
        if is_stopped and not is_cancelled and approval.kind != APPROVAL_KIND_BUDGET:
            continue
        put = withdraw(state, approval, why)
        if put.kind == APPROVAL_KIND_BUDGET:
            _carry_out(state, put)


def withdraw(state: State, current: Approval, why: str) -> Approval:
    """Ends an approval that nobody needs any more."""
    approval = copied(current)
    approval.state = APPROVAL_STATE_CANCELLED
    approval.state_reason = why
    stamp(approval.end_time, state.now_ns)
    return state.approvals.put(approval, EVENT_KIND_APPROVAL_CANCELLED, ("state",))


def supersede(state: State, current: Approval, fresh: Approval, why: str) -> None:
    """Another approval takes the place of one that waits: something else is wanted by now."""
    older = copied(current)
    older.state = APPROVAL_STATE_SUPERSEDED
    older.state_reason = why
    older.superseded_by = fresh.approval_id
    stamp(older.end_time, state.now_ns)
    state.approvals.put(older, EVENT_KIND_APPROVAL_SUPERSEDED, ("state", "superseded_by"))
