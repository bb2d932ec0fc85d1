"""Rows of approvals: the record, what it shows beside it, and the audit, which is only ever added to."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from kapell.v1.approval_pb2 import Approval, ApprovalContent
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_PENDING
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.domain.pending import Change, Pending
from kapell_server.store.bulk import Bulk
from kapell_server.store.schema import approval_audit, approval_contents, approvals

_MOST_OF_TASK = 1_000

_by_id = sa.select(approvals.c.data).where(approvals.c.approval_id == bindparam("approval_id"))
_of_task = (
    sa.select(approvals.c.data)
    .where(approvals.c.task_id == bindparam("task_id"))
    .order_by(approvals.c.create_revision.desc())
    .limit(_MOST_OF_TASK)
)
_content = sa.select(approval_contents.c.data).where(approval_contents.c.approval_id == bindparam("approval_id"))
_waiting = (
    sa.select(approvals.c.data).where(approvals.c.state == APPROVAL_STATE_PENDING).order_by(approvals.c.create_revision)
)
_insert = Bulk(sa.insert(approvals), "create_revision", "approval_id", "state", "task_id", "signature", "data")
_update = Bulk(
    sa.update(approvals)
    .where(approvals.c.approval_id == bindparam("key"))
    .values(state=bindparam("state"), data=bindparam("data")),
    *("state", "data", "key"),
)
_insert_contents = Bulk(sa.insert(approval_contents), "approval_id", "data")
_insert_audit = Bulk(sa.insert(approval_audit), "revision", "approval_id", "data")


def load_pending_approvals(connection: Connection) -> list[Approval]:
    """Those that wait, in the order they were asked for."""
    return [Approval.FromString(data) for data in connection.scalars(_waiting)]


def load_approval(connection: Connection, approval_id: str) -> Approval | None:
    """One approval, without what it shows."""
    data = connection.scalar(_by_id, {"approval_id": approval_id})
    return None if data is None else Approval.FromString(data)


def load_named_approval(connection: Connection, task_id: str, request_key: str) -> Approval | None:
    """The latest approval that was asked for under a name within a task, among its latest 1,000."""
    for data in connection.scalars(_of_task, {"task_id": task_id}):
        approval = Approval.FromString(data)
        if approval.request_key == request_key:
            return approval
    return None


def load_approval_content(connection: Connection, approval_id: str) -> ApprovalContent:
    """What an approval shows."""
    data = connection.scalar(_content, {"approval_id": approval_id})
    return ApprovalContent() if data is None else ApprovalContent.FromString(data)


def write_approvals(
    connection: Connection, changes: list[Change], pending: Pending, encoded: Mapping[int, bytes]
) -> None:
    """The last form of each; one that was asked for and decided in the same batch is inserted once."""
    created: dict[str, int] = {}
    latest: dict[str, Approval] = {}
    for change in changes:
        approval = change.resource
        assert isinstance(approval, Approval)
        if change.created:
            created[approval.approval_id] = approval.revision
        latest[approval.approval_id] = approval
    inserts = [
        (created[key], key, one.state, one.task_id, one.signature, encoded[one.revision])
        for key, one in latest.items()
        if key in created
    ]
    updates = [(one.state, encoded[one.revision], key) for key, one in latest.items() if key not in created]
    _insert.execute(connection, inserts)
    _update.execute(connection, updates)
    contents = [(key, content.SerializeToString()) for key, content in pending.approval_contents.items()]
    _insert_contents.execute(connection, contents)


def write_approval_audit(connection: Connection, pending: Pending) -> None:
    """Adds what was done."""
    rows = [(revision, one.approval_id, one.SerializeToString()) for revision, one in pending.approval_audit.items()]
    _insert_audit.execute(connection, rows)
