"""Deciding: exactly one answer wins (A2), by somebody who may (A3), about what was shown.

Decisions are commands of the one writer, so two of them come one after the other, however they race; the
second is told who decided what. So with an expiry or a cancel: whichever is in the log first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1.approval_pb2 import (
    APPROVAL_KIND_QUESTION,
    APPROVAL_KIND_TASK_START,
    APPROVAL_KIND_TOOL_PERMISSION,
    RISK_LEVEL_MEDIUM,
    Approval,
    ApprovalDecision,
    ApprovalOutcome,
    BatchDecideApprovalsRequest,
    BatchDecideApprovalsResponse,
    DecideApprovalRequest,
)
from kapell.v1.approval_policy_pb2 import (
    APPROVAL_STATE_APPROVED,
    APPROVAL_STATE_PENDING,
    APPROVAL_STATE_REJECTED,
    APPROVAL_STATE_SUPERSEDED,
    ApprovalState,
)
from kapell.v1.error_pb2 import (
    ERROR_REASON_APPROVAL_ALREADY_DECIDED,
    ERROR_REASON_APPROVAL_CHANGED,
    ERROR_REASON_APPROVAL_NOT_FOUND,
)
from kapell.v1.task_pb2 import ApproveTaskRequest, RetryTaskRequest, Task, TaskEdit
from kapell.v1.watch_pb2 import EVENT_KIND_APPROVAL_DECIDED, EVENT_KIND_APPROVAL_VOTED

from kapell_server.domain.approvals import expiry, outcome, policy, rules, start
from kapell_server.domain.approvals.content import invalid
from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.tasks import dependency
from kapell_server.domain.tasks.dependency_results import fill_at_once
from kapell_server.domain.tasks.task_edit import edit_for_retry
from kapell_server.domain.times import stamp

if TYPE_CHECKING:
    from kapell_server.domain.state import State

APPROVE, DENY = "approve", "deny"
_MOST_EDITED = 65_536


def decide(state: State, request: DecideApprovalRequest) -> Approval:
    """Decides an approval, or gives one of the votes it needs."""
    edits = RetryTaskRequest()
    current = state.approvals.get(request.approval_id)
    if request.HasField("edited_input") and current.kind == APPROVAL_KIND_TASK_START:
        (edits.parameters if current.template_id else edits.input).CopyFrom(request.edited_input)
    decision = ApprovalDecision(option=request.option, comment=request.comment, shown_hash=request.shown_hash)
    if request.HasField("edited_input"):
        decision.edited_input.CopyFrom(request.edited_input)
    return _decide(state, current, decision, edits)


def decide_batch(state: State, request: BatchDecideApprovalsRequest) -> BatchDecideApprovalsResponse:
    """Decides requests of one kind alike; each is decided, or not, by itself."""
    shown = request.approvals
    if len({one.approval_id for one in shown}) < len(shown):
        raise invalid("approvals", "name one approval twice")
    found = [state.approvals.get(one.approval_id) for one in shown]
    if len({approval.signature for approval in found}) > 1:
        raise invalid("approvals", "are of different kinds: their signatures differ", "Decide each kind by itself.")
    if any(approval.risk.level > RISK_LEVEL_MEDIUM for approval in found):
        raise invalid("approvals", "have one of a risk above MEDIUM", "Look at that one, and decide it by itself.")
    response = BatchDecideApprovalsResponse()
    for one in shown:
        current = state.approvals.get(one.approval_id)  # One before it may have ended it.
        decision = ApprovalDecision(option=request.option, comment=request.comment, shown_hash=one.shown_hash)
        mark = state.mark()
        try:
            decided = _decide(state, current, decision, RetryTaskRequest())
        except KapellError as error:
            state.rollback(mark)
            response.outcomes.append(
                ApprovalOutcome(
                    approval_id=one.approval_id, state=current.state, reason=error.reason, message=error.message
                )
            )
        else:
            response.outcomes.append(ApprovalOutcome(approval_id=one.approval_id, state=decided.state))
    response.revision = state.revision
    return response


def approve_task(state: State, request: ApproveTaskRequest) -> Task:
    """Decides about what a task waits for, perhaps with other content."""
    task = state.task(request.task_id)
    current = _waited_for(state, task)
    edits = RetryTaskRequest()
    for name in ("parameters", "input"):
        if request.HasField(name):
            getattr(edits, name).CopyFrom(getattr(request, name))
    if request.HasField("prompt"):
        edits.prompt = request.prompt
    decision = ApprovalDecision(
        option=request.decision or APPROVE,
        comment=request.comment,
        shown_hash=request.shown_hash or current.content_hash,
    )
    said = edits.parameters if edits.HasField("parameters") else edits.input
    if said.fields or edits.HasField("prompt"):
        decision.edited_input.CopyFrom(said)
    _decide(state, current, decision, edits)
    return state.task(request.task_id)


def _waited_for(state: State, task: Task) -> Approval:
    """The approval a task waits for; the latest one where it waits for none, so that the refusal tells of it."""
    for approval in state.approvals.of_task(task.task_id):
        if approval.kind == APPROVAL_KIND_TASK_START or approval.parked:
            return approval
    known = task.parked.approval_id or task.approval.approval_id
    if not known:
        raise KapellError(
            ERROR_REASON_APPROVAL_NOT_FOUND,
            f"Task {task.task_id} waits for no approval. List the approvals to see what does.",
            metadata={"approval_id": ""},
        )
    return state.approvals.get(known)


def _decide(state: State, current: Approval, decision: ApprovalDecision, edits: RetryTaskRequest) -> Approval:
    """Takes a decision in, where it may be made. `edits` are those of a task that is to start."""
    current = expiry.look_first(state, current)
    check_open(current)
    if decision.shown_hash != current.content_hash:
        raise _changed(current, current.content_hash)
    policy.check_may_decide(state, current)
    _check_option(state, current, decision)
    decision.approves = decision.option != DENY
    decision.decider.CopyFrom(state.caller.actor())
    decision.peer = state.caller.peer
    stamp(decision.decide_time, state.now_ns)
    edited, edit = _edited(state, current, decision, edits)
    approval = copied(current)
    approval.decisions.append(decision)
    if decision.approves and (still := _still_wanted(approval, decision)):
        approval.state_reason = still
        return state.approvals.put(approval, EVENT_KIND_APPROVAL_VOTED, ("decisions",))
    approval.state = APPROVAL_STATE_APPROVED if decision.approves else APPROVAL_STATE_REJECTED
    verb = "approved" if decision.approves else "refused"
    approval.state_reason = f"{verb} by {decision.decider.id}"
    stamp(approval.end_time, state.now_ns)
    put = state.approvals.put(approval, EVENT_KIND_APPROVAL_DECIDED, ("state", "decisions"))
    if decision.approves and edited is None and not decision.HasField("edited_input"):
        rules.remember(state, put, decision.option)
    outcome.carry_out(state, put, edited)
    if edit is not None:
        state.keep_edit(state.task(approval.task_id), edit)
    return put


def _still_wanted(approval: Approval, decision: ApprovalDecision) -> str:
    """Which votes are missing for what was decided, in words; empty where none is."""
    same = [vote for vote in approval.decisions if vote.approves and vote.option == decision.option]
    missing = policy.missing(approval, [vote.decider for vote in same])
    if not missing:
        return ""
    votes = len({(vote.decider.kind, vote.decider.id) for vote in same})
    what = f" for {decision.option}" if len(same) < len(approval.decisions) else ""
    if not approval.policy.also:
        return f"{votes} of {approval.policy.quorum} votes{what}"
    wanted = ", and ".join(f"{left} more of {policy.named_text(who)}" for left, who in missing)
    return f"{votes} vote{'s' * (votes > 1)}{what}; still wanted: {wanted}"


def check_open(current: Approval) -> None:
    """Tells who comes second who was first, and what they said."""
    if current.state == APPROVAL_STATE_SUPERSEDED:
        raise _changed(current, "", current.superseded_by)
    if current.state == APPROVAL_STATE_PENDING:
        return
    last = outcome.last_decision(current)
    name = ApprovalState.Name(current.state).removeprefix("APPROVAL_STATE_")
    who = f"rule {last.rule_id}" if last.rule_id else last.decider.id
    said = f" by {who}" if current.decisions else f": {current.state_reason}"
    raise _already(current, f"it is {name}{said}", name, who, last)


def _check_option(state: State, current: Approval, decision: ApprovalDecision) -> None:
    me = state.caller.actor()
    mine = [vote for vote in current.decisions if vote.decider == me]
    if mine:
        name = ApprovalState.Name(current.state).removeprefix("APPROVAL_STATE_")
        raise _already(current, f"{me.id} has voted, and it needs votes of others", name, me.id, mine[-1])
    options = [option.option_id for option in current.options]
    if decision.option not in (APPROVE, DENY, *options):
        known = ", ".join((APPROVE, DENY, *options))
        raise invalid("option", f"is none of {known}", "Choose one of them.")
    if decision.option == APPROVE and options and current.kind == APPROVAL_KIND_QUESTION:
        raise invalid("option", f"must be one of {', '.join(options)}: it is a question", "Choose one of them.")
    if decision.option == APPROVE and current.free_text and not decision.comment:
        raise invalid("comment", "is the answer of a question, and must not be empty")


def _edited(
    state: State, current: Approval, decision: ApprovalDecision, edits: RetryTaskRequest
) -> tuple[Task | None, TaskEdit | None]:
    """The task as the decision edits it, not yet put, and what it was before."""
    is_task_edit = edits.HasField("prompt") or edits.HasField("input") or edits.HasField("parameters")
    if not is_task_edit and not decision.HasField("edited_input"):
        return None, None
    if decision.option == DENY:
        raise invalid("edited_input", "is for an approval", "Leave it out, or approve.")
    if policy.missing(current, [state.caller.actor()]):
        raise invalid("edited_input", "is for approvals that one vote decides", "Deny it, and have it asked for anew.")
    if decision.edited_input.ByteSize() > _MOST_EDITED:
        raise invalid("edited_input", f"must be at most {_MOST_EDITED} bytes")
    if current.kind == APPROVAL_KIND_TASK_START:
        return _edited_task(state, current, decision, edits)
    if is_task_edit or current.kind != APPROVAL_KIND_TOOL_PERMISSION:
        raise invalid("edited_input", "is for the start of a task, and for tools that have an input")
    if not state.approvals.content(current.approval_id).HasField("input"):
        raise invalid("edited_input", "cannot take the place of an input: none was shown")
    return None, None


def _edited_task(
    state: State, current: Approval, decision: ApprovalDecision, edits: RetryTaskRequest
) -> tuple[Task, TaskEdit | None]:
    """Checks and takes over other content of a task that is to start; it is approved as it then is."""
    task = copied(state.task(current.task_id))
    if edits.HasField("parameters") and (edits.HasField("input") or edits.HasField("prompt")):
        raise invalid("parameters", "must not come together with prompt or input")
    edit, _ = edit_for_retry(state, task, edits)
    if edit is not None and task.prompt_pending and not dependency.is_waiting(task):
        fill_at_once(state, task)
    decision.edited_hash = start.start_hash(state, task)
    return task, edit


def _changed(current: Approval, content_hash: str, successor: str = "") -> KapellError:
    metadata = {"approval_id": current.approval_id, "content_hash": content_hash}
    what = "what was shown is not what is asked for"
    if successor:
        metadata["superseded_by"] = successor
        what = f"{successor} has taken its place"
    return KapellError(
        ERROR_REASON_APPROVAL_CHANGED,
        f"Approval {current.approval_id} was not decided: {what}. Read it again, and decide about what it is now.",
        metadata=metadata,
    )


def _already(current: Approval, why: str, state_name: str, who: str, last: ApprovalDecision) -> KapellError:
    comment = last.comment if len(last.comment) <= 200 else last.comment[:199] + "…"
    return KapellError(
        ERROR_REASON_APPROVAL_ALREADY_DECIDED,
        f"Approval {current.approval_id} cannot be decided: {why}. Nothing is left to do.",
        metadata={
            "approval_id": current.approval_id,
            "state": state_name,
            "option": last.option,
            "decider": who,
            "comment": comment,
        },
    )
