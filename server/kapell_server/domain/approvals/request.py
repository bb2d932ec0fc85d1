"""What an agent may ask in the middle of its work, and take back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1.approval_pb2 import (
    APPROVAL_KIND_QUESTION,
    APPROVAL_KIND_TASK_START,
    APPROVAL_KIND_TOOL_PERMISSION,
    Approval,
    CancelApprovalRequest,
    RequestApprovalRequest,
    RequestApprovalResponse,
)
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_PENDING, APPROVAL_STATE_SUPERSEDED
from kapell.v1.common_pb2 import SCOPE_ADMIN
from kapell.v1.error_pb2 import ERROR_REASON_NOT_OWNER
from kapell.v1.task_pb2 import ATTEMPT_WAIT_KIND_APPROVAL, TASK_STATE_RUNNING, AttemptWait, Task
from kapell.v1.watch_pb2 import (
    ACTOR_KIND_AGENT,
    EVENT_KIND_APPROVAL_DECIDED,
    EVENT_KIND_APPROVAL_REQUIRED,
    EVENT_KIND_TASK_UPDATED,
    Actor,
)

from kapell_server.domain.access import CallerKind
from kapell_server.domain.approvals import decision, outcome, policy, rules
from kapell_server.domain.approvals.content import check_size, content_hash, invalid, signature_of
from kapell_server.domain.approvals.risk import assess
from kapell_server.domain.approvals.start import decide_by_rule, supersede, withdraw
from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.secrets import use
from kapell_server.domain.tasks import family
from kapell_server.domain.times import stamp
from kapell_server.domain.transitions import task_state_conflict
from kapell_server.domain.workers import attempt, speaking
from kapell_server.domain.workers.leases import Lease

if TYPE_CHECKING:
    from kapell_server.domain.state import State

MOST_OPEN = 64
"""Most requests of one task that may wait at a time."""
_MOST_RESUME_BYTES = 16_384


def request_approval(state: State, request: RequestApprovalRequest) -> RequestApprovalResponse:
    """Asks on behalf of the leased task; an earlier request for the same may be the answer."""
    lease, task = attempt.held(state, request.lease_token)
    if task.state != TASK_STATE_RUNNING:
        raise task_state_conflict(task, "given an approval", (TASK_STATE_RUNNING,))
    request = use.redactor(state, task, lease.agent_id).message(request)
    _check(request)
    if request.park and state.caller.kind is CallerKind.PROGRAM:
        raise invalid("park", "is for agents", "Wait for the decision: programs do not end the attempt they work on.")
    fresh = _new(state, request, task, lease)
    known = _known(state, fresh, task)
    if known is not None:
        return _answer(state, request, known, lease)
    if len(state.approvals.of_task(task.task_id)) >= MOST_OPEN:
        raise invalid("lease_token", f"is of a task with {MOST_OPEN} open requests", "Wait for some of them first.")
    rule = rules.deciding(state, fresh, request.content)
    shown = copied(request.content)
    if rule is None:
        put = state.approvals.put(fresh, EVENT_KIND_APPROVAL_REQUIRED, content=shown)
    else:
        decide_by_rule(state, fresh, rule)
        put = state.approvals.put(fresh, EVENT_KIND_APPROVAL_DECIDED, content=shown)
        rules.note_use(state, rule)
    return _answer(state, request, put, lease)


def _check(request: RequestApprovalRequest) -> None:
    check_size(request.content, "content")
    content = request.content
    if content.prompt or content.template_id:
        raise invalid("content.prompt", "and template_id are for the start of tasks")
    is_question = request.kind == APPROVAL_KIND_QUESTION
    if request.free_text and not is_question:
        raise invalid("free_text", "is for questions")
    ids = [option.option_id for option in request.options]
    if is_question and any(option.remember for option in request.options):
        raise invalid("options", "of a question cannot be remembered")
    if len({*ids}) < len(ids):
        raise invalid("options", "must have different option_ids")
    if request.resume_data.fields and not request.park:
        raise invalid("resume_data", "is for requests that park")
    if request.resume_data.ByteSize() > _MOST_RESUME_BYTES:
        raise invalid("resume_data", f"must be at most {_MOST_RESUME_BYTES} bytes", "Upload an artifact, and name it.")


def _new(state: State, request: RequestApprovalRequest, task: Task, lease: Lease) -> Approval:
    kind = request.kind or APPROVAL_KIND_TOOL_PERMISSION
    approval = Approval(
        approval_id=state.new_id("approval"),
        kind=kind,
        state=APPROVAL_STATE_PENDING,
        title=request.title,
        task_id=task.task_id,
        root_task_id=family.root_of(task),
        task_name=task.display_name,
        attempt=lease.attempt,
        agent_id=lease.agent_id,
        agent_type=task.agent_type,
        template_id=task.template_id,
        requested_by=Actor(kind=ACTOR_KIND_AGENT, id=lease.agent_id),
        options=request.options,
        free_text=request.free_text,
        content_hash=content_hash(kind, request.title, request.options, request.content),
        request_key=request.request_key,
        parked=request.park,
        retry=task.retries,
    )
    if state.caller.kind is CallerKind.USER:
        approval.asked_with.CopyFrom(state.caller.actor())
    approval.risk.CopyFrom(assess(request.title, request.content))
    policy.fill(approval, request.policy, state.now_ns)
    approval.signature = signature_of(approval, request.content)
    stamp(approval.create_time, state.tick_ns())
    return approval


def _known(state: State, fresh: Approval, task: Task) -> Approval | None:
    """An earlier approval that answers this request: of its name, left by a lost attempt, or parked for."""
    if fresh.request_key:
        known = state.approvals.named(task.task_id, fresh.request_key)
        if known is None or known.retry != fresh.retry:
            return None
        if known.content_hash == fresh.content_hash and known.state != APPROVAL_STATE_SUPERSEDED:
            return known
        if known.state == APPROVAL_STATE_PENDING:
            supersede(state, known, fresh, "its agent has asked for something else under the same name")
        return None
    if task.parked.approval_id:
        known = state.approvals.find(task.parked.approval_id)
        if known is not None and known.content_hash == fresh.content_hash:
            return known
    for known in state.approvals.of_task(task.task_id):
        is_left = known.attempt < fresh.attempt and not known.request_key and not known.parked
        if is_left and known.content_hash == fresh.content_hash:
            return known
    return None


def _answer(state: State, request: RequestApprovalRequest, approval: Approval, lease: Lease) -> RequestApprovalResponse:
    """The approval with what is shown; the attempt waits for it, or ends, where it is not decided."""
    response = RequestApprovalResponse(approval=approval)
    response.approval.content.CopyFrom(state.approvals.content(approval.approval_id))
    if approval.state == APPROVAL_STATE_PENDING:
        if request.park:
            _park(state, request, approval, lease)
            response.parked = True
        else:
            _adopt(state, approval, lease)
            waiting = AttemptWait(kind=ATTEMPT_WAIT_KIND_APPROVAL, detail=approval.title)
            waiting.until_time.CopyFrom(approval.expire_time)
            attempt.note_waiting(state, lease, state.task(lease.task_id), waiting)
    else:
        _take_up(state, approval, lease)
    response.revision = state.revision
    return response


def _adopt(state: State, current: Approval, lease: Lease) -> None:
    """An approval that a lost attempt has left is now of this one."""
    if current.attempt == lease.attempt and not current.parked:
        return
    approval = copied(current)
    approval.attempt = lease.attempt
    approval.agent_id = lease.agent_id
    approval.parked = False
    approval.requested_by.id = lease.agent_id
    if state.caller.kind is CallerKind.USER:
        approval.asked_with.CopyFrom(state.caller.actor())
    state.approvals.put(approval, EVENT_KIND_APPROVAL_REQUIRED, ("attempt", "agent_id"))


def _take_up(state: State, approval: Approval, lease: Lease) -> None:
    """The answer for which the task was parked is taken up: the next request is a new one."""
    task = state.task(lease.task_id)
    if task.parked.approval_id == approval.approval_id:
        task = copied(task)
        task.ClearField("parked")
        state.put_task(task, EVENT_KIND_TASK_UPDATED, ("parked",))


def _park(state: State, request: RequestApprovalRequest, current: Approval, lease: Lease) -> None:
    """Ends the attempt; the task waits without an agent."""
    if not current.parked:
        approval = copied(current)
        approval.parked = True
        state.approvals.put(approval, EVENT_KIND_APPROVAL_REQUIRED, ("parked",))
    resume_data = request.resume_data if request.HasField("resume_data") else None
    attempt.end_parked(state, lease, state.task(lease.task_id), current.approval_id, resume_data)


def cancel_approval(state: State, request: CancelApprovalRequest) -> Approval:
    """Withdraws a request; the agent that has asked goes on without an answer."""
    if state.caller.is_fenced:
        _check_own(state, request)
    current = state.approvals.get(request.approval_id)
    if state.caller.kind is CallerKind.USER and current.agent_id:
        _check_user(state, current)
    decision.check_open(current)
    if current.kind == APPROVAL_KIND_TASK_START:
        raise invalid("approval_id", "is of the start of a task", f"Cancel task {current.task_id} instead.")
    put = withdraw(state, current, request.reason or "withdrawn")
    outcome.carry_out(state, put)
    return put


def _check_user(state: State, current: Approval) -> None:
    """A user withdraws what agents have asked that it has registered, an administrator everything."""
    if SCOPE_ADMIN not in state.caller.scopes:
        speaking.check(state.find_agent(current.agent_id), current.agent_id, state.caller)


def _check_own(state: State, request: CancelApprovalRequest) -> None:
    """An agent withdraws what it has asked for, for the task it has; of others it does not learn if they exist."""
    agent_id = state.caller.agent_id
    task_id = attempt.held(state, request.lease_token)[1].task_id
    found = state.approvals.find(request.approval_id)
    if found is None or (found.agent_id, found.task_id) != (agent_id, task_id):
        raise KapellError(
            ERROR_REASON_NOT_OWNER,
            f"Approval {request.approval_id} was not asked for by {agent_id}. An agent withdraws its own only.",
            metadata={"agent_id": agent_id},
        )
