"""Approvals in a World: how tests ask, decide and look; shared by the tests of approvals as rules."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration
from kapell.v1.approval_pb2 import (
    Approval,
    ApprovalContent,
    ApprovalRule,
    ApprovalRuleSpec,
    CreateApprovalRuleRequest,
    DecideApprovalRequest,
    RequestApprovalRequest,
    RequestApprovalResponse,
)
from kapell.v1.approval_policy_pb2 import ApprovalPolicy, ApprovalState
from kapell.v1.task_pb2 import TaskState
from kapell_server.domain.access import Caller, user

from tests.domain.world import USER, World

ALICE, BOB = user("alice"), user("bob")
ASK = ApprovalPolicy()
FOUR_EYES = ApprovalPolicy(allow_requester=False)


def lasting(seconds: int, **said: Any) -> ApprovalPolicy:
    """A policy with a time of its own."""
    return ApprovalPolicy(timeout=Duration(seconds=seconds), **said)


def state_of(world: World, task_id: str) -> str:
    """The state of a task, as people read it."""
    return TaskState.Name(world.task(task_id).state).removeprefix("TASK_STATE_")


def get(world: World, approval_id: str) -> Approval:
    """An approval as committed."""
    return world.rows.approvals[approval_id]


def how(world: World, approval_id: str) -> str:
    """The state of an approval, as people read it."""
    return ApprovalState.Name(get(world, approval_id).state).removeprefix("APPROVAL_STATE_")


def waiting(world: World, task_id: str = "") -> Approval:
    """The one approval that waits, of a task or at all."""
    [found] = [one for one in world.state.approvals.pending() if not task_id or one.task_id == task_id]
    return found


def decide(
    world: World, approval: Approval, option: str = "approve", *, by: Caller = USER, shown: str = "", **rest: Any
) -> Approval:
    """Decides about what is shown."""
    request = DecideApprovalRequest(
        approval_id=approval.approval_id, option=option, shown_hash=shown or approval.content_hash, **rest
    )
    found: Approval = world.do(request, caller=by)
    return found


def ask(world: World, task_id: str, title: str = "Run make", command: str = "make", **said: Any) -> Approval:
    """What an agent asks for while it has the task; the approval as it is answered."""
    return ask_whole(world, task_id, title, command, **said).approval


def ask_whole(
    world: World, task_id: str, title: str = "Run make", command: str = "make", **said: Any
) -> RequestApprovalResponse:
    """As `ask`, with the whole answer."""
    said.setdefault("content", ApprovalContent(command=command, tool="bash", working_directory="/srv/shop"))
    request = RequestApprovalRequest(lease_token=world.token(task_id), title=title, **said)
    found: RequestApprovalResponse = world.do(request)
    return found


def rule(world: World, *, by: Caller = USER, **spec: Any) -> ApprovalRule:
    """A new rule."""
    found: ApprovalRule = world.do(CreateApprovalRuleRequest(spec=ApprovalRuleSpec(**spec)), caller=by)
    return found


def seen(world: World, *starts: str) -> list[str]:
    """The names of the events so far that begin so."""
    return [name for name in world.events if name.startswith(starts)]
