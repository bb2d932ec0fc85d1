"""Policies: their defaults, and who may decide."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kapell.v1.approval_pb2 import APPROVAL_KIND_BUDGET, APPROVAL_KIND_TASK_START, Approval
from kapell.v1.approval_policy_pb2 import EXPIRY_ACTION_DENY, EXPIRY_ACTION_HOLD, ApprovalPolicy
from kapell.v1.error_pb2 import ERROR_REASON_NOT_APPROVER, ERROR_REASON_SELF_APPROVAL
from kapell.v1.watch_pb2 import ACTOR_KIND_AGENT, ACTOR_KIND_USER, Actor

from kapell_server.domain.access import CallerKind
from kapell_server.domain.approvals import demands
from kapell_server.domain.approvals.demands import DEFAULT_TIMEOUT, Electorate
from kapell_server.domain.errors import KapellError
from kapell_server.domain.times import duration_ns, set_duration, stamp

if TYPE_CHECKING:
    from kapell_server.domain.state import State


def fill(approval: Approval, said: ApprovalPolicy, now_ns: int) -> None:
    """Gives a new approval its policy, defaults filled in, and the end of its time."""
    approval.policy.CopyFrom(said)
    filled = approval.policy
    filled.quorum = filled.quorum or 1
    if not filled.HasField("timeout"):
        set_duration(filled.timeout, DEFAULT_TIMEOUT)
    if not filled.on_expiry:
        filled.on_expiry = EXPIRY_ACTION_DENY if _keeps_an_agent(approval) else EXPIRY_ACTION_HOLD
    stamp(approval.expire_time, now_ns + duration_ns(filled.timeout))


def _keeps_an_agent(approval: Approval) -> bool:
    """Whether an agent waits for the answer, with its slot and its locks."""
    if approval.kind == APPROVAL_KIND_BUDGET:
        return bool(approval.task_id)
    return approval.kind != APPROVAL_KIND_TASK_START


def check_may_decide(state: State, approval: Approval) -> None:
    """Refuses callers that have asked for it themselves (A3), and those that the policy does not name."""
    caller = state.caller
    match caller.kind:
        case CallerKind.SYSTEM:
            return
        case CallerKind.USER:
            asked = caller.actor() in (approval.requested_by, approval.asked_with)
            if asked and not approval.policy.allow_requester:
                raise _self_approval(approval, f"{caller.name} has asked for it")
        case CallerKind.AGENT | CallerKind.TICKET:
            if _is_near(state, approval, caller.agent_id):
                raise _self_approval(approval, f"{caller.agent_id} has asked for it, or works on the same task tree")
    electorates = [demands.electorate(group, escalated=approval.escalated) for group in demands.groups(approval.policy)]
    if not any(who.has(caller.actor()) for who in electorates):
        named = "; ".join(map(named_text, electorates))
        raise KapellError(
            ERROR_REASON_NOT_APPROVER,
            f"Approval {approval.approval_id} is for others to decide: {named}. Ask one of them.",
            metadata={"approval_id": approval.approval_id, "approvers": named},
        )


def missing(approval: Approval, voters: Iterable[Actor]) -> list[tuple[int, Electorate]]:
    """How many more must approve, and who may; empty where these voters are enough."""
    return demands.missing(approval.policy, voters, escalated=approval.escalated)


def named_text(who: Electorate) -> str:
    """Those who may decide, in words."""
    return ", ".join([*(["users"] if who.everyone else ()), *sorted(who.names)])


def _is_near(state: State, approval: Approval, agent_id: str) -> bool:
    """Whether an agent has asked, or holds, holds in its name or has made a task of the same tree."""
    agent = Actor(kind=ACTOR_KIND_AGENT, id=agent_id)
    if agent_id == approval.agent_id or agent in (approval.requested_by, approval.asked_with):
        return True
    root_id = approval.root_task_id
    if not root_id:
        return False
    members = [root_id, *state.families.of(root_id)]
    state.prefetch_tasks(members)
    tasks = [task for task in map(state.find_task, members) if task is not None]
    return any(task.lease.agent_id == agent_id or task.creator == agent for task in tasks)


def _self_approval(approval: Approval, why: str) -> KapellError:
    requester = approval.requested_by
    kind = "user" if requester.kind == ACTOR_KIND_USER else "agent" if requester.kind == ACTOR_KIND_AGENT else "system"
    return KapellError(
        ERROR_REASON_SELF_APPROVAL,
        f"Approval {approval.approval_id} cannot be decided here: {why}, and nobody approves their own wish. "
        "Have somebody else decide; a policy with allow_requester = true lets users do so.",
        metadata={"approval_id": approval.approval_id, "requester": f"{kind}:{requester.id}"},
    )
