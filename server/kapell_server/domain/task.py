"""What clients may do to a task: create, update, cancel, retry, delete."""

from __future__ import annotations

from functools import lru_cache

from kapell.v1.error_pb2 import (
    ERROR_REASON_ETAG_MISMATCH,
    ERROR_REASON_ID_TAKEN,
    ERROR_REASON_REQUEST_INVALID,
)
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_CANCELLING,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
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
)
from kapell.v1.watch_pb2 import (
    EVENT_KIND_TASK_CANCELLED,
    EVENT_KIND_TASK_CANCELLING,
    EVENT_KIND_TASK_CREATED,
    EVENT_KIND_TASK_DELETED,
    EVENT_KIND_TASK_QUEUED,
    EVENT_KIND_TASK_UPDATED,
)

from kapell_server.domain.access import Caller
from kapell_server.domain.errors import KapellError
from kapell_server.domain.parameters import as_struct, plain_struct
from kapell_server.domain.queues import check_takes_in
from kapell_server.domain.retry import DEFAULT_POLICY, with_defaults
from kapell_server.domain.state import State
from kapell_server.domain.template_version import split_reference, version_number
from kapell_server.domain.times import stamp, timestamp_ns
from kapell_server.domain.transitions import TASK_FINAL, task_state_conflict

DEFAULT_PRIORITY = 500
_NAME_LENGTH = 80
_UPDATABLE = frozenset({TASK_STATE_PENDING, TASK_STATE_QUEUED, TASK_STATE_RUNNING, TASK_STATE_CANCELLING})
_RETRIABLE = frozenset({TASK_STATE_FAILED, TASK_STATE_CANCELLED})


def create_task(state: State, request: CreateTaskRequest) -> Task:
    """Creates a task, QUEUED or, with a not_before in the future, PENDING."""
    task, content = _new_task(state, request.task, "task")
    if request.validate_only:
        task.MergeFromString(content)
        return task
    return _put_created(state, task, content)


def create_tasks(state: State, request: BatchCreateTasksRequest) -> list[Task]:
    """Creates all tasks of the request, or none."""
    return [_put_created(state, *_new_task(state, spec, f"tasks[{index}]")) for index, spec in enumerate(request.tasks)]


def create_scheduled(state: State, spec: TaskSpec, schedule_id: str, schedule_ns: int) -> Task:
    """Creates the task of a schedule's run."""
    task, content = _new_task(state, spec, "task")
    task.schedule_id = schedule_id
    stamp(task.schedule_time, schedule_ns)
    return _put_created(state, task, content)


def try_task(state: State, spec: TaskSpec, path: str) -> None:
    """Refuses a spec that CreateTask would refuse now; leaves no trace."""
    mark = state.mark()
    try:
        _new_task(state, spec, path)
    finally:
        state.rollback(mark)


def _put_created(state: State, task: Task, content: bytes) -> Task:
    state.put_content(task.task_id, content)
    return state.put_task(task, EVENT_KIND_TASK_CREATED, (), created=True)


def _new_task(state: State, spec: TaskSpec, path: str) -> tuple[Task, bytes]:
    """The task a spec asks for and its encoded content; refuses a taken id or too large an input."""
    if spec.task_id:
        if state.find_task(spec.task_id) is not None:
            raise _id_taken(spec.task_id)
        task_id = spec.task_id
    else:
        task_id = state.new_id("task")
    version = 0
    if spec.template:
        spec, version = _from_template(state, spec, path)
    elif not spec.agent_type or spec.HasField("parameters"):
        raise _without_template(spec, path)
    _check_size(state, spec, "input", path)
    check_takes_in(state, spec.agent_type)
    content = Task(prompt=spec.prompt, input=spec.input if spec.HasField("input") else None).SerializeToString()
    now = state.tick_ns()
    task = Task()
    task.CopyFrom(_blank(state.caller))
    task.task_id = task_id
    task.display_name = spec.display_name or _first_line(spec.prompt) or spec.agent_type
    task.agent_type = spec.agent_type
    task.content_bytes = len(content)
    if version:
        task.template_id = split_reference(spec.template)[0]
        task.template_version = version
    if spec.labels:
        task.labels.MergeFrom(spec.labels)
    if spec.HasField("priority"):
        task.priority = spec.priority
    if spec.fairness_key:
        task.fairness_key = spec.fairness_key
    if spec.concurrency_keys:
        task.concurrency_keys.extend(spec.concurrency_keys)
    if spec.HasField("retry_policy"):
        task.retry_policy.CopyFrom(with_defaults(spec.retry_policy))
    if spec.HasField("timeouts"):
        task.timeouts.CopyFrom(spec.timeouts)
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


def _from_template(state: State, spec: TaskSpec, path: str) -> tuple[TaskSpec, int]:
    """The spec with all that the template says of it, and the version of the template."""
    wrong = [(f"{path}.{name}", "must be empty with a template") for name in ("prompt", "input") if _has(spec, name)]
    if wrong:
        raise KapellError(
            ERROR_REASON_REQUEST_INVALID,
            f"The request is invalid: {wrong[0][0]} {wrong[0][1]}. Pass what the template asks for as parameters.",
            violations=tuple(wrong),
        )
    _check_size(state, spec, "parameters", path)
    template_id, selector = split_reference(spec.template)
    number = version_number(state.templates.get(template_id), selector)
    compiled = state.templates.version(template_id, number)
    rendered = compiled.render(plain_struct(spec.parameters), f"{path}.parameters")
    says = compiled.spec
    filled = TaskSpec(agent_type=says.agent_type, display_name=rendered.display_name, labels=says.labels)
    if says.HasField("priority"):
        filled.priority = says.priority
    if says.HasField("retry_policy"):
        filled.retry_policy.CopyFrom(says.retry_policy)
    if says.HasField("timeouts"):
        filled.timeouts.CopyFrom(says.timeouts)
    filled.MergeFrom(spec)
    filled.prompt = rendered.prompt
    filled.input.CopyFrom(as_struct(rendered.values))
    return filled, number


def _has(spec: TaskSpec, name: str) -> bool:
    return spec.HasField("input") if name == "input" else bool(spec.prompt)


def _check_size(state: State, spec: TaskSpec, name: str, path: str) -> None:
    """Refuses an input or parameters beyond the limit."""
    limit = state.settings.max_content_bytes
    size = getattr(spec, name).ByteSize() if spec.HasField(name) else 0  # type: ignore[arg-type]
    if size > limit:
        raise KapellError(
            ERROR_REASON_REQUEST_INVALID,
            f"{path}.{name} is too large: {size} bytes, at most {limit} are allowed. "
            "Pass a path or an address instead of the data.",
            violations=((f"{path}.{name}", f"must be at most {limit} bytes"),),
        )


def _without_template(spec: TaskSpec, path: str) -> KapellError:
    """What only a template may leave out, or have."""
    field, what = ("parameters", "is for templates; without one use input")
    if not spec.agent_type:
        field, what = "agent_type", "is required where no template says it"
    return KapellError(
        ERROR_REASON_REQUEST_INVALID,
        f"The request is invalid: {path}.{field} {what}. Correct it and send it again.",
        violations=((f"{path}.{field}", what),),
    )


@lru_cache(maxsize=256)
def _blank(creator: Caller) -> Task:
    """A new task of this creator with nothing but defaults. Not to be altered."""
    task = Task(state=TASK_STATE_QUEUED, priority=DEFAULT_PRIORITY, creator=creator.actor())
    task.retry_policy.CopyFrom(DEFAULT_POLICY)
    return task


def _first_line(prompt: str) -> str:
    line = prompt.lstrip()[: _NAME_LENGTH * 4].split("\n", 1)[0].rstrip()
    return line if len(line) <= _NAME_LENGTH else line[: _NAME_LENGTH - 1] + "…"


def _id_taken(task_id: str) -> KapellError:
    return KapellError(
        ERROR_REASON_ID_TAKEN,
        f"Task {task_id} exists already. Choose another task_id, or leave it empty to get one.",
        metadata={"task_id": task_id},
    )


def check_etag(etag: str, current: str) -> None:
    """Refuses a change of what has changed since it was read."""
    if etag and etag != current:
        raise KapellError(
            ERROR_REASON_ETAG_MISMATCH,
            f"It has changed since it was read: its etag is {current}, not {etag}. Read it again and repeat.",
            metadata={"expected": etag, "current": current},
        )


def update_task(state: State, request: UpdateTaskRequest) -> Task:
    """Sets priority, labels or display name of a task that has not ended."""
    current = state.task(request.task.task_id)
    check_etag(request.etag, current.etag)
    if current.state not in _UPDATABLE:
        raise task_state_conflict(current, "updated", _UPDATABLE)
    task = _copy(current)
    changed = tuple(dict.fromkeys(request.update_mask.paths))
    for path in changed:
        match path:
            case "priority":
                task.priority = request.task.priority
            case "display_name":
                task.display_name = request.task.display_name
            case "labels":
                task.ClearField("labels")
                task.labels.update(request.task.labels)
            case _:
                raise AssertionError(f"update_mask {path} passed validation")
    return state.put_task(task, EVENT_KIND_TASK_UPDATED, changed)


def cancel_task(state: State, request: CancelTaskRequest) -> Task:
    """Cancels at once what no agent has; otherwise asks its agent to let go."""
    return cancel(state, state.task(request.task_id), request.reason)


def cancel(state: State, current: Task, reason: str, *, skipped: bool = False) -> Task:
    """Cancels `current`; a second time changes nothing. `skipped` marks one that was not needed."""
    if current.state in (TASK_STATE_CANCELLED, TASK_STATE_CANCELLING) and not _stopped_by_timeout(current):
        return current
    if current.state in TASK_FINAL:
        raise task_state_conflict(current, "cancelled", _UPDATABLE)
    task = _copy(current)
    task.ClearField("waiting_on")
    task.ClearField("failure")
    task.state_reason = reason or "cancelled on request"
    stamp(task.state_time, state.tick_ns())
    if current.state in (TASK_STATE_RUNNING, TASK_STATE_CANCELLING):
        task.state = TASK_STATE_CANCELLING
        return state.put_task(task, EVENT_KIND_TASK_CANCELLING, ("state", "state_reason"))
    task.state = TASK_STATE_CANCELLED
    task.skipped = skipped
    stamp(task.end_time, state.now_ns)
    state.drop_content(task.task_id)
    return state.put_task(task, EVENT_KIND_TASK_CANCELLED, ("state", "state_reason"))


def _stopped_by_timeout(task: Task) -> bool:
    """Whether a CANCELLING attempt is being stopped by a timeout and not by a wish to cancel."""
    return task.state == TASK_STATE_CANCELLING and task.HasField("failure")


def retry_task(state: State, request: RetryTaskRequest) -> Task:
    """Queues a failed or cancelled task again with a fresh allowance of attempts."""
    current = state.task(request.task_id)
    if current.state not in _RETRIABLE:
        raise task_state_conflict(current, "retried", _RETRIABLE)
    task = _copy(current)
    for field in ("failure", "progress", "end_time", "state_reason", "waiting_on", "skipped"):
        task.ClearField(field)
    task.attempts_used = 0
    task.state = TASK_STATE_QUEUED
    now = state.tick_ns()
    stamp(task.state_time, now)
    stamp(task.queue_time, now)
    stamp(task.retry_time, now)
    return state.put_task(task, EVENT_KIND_TASK_QUEUED, ("state", "attempts_used", "failure", "progress"))


def delete_task(state: State, request: DeleteTaskRequest) -> DeleteTaskResponse:
    """Deletes an ended task; cancels a live one instead."""
    current = state.task(request.task_id)
    if current.state not in TASK_FINAL:
        task = cancel(state, current, "cancelled by its deletion")
        return DeleteTaskResponse(deleted=False, revision=task.revision)
    task = state.put_task(_copy(current), EVENT_KIND_TASK_DELETED, (), deleted=True)
    state.drop_content(task.task_id)
    return DeleteTaskResponse(deleted=True, revision=task.revision)


def _copy(task: Task) -> Task:
    copy = Task()
    copy.CopyFrom(task)
    return copy
