"""What decisions read from the database, and what the running batch has to write to it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from kapell.v1.agent_pb2 import Agent
from kapell.v1.approval_pb2 import Approval, ApprovalAuditEntry, ApprovalContent
from kapell.v1.audit_pb2 import AuditEntry
from kapell.v1.budget_pb2 import Reservation
from kapell.v1.task_pb2 import Task, TaskAttempt, TaskEdit, TaskSpec
from kapell.v1.template_pb2 import Template, TemplateVersion
from kapell.v1.usage_pb2 import UsageUpdate
from kapell.v1.watch_pb2 import EventKind

from kapell_server.domain.access import Caller
from kapell_server.domain.standing import Standing
from kapell_server.domain.tasks.bulk_job import BulkWrites
from kapell_server.domain.tasks.edges import Edge, EdgeKey
from kapell_server.domain.usage.entry import Dims, Entry, Series, Total, UsageWrites

Resource = Task | Agent | Template | Approval | Standing | UsageUpdate
"""What a change puts; each kind has its own table, and all share the log."""


class Loader(Protocol):
    """Reads rows for decisions, inside the transaction of the batch."""

    def load_tasks(self, task_ids: Collection[str]) -> list[Task]: ...
    def load_contents(self, task_ids: Collection[str]) -> dict[str, bytes]: ...
    def load_agent(self, agent_id: str) -> Agent | None: ...
    def load_template(self, template_id: str) -> Template | None: ...
    def load_schedule_task(self, schedule_id: str) -> TaskSpec | None: ...
    def load_template_version(self, template_id: str, version: int) -> TemplateVersion | None: ...
    def count_live_tasks_of(self, template_id: str) -> int: ...
    def load_families(self, root_ids: Collection[str]) -> list[tuple[str, str, str]]: ...
    def load_changed_tasks(self, after_revision: int) -> list[str]: ...
    def has_live_member(self, root_id: str) -> bool: ...
    def newest_event_before(self, time_ns: int) -> int: ...
    def load_attempt(self, task_id: str, attempt: int) -> TaskAttempt | None: ...
    def load_succeeded(self, template_id: str, most: int) -> list[TaskAttempt]: ...
    def load_usage_versions(self, record_ids: Collection[str]) -> list[Entry]: ...
    def load_usage_series(self, names: Collection[str]) -> dict[str, Series]: ...
    def load_usage_key(self, dims: Dims) -> int | None: ...
    def load_usage_totals(self, usage_ids: Collection[str]) -> dict[str, Total]: ...
    def load_approval(self, approval_id: str) -> Approval | None: ...
    def load_named_approval(self, task_id: str, request_key: str) -> Approval | None: ...
    def load_approval_content(self, approval_id: str) -> ApprovalContent: ...


@dataclass(slots=True)
class Change:
    """One put: the resource after the change, and what its event says of it."""

    resource: Resource
    kind: EventKind.ValueType
    previous_revision: int
    previous_state: int
    changed: tuple[str, ...]
    caller: Caller
    created: bool = False
    deleted: bool = False
    due_ns: int = 0


@dataclass(slots=True)
class Pending:
    """What the running batch has to write. Lists keep the order of the decisions."""

    changes: list[Change] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)
    attempts: dict[tuple[str, int], tuple[TaskAttempt, str]] = field(default_factory=dict)
    new_attempts: set[tuple[str, int]] = field(default_factory=set)
    edits: dict[tuple[str, int], TaskEdit] = field(default_factory=dict)
    template_versions: dict[tuple[str, int], TemplateVersion] = field(default_factory=dict)
    shipped_digest: str = ""
    oldest_revision: int = 0
    schedule_tasks: dict[str, TaskSpec | None] = field(default_factory=dict)
    """The whole task of schedules; None of those that were deleted."""
    token_digests: dict[str, bytes | None] = field(default_factory=dict)
    """What proves new tokens; None of those that were forgotten."""
    audit: list[AuditEntry] = field(default_factory=list)
    schedule_runs: dict[str, str] = field(default_factory=dict)
    """Runs of schedules that live now, each with its schedule; empty for those that do no more."""
    secret_values: dict[str, bytes] = field(default_factory=dict)
    """Sealed values of secrets; empty for those that were deleted."""
    starts: dict[tuple[str, int], int] = field(default_factory=dict)
    """Starts under a rate, as (limit id, time), each with the time before which earlier ones are forgotten."""
    webhook_urls: dict[str, str | None] = field(default_factory=dict)
    """Where webhooks are sent to; None of those that were deleted."""
    forgotten_starts: dict[str, bool] = field(default_factory=dict)
    budget_spend: dict[tuple[str, int], int] = field(default_factory=dict)
    """What was spent, by budget and slice; 0 where the slice is no more."""
    reservations: dict[str, Reservation | None] = field(default_factory=dict)
    """Reservations of callers; None of those that have ended."""
    instance_keys: dict[str, str] = field(default_factory=dict)
    specs: dict[str, bytes] = field(default_factory=dict)
    deleted_agents: dict[str, bool] = field(default_factory=dict)
    heartbeats: dict[str, int] = field(default_factory=dict)
    dropped_edges: dict[EdgeKey, None] = field(default_factory=dict)
    new_edges: dict[EdgeKey, Edge] = field(default_factory=dict)
    """Opened after those that were dropped."""
    bulk: BulkWrites = field(default_factory=BulkWrites)
    usage: UsageWrites = field(default_factory=UsageWrites)
    approval_contents: dict[str, ApprovalContent] = field(default_factory=dict)
    approval_audit: dict[int, ApprovalAuditEntry] = field(default_factory=dict)
    """By the revision of the change that is audited."""
