"""The face for approvals: what waits for somebody's decision, and the rules that decide by themselves.

    async for approval in client.approvals.watch():
        if approval.risk.level <= RISK_LEVEL_MEDIUM:
            await client.approvals.decide(approval, "approve", comment="go on")

A decision carries the hash of what was shown, so it is given the approval itself, as it was read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from kapell.connection import Connection
from kapell.filters import ApprovalQuery, approval_filter
from kapell.messages import Instant, Seconds, duration, new_request_id, seconds, struct, timestamp
from kapell.v1 import approval_pb2 as pb
from kapell.v1.approval_pb2_grpc import ApprovalServiceStub
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_PENDING, ApprovalPolicy, ExpiryAction
from kapell.v1.common_pb2 import LIST_ORDER_UNSPECIFIED, ListOrder
from kapell.watch import Watch, WatchKeywords, split_start

if TYPE_CHECKING:
    from kapell.v1.approval_pb2_grpc import ApprovalServiceAsyncStub

_LONGEST_WAIT = 60.0
_SPARE = 10.0
"""Seconds a call of WaitApproval may take beyond its wait."""


class PolicyFields(TypedDict, total=False):
    """Who decides, and until when."""

    approvers: Iterable[str]
    """As "user:ada" or "agent:agent_01…"; everybody who may approve where it is empty."""
    quorum: int
    allow_requester: bool
    timeout: Seconds
    on_expiry: str
    """"deny", "hold" or "escalate"."""
    escalate_to: Iterable[str]
    include_children: bool
    reason: str


def approval_policy(**fields: Unpack[PolicyFields]) -> ApprovalPolicy:
    """The message for a policy. Raises ValueError for an `on_expiry` that is none."""
    said: dict[str, Any] = dict(fields)
    if "timeout" in said:
        said["timeout"] = duration(said["timeout"])
    if "on_expiry" in said:
        said["on_expiry"] = ExpiryAction.Value(f"EXPIRY_ACTION_{said['on_expiry'].upper()}")
    return ApprovalPolicy(**said)


class ApprovalWatchKeywords(WatchKeywords, ApprovalQuery, total=False):
    """Where a watch begins, and what it is to match."""


class Approvals:
    """`client.approvals`. A `request_id` makes a write repeatable by hand; left out, each call gets its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> ApprovalServiceAsyncStub:
        return self._connection.stub(ApprovalServiceStub)

    async def request(
        self,
        lease_token: str,
        title: str,
        *,
        kind: pb.ApprovalKind.ValueType = pb.APPROVAL_KIND_TOOL_PERMISSION,
        content: pb.ApprovalContent | None = None,
        options: Iterable[pb.ApprovalOption] = (),
        free_text: bool = False,
        policy: ApprovalPolicy | None = None,
        request_key: str = "",
        park: bool = False,
        resume_data: Mapping[str, Any] | None = None,
        request_id: str = "",
    ) -> pb.RequestApprovalResponse:
        """Asks on behalf of a leased task; workers have `ctx.approve` for it."""
        request = pb.RequestApprovalRequest(
            lease_token=lease_token,
            kind=kind,
            title=title,
            content=content,
            options=options,
            free_text=free_text,
            policy=policy,
            request_key=request_key,
            park=park,
            resume_data=struct(resume_data),
            request_id=request_id or new_request_id(),
        )
        return await self._connection.call(self._stub.RequestApproval, request)

    async def get(self, approval_id: str) -> pb.Approval:
        """Reads an approval with what it shows."""
        return (await self.get_with_precedent(approval_id)).approval

    async def get_with_precedent(self, approval_id: str) -> pb.GetApprovalResponse:
        """As `get`, with how others of its signature went."""
        return await self._connection.call(self._stub.GetApproval, pb.GetApprovalRequest(approval_id=approval_id))

    async def list(
        self,
        *,
        order: pb.ApprovalOrder.ValueType = pb.APPROVAL_ORDER_UNSPECIFIED,
        page_size: int = 0,
        page_token: str = "",
        **query: Unpack[ApprovalQuery],
    ) -> pb.ListApprovalsResponse:
        """One page, without what they show: of the inbox unless ordered otherwise, which has those that wait."""
        request = pb.ListApprovalsRequest(
            filter=approval_filter(**query), order=order, page_size=page_size, page_token=page_token
        )
        return await self._connection.call(self._stub.ListApprovals, request)

    async def iterate(
        self,
        *,
        order: pb.ApprovalOrder.ValueType = pb.APPROVAL_ORDER_NEWEST_FIRST,
        page_size: int = 200,
        **query: Unpack[ApprovalQuery],
    ) -> AsyncIterator[pb.Approval]:
        """All approvals that match, the newest first unless ordered otherwise, page by page."""
        page_token = ""
        while True:
            page = await self.list(order=order, page_size=page_size, page_token=page_token, **query)
            for approval in page.approvals:
                yield approval
            page_token = page.next_page_token
            if not page_token:
                return

    async def decide(
        self,
        approval: pb.Approval,
        option: str = "approve",
        *,
        comment: str = "",
        edited_input: Mapping[str, Any] | None = None,
        request_id: str = "",
    ) -> pb.Approval:
        """Decides about an approval as it was read: "approve", "deny", or the id of one of its options.

        Raises AlreadyExists (APPROVAL_ALREADY_DECIDED; its metadata says who decided what), Aborted
        (APPROVAL_CHANGED), PermissionDenied (SELF_APPROVAL, NOT_APPROVER).
        """
        request = pb.DecideApprovalRequest(
            approval_id=approval.approval_id,
            option=option,
            comment=comment,
            edited_input=struct(edited_input),
            shown_hash=approval.content_hash,
            request_id=request_id or new_request_id(),
        )
        return (await self._connection.call(self._stub.DecideApproval, request)).approval

    async def decide_all(
        self, approvals: Iterable[pb.Approval], option: str, *, comment: str = "", request_id: str = ""
    ) -> pb.BatchDecideApprovalsResponse:
        """Decides up to 100 approvals of one signature and no high risk alike; each has an outcome of its own."""
        shown = [pb.ShownApproval(approval_id=one.approval_id, shown_hash=one.content_hash) for one in approvals]
        request = pb.BatchDecideApprovalsRequest(
            approvals=shown, option=option, comment=comment, request_id=request_id or new_request_id()
        )
        return await self._connection.call(self._stub.BatchDecideApprovals, request)

    async def cancel(self, approval_id: str, *, reason: str = "", request_id: str = "") -> pb.Approval:
        """Withdraws a request that waits."""
        request = pb.CancelApprovalRequest(
            approval_id=approval_id, reason=reason, request_id=request_id or new_request_id()
        )
        return (await self._connection.call(self._stub.CancelApproval, request)).approval

    async def wait(self, approval_id: str, *, timeout: Seconds | None = None) -> pb.Approval:
        """Waits until it was decided or is over, through restarts of the server; after `timeout` as it is by then."""
        now = asyncio.get_running_loop().time
        until = None if timeout is None else now() + seconds(timeout)
        while True:
            left = _LONGEST_WAIT if until is None else max(0.0, min(_LONGEST_WAIT, until - now()))
            request = pb.WaitApprovalRequest(approval_id=approval_id, wait=duration(left))
            answer = await self._connection.call(self._stub.WaitApproval, request, timeout=left + _SPARE)
            if answer.approval.state != APPROVAL_STATE_PENDING or (until is not None and now() >= until):
                return answer.approval

    def watch(self, **keywords: Unpack[ApprovalWatchKeywords]) -> ApprovalWatch:
        """Every approval that waits, those that wait already first, and then each that comes; see `ApprovalWatch`."""
        keywords.setdefault("initial_state", "after_revision" not in keywords)
        return ApprovalWatch(self.watch_events(**keywords))

    def watch_events(self, **keywords: Unpack[ApprovalWatchKeywords]) -> Watch[pb.ApprovalEvent]:
        """The changes of matching approvals; see `Client.watch`."""
        start, query = split_start(keywords)
        wanted = approval_filter(**query)
        return Watch(
            lambda options: self._connection.stream(
                self._stub.WatchApprovals, pb.WatchApprovalsRequest(filter=wanted, options=options)
            ),
            start,
        )

    async def audit(
        self,
        *,
        approval_id: str = "",
        order: ListOrder.ValueType = LIST_ORDER_UNSPECIFIED,
        page_size: int = 0,
        page_token: str = "",
        include_content: bool = False,
        from_time: Instant | None = None,
        until_time: Instant | None = None,
    ) -> pb.ListApprovalAuditResponse:
        """One page of who did what, newest first unless ordered otherwise; from one time on, and before another."""
        request = pb.ListApprovalAuditRequest(
            approval_id=approval_id,
            order=order,
            page_size=page_size,
            page_token=page_token,
            include_content=include_content,
            from_time=None if from_time is None else timestamp(from_time),
            until_time=None if until_time is None else timestamp(until_time),
        )
        return await self._connection.call(self._stub.ListApprovalAudit, request)

    async def export_audit(
        self,
        *,
        approval_id: str = "",
        order: ListOrder.ValueType = LIST_ORDER_UNSPECIFIED,
        include_content: bool = True,
        from_time: Instant | None = None,
        until_time: Instant | None = None,
    ) -> AsyncIterator[pb.ApprovalAuditEntry]:
        """All entries of a time, with what was shown: one page after the other, so that few are held at once."""
        page_token = ""
        while True:
            page = await self.audit(
                approval_id=approval_id,
                order=order,
                page_token=page_token,
                include_content=include_content,
                from_time=from_time,
                until_time=until_time,
            )
            for entry in page.entries:
                yield entry
            page_token = page.next_page_token
            if not page_token:
                return

    async def create_rule(
        self, spec: pb.ApprovalRuleSpec, *, rule_id: str = "", request_id: str = ""
    ) -> pb.ApprovalRule:
        """Creates a rule; it decides what is asked for from now on."""
        request = pb.CreateApprovalRuleRequest(rule_id=rule_id, spec=spec, request_id=request_id or new_request_id())
        return (await self._connection.call(self._stub.CreateApprovalRule, request)).rule

    async def list_rules(self, *, page_size: int = 0, page_token: str = "") -> pb.ListApprovalRulesResponse:
        """One page of rules, newest first."""
        request = pb.ListApprovalRulesRequest(page_size=page_size, page_token=page_token)
        return await self._connection.call(self._stub.ListApprovalRules, request)

    async def delete_rule(self, rule_id: str, *, request_id: str = "") -> pb.DeleteApprovalRuleResponse:
        """Revokes a rule; what it has decided stays decided."""
        request = pb.DeleteApprovalRuleRequest(rule_id=rule_id, request_id=request_id or new_request_id())
        return await self._connection.call(self._stub.DeleteApprovalRule, request)

    async def preview_rule(self, spec: pb.ApprovalRuleSpec) -> pb.PreviewApprovalRuleResponse:
        """Which of the latest approvals a rule would have decided. Changes nothing."""
        return await self._connection.call(self._stub.PreviewApprovalRule, pb.PreviewApprovalRuleRequest(spec=spec))


class ApprovalWatch:
    """An async iterator of approvals that wait: each once, again where it was escalated. Close it when done.

    What is decided meanwhile is not handed out; `watch_events` has every change.
    """

    def __init__(self, events: Watch[pb.ApprovalEvent]) -> None:
        self._events = events
        self._seen: dict[str, bool] = {}

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> pb.Approval:
        while True:
            event = await anext(self._events)
            approval = event.approval
            if approval.state != APPROVAL_STATE_PENDING:
                self._seen.pop(approval.approval_id, None)
            elif self._seen.get(approval.approval_id) != approval.escalated:
                self._seen[approval.approval_id] = approval.escalated
                return approval

    async def ready(self) -> None:
        """Returns when the watch has begun."""
        await self._events.ready()

    def close(self) -> None:
        """Ends the watch."""
        self._events.close()

    async def aclose(self) -> None:
        """As `close`, for `contextlib.aclosing`."""
        self.close()

    async def __aenter__(self) -> Self:
        await self.ready()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()
