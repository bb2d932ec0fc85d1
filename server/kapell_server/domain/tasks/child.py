"""What an agent may do about the children of the task it holds."""

from __future__ import annotations

from kapell.v1.error_pb2 import ERROR_REASON_NOT_OWNER, ERROR_REASON_REQUEST_INVALID
from kapell.v1.task_pb2 import Task, TaskSpec
from kapell.v1.worker_pb2 import CreateChildTasksRequest

from kapell_server.domain.errors import KapellError
from kapell_server.domain.secrets import use
from kapell_server.domain.state import State
from kapell_server.domain.tasks import family
from kapell_server.domain.tasks.task import create_related
from kapell_server.domain.workers import attempt


def create_children(state: State, request: CreateChildTasksRequest) -> list[Task]:
    """Creates children of the leased task, all or none."""
    lease, parent = attempt.held(state, request.lease_token)
    request = use.redactor(state, parent, lease.agent_id).message(request)
    ours = {spec.task_id for spec in request.tasks if spec.task_id}
    ours.update(entry.task_id for entry in parent.dependencies)
    for index, spec in enumerate(request.tasks):
        _check_modest(spec, parent, f"tasks[{index}]")
        _check_budget(spec, parent, f"tasks[{index}]")
        for number, wanted in enumerate(spec.dependencies):
            if wanted.task_id and wanted.task_id not in ours and not _is_related(state, wanted.task_id, parent):
                raise _foreign(f"tasks[{index}].dependencies[{number}]", wanted.task_id)
    children = create_related(state, request.tasks, "tasks[{}]", parent)
    for top in children:
        for child in (top, *map(state.task, family.below(state, top))):
            use.check_child(child, parent)
    return children


def _check_modest(spec: TaskSpec, parent: Task, path: str) -> None:
    """A child takes no more of what tasks share than its parent has: an agent cannot push others aside by it."""
    if spec.priority > parent.priority:
        raise _immodest(f"{path}.priority", f"must be at most that of the task above it, {parent.priority}")
    if spec.fairness_key and spec.fairness_key != parent.fairness_key:
        raise _immodest(f"{path}.fairness_key", "must be that of the task above it, or empty")
    if not set(spec.concurrency_keys) <= set(parent.concurrency_keys):
        raise _immodest(f"{path}.concurrency_keys", "must be among those of the task above it, or of a template")


def _check_budget(spec: TaskSpec, parent: Task, path: str) -> None:
    """A child draws from the budget that its parent names: an agent cannot spend another's."""
    if spec.budget_id and spec.budget_id != parent.budget_id:
        raise _immodest(f"{path}.budget_id", "must be that of the task above it, or empty")


def _is_related(state: State, task_id: str, parent: Task) -> bool:
    if state.find_task(task_id) is None:
        return True  # That is for the linking to refuse.
    root_id = family.root_of(parent)
    return task_id == root_id or task_id in state.families.of(root_id)


def _immodest(path: str, what: str) -> KapellError:
    return KapellError(
        ERROR_REASON_REQUEST_INVALID,
        f"The request is invalid: {path} {what}. Correct it and send it again.",
        violations=((path, what),),
    )


def _foreign(path: str, task_id: str) -> KapellError:
    return KapellError(
        ERROR_REASON_NOT_OWNER,
        f"{path}: task {task_id} is not of this family, and an agent sees the results of its own only. "
        "Depend on tasks of the same request, of the same root, or on what the task itself depends on.",
        metadata={"task_id": task_id},
    )
