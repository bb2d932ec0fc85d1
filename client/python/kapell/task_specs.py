"""What may be said of a new task, and the message that says it.

Used by `Tasks` and by those who make tasks in batches, or tasks of schedules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict, Unpack

from google.protobuf.struct_pb2 import Struct

from kapell.amounts import task_estimate
from kapell.dependencies import Dependency, dependencies
from kapell.locks import task_locks
from kapell.messages import Instant, Seconds, duration, struct, timestamp
from kapell.v1 import task_pb2 as pb
from kapell.v1.approval_policy_pb2 import ApprovalPolicy
from kapell.v1.budget_pb2 import TaskEstimate
from kapell.v1.lock_pb2 import LockItem


class TaskFields(TypedDict, total=False):
    """What may be said of a new task besides its type and prompt; see TaskSpec."""

    task_id: str
    display_name: str
    template: str
    """What to make it from: "code-review", "code-review@3" or "code-review@stable"."""
    parameters: Mapping[str, Any] | Struct
    """The template's parameters."""
    input: Mapping[str, Any] | Struct
    priority: int
    labels: Mapping[str, str]
    not_before: Instant
    max_attempts: int
    """Short for `retry_policy` with nothing else set."""
    retry_policy: pb.RetryPolicy
    queue_timeout: Seconds
    run_timeout: Seconds
    total_timeout: Seconds
    stall_timeout: Seconds
    approval_wait_timeout: Seconds
    lock_wait_timeout: Seconds
    provider_wait_timeout: Seconds
    client_key: str
    """A name within one `create_batch`, for the dependencies of others."""
    dependencies: Iterable[Dependency]
    """What it waits for: ids or client keys, as in "build" or "task_01k…:finished", or whole messages."""
    parent_task_id: str
    """Makes it a child of this task."""
    fairness_key: str
    """Whose share of the agents it uses; keys take turns."""
    secrets: Mapping[str, str]
    """What the agent is given: what it finds each under, and the secret's name."""
    concurrency_keys: Iterable[str]
    """Of each of these only so many tasks run at a time; see `client.limits`."""
    approval: ApprovalPolicy
    locks: Iterable[str | LockItem]
    """Paths that it changes: it starts when all of its locks are free, and has them while it runs."""
    read_locks: Iterable[str | LockItem]
    """Paths that it only reads, beside others that do."""
    estimate: str | TaskEstimate
    """What each attempt is expected to use at most: "$0.20", or "$0.20, 50k tokens, 10m"."""
    budget_id: str
    """A budget that it draws from besides those whose scope it is in."""


def task_spec(agent_type: str = "", prompt: str = "", **fields: Unpack[TaskFields]) -> pb.TaskSpec:
    """The spec of a task, for `Tasks.create_batch`: a type and prompt, or a `template` with `parameters`."""
    retry = fields.get("retry_policy")
    if retry is None and "max_attempts" in fields:
        retry = pb.RetryPolicy(max_attempts=fields["max_attempts"])
    limits: dict[str, Seconds] = {name: fields[name] for name in _TIMEOUTS if name in fields}  # type: ignore[literal-required]
    return pb.TaskSpec(
        task_id=fields.get("task_id", ""),
        display_name=fields.get("display_name", ""),
        agent_type=agent_type,
        prompt=prompt,
        template=fields.get("template", ""),
        parameters=struct(fields.get("parameters")),
        input=struct(fields.get("input")),
        priority=fields.get("priority"),
        labels=fields.get("labels", {}),
        not_before_time=timestamp(fields.get("not_before")),
        retry_policy=retry,
        timeouts=task_timeouts(**limits) if limits else None,
        client_key=fields.get("client_key", ""),
        dependencies=dependencies(fields.get("dependencies", ())),
        parent_task_id=fields.get("parent_task_id", ""),
        fairness_key=fields.get("fairness_key", ""),
        concurrency_keys=fields.get("concurrency_keys", ()),
        approval=fields.get("approval"),
        locks=task_locks(fields.get("locks", ()), fields.get("read_locks", ())),
        estimate=task_estimate(fields["estimate"]) if "estimate" in fields else None,
        budget_id=fields.get("budget_id", ""),
        secrets=fields.get("secrets", {}),
    )


def task_timeouts(
    *,
    queue_timeout: Seconds | None = None,
    run_timeout: Seconds | None = None,
    total_timeout: Seconds | None = None,
    stall_timeout: Seconds | None = None,
    approval_wait_timeout: Seconds | None = None,
    lock_wait_timeout: Seconds | None = None,
    provider_wait_timeout: Seconds | None = None,
) -> pb.TaskTimeouts:
    """How long a task may take, and its attempts may wait; what is left out has no limit."""
    return pb.TaskTimeouts(
        queue_timeout=duration(queue_timeout),
        run_timeout=duration(run_timeout),
        total_timeout=duration(total_timeout),
        stall_timeout=duration(stall_timeout),
        approval_wait_timeout=duration(approval_wait_timeout),
        lock_wait_timeout=duration(lock_wait_timeout),
        provider_wait_timeout=duration(provider_wait_timeout),
    )


_TIMEOUTS = tuple(field.name for field in pb.TaskTimeouts.DESCRIPTOR.fields)
