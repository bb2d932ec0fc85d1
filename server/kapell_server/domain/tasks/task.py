"""What clients may do to a task: create, update, cancel, retry, delete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from kapell.v1.approval_policy_pb2 import ApprovalDemand
from kapell.v1.error_pb2 import (
    ERROR_REASON_ETAG_MISMATCH,
    ERROR_REASON_REQUEST_INVALID,
    ERROR_REASON_TASK_NOT_FOUND,
)
from kapell.v1.task_pb2 import (
    TASK_STATE_AWAITING_APPROVAL,
    TASK_STATE_CANCELLED,
    TASK_STATE_CANCELLING,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
    WAIT_KIND_DEPENDENCY,
    WAIT_KIND_NOT_BEFORE,
    BatchCreateTasksRequest,
    CancelTaskRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    DeleteTaskResponse,
    RetryTaskRequest,
    Task,
    TaskSpec,
    UpdateTaskRequest,
    WaitingOn,
)
from kapell.v1.watch_pb2 import (
    EVENT_KIND_TASK_CANCELLING,
    EVENT_KIND_TASK_CREATED,
    EVENT_KIND_TASK_DELETED,
    EVENT_KIND_TASK_QUEUED,
    EVENT_KIND_TASK_REQUEUED,
    EVENT_KIND_TASK_UPDATED,
)

from kapell_server.domain.access import Caller
from kapell_server.domain.approvals import demands, rules
from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.state import State
from kapell_server.domain.tasks import dependency, family
from kapell_server.domain.tasks.dependency_graph import Draft, link
from kapell_server.domain.tasks.dependency_results import fill_at_once
from kapell_server.domain.tasks.prepared import Prepared, prepare_all
from kapell_server.domain.tasks.prompt import first_line
from kapell_server.domain.tasks.retry import DEFAULT_POLICY, with_defaults
from kapell_server.domain.tasks.task_edit import WAITING, change_content, edit_for_retry, set_locks, set_not_before
from kapell_server.domain.templates.template_version import split_reference
from kapell_server.domain.times import stamp, timestamp_ns
from kapell_server.domain.transitions import TASK_FINAL, task_state_conflict
from kapell_server.domain.workers import attempt

DEFAULT_PRIORITY = 500
_UPDATABLE = frozenset(
    {
        TASK_STATE_PENDING,
        TASK_STATE_AWAITING_APPROVAL,
        TASK_STATE_QUEUED,
        TASK_STATE_RUNNING,
        TASK_STATE_CANCELLING,
    }
)
_RETRIABLE = frozenset({TASK_STATE_FAILED, TASK_STATE_CANCELLED})


def create_task(state: State, request: CreateTaskRequest) -> Task:
    """Creates a task, QUEUED or, while it waits for a time or for other tasks, PENDING."""
    wanted = prepare_all(state, (request.task,), "task")
    if wanted[0].is_related:
        if request.validate_only:
            return _tried(state, wanted)
        return _create_related(state, wanted)[0]
    task, content = _new_task(state, wanted[0])
    if request.validate_only:
        task.MergeFromString(content)
        return task
    return _put_created(state, task, content)


def create_tasks(state: State, request: BatchCreateTasksRequest) -> list[Task]:
    """Creates all tasks of the request, or none."""
    wanted = prepare_all(state, request.tasks, "tasks[{}]")
    if any(prepared.is_related for prepared in wanted):
        return _create_related(state, wanted)
    return [_put_created(state, *_new_task(state, prepared)) for prepared in wanted]


def create_related(state: State, specs: Sequence[TaskSpec], path: str, parent: Task | None = None) -> list[Task]:
    """Creates tasks that have dependencies, parents or steps, all or none; returns them as they then stand.

    `path` names the field of a spec by its index. With `parent` all are its children.
    """
    return _create_related(state, prepare_all(state, specs, path), parent)


def _create_related(state: State, wanted: Sequence[Prepared], parent: Task | None = None) -> list[Task]:
    """Creates tasks and their steps; returns the tasks without the steps."""
    drafts: dict[str, Draft] = {}
    for prepared in wanted:
        draft = _draft(state, drafts, prepared, parent or _parent(state, prepared.spec, drafts, prepared.path))
        for step in prepared.steps:
            _draft(state, drafts, step, draft.task, is_step=True)
    family.check_room(state, [draft.task.root_task_id for draft in drafts.values() if draft.task.root_task_id])
    link(state, list(drafts.values()))
    waiting: dict[str, dependency.Judgement] = {}
    for task_id, draft in drafts.items():
        if draft.task.dependencies:
            judgement = dependency.judge_all(state, draft.task.dependencies, drafts)
            if judgement.open or judgement.failed or draft.task.prompt_pending:
                waiting[task_id] = judgement
                _park(draft.task)
    for draft in drafts.values():
        _put_created(state, draft.task, draft.content)
    dependency.begin(state, waiting)
    return [state.task(prepared.task_id) for prepared in wanted]


def _draft(
    state: State, drafts: dict[str, Draft], prepared: Prepared, parent: Task | None, *, is_step: bool = False
) -> Draft:
    task, content = _new_task(state, prepared, parent)
    if parent is not None:
        family.adopt(state, task, parent, at_any_depth=is_step)
    draft = Draft(prepared.path, prepared.spec, task, content, prepared.parts, prepared.name)
    drafts[task.task_id] = draft
    return draft


def _parent(state: State, spec: TaskSpec, drafts: dict[str, Draft], path: str) -> Task | None:
    """The task that a spec wants as its parent, perhaps one that comes before it in the request."""
    if not spec.parent_task_id:
        return None
    draft = drafts.get(spec.parent_task_id)
    parent = draft.task if draft is not None else state.find_task(spec.parent_task_id)
    if parent is None:
        raise KapellError(
            ERROR_REASON_TASK_NOT_FOUND,
            f"Task {spec.parent_task_id} was not found: {path}.parent_task_id names it. Name a task that exists.",
            metadata={"task_id": spec.parent_task_id},
            violations=((f"{path}.parent_task_id", "no task has this id"),),
        )
    return parent


def _park(task: Task) -> None:
    """Lets a new task wait for its dependencies, and for its time as well where that has not come."""
    task.state = TASK_STATE_PENDING
    task.waiting_on.insert(0, WaitingOn(kind=WAIT_KIND_DEPENDENCY))
    task.ClearField("queue_time")


def _tried(state: State, wanted: Sequence[Prepared]) -> Task:
    """The task as it would be, with its content, and no trace of it."""
    mark = state.mark()
    [created] = _create_related(state, wanted)
    task = copied(created)
    task.MergeFromString(state.content(task.task_id))
    state.rollback(mark)
    for field in ("revision", "etag"):
        task.ClearField(field)
    return task


def create_scheduled(state: State, spec: TaskSpec, schedule_id: str, schedule_ns: int) -> Task:
    """Creates the task of a schedule's run, and its steps."""
    [prepared] = prepare_all(state, (spec,), "task")
    return _create_related(state, (replace(prepared, schedule=(schedule_id, schedule_ns)),))[0]


def try_task(state: State, spec: TaskSpec, path: str) -> None:
    """Refuses a spec that CreateTask would refuse now; leaves no trace."""
    mark = state.mark()
    try:
        _create_related(state, prepare_all(state, (spec,), path))
    finally:
        state.rollback(mark)


def _put_created(state: State, task: Task, content: bytes) -> Task:
    state.put_content(task.task_id, content)
    return state.put_task(task, EVENT_KIND_TASK_CREATED, (), created=True)


def _new_task(state: State, prepared: Prepared, parent: Task | None = None) -> tuple[Task, bytes]:
    """The task that was asked for, and its encoded content. What neither it nor a template says is as for `parent`."""
    spec = prepared.spec
    content = Task(prompt=spec.prompt, input=spec.input if spec.HasField("input") else None).SerializeToString()
    now = state.tick_ns()
    task = Task()
    task.CopyFrom(_blank(state.caller))
    task.task_id = prepared.task_id
    task.display_name = spec.display_name or first_line(spec.prompt) or spec.agent_type
    task.agent_type = spec.agent_type
    task.content_bytes = len(content)
    if prepared.template_version:
        task.template_id = split_reference(spec.template)[0]
        task.template_version = prepared.template_version
    if prepared.schedule is not None:
        task.schedule_id, schedule_ns = prepared.schedule
        stamp(task.schedule_time, schedule_ns)
    if spec.labels:
        task.labels.MergeFrom(spec.labels)
    if spec.secrets:
        task.secrets.MergeFrom(spec.secrets)
    if spec.HasField("priority"):
        task.priority = spec.priority
    elif parent is not None:
        task.priority = parent.priority
    if spec.fairness_key:
        task.fairness_key = spec.fairness_key
    elif parent is not None:
        task.fairness_key = parent.fairness_key
    if spec.concurrency_keys:
        task.concurrency_keys.extend(spec.concurrency_keys)
    if prepared.locks:
        task.locks.extend(prepared.locks)
    if spec.HasField("retry_policy"):
        task.retry_policy.CopyFrom(with_defaults(spec.retry_policy))
    if spec.HasField("timeouts"):
        task.timeouts.CopyFrom(spec.timeouts)
    _take_policies(state, task, prepared, parent)
    if spec.HasField("estimate"):
        task.estimate.CopyFrom(spec.estimate)
    if spec.budget_id:
        task.budget_id = spec.budget_id
    elif parent is not None and parent.budget_id:
        task.budget_id = parent.budget_id
    stamp(task.create_time, now)
    task.state_time.CopyFrom(task.create_time)
    if not spec.HasField("not_before_time"):
        task.queue_time.CopyFrom(task.create_time)
        return task, content
    task.not_before_time.CopyFrom(spec.not_before_time)
    if timestamp_ns(spec.not_before_time) > state.now_ns:
        task.state = TASK_STATE_PENDING
        wait = task.waiting_on.add(kind=WAIT_KIND_NOT_BEFORE)
        wait.until_time.CopyFrom(spec.not_before_time)
    else:
        task.queue_time.CopyFrom(task.create_time)
    return task, content


def _take_policies(state: State, task: Task, prepared: Prepared, parent: Task | None) -> None:
    """By which policies the start of a new task must be approved: its own, and those of tasks above it."""
    found: list[ApprovalDemand] = []
    if prepared.spec.HasField("approval"):
        demanded_by = "task" if prepared.policy_author is None else "template"
        author = prepared.policy_author or task.creator
        found.append(ApprovalDemand(policy=prepared.spec.approval, demanded_by=demanded_by, author=author))
    if parent is not None:
        # Rules write into a task only as it is queued; its steps, and what is created along with it, come before.
        above = [*demands.demands_of(parent.approval), *rules.demands_on(state, parent)]
        found += demands.inherited(above)
    if len(found) > demands.MOST_DEMANDS:
        here, what = f"{prepared.path}.approval", f"would be one of more than {demands.MOST_DEMANDS} demands"
        raise KapellError(
            ERROR_REASON_REQUEST_INVALID,
            f"The request is invalid: {here} {what}, those of the tasks above it counted. Leave it out.",
            violations=((here, what),),
        )
    if found:
        demands.keep(task.approval, found)


@lru_cache(maxsize=1024)
def _blank(creator: Caller) -> Task:
    """A new task of this creator with nothing but defaults. Not to be altered."""
    task = Task(state=TASK_STATE_QUEUED, priority=DEFAULT_PRIORITY, creator=creator.actor())
    task.retry_policy.CopyFrom(DEFAULT_POLICY)
    return task


def check_etag(etag: str, current: str) -> None:
    """Refuses a change of what has changed since it was read."""
    if etag and etag != current:
        raise KapellError(
            ERROR_REASON_ETAG_MISMATCH,
            f"It has changed since it was read: its etag is {current}, not {etag}. Read it again and repeat.",
            metadata={"expected": etag, "current": current},
        )


def update_task(state: State, request: UpdateTaskRequest) -> Task:
    """Changes a task that has not ended; its content only before it was ever started."""
    current = state.task(request.task.task_id)
    check_etag(request.etag, current.etag)
    if current.state not in _UPDATABLE:
        raise task_state_conflict(current, "updated", _UPDATABLE)
    task = copied(current)
    wanted = request.task
    changed = list(dict.fromkeys(request.update_mask.paths))
    content = tuple(name for name in ("prompt", "input") if name in changed)
    for path in [path for path in changed if path not in content]:
        match path:
            case "priority":
                task.priority = wanted.priority
            case "display_name":
                task.display_name = wanted.display_name
            case "labels":
                task.ClearField("labels")
                task.labels.update(wanted.labels)
            case "timeouts":
                task.timeouts.CopyFrom(wanted.timeouts)
            case "retry_policy":
                task.retry_policy.CopyFrom(with_defaults(wanted.retry_policy))
            case "not_before_time":
                changed += set_not_before(state, task, wanted)
            case "locks":
                set_locks(task, wanted)
            case _:
                raise AssertionError(f"update_mask {path} passed validation")
    if content and (current.state not in WAITING or current.HasField("start_time")):
        raise task_state_conflict(current, "given another content once it was started", WAITING)
    edit = change_content(state, task, wanted, content) if content else None
    if edit is not None and task.prompt_pending and not dependency.is_waiting(task):
        fill_at_once(state, task)
    if task.display_name != current.display_name and "display_name" not in changed:
        changed.append("display_name")
    woken = current.state == TASK_STATE_PENDING and task.state == TASK_STATE_QUEUED
    kind = EVENT_KIND_TASK_QUEUED if woken else EVENT_KIND_TASK_UPDATED
    put = state.put_task(task, kind, tuple(changed))
    if "labels" in changed:
        state.queues.relabelled(current)
    if edit is not None:
        state.keep_edit(put, edit)
        dependency.keep_results(state, put)
    return put


def reprioritize(state: State, current: Task, priority: int) -> Task:
    """Sets the priority of a task that has not ended; the same one again changes nothing."""
    if current.state not in _UPDATABLE:
        raise task_state_conflict(current, "updated", _UPDATABLE)
    if current.priority == priority:
        return current
    task = copied(current)
    task.priority = priority
    return state.put_task(task, EVENT_KIND_TASK_UPDATED, ("priority",))


def cancel_task(state: State, request: CancelTaskRequest) -> Task:
    """Cancels at once what no agent has; otherwise asks its agent to let go. So with all below it."""
    return cancel_tree(state, state.task(request.task_id), request.reason, request.leave_children)


def cancel_tree(state: State, top: Task, reason: str, leave_children: bool = False, *, skipped: bool = False) -> Task:
    """Cancels a task and, unless they are left, all below it; of one that has ended, what is left below it."""
    alive = [] if leave_children else _alive_below(state, top)
    ended = top.state in (TASK_STATE_SUCCEEDED, TASK_STATE_FAILED)
    task = top if ended and alive else cancel(state, top, reason, skipped=skipped)
    for task_id in alive:
        child = state.task(task_id)
        if child.state not in TASK_FINAL:
            cancel(state, child, f"{top.task_id}, which it is part of, was cancelled")
    return task


def _alive_below(state: State, top: Task) -> list[str]:
    """The tasks below one that have not ended."""
    descendants = family.below(state, top)
    state.prefetch_tasks(descendants)
    below = [(task_id, state.find_task(task_id)) for task_id in descendants]
    return [task_id for task_id, child in below if child is not None and child.state not in TASK_FINAL]


def cancel(state: State, current: Task, reason: str, *, skipped: bool = False) -> Task:
    """Cancels `current`; a second time changes nothing. `skipped` marks one that was not needed."""
    if current.state in (TASK_STATE_CANCELLED, TASK_STATE_CANCELLING) and not _stopped_by_timeout(current):
        return current
    if current.state in TASK_FINAL:
        raise task_state_conflict(current, "cancelled", _UPDATABLE)
    reason = reason or "cancelled on request"
    if current.state not in (TASK_STATE_RUNNING, TASK_STATE_CANCELLING):
        return attempt.cancel_waiting(state, current, reason, skipped=skipped)
    task = copied(current)
    task.ClearField("failure")
    task.state_reason = reason
    task.state = TASK_STATE_CANCELLING
    stamp(task.state_time, state.tick_ns())
    return state.put_task(task, EVENT_KIND_TASK_CANCELLING, ("state", "state_reason"))


def _stopped_by_timeout(task: Task) -> bool:
    """Whether a CANCELLING attempt is being stopped by a timeout and not by a wish to cancel."""
    return task.state == TASK_STATE_CANCELLING and task.HasField("failure")


def retry_task(state: State, request: RetryTaskRequest) -> Task:
    """Queues a failed or cancelled task again with a fresh allowance of attempts, edited as the request says."""
    return retry(state, state.task(request.task_id), request)


def retry(state: State, current: Task, request: RetryTaskRequest) -> Task:
    """As `retry_task`, whatever task the request names."""
    if current.state not in _RETRIABLE:
        raise task_state_conflict(current, "retried", _RETRIABLE)
    dependency.resolve_ended(state, current.task_id)
    task = copied(current)
    for field in (
        "failure",
        "progress",
        "end_time",
        "state_reason",
        "waiting_on",
        "skipped",
        "parked",
        "first_queue_time",
    ):
        task.ClearField(field)
    task.attempts_used = 0
    task.retries += 1
    now = state.tick_ns()
    stamp(task.state_time, now)
    stamp(task.retry_time, now)
    edit, changed = edit_for_retry(state, task, request)
    if task.display_name != current.display_name and "display_name" not in changed:
        changed += ("display_name",)
    if timestamp_ns(task.not_before_time) > state.now_ns:
        wait = task.waiting_on.add(kind=WAIT_KIND_NOT_BEFORE)
        wait.until_time.CopyFrom(task.not_before_time)
    if task.dependencies and (parked := dependency.retry(state, task, changed)) is not None:
        put = parked
    else:
        names = ("state", "attempts_used", "failure", "progress", "retries", *changed)
        task.state = TASK_STATE_PENDING if task.waiting_on else TASK_STATE_QUEUED
        if task.waiting_on:
            put = state.put_task(task, EVENT_KIND_TASK_REQUEUED, (*names, "waiting_on"))
        else:
            stamp(task.queue_time, now)
            put = state.put_task(task, EVENT_KIND_TASK_QUEUED, names)
    if edit is not None:
        state.keep_edit(put, edit)
    return put


def delete_task(state: State, request: DeleteTaskRequest) -> DeleteTaskResponse:
    """Deletes an ended task; cancels a live one instead."""
    current = state.task(request.task_id)
    if current.state not in TASK_FINAL:
        task = cancel_tree(state, current, "cancelled by its deletion", request.leave_children)
        return DeleteTaskResponse(deleted=False, revision=task.revision)
    dependency.resolve_ended(state, current.task_id)
    task = state.put_task(copied(current), EVENT_KIND_TASK_DELETED, (), deleted=True)
    state.drop_content(task.task_id)
    return DeleteTaskResponse(deleted=True, revision=task.revision)
