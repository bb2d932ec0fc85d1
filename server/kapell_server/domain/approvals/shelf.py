"""The approvals that State keeps: those that are PENDING all in memory, the others loaded when somebody asks.

The one place where an approval is put: each put is an event and an entry of the audit, in the same
transaction. Undone with the rest of State, through its journal.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from kapell.v1.approval_pb2 import Approval, ApprovalAuditEntry, ApprovalContent, ApprovalRule
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_PENDING
from kapell.v1.error_pb2 import ERROR_REASON_APPROVAL_NOT_FOUND
from kapell.v1.task_pb2 import TASK_STATE_AWAITING_APPROVAL, Task
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_QUEUED, EVENT_KIND_TASK_UPDATED, EventKind

from kapell_server.domain.approvals import start
from kapell_server.domain.errors import KapellError
from kapell_server.domain.times import stamp, timestamp_ns

if TYPE_CHECKING:
    from kapell_server.domain.state import State

_MOST_SETTLED = 2_000


class ApprovalShelf:
    """Every approval that waits, by its id and by its task."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._pending: dict[str, Approval] = {}
        self._of_task: dict[str, dict[str, None]] = {}
        self._settled: dict[str, Approval | None] = {}

    def load(self, approvals: Iterable[Approval]) -> None:
        """Takes over those that the database has as PENDING, at the start, and asks for looks at them in time."""
        for approval in approvals:
            self._pending[approval.approval_id] = approval
            self._of_task.setdefault(approval.task_id, {})[approval.approval_id] = None
            self.watch(approval)

    def watch(self, approval: Approval) -> None:
        """Asks for looks when its time is over, and when it waits for too long; an overdue one waits without an end."""
        self._state.alerts.approval_waits(approval)
        if not approval.overdue:
            self._state.schedule(timestamp_ns(approval.expire_time), approval.approval_id)

    def pending(self) -> Iterator[Approval]:
        """All that wait, in the order they were asked for. Not to be altered."""
        return iter(self._pending.values())

    def of_task(self, task_id: str) -> list[Approval]:
        """Those of a task that wait. Not to be altered."""
        return [self._pending[approval_id] for approval_id in self._of_task.get(task_id, ())]

    def find(self, approval_id: str) -> Approval | None:
        """The approval, or None. Not to be altered."""
        found = self._pending.get(approval_id)
        if found is None:
            if approval_id not in self._settled:
                self._settled[approval_id] = self._state.loader.load_approval(approval_id)
            found = self._settled[approval_id]
        return found

    def get(self, approval_id: str) -> Approval:
        """The approval; APPROVAL_NOT_FOUND where there is none."""
        found = self.find(approval_id)
        if found is None:
            raise approval_not_found(approval_id)
        return found

    def named(self, task_id: str, request_key: str) -> Approval | None:
        """The latest approval that an agent has asked for under this name within a task; of any state."""
        waiting = [one for one in self.of_task(task_id) if one.request_key == request_key]
        if waiting:
            return waiting[-1]
        fresh = [
            change.resource
            for change in self._state.pending.changes
            if isinstance(change.resource, Approval)
            and (change.resource.task_id, change.resource.request_key) == (task_id, request_key)
        ]
        return fresh[-1] if fresh else self._state.loader.load_named_approval(task_id, request_key)

    def content(self, approval_id: str) -> ApprovalContent:
        """What is shown; of this batch too."""
        found = self._state.pending.approval_contents.get(approval_id)
        return found if found is not None else self._state.loader.load_approval_content(approval_id)

    def put(
        self,
        approval: Approval,
        event: EventKind.ValueType,
        changed: tuple[str, ...] = (),
        *,
        content: ApprovalContent | None = None,
    ) -> Approval:
        """Records `approval` as the new form, with one event; `content` is for a new one. Takes ownership of both."""
        state, approval_id = self._state, approval.approval_id
        previous = self._pending.get(approval_id)
        since = previous.revision if previous is not None else 0
        state.record(approval, event, since, changed, created=content is not None, deleted=False)
        if content is not None:
            state.assign(state.pending.approval_contents, approval_id, content)
        if approval.state == APPROVAL_STATE_PENDING:
            state.assign(self._pending, approval_id, approval)
            self._keep(approval)
            self.watch(approval)
        else:
            state.remove(self._pending, approval_id)
            self._drop(approval)
            state.alerts.approval_is_over(approval_id)
            state.assign(self._settled, approval_id, approval)
        entry = ApprovalAuditEntry(approval_id=approval_id, task_id=approval.task_id, approval=approval)
        entry.shown_hash = approval.content_hash
        if approval.decisions:
            entry.rule_id = approval.decisions[-1].rule_id
        self._audit(approval.revision, event, entry)
        return approval

    def put_rule(self, rule: ApprovalRule, event: EventKind.ValueType, *, deleted: bool = False) -> ApprovalRule:
        """Records a rule; what it decides is audited with the approval, so its use makes no entry."""
        put = self._state.standing.put(rule, event, (), deleted=deleted)
        self._audit(put.revision, event, ApprovalAuditEntry(rule_id=rule.rule_id, rule=put))
        return put

    def _audit(self, revision: int, event: EventKind.ValueType, entry: ApprovalAuditEntry) -> None:
        state = self._state
        entry.revision = revision
        entry.action = event
        entry.actor.CopyFrom(state.caller.actor())
        entry.peer = state.caller.peer
        stamp(entry.action_time, state.now_ns)
        state.assign(state.pending.approval_audit, revision, entry)

    def _keep(self, approval: Approval) -> None:
        known = self._of_task.get(approval.task_id)
        if known is None:
            known = {}
            self._state.assign(self._of_task, approval.task_id, known)
        if approval.approval_id not in known:
            self._state.assign(known, approval.approval_id, None)

    def _drop(self, approval: Approval) -> None:
        known = self._of_task.get(approval.task_id)
        if known is not None:
            self._state.remove(known, approval.approval_id)
            if not known:
                self._state.remove(self._of_task, approval.task_id)

    def trim(self) -> None:
        """Forgets settled ones beyond the cap, the oldest first; between batches only."""
        excess = len(self._settled) - _MOST_SETTLED
        if excess > 0:
            for approval_id in list(itertools.islice(self._settled, excess)):
                del self._settled[approval_id]

    # -- the gate of State.put_task -----------------------------------------------------------

    def before_put(self, task: Task, previous: Task | None) -> start.Wish | None:
        """Holds back a task that would become QUEUED, where its start is not approved yet; see `start`."""
        return start.hold(self._state, task, previous)

    @staticmethod
    def event_of(task: Task, kind: EventKind.ValueType) -> EventKind.ValueType:
        """What a put is called: a task that was held back is not queued."""
        is_held = task.state == TASK_STATE_AWAITING_APPROVAL and kind == EVENT_KIND_TASK_QUEUED
        return EVENT_KIND_TASK_UPDATED if is_held else kind

    def after_put(self, task: Task, wish: start.Wish | None, *, deleted: bool) -> None:
        """Asks for what `before_put` has found wanting, and takes back what a task needs no more."""
        if wish is not None:
            start.ask(self._state, task, wish)
        if task.task_id in self._of_task:
            start.tidy(self._state, task, deleted)


def approval_not_found(approval_id: str) -> KapellError:
    """No approval has this id."""
    return KapellError(
        ERROR_REASON_APPROVAL_NOT_FOUND,
        f"Approval {approval_id} was not found: it never existed. List the approvals to find its id.",
        metadata={"approval_id": approval_id},
    )
