"""How what a task is to do, and when, is changed after its creation; the content before is kept as a TaskEdit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.struct_pb2 import Struct
from kapell.rules.parameters import as_struct, plain_struct
from kapell.v1.error_pb2 import ERROR_REASON_REQUEST_INVALID
from kapell.v1.lock_pb2 import LockItem, TaskLock
from kapell.v1.task_pb2 import (
    TASK_STATE_AWAITING_APPROVAL,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    WAIT_KIND_NOT_BEFORE,
    RetryTaskRequest,
    Task,
    TaskEdit,
)

from kapell_server.domain.errors import KapellError
from kapell_server.domain.locks.declared import declared
from kapell_server.domain.secrets import use
from kapell_server.domain.state import State
from kapell_server.domain.tasks.dependency_graph import keep_places
from kapell_server.domain.tasks.prompt import Part, first_line, from_messages, joined, split
from kapell_server.domain.tasks.retry import with_defaults
from kapell_server.domain.templates.template_version import version_number
from kapell_server.domain.times import stamp, timestamp_ns
from kapell_server.domain.transitions import task_state_conflict

WAITING = frozenset({TASK_STATE_PENDING, TASK_STATE_AWAITING_APPROVAL, TASK_STATE_QUEUED})
"""States in which no agent has the task."""
_CONTENT = ("prompt", "input")


def change_content(state: State, task: Task, wanted: Any, names: tuple[str, ...]) -> TaskEdit | None:
    """Takes over prompt and input, those in `names`, from `wanted`; None where they are the same already.

    Alters `task`, which is the caller's. The caller puts it, and then hands the edit to `State.keep_edit`.
    """
    if task.template_id:
        raise _of_a_template(names[0], "is rendered from its template; retry the task with other parameters")
    after = Task(prompt=wanted.prompt)
    if wanted.HasField("input"):
        check_size(state, wanted.input, "input")
        after.input.CopyFrom(wanted.input)
    return _put_content(state, task, after, names, split(wanted.prompt))


def _put_content(state: State, task: Task, wanted: Task, names: tuple[str, ...], parts: list[Part]) -> TaskEdit | None:
    """As `change_content`; `parts` are the new prompt, in pieces where it has places of results."""
    before = Task.FromString(state.content(task.task_id))
    changed = [name for name in names if getattr(before, name) != getattr(wanted, name)]
    if "prompt" in changed and before.prompt_parts and wanted.prompt == joined(from_messages(before.prompt_parts)):
        changed.remove("prompt")  # As it was written, before results were put into it.
    if not changed:
        return None
    after = Task()
    after.CopyFrom(before)
    for name in changed:
        after.ClearField(name)  # type: ignore[arg-type]
        after.MergeFrom(_only(wanted, name))
    if "prompt" in changed and task.display_name == first_line(before.prompt):
        task.display_name = first_line(after.prompt) or task.agent_type
    if "prompt" in changed and task.dependencies:
        keep_places(task, after, parts, "prompt")
    content = after.SerializeToString()
    task.content_bytes = len(content)
    task.edited = True
    state.put_content(task.task_id, content)
    edit = TaskEdit(retry=task.retries, editor=state.caller.actor(), changed_fields=changed)
    stamp(edit.edit_time, state.now_ns)
    if "prompt" in changed:
        edit.prompt = before.prompt
    if "input" in changed and before.HasField("input"):
        edit.input.CopyFrom(before.input)
    return edit


def _only(task: Task, name: str) -> Task:
    """A Task with one field of the content."""
    if name == "prompt":
        return Task(prompt=task.prompt)
    return Task(input=task.input) if task.HasField("input") else Task()


def edit_for_retry(state: State, task: Task, request: RetryTaskRequest) -> tuple[TaskEdit | None, tuple[str, ...]]:
    """What a retry by hand changes of the task besides its state: the edit of its content, and all changed fields.

    Alters `task`, which is the caller's, as `change_content` does.
    """
    names: list[str] = []
    if request.HasField("priority") and request.priority != task.priority:
        task.priority = request.priority
        names.append("priority")
    if request.HasField("retry_policy"):
        task.retry_policy.CopyFrom(with_defaults(request.retry_policy))
        names.append("retry_policy")
    if request.HasField("timeouts"):
        task.timeouts.CopyFrom(request.timeouts)
        names.append("timeouts")
    given = tuple(name for name in _CONTENT if request.HasField(name))  # type: ignore[arg-type]
    edit = change_content(state, task, request, given) if given else None
    if request.HasField("parameters"):
        edit, also = _render_anew(state, task, request.parameters)
        names += also
    return edit, (*names, *(edit.changed_fields if edit is not None else ()))


def _render_anew(state: State, task: Task, parameters: Struct) -> tuple[TaskEdit | None, list[str]]:
    """Prompt, input, keys, locks and name from other parameters, by the version of the template that made the task.

    Keys, locks and name that were said for the task itself stay. So do its steps: each is a task that can be retried
    with another prompt. The second value names what was changed besides the content.
    """
    if not task.template_id:
        raise _of_a_template("parameters", "is for tasks that were made from a template; for this one use input")
    check_size(state, parameters, "parameters")
    number = version_number(state.templates.get(task.template_id), str(task.template_version))
    made = {entry.name for entry in task.dependencies}
    compiled = state.templates.version(task.template_id, number)
    rendered = compiled.render_again(plain_struct(parameters), "parameters", made)
    content = Task.FromString(state.content(task.task_id))
    before = compiled.render_again(plain_struct(content.input), "parameters", made)
    names = []
    own = [key for key in task.concurrency_keys if key not in before.concurrency_keys]
    keys = list(dict.fromkeys([*rendered.concurrency_keys, *own]))
    if keys != list(task.concurrency_keys):
        task.concurrency_keys[:] = keys
        names.append("concurrency_keys")
    if (locks := _locks(task, before.locks, rendered.locks)) != list(task.locks):
        task.ClearField("locks")
        task.locks.extend(locks)
        names.append("locks")
    if task.display_name == before.display_name != rendered.display_name:
        task.display_name = rendered.display_name
        names.append("display_name")
    named = use.named_in(compiled.spec.parameters, rendered.values)
    if named != use.named_in(compiled.spec.parameters, before.values):
        use.check(state, named, "parameters")
        for name in use.named_in(compiled.spec.parameters, before.values):
            del task.secrets[name]
        task.secrets.update(named)
        names.append("secrets")
    after = Task(prompt=rendered.prompt)
    after.input.CopyFrom(as_struct(rendered.values))
    return _put_content(state, task, after, _CONTENT, rendered.parts), names


def _locks(task: Task, before: Sequence[LockItem], after: Sequence[LockItem]) -> list[TaskLock]:
    """The locks of a task that is rendered anew: what the template says now, and what was said for the task itself."""
    of_template = {(lock.path, lock.mode) for lock in before}
    own = [lock for lock in task.locks if (lock.path, lock.mode) not in of_template]
    return declared(own, "locks", after)


def set_locks(task: Task, wanted: Task) -> None:
    """Other locks for a task that no agent has. Alters `task`, which is the caller's."""
    if task.state not in WAITING:
        raise task_state_conflict(task, "given other locks", WAITING)
    locks = declared(wanted.locks, "task.locks")
    task.ClearField("locks")
    task.locks.extend(locks)


def set_not_before(state: State, task: Task, wanted: Task) -> tuple[str, ...]:
    """Another earliest start for a task that no agent has; it is parked or queued as that says.

    Alters `task`, which is the caller's. The names of what else was changed. What it waits for besides stays.
    """
    if task.state not in WAITING:
        raise task_state_conflict(task, "given another not_before_time", WAITING)
    others = [wait for wait in task.waiting_on if wait.kind != WAIT_KIND_NOT_BEFORE]
    task.ClearField("waiting_on")
    task.waiting_on.extend(others)
    task.ClearField("not_before_time")
    if wanted.HasField("not_before_time"):
        task.not_before_time.CopyFrom(wanted.not_before_time)
    if timestamp_ns(wanted.not_before_time) > state.now_ns:
        wait = task.waiting_on.add(kind=WAIT_KIND_NOT_BEFORE)
        wait.until_time.CopyFrom(wanted.not_before_time)
    right = TASK_STATE_PENDING if task.waiting_on else TASK_STATE_QUEUED
    if task.state == right:
        return ("waiting_on",) if right == TASK_STATE_PENDING else ()
    task.state = right
    now = state.tick_ns()
    stamp(task.state_time, now)
    if right == TASK_STATE_QUEUED:
        stamp(task.queue_time, now)
    return ("state", "waiting_on")


def check_size(state: State, value: Struct, path: str) -> None:
    """Refuses an input or parameters beyond the limit."""
    limit = state.settings.max_content_bytes
    size = value.ByteSize()
    if size > limit:
        raise KapellError(
            ERROR_REASON_REQUEST_INVALID,
            f"{path} is too large: {size} bytes, at most {limit} are allowed. "
            "Pass a path or an address instead of the data.",
            violations=((path, f"must be at most {limit} bytes"),),
        )


def _of_a_template(path: str, what: str) -> KapellError:
    return KapellError(
        ERROR_REASON_REQUEST_INVALID,
        f"The request is invalid: {path} {what}.",
        violations=((path, what),),
    )
