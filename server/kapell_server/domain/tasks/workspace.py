"""What tasks have done in their repositories, as their agents say, and how that was merged.

The server knows no repository: it keeps what it is told, of the attempt that may tell, and of the commit that this
attempt has left.
"""

from __future__ import annotations

from collections.abc import Iterable

from kapell.v1.error_pb2 import ERROR_REASON_WORKSPACE_CHANGED, ERROR_REASON_WORKSPACE_NOT_FOUND
from kapell.v1.task_pb2 import TASK_STATE_SUCCEEDED, RecordTaskMergeRequest, Task
from kapell.v1.watch_pb2 import (
    EVENT_KIND_TASK_MERGED,
    EVENT_KIND_TASK_UNMERGED,
    EVENT_KIND_TASK_WORKSPACE,
    EventKind,
)
from kapell.v1.workspace_pb2 import MERGE_OUTCOME_MERGED, MergeOutcome, TaskWorkspace, WorkspaceMerge

from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.state import State
from kapell_server.domain.transitions import task_state_conflict

_NOTHING = TaskWorkspace()


def note(state: State, current: Task, attempt: int, told: Iterable[TaskWorkspace]) -> Task:
    """Puts what an attempt has left, sorted by name; the same again changes nothing."""
    before = {workspace.name: workspace for workspace in current.workspaces}
    found = {workspace.name: _taken(state, workspace, attempt, before.get(workspace.name)) for workspace in told}
    workspaces = [found[name] for name in sorted(found)]
    if list(current.workspaces) == workspaces:
        return current
    task = copied(current)
    del task.workspaces[:]
    task.workspaces.extend(workspaces)
    tried = {new.merge.outcome for new in workspaces if new.merge != before.get(new.name, _NOTHING).merge}
    return state.put_task(task, _kind_of(tried - {0}), ("workspaces",))


def record_merge(state: State, request: RecordTaskMergeRequest) -> Task:
    """Keeps how a merge has ended."""
    task = copied(state.task(request.task_id))
    workspace = next((one for one in task.workspaces if one.name == request.name), None)
    if workspace is None:
        raise KapellError(
            ERROR_REASON_WORKSPACE_NOT_FOUND,
            f"Task {task.task_id} has no workspace {request.name!r}. It has: {_names(task)}.",
            metadata={"task_id": task.task_id, "name": request.name},
        )
    if workspace.head_commit != request.head_commit:
        raise KapellError(
            ERROR_REASON_WORKSPACE_CHANGED,
            f"The branch of task {task.task_id} was at {request.head_commit}, and is at {workspace.head_commit} now. "
            "Read the task again, and merge what is there.",
            metadata={"task_id": task.task_id, "name": request.name, "head_commit": workspace.head_commit},
        )
    merged = request.merge.outcome == MERGE_OUTCOME_MERGED
    if merged and task.state != TASK_STATE_SUCCEEDED:
        raise task_state_conflict(task, "merged", (TASK_STATE_SUCCEEDED,))
    workspace.merge.CopyFrom(_stamped(state, request.merge))
    return state.put_task(task, _kind_of({request.merge.outcome}), ("workspaces",))


def _taken(state: State, told: TaskWorkspace, attempt: int, before: TaskWorkspace | None) -> TaskWorkspace:
    workspace = copied(told)
    workspace.attempt = attempt
    known = before.merge if before is not None and before.head_commit == told.head_commit else WorkspaceMerge()
    if told.HasField("merge") and not _is_same(told.merge, known):
        workspace.merge.CopyFrom(_stamped(state, told.merge))
    elif known.outcome:
        workspace.merge.CopyFrom(known)
    return workspace


def _is_same(told: WorkspaceMerge, known: WorkspaceMerge) -> bool:
    """Whether a merge was told before: but for what the server has added to it."""
    bare = copied(known)
    for field in ("time", "actor"):
        bare.ClearField(field)
    return told == bare


def _kind_of(tried: set[MergeOutcome.ValueType]) -> EventKind.ValueType:
    if not tried:
        return EVENT_KIND_TASK_WORKSPACE
    return EVENT_KIND_TASK_MERGED if tried == {MERGE_OUTCOME_MERGED} else EVENT_KIND_TASK_UNMERGED


def _stamped(state: State, told: WorkspaceMerge) -> WorkspaceMerge:
    merge = copied(told)
    merge.time.FromNanoseconds(state.now_ns)
    merge.actor.CopyFrom(state.caller.actor())
    return merge


def _names(task: Task) -> str:
    return ", ".join(workspace.name for workspace in task.workspaces) or "none"
