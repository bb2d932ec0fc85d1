"""The tables. A row is the columns that queries need and the message's bytes.

Every index names the query that needs it; each one costs a write two to three times its price.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    text,
)

VERSION = "0016"
"""The newest migration; a test holds it against store/migrations."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

SHIPPED_DIGEST = "shipped_templates"
"""The entry of `meta` that tells which of Kapell's own templates are in the database."""
WEBHOOK_CURSOR = "webhook_cursor"
"""The entry of `meta` that tells up to which revision events were taken up for webhooks."""
OLDEST_REVISION = "oldest_revision"
"""The entry of `meta` that tells up to which revision the log was compacted; absent where it never was."""

_Revision = BigInteger().with_variant(Integer(), "sqlite")
"""An INTEGER PRIMARY KEY is SQLite's row id: the table itself is the index."""

meta = Table(
    "meta",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", String(256), nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("revision", _Revision, primary_key=True, autoincrement=False),
    Column("kind", SmallInteger, nullable=False),
    Column("resource_id", String(64), nullable=False),
    Column("previous_revision", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
)
"""The log. `previous_revision` is that of the resource's event before, 0 for its first: the history
of one resource is walked from its newest revision, without an index."""

tasks = Table(
    "tasks",
    metadata,
    Column("create_revision", _Revision, primary_key=True, autoincrement=False),
    Column("task_id", String(64), nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("agent_type", String(63), nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("create_ns", BigInteger, nullable=False),
    Column("queue_ns", BigInteger, nullable=False),
    Column("due_ns", BigInteger),
    Column("data", LargeBinary, nullable=False),
    Column("template_id", String(64)),
    Column("queue_rank", BigInteger, nullable=False, server_default="0"),
    Column("fairness_key", String(64)),
    # Separated by spaces, which no key has.
    Column("concurrency_keys", String(520)),
    Column("parent_id", String(64)),
    Column("root_id", String(64)),
    Column("end_ns", BigInteger),
    # How many locks a task declares: the start looks at the locks of those that have any.
    Column("lock_count", SmallInteger),
    # When a task under keys first joined its queue, where that is not queue_ns: the start, for their order.
    Column("arrival_ns", BigInteger),
    # Get, and every write: the row of an id.
    Index(None, "task_id", unique=True),
    # List and count by state, newest first; the start: all that is queued or leased.
    Index(None, "state", "create_revision"),
)
# The timer: what is due next. Few tasks have a deadline.
_due_index = Index("ix_tasks_due_ns", tasks.c.due_ns, sqlite_where=text("due_ns IS NOT NULL"))
# The tasks of a template: how they went, and whether one is live. Most tasks have none.
_template_index = Index(
    "ix_tasks_template_id",
    tasks.c.template_id,
    tasks.c.create_revision,
    sqlite_where=text("template_id IS NOT NULL"),
)
# The children of a task: the agent that waits for them, and the filter by parent. Most tasks have no parent.
_parent_index = Index(
    "ix_tasks_parent_id", tasks.c.parent_id, tasks.c.create_revision, sqlite_where=text("parent_id IS NOT NULL")
)
# All tasks below a root: the tree, the cascade of a cancel, their number, and the filter by root.
_root_index = Index(
    "ix_tasks_root_id", tasks.c.root_id, tasks.c.create_revision, sqlite_where=text("root_id IS NOT NULL")
)

task_edges = Table(
    "task_edges",
    metadata,
    Column("dependency_id", String(64), primary_key=True),
    Column("dependant_id", String(64), primary_key=True),
    Column("condition", SmallInteger, nullable=False),
    Column("on_failure", SmallInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""Dependencies that are neither met nor failed yet, and, with condition 0, those whose results are kept for a
prompt that is still to be filled; read whole at the start."""
# Retention: which tasks ended first, and how many have ended.
_end_index = Index("ix_tasks_end_ns", tasks.c.end_ns, sqlite_where=text("end_ns IS NOT NULL"))

task_contents = Table(
    "task_contents",
    metadata,
    Column("task_id", String(64), primary_key=True),
    Column("data", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""Prompt, input and result: a Task with only these fields, so that it may be appended to the row's."""

attempts = Table(
    "attempts",
    metadata,
    Column("task_id", String(64), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("state", SmallInteger, nullable=False),
    Column("poll_id", String(64), nullable=False),
    Column("data", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

task_edits = Table(
    "task_edits",
    metadata,
    Column("task_id", String(64), primary_key=True),
    Column("revision", BigInteger, primary_key=True),
    Column("data", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""What prompt and input of a task were before each edit; `revision` is that of the edit's event."""

bulk_jobs = Table(
    "bulk_jobs",
    metadata,
    Column("job_key", String(160), primary_key=True),
    Column("method", String(64), nullable=False),
    Column("request", LargeBinary, nullable=False),
    Column("caller", LargeBinary, nullable=False),
    Column("task_ids", LargeBinary, nullable=False),
    Column("matched", Integer, nullable=False),
    sqlite_with_rowid=False,
)
"""Changes of many tasks that are not done yet, each with the tasks it has found; see domain/tasks/bulk.py."""

bulk_steps = Table(
    "bulk_steps",
    metadata,
    Column("job_key", String(160), primary_key=True),
    Column("first", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""What the steps of such a change have done so far, from task number `first` on."""

agents = Table(
    "agents",
    metadata,
    Column("create_revision", _Revision, primary_key=True, autoincrement=False),
    Column("agent_id", String(64), nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("instance_key", String(64), nullable=False),
    Column("seen_ns", BigInteger, nullable=False),
    Column("spec", LargeBinary, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Index(None, "agent_id", unique=True),
    # List by state, and the start: all that live.
    Index(None, "state", "create_revision"),
)
"""A heartbeat writes `seen_ns` alone: it is not an event. `spec` is the AgentSpec with the values of its
environment, which may be secrets: the record and its events have them hidden."""

templates = Table(
    "templates",
    metadata,
    Column("create_revision", _Revision, primary_key=True, autoincrement=False),
    Column("template_id", String(64), nullable=False),
    Column("data", LargeBinary, nullable=False),
    Index(None, "template_id", unique=True),
)
"""Templates as of their latest version, without the prompt."""

standing = Table(
    "standing",
    metadata,
    Column("create_revision", _Revision, primary_key=True, autoincrement=False),
    Column("kind", SmallInteger, nullable=False),
    Column("resource_id", String(64), nullable=False),
    Column("data", LargeBinary, nullable=False),
    # Every write: the row of an id. Lists: those of a kind.
    Index(None, "kind", "resource_id", unique=True),
)
"""What is small and stays: queues, limits. `kind` as in domain/standing. All of it is loaded at the start."""

locks = Table(
    "locks",
    metadata,
    Column("create_revision", _Revision, primary_key=True, autoincrement=False),
    Column("kind", SmallInteger, nullable=False),
    Column("resource_id", String(64), nullable=False),
    Column("data", LargeBinary, nullable=False),
    # Every write: the row of an id. Snapshots: those of a kind.
    Index(None, "kind", "resource_id", unique=True),
)
"""Locks, tickets and sessions, in the form of `standing`. All of it is loaded at the start."""
token_digests = Table(
    "token_digests",
    metadata,
    Column("token_id", String(64), primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("used_ns", BigInteger, nullable=False),
)
"""What proves a token, and when it was last used, which is no event; 0 for never. All of it is loaded at the start."""

audit = Table(
    "audit",
    metadata,
    Column("number", _Revision, primary_key=True, autoincrement=False),
    Column("principal", String(64), nullable=False),
    Column("method", String(100), nullable=False),
    Column("audit_ns", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
)
"""What administrators did, append-only. Few, so that filters need no index."""

schedule_tasks = Table(
    "schedule_tasks",
    metadata,
    Column("schedule_id", String(64), primary_key=True),
    Column("data", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""The whole task of each schedule, a TaskSpec: its record has no prompt, input and parameters."""

schedule_runs = Table(
    "schedule_runs",
    metadata,
    Column("task_id", String(64), primary_key=True),
    Column("schedule_id", String(64), nullable=False),
    sqlite_with_rowid=False,
)
"""Runs of schedules that live, by their first task: it, or a task below it, has not ended. Read whole at the start."""

secret_values = Table(
    "secret_values",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("data", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""The value of each stored secret, sealed (see vault)."""

budget_spend = Table(
    "budget_spend",
    metadata,
    Column("budget_id", String(64), primary_key=True),
    Column("slice_ns", BigInteger, primary_key=True),
    Column("units", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""What was spent of each budget, in the slices that its window still covers. Units as in domain/budgets/amounts."""

budget_reservations = Table(
    "budget_reservations",
    metadata,
    Column("reservation_id", String(64), primary_key=True),
    Column("data", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""What callers have reserved. What attempts have stands in their rows."""

starts = Table(
    "starts",
    metadata,
    Column("limit_id", String(66), primary_key=True),
    Column("start_ns", BigInteger, primary_key=True),
    sqlite_with_rowid=False,
)
"""When tasks under a start rate began, as far back as the rate looks: a restart must not forget them."""

template_versions = Table(
    "template_versions",
    metadata,
    Column("template_id", String(64), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""Every version whole; written once, never changed."""

webhook_targets = Table(
    "webhook_targets",
    metadata,
    Column("webhook_id", String(64), primary_key=True),
    Column("url", String(2000), nullable=False),
    sqlite_with_rowid=False,
)
"""Where each webhook is sent to: its record has the URL without what may be secret in it."""

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("number", _Revision, primary_key=True, autoincrement=False),
    Column("delivery_id", String(64), nullable=False),
    Column("webhook_id", String(64), nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("data", LargeBinary, nullable=False),
    # Every try, and sending again.
    Index(None, "delivery_id", unique=True),
    # List, newest first, and forgetting the oldest.
    Index(None, "webhook_id", "number"),
    # The start: what is still to be sent.
    Index(None, "state", "number"),
)
"""What webhooks were sent or are to be sent; written past the writer. `number` is the order of creation."""

artifacts = Table(
    "artifacts",
    metadata,
    Column("number", _Revision, primary_key=True, autoincrement=False),
    Column("artifact_id", String(64), nullable=False),
    Column("task_id", String(64), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("size", BigInteger),
    Column("create_ns", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
    # Get, and every step of an upload.
    Index(None, "artifact_id", unique=True),
    # List, the room a task takes, and deleting with the task.
    Index(None, "task_id", "number"),
    # The start: the uploads that are open.
    Index(None, "state", "number"),
)
"""What is known of the files beside the database; written past the writer. `number` is the order of
creation. `size` is NULL while the upload has announced none."""

approvals = Table(
    "approvals",
    metadata,
    Column("create_revision", _Revision, primary_key=True, autoincrement=False),
    Column("approval_id", String(64), nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("task_id", String(64), nullable=False),
    Column("signature", String(200), nullable=False),
    Column("data", LargeBinary, nullable=False),
    # Get, and every write: the row of an id.
    Index(None, "approval_id", unique=True),
    # The start: all that are PENDING; list by state.
    Index(None, "state", "create_revision"),
    # The request of a name within a task; list by task.
    Index(None, "task_id", "create_revision"),
    # How others of a signature went.
    Index(None, "signature", "state"),
)
"""Approvals without what they show. Kept for ever, also when their task is deleted."""

approval_contents = Table(
    "approval_contents",
    metadata,
    Column("approval_id", String(64), primary_key=True),
    Column("data", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""What each approval shows, an ApprovalContent: written once, never changed."""

approval_audit = Table(
    "approval_audit",
    metadata,
    Column("revision", _Revision, primary_key=True, autoincrement=False),
    Column("approval_id", String(64), nullable=False),
    Column("data", LargeBinary, nullable=False),
    # The entries of one approval.
    Index(None, "approval_id", "revision"),
)
"""Who did what to approvals and rules. No statement of Kapell changes or deletes a row of it."""

answers = Table(
    "answers",
    metadata,
    Column("request_key", String(160), primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("create_ns", BigInteger, nullable=False),
    # Forgetting what is older than a day.
    Index(None, "create_ns"),
    sqlite_with_rowid=False,
)
"""First answers by caller and request_id."""


def specialise(dialect: str) -> None:
    """Completes the tables for a dialect. Naming PostgreSQL above would load its dialect for everybody."""
    if dialect == "postgresql":
        _due_index.dialect_options["postgresql"]["where"] = text("due_ns IS NOT NULL")
        _template_index.dialect_options["postgresql"]["where"] = text("template_id IS NOT NULL")
        _parent_index.dialect_options["postgresql"]["where"] = text("parent_id IS NOT NULL")
        _root_index.dialect_options["postgresql"]["where"] = text("root_id IS NOT NULL")
        _end_index.dialect_options["postgresql"]["where"] = text("end_ns IS NOT NULL")
