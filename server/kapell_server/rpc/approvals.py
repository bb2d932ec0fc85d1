"""ApprovalService: hands decisions to the engine, reads past it, and waits for commits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from kapell.v1 import approval_pb2
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_PENDING
from kapell.v1.common_pb2 import LIST_ORDER_NEWEST_FIRST
from kapell.v1.error_pb2 import ERROR_REASON_APPROVAL_NOT_FOUND, ERROR_REASON_NOT_OWNER

from kapell_server.domain.access import Caller
from kapell_server.domain.errors import KapellError
from kapell_server.engine.facts import InboxQuestion
from kapell_server.rpc.durations import seconds
from kapell_server.rpc.pipeline import waits
from kapell_server.store.pages import Page
from kapell_server.watch.filters import for_approvals
from kapell_server.watch.follow import Watches

if TYPE_CHECKING:
    from kapell_server.engine.engine import Engine
    from kapell_server.store.reads import Reads

DEFAULT_WAIT = 30.0
# A hint may be lost, so waiting looks again after this long, seconds.
RECHECK = 5.0
_INBOX = (approval_pb2.APPROVAL_ORDER_UNSPECIFIED, approval_pb2.APPROVAL_ORDER_INBOX)


class ApprovalServicer:
    """The methods of ApprovalService. Commands go straight to the engine, which answers encoded."""

    def __init__(self, engine: Engine, reads: Reads, *, watches: Watches) -> None:
        self._engine = engine
        self._reads = reads
        self._watches = watches
        self.RequestApproval = engine.submit
        self.DecideApproval = engine.submit
        self.BatchDecideApprovals = engine.submit
        self.CancelApproval = engine.submit
        self.CreateApprovalRule = engine.submit
        self.DeleteApprovalRule = engine.submit

    async def GetApproval(
        self, request: approval_pb2.GetApprovalRequest, caller: Caller
    ) -> approval_pb2.GetApprovalResponse:
        try:
            found = await self._reads.approvals.get(request.approval_id)
        except KapellError as error:
            raise _as_told(error, request.approval_id, caller) from None
        self._check_owner(found.approval, caller)
        return found

    async def ListApprovals(
        self, request: approval_pb2.ListApprovalsRequest, caller: Caller
    ) -> approval_pb2.ListApprovalsResponse:
        if request.order not in _INBOX:
            return await self._reads.approvals.list(request)
        page = Page(
            size=request.page_size, token=request.page_token, order=LIST_ORDER_NEWEST_FIRST, bound_to=request.filter
        )
        answer = await self._engine.submit(InboxQuestion(request, page.cursor or 0, page.size), caller)
        response = approval_pb2.ListApprovalsResponse.FromString(answer)
        if response.next_page_token:
            response.next_page_token = page.token(int(response.next_page_token))
        return response

    @waits
    async def WaitApproval(
        self, request: approval_pb2.WaitApprovalRequest, caller: Caller, patience: float
    ) -> approval_pb2.WaitApprovalResponse:
        """Answers with the approval as it is when it was decided, or when the wait is over."""
        wait = seconds(request.wait) if request.HasField("wait") else DEFAULT_WAIT
        now = asyncio.get_running_loop().time
        until = now() + min(wait, patience)
        try:
            approval = await self._reads.approvals.approval(request.approval_id)
        except KapellError as error:
            raise _as_told(error, request.approval_id, caller) from None
        self._check_owner(approval, caller)
        while approval.state == APPROVAL_STATE_PENDING and (left := until - now()) > 0:
            pause = min(left, RECHECK)
            record = await self._engine.ring.wait_resource(request.approval_id, approval.revision, pause)
            if record is None:
                approval = await self._reads.approvals.approval(request.approval_id)
            else:
                assert isinstance(record.resource, approval_pb2.Approval)
                approval = record.resource
        found = await self._reads.approvals.get(request.approval_id)
        return approval_pb2.WaitApprovalResponse(approval=found.approval, revision=found.revision)

    def WatchApprovals(
        self, request: approval_pb2.WatchApprovalsRequest, caller: Caller
    ) -> AsyncGenerator[bytes, None]:
        return self._watches.follow(for_approvals(request.filter), request.options)

    async def ListApprovalAudit(
        self, request: approval_pb2.ListApprovalAuditRequest, caller: Caller
    ) -> approval_pb2.ListApprovalAuditResponse:
        return await self._reads.approvals.audit(request)

    async def ListApprovalRules(
        self, request: approval_pb2.ListApprovalRulesRequest, caller: Caller
    ) -> approval_pb2.ListApprovalRulesResponse:
        return await self._reads.approvals.list_rules(request)

    async def PreviewApprovalRule(
        self, request: approval_pb2.PreviewApprovalRuleRequest, caller: Caller
    ) -> approval_pb2.PreviewApprovalRuleResponse:
        return await self._reads.approvals.preview(request.spec)

    def _check_owner(self, approval: approval_pb2.Approval, caller: Caller) -> None:
        """An agent sees what it has asked for, and what is of the tasks it holds; a program what is of its task."""
        if caller.lease is not None and approval.task_id != caller.lease.task_id:
            raise _not_theirs(approval.approval_id, caller)
        if not caller.is_fenced or approval.agent_id == caller.agent_id:
            return
        if approval.task_id not in self._engine.held_tasks(caller.agent_id):
            raise _not_theirs(approval.approval_id, caller)


def _as_told(error: KapellError, approval_id: str, caller: Caller) -> KapellError:
    """What does not exist, and what is not an agent's, is refused alike."""
    is_missing = error.reason == ERROR_REASON_APPROVAL_NOT_FOUND
    return _not_theirs(approval_id, caller) if is_missing and caller.is_fenced else error


def _not_theirs(approval_id: str, caller: Caller) -> KapellError:
    return KapellError(
        ERROR_REASON_NOT_OWNER,
        f"Approval {approval_id} is none of {caller.name}'s. Agents and programs read their own only.",
        metadata={"agent_id": caller.agent_id},
    )
