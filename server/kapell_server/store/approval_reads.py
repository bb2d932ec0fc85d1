"""Reads of approvals, past the writer: one with what it shows, lists, the audit, rules, and what a rule would match."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from kapell.v1.approval_pb2 import (
    APPROVAL_ORDER_OLDEST_FIRST,
    RULE_EFFECT_APPROVE,
    Approval,
    ApprovalAuditEntry,
    ApprovalContent,
    ApprovalPrecedent,
    ApprovalRule,
    ApprovalRuleSpec,
    GetApprovalResponse,
    ListApprovalAuditRequest,
    ListApprovalAuditResponse,
    ListApprovalRulesRequest,
    ListApprovalRulesResponse,
    ListApprovalsRequest,
    ListApprovalsResponse,
    PreviewApprovalRuleResponse,
)
from kapell.v1.approval_policy_pb2 import (
    APPROVAL_STATE_APPROVED,
    APPROVAL_STATE_EXPIRED,
    APPROVAL_STATE_REJECTED,
)
from kapell.v1.common_pb2 import LIST_ORDER_NEWEST_FIRST, LIST_ORDER_OLDEST_FIRST
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.domain.approvals import rules
from kapell_server.domain.approvals.inbox import approval_test
from kapell_server.domain.approvals.shelf import approval_not_found
from kapell_server.domain.standing import KINDS
from kapell_server.domain.times import timestamp_ns
from kapell_server.store.approval_rows import load_approval, load_approval_content
from kapell_server.store.database import Database
from kapell_server.store.listing import Conditions, Listing, page_of
from kapell_server.store.loads import head
from kapell_server.store.pages import Page
from kapell_server.store.schema import approval_audit, approval_contents, approvals, standing

_MOST_COUNTED = 1_000
_MOST_LOOKED_AT = 1_000
_MOST_EXAMPLES = 20
_MOST_WITH_CONTENT = 10
_PREVIEW_CHUNK = 50

_of_signature = (
    sa.select(approvals.c.data)
    .where(approvals.c.signature == bindparam("signature"), approvals.c.state == bindparam("state"))
    .limit(_MOST_COUNTED)
)
_latest = (
    sa.select(approvals.c.create_revision, approvals.c.data, approval_contents.c.data)
    .join(approval_contents, approval_contents.c.approval_id == approvals.c.approval_id)
    .where(approvals.c.create_revision < bindparam("before"))
    .order_by(approvals.c.create_revision.desc())
    .limit(_PREVIEW_CHUNK)
)
_NEWEST = 1 << 62
_rules = Listing(
    key=standing.c.create_revision,
    data=standing.c.data,
    parts=([standing.c.kind == KINDS[ApprovalRule].number],),
)


class ApprovalReads:
    """Answers from committed state."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, approval_id: str) -> GetApprovalResponse:
        """The approval with what it shows, and how others went. Raises APPROVAL_NOT_FOUND."""

        def work(connection: Connection) -> GetApprovalResponse:
            approval = load_approval(connection, approval_id)
            if approval is None:
                raise approval_not_found(approval_id)
            approval.content.CopyFrom(load_approval_content(connection, approval_id))
            precedent = _precedent(connection, approval.signature)
            return GetApprovalResponse(approval=approval, precedent=precedent, revision=head(connection))

        return await self._database.read(work)

    async def approval(self, approval_id: str) -> Approval:
        """The approval without what it shows. Raises APPROVAL_NOT_FOUND."""
        found = await self._database.read(lambda connection: load_approval(connection, approval_id))
        if found is None:
            raise approval_not_found(approval_id)
        return found

    async def list(self, request: ListApprovalsRequest) -> ListApprovalsResponse:
        """A page in the order of creation. Raises PAGE_TOKEN_INVALID."""
        oldest_first = request.order == APPROVAL_ORDER_OLDEST_FIRST
        order = LIST_ORDER_OLDEST_FIRST if oldest_first else LIST_ORDER_NEWEST_FIRST
        page = Page(size=request.page_size, token=request.page_token, order=order, bound_to=request.filter)
        listing = _listing(request)

        def work(connection: Connection) -> ListApprovalsResponse:
            rows = page_of(connection, listing, page)
            return ListApprovalsResponse(
                approvals=[Approval.FromString(data) for data in rows.data],
                next_page_token="" if rows.next_cursor is None else page.token(rows.next_cursor),
                revision=head(connection),
            )

        return await self._database.read(work)

    async def list_rules(self, request: ListApprovalRulesRequest) -> ListApprovalRulesResponse:
        """A page of rules, newest first. Raises PAGE_TOKEN_INVALID."""
        page = Page(
            size=request.page_size,
            token=request.page_token,
            order=LIST_ORDER_NEWEST_FIRST,
            bound_to=ListApprovalRulesRequest(),
        )

        def work(connection: Connection) -> ListApprovalRulesResponse:
            rows = page_of(connection, _rules, page)
            return ListApprovalRulesResponse(
                rules=[ApprovalRule.FromString(data) for data in rows.data],
                next_page_token="" if rows.next_cursor is None else page.token(rows.next_cursor),
                revision=head(connection),
            )

        return await self._database.read(work)

    async def audit(self, request: ListApprovalAuditRequest) -> ListApprovalAuditResponse:
        """A page of what was done, with what was shown where that is wanted. Raises PAGE_TOKEN_INVALID."""
        size = min(request.page_size or _MOST_WITH_CONTENT, _MOST_WITH_CONTENT)
        page = Page(
            size=size if request.include_content else request.page_size,
            token=request.page_token,
            order=request.order,
            bound_to=_wanted(request),
        )
        of_one = [approval_audit.c.approval_id == request.approval_id] if request.approval_id else []
        listing = Listing(
            key=approval_audit.c.revision, data=approval_audit.c.data, parts=(of_one,), matches=_within(request)
        )

        def work(connection: Connection) -> ListApprovalAuditResponse:
            rows = page_of(connection, listing, page)
            response = ListApprovalAuditResponse(
                entries=[ApprovalAuditEntry.FromString(data) for data in rows.data],
                next_page_token="" if rows.next_cursor is None else page.token(rows.next_cursor),
                revision=head(connection),
            )
            if request.include_content:
                for entry in response.entries:
                    if entry.approval_id:
                        entry.content.CopyFrom(load_approval_content(connection, entry.approval_id))
            return response

        return await self._database.read(work)

    async def preview(self, spec: ApprovalRuleSpec) -> PreviewApprovalRuleResponse:
        """Which of the latest approvals a rule would have decided. Raises REQUEST_INVALID."""
        rules.check_shape(spec)
        response = PreviewApprovalRuleResponse(anything=spec.effect == RULE_EFFECT_APPROVE and rules.is_open(spec))
        before = _NEWEST
        while before and response.looked_at < _MOST_LOOKED_AT:
            before = await self._database.read(
                lambda connection, edge=before: _preview_some(connection, spec, edge, response)  # type: ignore[misc]
            )
        response.revision = await self._database.read(head)
        return response


def _preview_some(
    connection: Connection, spec: ApprovalRuleSpec, before: int, response: PreviewApprovalRuleResponse
) -> int:
    """Looks at some more approvals, the latest ones first; where to go on, 0 at the end."""
    rows = connection.execute(_latest, {"before": before}).all()
    for _, data, content in rows:
        response.looked_at += 1
        approval = Approval.FromString(data)
        if not rules.matches(spec, approval, ApprovalContent.FromString(content)):
            continue
        if rules.is_too_risky(spec, approval):
            response.too_risky += 1
            continue
        response.matched += 1
        _count(response.precedent, approval)
        if len(response.examples) < _MOST_EXAMPLES:
            response.examples.append(approval)
    return int(rows[-1][0]) if len(rows) == _PREVIEW_CHUNK else 0


def _wanted(request: ListApprovalAuditRequest) -> ListApprovalAuditRequest:
    """What of a request its pages must have in common."""
    wanted = ListApprovalAuditRequest(approval_id=request.approval_id)
    if request.HasField("from_time"):
        wanted.from_time.CopyFrom(request.from_time)
    if request.HasField("until_time"):
        wanted.until_time.CopyFrom(request.until_time)
    return wanted


def _within(request: ListApprovalAuditRequest) -> Callable[[bytes], bool] | None:
    """Whether an entry is of the time that is wanted; None where any is.

    Looked for in windows, not by a search for the revision: a clock that is set back must not hide an entry.
    """
    first = timestamp_ns(request.from_time) if request.HasField("from_time") else None
    last = timestamp_ns(request.until_time) if request.HasField("until_time") else None
    if first is None and last is None:
        return None

    def matches(data: bytes) -> bool:
        at = timestamp_ns(ApprovalAuditEntry.FromString(data).action_time)
        return (first is None or at >= first) and (last is None or at < last)

    return matches


def _precedent(connection: Connection, signature: str) -> ApprovalPrecedent:
    precedent = ApprovalPrecedent()
    for state in (APPROVAL_STATE_APPROVED, APPROVAL_STATE_REJECTED, APPROVAL_STATE_EXPIRED):
        for data in connection.scalars(_of_signature, {"signature": signature, "state": state}):
            _count(precedent, Approval.FromString(data))
    return precedent


def _count(precedent: ApprovalPrecedent, approval: Approval) -> None:
    """Counts how an approval went, unless a rule has decided it."""
    by_rule = bool(approval.decisions) and bool(approval.decisions[-1].rule_id)
    if approval.state == APPROVAL_STATE_EXPIRED:
        precedent.expired += 1
    elif approval.state == APPROVAL_STATE_APPROVED and not by_rule:
        precedent.approved += 1
    elif approval.state == APPROVAL_STATE_REJECTED and not by_rule:
        precedent.rejected += 1


def _listing(request: ListApprovalsRequest) -> Listing:
    """What an index serves of a filter, and what is looked for in windows."""
    wanted = request.filter
    parts: list[Conditions] = [()]
    served = ""
    if wanted.approval_ids:
        parts, served = [[approvals.c.approval_id.in_(wanted.approval_ids)]], "approval_ids"
    elif wanted.task_ids:
        parts, served = [[approvals.c.task_id == one] for one in sorted({*wanted.task_ids})], "task_ids"
    elif wanted.states:
        parts, served = [[approvals.c.state == one] for one in sorted({*wanted.states})], "states"
    others = any(field.name != served for field, _ in wanted.ListFields())
    test = approval_test(wanted)
    return Listing(
        key=approvals.c.create_revision,
        data=approvals.c.data,
        parts=parts,
        matches=(lambda data: test(Approval.FromString(data))) if others else None,
    )
