"""The tables of a World: what was committed, in memory, and the loader of the rules."""

from __future__ import annotations

from collections.abc import Iterable

from kapell.v1.agent_pb2 import Agent
from kapell.v1.approval_pb2 import Approval, ApprovalAuditEntry, ApprovalContent
from kapell.v1.task_pb2 import TASK_STATE_SUCCEEDED, Task, TaskAttempt, TaskEdit, TaskSpec
from kapell.v1.template_pb2 import Template, TemplateVersion
from kapell_server.domain.standing import Standing
from kapell_server.domain.tasks.bulk_job import BulkJob
from kapell_server.domain.tasks.edges import Edge, EdgeKey
from kapell_server.domain.transitions import TASK_FINAL
from kapell_server.domain.usage.entry import Dims, Entry, Series, Total

from tests.domain.budget_rows import BudgetRows
from tests.domain.usage_rows import UsageRows


class Rows:
    """Committed rows, as the loader of the rules."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.contents: dict[str, bytes] = {}
        self.agents: dict[str, Agent] = {}
        self.attempts: dict[tuple[str, int], TaskAttempt] = {}
        self.templates: dict[str, Template] = {}
        self.template_versions: dict[tuple[str, int], TemplateVersion] = {}
        self.edges: dict[EdgeKey, Edge] = {}
        self.standing: dict[tuple[str, str], Standing] = {}
        self.edits: dict[tuple[str, int], TaskEdit] = {}
        self.bulk_jobs: dict[str, BulkJob] = {}
        self.bulk_steps: dict[tuple[str, int], bytes] = {}
        self.schedule_tasks: dict[str, TaskSpec] = {}
        self.budgets = BudgetRows()
        self.schedule_runs: dict[str, str] = {}
        self.event_times: list[int] = []
        self.usage = UsageRows()
        self.approvals: dict[str, Approval] = {}
        self.approval_contents: dict[str, ApprovalContent] = {}
        self.approval_audit: dict[int, ApprovalAuditEntry] = {}

    def load_tasks(self, task_ids: Iterable[str]) -> list[Task]:
        return [self.tasks[task_id] for task_id in task_ids if task_id in self.tasks]

    def load_contents(self, task_ids: Iterable[str]) -> dict[str, bytes]:
        return {task_id: self.contents[task_id] for task_id in task_ids if task_id in self.contents}

    def load_agent(self, agent_id: str) -> Agent | None:
        return self.agents.get(agent_id)

    def load_template(self, template_id: str) -> Template | None:
        return self.templates.get(template_id)

    def load_template_version(self, template_id: str, version: int) -> TemplateVersion | None:
        return self.template_versions.get((template_id, version))

    def load_changed_tasks(self, after_revision: int) -> list[str]:
        return [task_id for task_id, task in self.tasks.items() if task.revision > after_revision]

    def load_schedule_task(self, schedule_id: str) -> TaskSpec | None:
        return self.schedule_tasks.get(schedule_id)

    def has_live_member(self, root_id: str) -> bool:
        return any(t.root_task_id == root_id and t.state not in TASK_FINAL for t in self.tasks.values())

    def newest_event_before(self, time_ns: int) -> int:
        return sum(time < time_ns for time in self.event_times)

    def load_attempt(self, task_id: str, attempt: int) -> TaskAttempt | None:
        return self.attempts.get((task_id, attempt))

    def load_succeeded(self, template_id: str, most: int) -> list[TaskAttempt]:
        tasks = [task for task in self.tasks.values() if task.template_id == template_id]
        last = [self.attempts[task.task_id, task.attempt] for task in tasks if task.state == TASK_STATE_SUCCEEDED]
        return last[: -most - 1 : -1]

    def load_usage_versions(self, record_ids: Iterable[str]) -> list[Entry]:
        return self.usage.versions(record_ids)

    def load_usage_series(self, names: Iterable[str]) -> dict[str, Series]:
        return {name: self.usage.series[name] for name in names if name in self.usage.series}

    def load_usage_key(self, dims: Dims) -> int | None:
        return self.usage.keys.get(dims)

    def load_usage_totals(self, usage_ids: Iterable[str]) -> dict[str, Total]:
        return {usage_id: self.usage.totals[usage_id] for usage_id in usage_ids if usage_id in self.usage.totals}

    def load_approval(self, approval_id: str) -> Approval | None:
        return self.approvals.get(approval_id)

    def load_named_approval(self, task_id: str, request_key: str) -> Approval | None:
        found = [a for a in self.approvals.values() if (a.task_id, a.request_key) == (task_id, request_key)]
        return max(found, key=lambda one: one.approval_id, default=None)

    def load_approval_content(self, approval_id: str) -> ApprovalContent:
        return self.approval_contents.get(approval_id, ApprovalContent())

    def count_live_tasks_of(self, template_id: str) -> int:
        return sum(t.template_id == template_id and t.state not in TASK_FINAL for t in self.tasks.values())

    def load_families(self, root_ids: Iterable[str]) -> list[tuple[str, str, str]]:
        found = [t for t in self.tasks.values() if t.root_task_id and t.root_task_id in root_ids]
        return [(t.root_task_id, t.task_id, t.parent_task_id) for t in found]
